#!/usr/bin/env python3
"""Makes the reference results in this folder.

    python -m venv venv && venv/bin/pip install numpy torch==2.8.0 peft==0.18.1 transformers==4.57.6
    venv/bin/python make.py

Python 3.11, on the CPU. Inputs are rounded to four decimals before anything is computed from them, everything is computed
in double precision, and results are rounded before they are written: another machine writes the same files, but for a
last digit here and there.
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rounded(tensor, decimals):
    return torch.round(tensor.detach().double(), decimals=decimals)


def noise(shape, scale=1.0):
    return rounded(torch.randn(shape, dtype=torch.float64) * scale, 4)


def save(path, tensors, decimals=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    narrow = lambda t: rounded(t, decimals).float() if t.is_floating_point() else t
    save_file({name: narrow(tensor).contiguous() for name, tensor in tensors.items()}, path)


def save_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


# One linear layer under each method of PEFT.


class Layer(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0])
        self.layer.weight.data = weight.float()
        self.layer.bias.data = bias.float()

    def forward(self, x):
        return self.layer(x)


def with_fixed_signs(a, b):
    """Pairs of a row of A and a column of B, the largest number of the row positive."""
    largest = a.gather(1, a.abs().argmax(dim=1, keepdim=True))
    return a * largest.sign(), b * largest.sign().T


def linear(r=3, lora_alpha=7, d_out=12, d_in=10):
    torch.manual_seed(20240901)
    w, b, x = noise((d_out, d_in), 0.5), noise(d_out), noise((5, d_in))
    t = rounded(x @ w.T + b, 4) + noise((5, d_out))
    y_base = x @ w.T + b
    base = {"W": w, "b": b, "x": x, "t": t, "y_base": y_base, "singular_values_f64": torch.linalg.svdvals(w)}
    save(HERE / "linear/base.safetensors", base)

    methods = {
        "lora": {},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "pissa": {"init_lora_weights": "pissa"},
        "olora": {"init_lora_weights": "olora"},
    }
    meta = {"r": r, "lora_alpha": lora_alpha, "bias": True, "loss": "0.5*mean((y-t)^2)", "methods": {}}
    for name, config in methods.items():
        torch.manual_seed(7)
        # PEFT decomposes weights of 32 bits at most.
        model = get_peft_model(Layer(w, b), LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=["layer"], **config))
        layer = model.base_model.model.layer
        scaling = layer.scaling["default"]
        a, b_init = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
        splits = name in ("pissa", "olora")
        a, b_init = (rounded(m, 6) for m in (with_fixed_signs(a, b_init) if splits else (a, b_init)))
        left = rounded(w - scaling * b_init @ a if splits else w, 7)
        out = {"A_init": a, "B_init": b_init}
        if splits:
            out["W_base_after_init"] = left

        model.double()
        factor_a, factor_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        magnitude = layer.lora_magnitude_vector["default"].weight if name == "dora" else None
        # The start as it is written.
        layer.base_layer.weight.data, layer.base_layer.bias.data = left.float().double(), b.float().double()
        factor_a.data, factor_b.data = a.float().double(), b_init.float().double()
        if magnitude is not None:
            out["magnitude_init"] = rounded(torch.linalg.norm(w, dim=1), 6)
            magnitude.data = out["magnitude_init"].float().double()
        out["y_init"] = model(x.float().double())

        factor_a.data = rounded(factor_a.data + noise(a.shape, 0.2), 4).float().double()
        factor_b.data = rounded(factor_b.data + noise(b_init.shape, 0.2), 4).float().double()
        out |= {"A": factor_a.data.clone(), "B": factor_b.data.clone()}
        if magnitude is not None:
            magnitude.data = rounded(magnitude.data + noise(magnitude.shape, 0.2), 4).float().double()
            out["magnitude"] = magnitude.data.clone()
        leaf = x.float().double().requires_grad_()
        y = model(leaf)
        loss = 0.5 * (y - t.float().double()).square().mean()
        loss.backward()
        out |= {"y": y, "loss": loss.reshape(1), "grad_x": leaf.grad}
        out |= {"grad_A": factor_a.grad, "grad_B": factor_b.grad}
        if magnitude is not None:
            out["grad_magnitude"] = magnitude.grad
        out["W_merged"] = model.merge_and_unload().layer.weight
        save(HERE / f"linear/{name}.safetensors", out)
        meta["methods"][name] = {"scaling": scaling, "config": config}
    save_json(HERE / "linear/meta.json", meta)


# A Llama with grouped query attention, bare and with a LoRA adapter.


def llama():
    folder = HERE / "llama"
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(20240902)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        around, scale = (1.0, 0.1) if "norm" in name else (0.0, 0.3)
        parameter.data = (around + noise(parameter.shape, scale)).float()
    model.save_pretrained(folder / "checkpoint")
    (folder / "checkpoint/generation_config.json").unlink()
    model.double().eval()

    ids = torch.randint(3, 64, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[mask == 0] = 0
    labels = ids.clone()
    labels[:, :3] = -100
    labels[0, 5] = -100
    labels[mask == 0] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def run(model, rename=lambda name: name):
        model.zero_grad()
        out = model(**batch)
        out.loss.backward()
        grads = {rename(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"logits": out.logits, "loss": out.loss.reshape(1)}, grads

    expected, grads = run(model)
    save(folder / "io.safetensors", batch | expected, 6)
    save_json(folder / "io.json", {"loss": round(expected["loss"].item(), 7)})
    save(folder / "grads.safetensors", grads)

    model.requires_grad_(False)
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=PROJECTIONS, rank_pattern={"q_proj": 3},
                      alpha_pattern={"model.layers.1.mlp.down_proj": 5}, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = noise(parameter.shape, 0.1).float().double()
    expected, grads = run(adapted)
    save(folder / "lora/expected.safetensors", expected, 6)
    save(folder / "lora/grads.safetensors", grads)
    adapted.float().save_pretrained(folder / "lora/adapter")
    (folder / "lora/adapter/README.md").unlink(missing_ok=True)
    path = folder / "lora/adapter/adapter_config.json"
    settings = json.loads(path.read_text())
    # A set, written in no particular order, and a path of this machine.
    settings |= {"target_modules": sorted(settings["target_modules"]), "base_model_name_or_path": "checkpoint"}
    save_json(path, settings)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    linear()
    llama()
