"""Makes quantized_starts/: LoftQ and QPiSSA of one weight in NF4, with PEFT's functions and bitsandbytes. `python make_quantized_starts.py`"""

import pathlib

import bitsandbytes.functional as bnb
import torch
from peft.utils import loftq_utils
from peft.utils.loftq_utils import _low_rank_decomposition

FOLDER = pathlib.Path(__file__).parent / "quantized_starts"
FOLDER.mkdir(exist_ok=True)
RANK, D_OUT, D_IN = 4, 24, 48
torch.manual_seed(29)


def save(name, tensor):
    tensor.detach().contiguous().numpy().tofile(FOLDER / name)


def pack(matrix):
    """Codes, and values, of NF4 without double quantization. On a CPU, bitsandbytes is wrong if blocks run over the ends of rows."""
    codes, state = bnb.quantize_4bit(matrix.float().flatten(), blocksize=64, quant_type="nf4")
    return codes, bnb.dequantize_4bit(codes, state).reshape(matrix.shape)


def leading(matrix):
    parts = _low_rank_decomposition(matrix.double(), reduced_rank=RANK)
    return parts["L"] @ parts["R"]


def start(weight, product, rounds):
    """Rounds of `q = pack(W - L R)`, `L R = svd_r(W - widen(q))`. Both papers; with `L R` of `W` first it is QPiSSA, with 0 LoftQ."""
    for _ in range(rounds):
        codes, widened = pack(weight.double() - product)
        subtracted, product = product, leading(weight - widened)
    return codes, subtracted, product, weight.double() - widened.double() - product


# A few strong directions over noise, like a trained weight.
weight = torch.randn(D_OUT, 6) @ torch.diag(torch.tensor([3.0, 2.0, 1.5, 1.0, 0.7, 0.5])) @ torch.randn(6, D_IN) * 0.02
weight += 0.05 * torch.randn(D_OUT, D_IN)
save("weight.f32", weight)
norms = []
for rounds in (1, 5):
    for name, first in (("loftq", torch.zeros(D_OUT, D_IN, dtype=torch.float64)), ("qpissa", leading(weight))):
        codes, subtracted, product, error = start(weight, first, rounds)
        save(f"{name}{rounds}.codes", codes)
        save(f"{name}{rounds}.product", product.float())
        norms += [torch.linalg.svdvals(error).sum(), error.norm()]
error = weight.double() - pack(weight)[1]
norms += [torch.linalg.svdvals(error).sum(), error.norm()]
# loftq 1, qpissa 1, loftq 5, qpissa 5, qlora: nuclear and Frobenius norm of each.
save("norms.f64", torch.stack(norms))

# PEFT's own LoftQ, with the code book that it computes. Its function for bitsandbytes needs a GPU.
loftq_utils.is_bnb_4bit_available = lambda: False
for rounds in (1, 5):
    widened, lora_a, lora_b = loftq_utils.loftq_init(weight, num_bits=4, reduced_rank=RANK, num_iter=rounds)
    _, _, product, error = start(weight, torch.zeros(D_OUT, D_IN, dtype=torch.float64), rounds)
    assert (lora_b @ lora_a - product).abs().max() < 1e-5, rounds
    assert abs((weight - widened - lora_b @ lora_a).norm() / error.norm() - 1) < 1e-4, rounds
# The loop of PiSSA's authors ends with the packing: its factors of two rounds are those that are subtracted in the second here.
residual = weight.double()
for _ in range(5):
    product = leading(residual)
    codes, widened = pack(weight.double() - product)
    residual = weight.double() - widened
own_codes, subtracted, _, _ = start(weight, leading(weight), 5)
assert torch.equal(codes, own_codes) and torch.allclose(product, subtracted)
