#!/usr/bin/env python3
"""Makes `training/`: twelve steps of LoRA and of SORSA on the Llama of `llama/`, written out in PyTorch.

    venv/bin/python make_training.py        # the venv of make.py

SORSA is the module below, after the paper (arXiv 2409.00055), its regularizer's gradient by autograd; the optimizer is PyTorch's AdamW.
Everything is computed in double precision. SORSA starts off the orthonormal point: at it the direction of the regularizer
is rounding noise, which Adam would blow up.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

HERE = Path(__file__).parent
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 3, 6.0
SETTINGS = dict(steps=12, accumulation=2, lr=5e-3, weight_decay=0.01, clip=1.0, warmup=2, gamma=2e-3, rank=RANK, alpha=ALPHA)
RUNS = {
    "lora": {},
    # `(gamma / peak rate) grad L` joins the clipped gradient; L is the sum of norms.
    "sorsa": {"form": "paper", "coupling": "gradient"},
    # `gamma_t grad L` beside Adam's step; L is the sum of squared norms.
    "sorsa_decoupled": {"form": "squared", "coupling": "decoupled"},
}


def noise(shape, scale):
    return torch.round(torch.randn(shape, dtype=torch.float64) * scale, decimals=4).float().double()


class Lora(torch.nn.Module):
    """`y = x W^T + (alpha / r) x A^T B^T`."""

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight.detach()
        d_out, d_in = self.weight.shape
        self.A = torch.nn.Parameter(noise((RANK, d_in), 0.1))
        self.B = torch.nn.Parameter(noise((d_out, RANK), 0.1))

    def forward(self, x):
        return x @ self.weight.T + ALPHA / RANK * (x @ self.A.T) @ self.B.T

    def regularizer(self, form):
        return 0.0


class Sorsa(torch.nn.Module):
    """`y = x W_r^T + (alpha / r) ((x A^T) * s) B^T`; the rows of A and the columns of B are to stay orthonormal."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        self.initial = {"A": vt[:RANK].float(), "S": (s[:RANK] / (ALPHA / RANK)).float(), "B": u[:, :RANK].float()}
        a, s, b = (part.double() for part in self.initial.values())
        self.residual = weight - ALPHA / RANK * (b * s) @ a
        start = lambda factor: (factor + noise(factor.shape, 0.05)).float().double()
        self.A, self.S, self.B = (torch.nn.Parameter(start(part)) for part in (a, s, b))

    def forward(self, x):
        return x @ self.residual.T + ALPHA / RANK * ((x @ self.A.T) * self.S) @ self.B.T

    def regularizer(self, form):
        eye = torch.eye(RANK, dtype=torch.float64)
        defects = [self.A @ self.A.T - eye, self.B.T @ self.B - eye]
        return sum(defect.norm() if form == "paper" else defect.square().sum() for defect in defects)


def micro_batches(count):
    """Rows of unequal length, padded on the right; a prompt and one hole are no targets."""
    for index in range(count):
        ids = torch.randint(3, 64, (2, 8 + index % 3))
        mask = torch.ones_like(ids)
        mask[1, 5 + index % 4 :] = 0
        ids[mask == 0] = 0
        labels = ids.clone()
        labels[:, :2] = -100
        labels[0, 4] = -100
        labels[mask == 0] = -100
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train(name, form=None, coupling=None):
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(HERE / "llama/checkpoint", attn_implementation="eager").double().eval()
    model.requires_grad_(False)
    adapted = {}
    for path, linear in [(path, module) for path, module in model.named_modules() if path.split(".")[-1] in PROJECTIONS]:
        adapted[path] = (Sorsa if form else Lora)(linear)
        parent, last = path.rsplit(".", 1)
        setattr(model.get_submodule(parent), last, adapted[path])
    kind = "sorsa" if form else "lora"
    factors = lambda prefix: {
        f"{prefix}{path}.{kind}_{factor}": value.detach().float().contiguous().clone()
        for path, module in adapted.items()
        for factor, value in module.named_parameters()
    }
    tensors = factors("start.")
    if form:
        tensors |= {f"initial.{path}.sorsa_{f}": v.contiguous() for path, m in adapted.items() for f, v in m.initial.items()}

    steps, accumulation, peak = SETTINGS["steps"], SETTINGS["accumulation"], SETTINGS["lr"]
    batches = list(micro_batches(steps * accumulation))
    tensors |= {f"batch{index}.{field}": value for index, batch in enumerate(batches) for field, value in batch.items()}
    trained = [parameter for module in adapted.values() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=peak, weight_decay=SETTINGS["weight_decay"])
    schedule = get_cosine_schedule_with_warmup(optimizer, SETTINGS["warmup"], steps)
    log = []
    for step in range(steps):
        of_step = batches[step * accumulation : (step + 1) * accumulation]
        targets = sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in of_step)
        total = 0.0
        for batch in of_step:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 64), labels.reshape(-1), reduction="sum") / targets
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, SETTINGS["clip"]).item()
        rate = schedule.get_last_lr()[0]
        line = {"loss": total, "grad_norm": norm, "learning_rate": rate}
        directions = None
        if form:
            value = sum(module.regularizer(form) for module in adapted.values())
            line["regularizer"] = value.item()
            if coupling == "gradient":
                (SETTINGS["gamma"] / peak * value).backward()
            else:
                regularized = [parameter for module in adapted.values() for parameter in (module.A, module.B)]
                directions = list(zip(regularized, torch.autograd.grad(value, regularized)))
        optimizer.step()
        for parameter, direction in directions or []:
            parameter.data -= SETTINGS["gamma"] * rate / peak * direction
        optimizer.zero_grad()
        schedule.step()
        log.append({key: float(f"{value:.9g}") for key, value in line.items()})
    return tensors | factors("final."), log


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder = HERE / "training"
    folder.mkdir(exist_ok=True)
    meta = {"settings": SETTINGS, "runs": {}}
    for name, options in RUNS.items():
        tensors, log = train(name, **options)
        save_file(tensors, folder / f"{name}.safetensors")
        meta["runs"][name] = options | {"log": log}
    lines = json.dumps(meta, indent=1)
    (folder / "meta.json").write_text(lines + "\n")
