#!/usr/bin/env python3
"""Makes `svd_methods`: one linear layer under KaSA and MiCA of PEFT, and under SVFT and LoRA-GA as their papers state them.

    python -m venv venv && venv/bin/pip install numpy torch==2.8.0 peft==0.21.2 transformers==5.24.0
    venv/bin/python make_svd_methods.py

Python 3.11, on the CPU. Inputs are rounded to four decimals before anything is computed from them, everything is computed in double
precision, and results are rounded before they are written.
"""

import torch
from peft import KasaConfig, LoraConfig, get_peft_model
from torch import nn

from make import HERE, Layer, noise, rounded, save, save_json

R, ALPHA, D_OUT, D_IN, BETA, GAMMA, STABLE_GAMMA = 3, 7, 12, 10, 0.02, 0.05, 16.0


def exact(tensor):
    """The numbers that a file in f32 holds."""
    return tensor.detach().float().double()


def step(out, model, x, t, parameters):
    leaf = exact(x).requires_grad_()
    for parameter in parameters.values():
        parameter.grad = None
    y = model(leaf)
    loss = 0.5 * (y - exact(t)).square().mean()
    loss.backward()
    out |= {"y": y, "loss": loss.reshape(1), "grad_x": leaf.grad}
    out |= {f"grad_{name}": parameter.grad.clone() for name, parameter in parameters.items()}


def disturbed(parameter):
    parameter.data = exact(rounded(parameter.data + noise(parameter.shape, 0.2), 4))
    return parameter.data.clone()


def of_peft(w, b, x, t, **options):
    """The layer with PEFT's adapter, in f64 after PEFT's own start in f32."""
    torch.manual_seed(7)
    config = LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["layer"], **options)
    model = get_peft_model(Layer(w, b), config)
    model.double()
    layer = model.base_model.model.layer
    layer.base_layer.bias.data = exact(b)
    return model, layer


def kasa(w, b, x, t):
    model, layer = of_peft(w, b, x, t, kasa_config=KasaConfig(beta=BETA, gamma=GAMMA))
    out = {"W_base_after_init": layer.base_layer.weight.data.clone(), "y_init": model(exact(x))}
    parameters = {"A": layer.lora_A["default"].weight, "s": layer.lora_diag["default"], "B": layer.lora_B["default"].weight}
    out |= {name: disturbed(parameter) for name, parameter in parameters.items()}
    step(out, model, x, t, parameters)
    # PEFT's own term of the loss computes in f32.
    for parameter in parameters.values():
        parameter.grad = None
    penalty = model.base_model._get_kasa_loss()
    penalty.backward()
    out |= {"penalty": penalty.reshape(1)} | {f"penalty_grad_{name}": p.grad for name, p in parameters.items()}
    out["W_merged"] = model.merge_and_unload().layer.weight
    save(HERE / "svd_methods/kasa.safetensors", out)


def mica(w, b, x, t):
    model, layer = of_peft(w, b, x, t, init_lora_weights="mica")
    frozen = layer.lora_B["default"].weight
    assert not frozen.requires_grad
    out = {"B": frozen.data.clone(), "y_init": model(exact(x))}
    parameters = {"A": layer.lora_A["default"].weight}
    assert parameters["A"].abs().max() == 0
    out["A"] = disturbed(parameters["A"])
    step(out, model, x, t, parameters)
    out["W_merged"] = model.merge_and_unload().layer.weight
    save(HERE / "svd_methods/mica.safetensors", out)


class Svft(nn.Module):
    """W + scale U M V^T, with M zero outside of its diagonals."""

    def __init__(self, w, b, matrix):
        super().__init__()
        self.w, self.b = exact(w), exact(b)
        self.u, _, self.vt = torch.linalg.svd(self.w, full_matrices=False)
        self.matrix = nn.Parameter(matrix)

    def weight(self):
        return self.w + ALPHA / R * self.u @ self.matrix @ self.vt

    def forward(self, x):
        return x @ self.weight().T + self.b


def svft(w, b, x, t, diagonals):
    side = min(D_OUT, D_IN)
    # Burn's weight is the transpose: what is above the main diagonal there is below it here.
    below = (diagonals - 1) // 2
    offset = torch.arange(side)[:, None] - torch.arange(side)[None, :]
    mask = (offset >= -below) & (offset <= diagonals - 1 - below)
    model = Svft(w, b, exact(noise((side, side), 0.2)) * mask)
    out = {"U": model.u, "Vt": model.vt, "M": model.matrix.data.clone(), "mask": mask.double()}
    step(out, model, x, t, {"M": model.matrix})
    out["grad_M"] *= mask
    out["W_merged"] = model.weight()
    save(HERE / f"svd_methods/svft_{diagonals}.safetensors", out)


def lora_ga(w, b, x, t):
    weight = exact(w).requires_grad_()
    loss = 0.5 * (exact(x) @ weight.T + exact(b) - exact(t)).square().mean()
    loss.backward()
    # Every number is written: a small one decides vectors too.
    gradient = exact(weight.grad * 64)
    u, _, vt = torch.linalg.svd(gradient, full_matrices=False)
    length = D_OUT**0.25 / STABLE_GAMMA**0.5
    out = {"gradient": gradient, "A_init": length * vt[:R], "B_init": length * u[:, R : 2 * R]}
    save(HERE / "svd_methods/lora_ga.safetensors", out, 9)


def main():
    torch.manual_seed(20261128)
    w, b, x = noise((D_OUT, D_IN), 0.5), noise(D_OUT), noise((8, D_IN))
    t = rounded(x @ w.T + b, 4) + noise((8, D_OUT))
    save(HERE / "svd_methods/base.safetensors", {"W": w, "b": b, "x": x, "t": t, "y_base": x @ w.T + b})
    kasa(w, b, x, t)
    mica(w, b, x, t)
    for diagonals in [1, 3, 4]:
        svft(w, b, x, t, diagonals)
    lora_ga(w, b, x, t)
    save_json(HERE / "svd_methods/meta.json", {"r": R, "lora_alpha": ALPHA, "beta": BETA, "gamma": GAMMA, "stable_gamma": STABLE_GAMMA})


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main()
