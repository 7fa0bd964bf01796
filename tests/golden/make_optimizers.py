#!/usr/bin/env python3
"""Makes `optimizers/steps.json` and `optimizers/regularizer.json`.

    venv/bin/python make_optimizers.py        # the venv of make.py

`steps.json`: five steps of a tall matrix, a wide one and a vector, by PyTorch's RMSprop, SGD and AdamW, and by Muon as published: the
function below is a statement in NumPy of the algorithm of https://kellerjordan.github.io/posts/muon, with the scale of arXiv 2502.16982;
vectors have PyTorch's AdamW. torch.optim.Muon, which came with torch 2.9, is the same but in bf16. Learning rates differ by step.
`regularizer.json`: the regularizer's norms of factors, their values by `torch.linalg.matrix_norm` and their gradients by autograd.
Everything is computed in double precision.
"""

import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent / "optimizers"
FACTORS = [0.0, 0.5, 1.0, 0.7, 0.2]
SHAPES = {"tall": (5, 3), "wide": (3, 6), "vector": (4,)}
RATE, DECAY = 0.05, 0.1


def noise(shape, scale):
    return torch.round(torch.randn(shape, dtype=torch.float64) * scale, decimals=3)


def torch_steps(make, starts, gradients):
    parameters = {name: torch.nn.Parameter(start.clone()) for name, start in starts.items()}
    optimizer = make(list(parameters.values()))
    for step, factor in enumerate(FACTORS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * factor
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        optimizer.step()
    return {name: parameter.detach().flatten().tolist() for name, parameter in parameters.items()}


def newton_schulz(g):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / max(np.linalg.norm(x), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon_steps(start, gradients, momentum=0.95):
    p, m = start.numpy().copy(), np.zeros(start.shape)
    for factor, g in zip(FACTORS, gradients.numpy()):
        m = momentum * m + (1 - momentum) * g
        update = newton_schulz((1 - momentum) * g + momentum * m)
        rate = RATE * factor
        p = p * (1 - rate * DECAY) - rate * 0.2 * np.sqrt(max(p.shape)) * update
    return p.flatten().tolist()


def steps():
    starts = {name: noise(shape, 1.0) for name, shape in SHAPES.items()}
    gradients = {name: noise((len(FACTORS), *shape), 0.3) for name, shape in SHAPES.items()}
    adamw = lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.999), eps=1e-8)
    cases = {
        "adamw": ({"kind": "adamw"}, adamw),
        "sgd": ({"kind": "sgd"}, lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, weight_decay=DECAY)),
        "rmsprop": ({"kind": "rmsprop"}, lambda p: torch.optim.RMSprop(p, lr=RATE, weight_decay=DECAY)),
        "rmsprop with momentum": (
            {"kind": "rmsprop", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-4},
            lambda p: torch.optim.RMSprop(p, lr=RATE, weight_decay=DECAY, momentum=0.8, alpha=0.95, eps=1e-4),
        ),
    }
    ends = {name: {"settings": s, "end": torch_steps(make, starts, gradients)} for name, (s, make) in cases.items()}
    matrices = {name: muon_steps(starts[name], gradients[name]) for name in ("tall", "wide")}
    ends["muon"] = {"settings": {"kind": "muon"}, "end": {**matrices, "vector": ends["adamw"]["end"]["vector"]}}
    return {
        "rate": RATE,
        "weight_decay": DECAY,
        "factors": FACTORS,
        "start": {name: start.flatten().tolist() for name, start in starts.items()},
        "gradients": {name: [g.flatten().tolist() for g in of] for name, of in gradients.items()},
        "cases": ends,
    }


def regularizer():
    norms = {
        "paper": torch.linalg.matrix_norm,
        "squared": lambda g: g.square().sum(),
        "spectral": lambda g: torch.linalg.matrix_norm(g, 2),
        "nuclear": lambda g: torch.linalg.matrix_norm(g, "nuc"),
    }
    cases = []
    for shape in [(9, 4), (3, 7)]:
        factor = noise(shape, 0.5)
        for lengths in ["one", "free"]:
            for form, norm in norms.items():
                u = factor.clone().requires_grad_()
                gram = u.T @ u if shape[0] > shape[1] else u @ u.T
                g = gram - (torch.eye(len(gram), dtype=torch.float64) if lengths == "one" else gram.diag().diag())
                value = norm(g)
                value.backward()
                cases.append(
                    {
                        "shape": shape,
                        "lengths": lengths,
                        "form": form,
                        "factor": factor.flatten().tolist(),
                        "value": value.item(),
                        "gradient": u.grad.flatten().tolist(),
                    }
                )
    return cases


torch.manual_seed(14)
HERE.mkdir(exist_ok=True)
for name, content in [("steps", steps()), ("regularizer", regularizer())]:
    rounded = json.loads(json.dumps(content), parse_float=lambda text: round(float(text), 9))
    (HERE / f"{name}.json").write_text(json.dumps(rounded, indent=None) + "\n")
