"""Every tensor of a GGUF file against the checkpoint it was made from.

    python gguf_tensors.py MODEL_FOLDER FILE.gguf...

What is expected is computed here by other means: the numbers are read from the safetensors file, reordered as llama.cpp's
converter does (`reshape`, `swapaxes`), and encoded by the `gguf` package. The bytes must be the same.
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH_NAMES, GGMLQuantizationType as Type
from gguf.quants import quantize


def checkpoint(folder):
    """Name -> f32 array, of all safetensors files of a folder."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        data = file.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        for name, info in header.items():
            if name == "__metadata__":
                continue
            start, end = (8 + length + offset for offset in info["data_offsets"])
            raw = data[start:end]
            if info["dtype"] == "BF16":
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[info["dtype"]]).astype(np.float32)
            tensors[name] = values.reshape(info["shape"])
    return tensors


def permute(weights, heads):
    """`LlamaModel.permute` of llama.cpp's converter."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def compare(folder, file):
    config = json.loads((Path(folder) / "config.json").read_text())
    source = checkpoint(folder)
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config["num_hidden_layers"])
    expected = {}
    for name, values in source.items():
        stem, suffix = name.rsplit(".", 1)
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        expected[f"{names.get_name(stem)}.{suffix}"] = (name, values)
    counts, faults = {}, []
    for tensor in reader.tensors:
        name, values = expected.pop(tensor.name, (None, None))
        if name is None:
            if tensor.name not in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"):
                faults.append(f"{tensor.name} is in no checkpoint")
            continue
        heads = config["num_attention_heads"]
        if architecture == "llama" and ".q_proj." in name:
            values = permute(values, heads)
        if architecture == "llama" and ".k_proj." in name:
            values = permute(values, config.get("num_key_value_heads", heads))
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if list(tensor.shape) != list(reversed(values.shape)):
            faults.append(f"{tensor.name} has shape {list(tensor.shape)}, {name} has {list(values.shape)}")
            continue
        kind = Type(tensor.tensor_type)
        wanted = values if kind == Type.F32 else quantize(values, kind)
        if wanted.tobytes() != np.ascontiguousarray(tensor.data).tobytes():
            faults.append(f"{tensor.name} ({kind.name}) differs from {name}")
        counts[kind.name] = counts.get(kind.name, 0) + 1
    faults += [f"{name} is missing" for name in expected]
    size = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(f"{Path(file).name}: {architecture}, {size}: {'the same to the bit' if not faults else 'DIFFERENT'}")
    for fault in faults:
        print("   ", fault)
    return not faults


if __name__ == "__main__":
    from importlib.metadata import version

    print(f"gguf {version('gguf')}, numpy {np.__version__}")
    results = [compare(sys.argv[1], file) for file in sys.argv[2:]]
    sys.exit(0 if results and all(results) else 1)
