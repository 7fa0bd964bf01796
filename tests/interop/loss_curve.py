"""The losses of the first steps beside PyTorch's, from the same weights, the same adapter and the same batch.

    python tests/interop/loss_curve.py datasets/base datasets/arithmetic/train.jsonl [STEPS]

A random Llama of the shape S (width 288, 6 layers, 6 heads, feed-forward 768, vocabulary 32,000) with the tokenizer of the first argument;
the first eight rows of the second as texts, all of them in every step, so that no order matters. LoRA and PiSSA start as PEFT starts them, full
fine-tuning trains every weight; SORSA is the few lines below, after the paper, with the gradient of its regularizer by autograd. Learning rates,
betas, weight decay, clipping and gamma are those that `sorsa` wrote to the run's folder. Exits 1 where a loss differs by more than 1e-3. Needs torch,
transformers, peft; `target/release/sorsa` or the path in SORSA.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

SORSA = os.environ.get("SORSA", "target/release/sorsa")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS, RANK, TOLERANCE = 8, 16, 1e-3


class Sorsa(torch.nn.Module):
    """`x W_r + ((x U) * s) V^T` with the leading singular triplets of the weight (arXiv 2409.00055)."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach().T.double()
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        u, s, vt = u[:, :RANK], s[:RANK], vt[:RANK]
        self.register_buffer("residual", (weight - (u * s) @ vt).float())
        self.u, self.s, self.vt = (torch.nn.Parameter(part.float()) for part in (u, s, vt))

    def forward(self, x):
        return x @ self.residual + ((x @ self.u) * self.s) @ self.vt

    def defects(self):
        """`||U^T U - I||_F` and `||V^T V - I||_F`, but those that are rounding, whose gradient would be noise."""
        norms = [(wide @ wide.T - torch.eye(RANK)).norm() for wide in (self.u.T, self.vt)]
        return [norm for norm in norms if norm > 32 * torch.finfo(torch.float32).eps * RANK**0.5]


def with_sorsa(model):
    """The frozen model with SORSA on its targets."""
    model.requires_grad_(False)
    for path, linear in [(path, module) for path, module in model.named_modules() if path.split(".")[-1] in TARGETS]:
        parent, name = path.rsplit(".", 1)
        setattr(model.get_submodule(parent), name, Sorsa(linear))
    return model


def random_llama(tokenizer, folder):
    """Writes the model and the tokenizer's files into `folder`."""
    torch.manual_seed(0)
    shape = dict(hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, vocab_size=32_000)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    LlamaForCausalLM(LlamaConfig(**shape, **ids, max_position_embeddings=256, tie_word_embeddings=False)).save_pretrained(folder)
    for file in Path(tokenizer.name_or_path).glob("*token*"):
        shutil.copy(file, folder)


def batch(tokenizer, texts):
    """Input ids, mask and labels, padded on the right; every token after the first is a target."""
    rows = [
        [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts
    ]
    length = max(map(len, rows))
    padded = lambda value: torch.tensor([row + [value] * (length - len(row)) for row in rows])
    ids, labels = padded(tokenizer.eos_token_id), padded(-100)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def ours(model, data, run, steps, method, adapter):
    """The settings of the run, and of each step loss and learning rate."""
    command = [SORSA, "finetune", "--model", model, "--data", data, "--method", method, "--batch-size", ROWS, "--epochs", steps]
    command += ["--rank", RANK, "--lr", "1e-3", "--set", "eval.problems=0", "--set", "data.validation_rows=0"]
    command += ["--set", "svd.cache=false", "--quiet", "--run-dir", run] + (["--adapter", adapter] if adapter else [])
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return tomllib.loads((run / "recipe.toml").read_text())["train"], [line for line in lines if "learning_rate" in line]


def theirs(model, inputs, train, rates):
    """The losses of the same steps in PyTorch."""
    settings = train.get("optimizer", {})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (settings.get("beta1", 0.9), settings.get("beta2", 0.999))
    decay = settings.get("weight_decay", 0.0)
    # The regularizer's gradient joins after clipping, divided by the peak rate: Adam's step then has gamma of the schedule.
    gamma = train.get("regularizer", {}).get("gamma", 4e-4) / settings.get("learning_rate", 1e-3)
    factored = [module for module in model.modules() if isinstance(module, Sorsa)]
    optimizer = torch.optim.AdamW(trained, lr=1.0, betas=betas, eps=settings.get("epsilon", 1e-8), weight_decay=decay)
    losses = []
    for rate in rates:
        loss = model(**inputs).loss
        losses.append(loss.item())
        loss.backward()
        if train.get("clip_norm", 1.0) > 0:
            torch.nn.utils.clip_grad_norm_(trained, train.get("clip_norm", 1.0))
        if defects := [norm for module in factored for norm in module.defects()]:
            (gamma * sum(defects)).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return losses


def main():
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    rows = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()[:ROWS]]
    texts = [f"{row['query']} {row['response']}" for row in rows]
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        folder, data = scratch / "model", scratch / "texts.jsonl"
        random_llama(tokenizer, folder)
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        inputs = batch(tokenizer, texts)
        for method in ["lora", "pissa", "sorsa", "full"]:
            model, adapter = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), None
            if method == "sorsa":
                model = with_sorsa(model)
            elif method != "full":
                torch.manual_seed(1)
                start = {"lora": True, "pissa": "pissa"}[method]
                config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights=start, task_type="CAUSAL_LM")
                model = get_peft_model(model, config)
            if method == "lora":
                # A is random: ours goes on from theirs.
                adapter = scratch / "start"
                model.save_pretrained(adapter)
            train, log = ours(folder, data, scratch / method, steps, method, adapter)
            losses = theirs(model, inputs, train, [line["learning_rate"] for line in log])
            worst = max(abs(line["loss"] - loss) for line, loss in zip(log, losses, strict=True))
            good &= worst <= TOLERANCE and len(losses) == steps
            print(f"{method}: {steps} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}, largest difference {worst:.1e} of {TOLERANCE:.0e}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
