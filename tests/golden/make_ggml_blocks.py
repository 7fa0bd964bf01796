"""Makes ggml_blocks/: values and blocks of ggml's packed formats, by the package gguf 0.19.

    python make_ggml_blocks.py [LIBRARY]

With LIBRARY, a shared library of llama.cpp's ggml-quants.c and ggml.c, the errors of its quantizers of Q4_K, Q5_K and Q6_K, which gguf lacks, are
measured too; without it, their files stay as they are.
"""

import ctypes
import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

FOLDER = pathlib.Path(__file__).parent / "ggml_blocks"
FOLDER.mkdir(exist_ok=True)
random = np.random.default_rng(13)

# Weights of several sizes, heavy tails, an offset, one large value, a block of zeros and one of equal values.
normal = random.standard_normal((8, 256)).astype(np.float32)
values = normal * np.array([[0.02], [1.0], [1e-4], [30.0], [0.05], [0.05], [0.05], [0.05]], np.float32)
values[4] = (random.standard_t(3, 256) * 0.05).astype(np.float32)
values[5] += 0.1
values[6, 77] = 5.0
values[7, :32] = 0.0
values[7, 32:64] = 0.25
values.astype("<f4").tofile(FOLDER / "values.f32")


def save(name, array):
    np.ascontiguousarray(array).tofile(FOLDER / name)


for format in [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K]:
    name = format.name.lower()
    _, size = GGML_QUANT_SIZES[format]
    blocks = random.integers(0, 256, (4, size), dtype=np.uint8)
    # Random bytes everywhere but in the f16 scales, which must be finite.
    places = {"Q6_K": [208], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2]}.get(format.name, [0])
    for place in places:
        scales = (random.standard_normal(4) * 0.1).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(4, 2)
    save(f"{name}.bytes", blocks)
    save(f"{name}.f32", dequantize(blocks, format).astype("<f4"))
    if not format.name.endswith("_K"):
        save(f"{name}.packed", quantize(values, format))
    elif len(sys.argv) > 1:
        library = ctypes.CDLL(sys.argv[1])
        packed = np.zeros((8, size), np.uint8)
        pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)
        function = getattr(library, f"quantize_row_{name[:-1]}K_ref")
        function(pointer(values), pointer(packed), ctypes.c_int64(values.size))
        error = dequantize(packed, format).astype(np.float64) - values
        relative = np.linalg.norm(error) / np.linalg.norm(values.astype(np.float64))
        save(f"{name}.error", np.array([relative], "<f4"))
        print(name, relative)
