"""Folders in bitsandbytes' 4 bits that `sorsa` writes, read by Transformers and bitsandbytes.

    python bitsandbytes_folders.py MODEL_FOLDER
    python bitsandbytes_folders.py residual RUN

For each format: `sorsa export --format hf --dtype FORMAT`, loaded by `from_pretrained` in 4 bits. Compares
- every packed matrix, widened by `bitsandbytes.functional.dequantize_4bit`, with the one that bitsandbytes makes of the original weight
  (its own packing), and with the matrix that `sorsa` reads from the folder (`sorsa export --format hf --dtype f32`), to the bit,
- the logits of Transformers with these values with those of `sorsa verify` on the folder.

RUN is a run of SORSA or PiSSA on such a folder (`sorsa finetune --model FOLDER --method sorsa`). `sorsa export --format peft --residual`
writes the residual in 4 bits and the adapter for it; PEFT loads the adapter on the residual, and residual and adapter together are compared
with the weights of `sorsa merge`.

Run at the root of the repository, after `cargo build --release --workspace --bin sorsa`; needs bitsandbytes with its CPU library.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SORSA = "target/release/sorsa"
FORMATS = {"nf4": ("nf4", True), "nf4-single": ("nf4", False), "fp4": ("fp4", True), "fp4-single": ("fp4", False)}


def sorsa(*arguments, check=True):
    done = subprocess.run([SORSA, *(str(argument) for argument in arguments)], capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


def check(base, name, dir):
    kind, double = FORMATS[name]
    folder, wide = dir / name, dir / f"{name}-f32"
    sorsa("export", "--format", "hf", "--model", base, "--dtype", name, "--out", folder)
    original = AutoModelForCausalLM.from_pretrained(base, dtype="auto").state_dict()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    layers = {path: module for path, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    packed, stored = {}, {}
    for path, module in layers.items():
        state = module.weight.quant_state
        assert state.quant_type == kind and state.nested == double, path
        packed[path], stored[path] = dequantize_4bit(module.weight.data, state), module.weight.data.clone()
    far = other_codes = other_scales = scales = 0
    for path, values in packed.items():
        codes, state = quantize_4bit(original[f"{path}.weight"].float(), quant_type=kind, compress_statistics=double)
        theirs = dequantize_4bit(codes, state).to(values.dtype)
        other_codes += int((codes != stored[path]).sum())
        own = layers[path].weight.quant_state.absmax
        other_scales += int((state.absmax != own).sum())
        scales += own.numel()
        far = max(far, float((theirs - values).abs().max() / theirs.abs().max()))
    count = sum(values.numel() for values in packed.values())
    print(f"{name}: {len(packed)} matrices of 4 bits, {count} values; beside bitsandbytes' own packing, {other_codes} bytes of codes and "
          f"{other_scales} of {scales} scales differ, values by {far:.1e} of the largest at most")
    sorsa("export", "--format", "hf", "--model", folder, "--dtype", "f32", "--out", wide)
    ours = load_file(wide / "model.safetensors")
    same = all(torch.equal(ours[f"{path}.weight"], values.float()) for path, values in packed.items())
    print(f"    sorsa reads the folder to the same values to the bit: {same}", flush=True)
    # The same values in a dense model: on some processors, bitsandbytes' own products are of bf16.
    dense = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    dense.load_state_dict({f"{path}.weight": values.float() for path, values in packed.items()}, strict=False)
    ids = torch.randint(1, model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, of_kernels = dense(ids).logits, model(ids).logits
    save_file({"input_ids": ids, "logits": logits.float().contiguous()}, dir / "golden.safetensors")
    printed = sorsa("verify", "--model", folder, "--golden", dir / "golden.safetensors", "--format", "json", check=False)
    difference = json.loads(printed)["checks"][0]["difference"]
    print(f"    logits differ by {difference:.1e} from those of Transformers with these values, whose largest is {logits.abs().max():.1f}; "
          f"those of bitsandbytes' kernels by {(of_kernels - logits).abs().max():.1e}", flush=True)
    return same and other_codes == 0 and far < 0.02 and difference < 1e-3


def residual(run, dir):
    from peft import PeftModel

    rest, peft, merged = dir / "rest", dir / "peft", dir / "merged"
    sorsa("export", "--format", "peft", "--adapter", run, "--residual", rest, "--out", peft)
    sorsa("merge", "--adapter", run, "--dtype", "f32", "--out", merged)
    base = AutoModelForCausalLM.from_pretrained(rest, dtype=torch.float32, device_map="cpu")
    layers = [path for path, module in base.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    model, merged = PeftModel.from_pretrained(base, peft), load_file(merged / "model.safetensors")
    far = change = 0
    for path in layers:
        layer = model.base_model.model.get_submodule(path)
        weight = layer.base_layer.weight
        delta, whole = layer.get_delta_weight("default"), merged[f"{path}.weight"]
        far = max(far, float((dequantize_4bit(weight.data, weight.quant_state) + delta - whole).abs().max() / whole.abs().max()))
        change = max(change, float(delta.abs().max() / whole.abs().max()))
    print(f"residual: {len(layers)} matrices of 4 bits with PEFT's adapter on them are sorsa's merged ones, but for {far:.1e} of the largest "
          f"value; the adapter is {change:.1e} of it")
    return far < 1e-5 and len(layers) > 0


if __name__ == "__main__":
    print(", ".join(f"{name} {version(name)}" for name in ["torch", "transformers", "bitsandbytes", "safetensors"]))
    good = True
    with tempfile.TemporaryDirectory() as dir:
        if sys.argv[1] == "residual":
            good = residual(sys.argv[2], Path(dir))
        else:
            for name in FORMATS:
                good &= check(sys.argv[1], name, Path(dir))
    sys.exit(0 if good else 1)
