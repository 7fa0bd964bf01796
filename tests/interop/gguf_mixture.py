"""The types that `sorsa export --format gguf` gives each tensor, and what they lose, beside llama.cpp's own quantizer.

    python gguf_mixture.py MODEL_FOLDER [TYPE...]

Writes the model as f16, has llama.cpp quantize that file, and compares both with the f16 values. Exits with 1 if a tensor has another
type, a key another value, or if a type loses 2 % more than llama.cpp's.

Run at the root of the repository, after `cargo build --release --workspace --bin sorsa`.
"""

import collections
import ctypes
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf import GGUFReader

SORSA = "target/release/sorsa"
# llama.cpp's numbers of the mixtures.
FILE_TYPES = {"q4_k_m": 15, "q5_k_m": 17}
KEYS = ["general.file_type", "general.quantization_version", "general.architecture"]


def values(tensor):
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)


def errors(file, source):
    """By type: the Frobenius norm of the error over that of the values."""
    sums = collections.defaultdict(lambda: [0.0, 0.0])
    for tensor in file.tensors:
        wanted = values(source[tensor.name])
        if wanted.ndim > 1:
            of_type = sums[tensor.tensor_type.name]
            of_type[0] += ((values(tensor) - wanted) ** 2).sum()
            of_type[1] += (wanted**2).sum()
    return {name: (error / square) ** 0.5 for name, (error, square) in sorted(sums.items())}


def compare(folder, name, dir):
    ours, theirs, source = dir / "sorsa.gguf", dir / "llama.gguf", dir / "f16.gguf"
    for dtype, out in [("f16", source), (name, ours)]:
        command = [SORSA, "export", "--format", "gguf", "--model", folder, "--dtype", dtype, "--out", out]
        printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[name]
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(theirs).encode(), ctypes.byref(parameters)) == 0
    ours, theirs, source = GGUFReader(ours), GGUFReader(theirs), GGUFReader(source)
    source = {tensor.name: tensor for tensor in source.tensors}
    types = [{tensor.name: tensor.tensor_type.name for tensor in file.tensors} for file in [ours, theirs]]
    other = {tensor: (types[0].get(tensor), kind) for tensor, kind in types[1].items() if types[0].get(tensor) != kind}
    keys = [{key: file.fields[key].contents() for key in KEYS} for file in [ours, theirs]]
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(collections.Counter(types[0].values()).items()))
    print(f"{Path(folder).name} {name}: {counts}; {len(other)} tensors of another type; the same keys: {keys[0] == keys[1]}")
    print(f"    {[line for line in printed.splitlines() if 'off by' in line][0]}")
    for tensor, pair in list(other.items())[:5]:
        print(f"    {tensor}: {pair[0]}, llama.cpp {pair[1]}")
    found, wanted = errors(ours, source), errors(theirs, source)
    for kind, error in wanted.items():
        print(f"    {kind}: {found.get(kind, float('nan')):.5f}, llama.cpp {error:.5f}")
    return not other and keys[0] == keys[1] and all(found[kind] <= 1.02 * error for kind, error in wanted.items())


if __name__ == "__main__":
    print(f"llama-cpp-python {version('llama-cpp-python')}, gguf {version('gguf')}, numpy {np.__version__}")
    folder, *names = sys.argv[1:]
    good = True
    for name in names or FILE_TYPES:
        with tempfile.TemporaryDirectory() as dir:
            good &= compare(folder, name, Path(dir))
    sys.exit(0 if good else 1)
