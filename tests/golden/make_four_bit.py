"""Makes four_bit/: what bitsandbytes 0.50 packs on the CPU, and the values of it. `python make_four_bit.py`"""

import pathlib

import numpy as np
import torch
import bitsandbytes.functional as bnb

FOLDER = pathlib.Path(__file__).parent / "four_bit"
FOLDER.mkdir(exist_ok=True)
torch.manual_seed(17)


def save(name, tensor):
    tensor.detach().contiguous().numpy().tofile(FOLDER / name)


# 1,999 values: the last block is short, and the last byte half full.
values = torch.randn(1999) * 0.05
values[64:128] *= 100
values[128:192] = 0
values[700] = 3.0
save("values.f32", values)
for book in ("nf4", "fp4"):
    codes, state = bnb.quantize_4bit(values, blocksize=64, quant_type=book)
    save(f"{book}.book", state.code)
    save(f"{book}.codes", codes)
    save(f"{book}.scales", state.absmax)
    save(f"{book}.f32", bnb.dequantize_4bit(codes, state))
    for state.dtype, name in ((torch.float16, "f16"), (torch.bfloat16, "bf16")):
        save(f"{book}.{name}", bnb.dequantize_4bit(codes, state).view(torch.int16))

scales = torch.rand(600) * 0.2 + 0.05
offset = scales.mean()
codes, state = bnb.quantize_blockwise(scales - offset, blocksize=256)
save("scales.f32", scales)
save("nested.codes", codes)
save("nested.scales", state.absmax)
save("nested.offset", offset.reshape(1))
save("nested.f32", bnb.dequantize_blockwise(codes, state) + offset)
save("dynamic.book", state.code)
