"""Makes bands/: what PiSSA and SORSA split off a weight in each band of singular triplets, by NumPy in f64. `python make_bands.py`"""

import pathlib

import numpy as np
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).parent / "bands"
FOLDER.mkdir(exist_ok=True)
RANK = 4
rng = np.random.default_rng(14)

tensors = {}
for name, d_out, d_in in [("wide", 12, 20), ("tall", 20, 9)]:
    weight = rng.standard_normal((d_out, d_in)).astype(np.float32)
    tensors[f"{name}.weight"] = weight
    u, s, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    rest = len(s) - RANK
    for band, first in [("principal", 0), ("middle", rest // 2), ("minor", rest), ("1", 1)]:
        part = slice(first, first + RANK)
        product = (u[:, part] * s[part]) @ vt[part]
        tensors[f"{name}.{band}.product"] = product.astype(np.float32)
        tensors[f"{name}.{band}.s"] = s[part].astype(np.float32)
save_file(tensors, FOLDER / "bands.safetensors")
