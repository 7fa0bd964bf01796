"""Adapters and merged models of `sorsa`, read by PEFT and Transformers.

    python peft_transformers.py MODEL_FOLDER DATA_FILE [STEPS]

For every method: `sorsa finetune` for a few steps, then
- `sorsa export --format peft`, loaded by `PeftModel.from_pretrained` on the original model, and by `AutoPeftModelForCausalLM` alone,
- the same with --as-trained, for methods that split the weights,
- `sorsa export --format hf`, loaded by `AutoModelForCausalLm`,
- `sorsa export --format gguf` and `gguf-lora`, loaded by llama.cpp if `llama_cpp` is installed,
- PEFT's own merge of the export, saved, brought in again by `sorsa import` and compared by `sorsa verify`.
Each line is the largest difference of a logit to those of `sorsa`, which come from `sorsa verify`: it compares the model and
its adapter with a file of the logits that PEFT or Transformers computed. At the end an adapter that PEFT trained is brought in,
verified, and taken out again to the bit. Then the same with a module trained whole beside the adapter (`modules_to_save`), both ways,
on a copy of the model whose output head is not its embedding; and the many ways in which PEFT's configuration chooses modules, ranks
and what is saved beside the adapter.

Run at the root of the repository, after `cargo build --release --workspace --bin sorsa`, once with each version of Transformers and PEFT.
Exits with 1 past 1e-4 (1e-3 where two programs decompose the same weights).
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SORSA = "target/release/sorsa"
METHODS = ["lora", "rslora", "dora", "pissa", "olora", "sorsa", "lora-xs", "stella", "kasa", "mica", "svft", "lora-ga", "partial", "full"]
# Methods under other settings than their own.
FORMS = {
    "rslora": ("lora", "adapter.scaling=rank-stabilized"),
    "stella-published": ("stella", "adapter.initial_s=1.0"),
    "milora": ("pissa", "svd.band=minor"),
    "sorsa-vectors": ("sorsa", "adapter.train=vectors"),
    "sorsa-values": ("sorsa", "adapter.train=singular-values"),
    "sorsa-polar": ("sorsa", "adapter.retraction=polar"),
}
# Of the methods that split the weights, those that start from a decomposition that PEFT makes too.
SPLIT = ["pissa", "olora", "sorsa", "sorsa-vectors", "sorsa-values", "sorsa-polar"]
TOLERANCE = 1e-4
# Two singular value decompositions in f32 mix neighbouring vectors differently; what they take from a weight differs by that.
AGAIN = 1e-3


def sorsa(*arguments, check=True):
    command = [SORSA, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


class Check:
    def __init__(self, model, scratch):
        self.model, self.scratch, self.good = model, scratch, True
        vocabulary = base(model).config.vocab_size
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, vocabulary, (2, 24), generator=generator)

    def compare(self, what, theirs, *options, model=None, tolerance=TOLERANCE):
        """The logits of a PyTorch model beside those of `sorsa`."""
        golden = self.scratch / "golden.safetensors"
        with torch.no_grad():
            logits = theirs(self.ids).logits
        save_file({"input_ids": self.ids, "logits": logits.float().contiguous()}, golden)
        printed = sorsa("verify", "--model", model or self.model, "--golden", golden, "--format", "json", *options, check=False)
        difference = json.loads(printed)["checks"][0]["difference"]
        self.good &= difference <= tolerance
        print(f"{what:<44} {difference:.1e} of {tolerance:.0e}{'' if difference <= tolerance else '  DIFFERENT'}", flush=True)


def trained(check, method, data, steps, *more):
    run = check.scratch / method
    method, *settings = FORMS.get(method, (method,))
    options = [word for setting in settings for word in ("--set", setting)]
    sorsa("finetune", "--model", check.model, "--data", data, "--method", method, "--rank", 4,
          "--alpha", 6, "--max-steps", steps, "--batch-size", 4, "--limit", 200, "--max-length", 96, "--set", "data.validation_rows=4",
          "--set", "data.truncation=keep-end", "--set", "eval.problems=0", "--set", "svd.cache=false", "--lr", "5e-3", "--quiet",
          "--run-dir", run, *options, *more)
    return run


def every_method(check, data, steps):
    for method in [*METHODS, *(name for name in FORMS if name not in METHODS)]:
        run, out = trained(check, method, data, steps), check.scratch / f"{method}-out"
        if method == "full":
            sorsa("export", "--format", "hf", "--adapter", run, "--out", out / "hf")
            check.compare(f"{method}: merged, in Transformers", base(out / "hf"), "--adapter", run)
            continue
        rank = ["--rank", 1000] if method in ("partial", "svft") else []
        sorsa("export", "--format", "peft", "--adapter", run, "--out", out / "peft", *rank)
        peft = PeftModel.from_pretrained(base(check.model), out / "peft").eval()
        check.compare(f"{method}: PEFT on the original model", peft, "--adapter", run)
        alone = AutoPeftModelForCausalLM.from_pretrained(out / "peft", dtype=torch.float32, attn_implementation="eager").eval()
        check.compare(f"{method}: AutoPeft finds the model", alone, "--adapter", run)
        gguf(check, method, run, out, rank)
        if method in SPLIT:
            sorsa("export", "--format", "peft", "--as-trained", "--adapter", run, "--out", out / "as-trained")
            again = PeftModel.from_pretrained(base(check.model), out / "as-trained").eval()
            check.compare(f"{method}: PEFT, decomposing the model again", again, "--adapter", run, tolerance=AGAIN)
        sorsa("export", "--format", "hf", "--adapter", run, "--out", out / "hf")
        check.compare(f"{method}: merged, in Transformers", base(out / "hf"), "--adapter", run)
        if method != "partial":
            sorsa("import", out / "peft", "--model", check.model, "--out", out / "imported")
            check.compare(f"{method}: brought in again", peft, "--adapter", out / "imported")
        peft.merge_and_unload().save_pretrained(out / "theirs")
        check.compare(f"{method}: merged by PEFT", base(out / "theirs"), model=out / "theirs")


def llama(path, ids, lora=None):
    """Logits of llama.cpp, `[rows, tokens, vocabulary]`."""
    from llama_cpp import Llama

    model = Llama(str(path), lora_path=lora and str(lora), n_ctx=64, n_batch=64, logits_all=True, verbose=False, type_k=0, type_v=0)
    rows = []
    for row in ids.tolist():
        model.reset()
        model.eval(row)
        rows.append(torch.tensor(model.scores[: len(row)]))
    return torch.stack(rows)


def gguf(check, method, run, out, rank):
    """The merged model in llama.cpp, and the adapter beside the original model."""
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        return
    merged, model, lora = out / "merged.gguf", out / "model.gguf", out / "lora.gguf"
    sorsa("export", "--format", "gguf", "--dtype", "f32", "--adapter", run, "--out", merged)
    files = [(f"{method}: merged, in llama.cpp", merged, None)]
    if method != "dora":
        sorsa("export", "--format", "gguf", "--dtype", "f32", "--model", check.model, "--out", model)
        sorsa("export", "--format", "gguf-lora", "--adapter", run, "--out", lora, *rank)
        files.append((f"{method}: beside the model, in llama.cpp", model, lora))
    for what, file, adapter in files:
        logits = llama(file, check.ids, adapter)
        check.compare(what, lambda ids: SimpleNamespace(logits=logits), "--adapter", run, tolerance=AGAIN)


def of_peft(check, kind, out_again=True, beside=False, moved=(), **options):
    """An adapter that PEFT trained: in, verified, out again."""
    torch.manual_seed(0)
    options = {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"], **options}
    config = LoraConfig(r=4, lora_alpha=6, **options)
    model = get_peft_model(base(check.model), config)
    for name, parameter in model.named_parameters():
        if name in moved:
            torch.nn.init.normal_(parameter, std=0.05)
    folder, start, out = (check.scratch / f"of-peft-{kind}{part}" for part in ["", "-start", "-out"])
    # As PEFT's documentation has users of PiSSA save the start, to convert the adapter later.
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(start)
    model.peft_config["default"].init_lora_weights = options.get("init_lora_weights", True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(3):
        model(check.ids, labels=check.ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder, **({"save_embedding_layers": True} if beside else {}))
    check.compare(f"{kind} trained by PEFT", model, "--adapter", folder, tolerance=AGAIN if kind in SPLIT else TOLERANCE)
    if kind in SPLIT:
        imported = check.scratch / f"of-peft-{kind}-imported"
        sorsa("import", folder, "--start", start, "--model", check.model, "--out", imported)
        check.compare(f"{kind} trained by PEFT, with its start", model, "--adapter", imported)
    sorsa("export", "--format", "hf", "--model", check.model, "--adapter", folder, "--out", check.scratch / f"of-peft-{kind}-hf")
    check.compare(f"{kind} trained by PEFT, merged here", model, model=check.scratch / f"of-peft-{kind}-hf", tolerance=AGAIN if kind in SPLIT else TOLERANCE)
    if not out_again:
        return
    keep = ["--as-trained"] if kind in SPLIT else []
    sorsa("export", "--format", "peft", "--model", check.model, "--adapter", folder, "--out", out, *keep)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (folder, out))
    # PEFT writes copies of the base's head and embedding beside their adapters.
    before = {name: tensor for name, tensor in before.items() if ".base_layer." not in name}
    same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    check.good &= same
    print(f"{kind + ' in and out again, ' + str(len(before)) + ' tensors':<44} {'the same to the bit' if same else 'DIFFERENT'}", flush=True)


def untied(check):
    """The model with a head of its own: in PEFT a head that is the embedding cannot be saved apart."""
    scratch = check.scratch / "untied"
    folder = scratch / "model"
    model = base(check.model)
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    head = model.lm_head.weight
    model.lm_head.weight = torch.nn.Parameter(head.detach() + 0.02 * torch.randn(head.shape))
    model.save_pretrained(folder)
    for path in Path(check.model).glob("*token*"):
        shutil.copy(path, folder)
    other = Check(folder, scratch)
    other.compare("untied: the model itself", base(folder))
    return other


def whole_head(check, data, steps):
    """LoRA here with a head that is trained whole."""
    run, out = trained(check, "lora", data, steps, "--set", 'adapter.modules_to_save=["lm_head"]'), check.scratch / "out"
    sorsa("export", "--format", "peft", "--adapter", run, "--out", out / "peft")
    peft = PeftModel.from_pretrained(base(check.model), out / "peft").eval()
    moved = peft.base_model.model.lm_head.modules_to_save["default"].weight - base(check.model).lm_head.weight
    check.good &= moved.abs().max().item() > 1e-3
    check.compare("lora and a whole head: PEFT", peft, "--adapter", run)
    sorsa("export", "--format", "hf", "--adapter", run, "--out", out / "hf")
    check.compare("lora and a whole head: merged", base(out / "hf"), "--adapter", run)
    sorsa("import", out / "peft", "--model", check.model, "--out", out / "imported")
    check.compare("lora and a whole head: brought in again", peft, "--adapter", out / "imported")


def choices(check):
    """The ways in which PEFT chooses modules and ranks, on the model with a tied head."""
    of_peft(check, "a pattern", target_modules=r".*\.(?:self_attn|mlp)\.(?!k)[a-z]+_proj")
    of_peft(check, "all-linear", target_modules="all-linear")
    of_peft(check, "all but some", target_modules="all-linear", exclude_modules=r".*(?<=\.1)\.mlp\..*")
    of_peft(check, "one layer", target_modules=["q_proj"], layers_to_transform=1, layers_pattern="layers")
    of_peft(check, "look-ahead", rank_pattern={r"layers\.(?!0\b)\d+\.self_attn\.q_proj": 8}, alpha_pattern={"(?P<kind>up|down)_proj": 3, "nothing": 9})
    of_peft(check, "gaussian", init_lora_weights="gaussian")
    of_peft(check, "orthogonal", init_lora_weights="orthogonal")
    of_peft(check, "bias all", bias="all")
    of_peft(check, "whole norm", modules_to_save=["norm"])
    of_peft(check, "one whole norm", modules_to_save=["model.norm"])
    of_peft(check, "rank-stabilized patterns", use_rslora=True, rank_pattern={"q_proj": 9}, alpha_pattern={"v_proj": 1})
    of_peft(check, "whole tied head", out_again=False, modules_to_save=["lm_head"])
    of_peft(check, "whole tied embedding", out_again=False, modules_to_save=["embed_tokens"])
    of_peft(check, "tied head adapted", target_modules=["q_proj", "lm_head"])
    of_peft(check, "tied embedding beside", out_again=False, beside=True, moved=["base_model.model.model.embed_tokens.weight"])


def choices_untied(check):
    """The same on a model with a head of its own."""
    of_peft(check, "head adapted", target_modules=["q_proj", "lm_head"])
    of_peft(check, "dora on the head", use_dora=True, target_modules=["q_proj", "lm_head"])
    of_peft(check, "whole embedding and head", modules_to_save=["embed_tokens", "lm_head"])
    of_peft(check, "whole embedding", modules_to_save=["embed_tokens"])
    of_peft(check, "both beside", out_again=False, beside=True)
    of_peft(check, "both beside, changed", out_again=False, beside=True, moved=["base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"])


def main():
    model, data, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 4
    print(*(f"{name} {version(name)}" for name in ["torch", "transformers", "peft", "safetensors"]), sep=", ")
    with tempfile.TemporaryDirectory() as scratch:
        check = Check(model, Path(scratch))
        every_method(check, data, steps)
        of_peft(check, "lora")
        of_peft(check, "rslora", use_rslora=True)
        of_peft(check, "dora", use_dora=True)
        of_peft(check, "pissa", init_lora_weights="pissa")
        of_peft(check, "olora", init_lora_weights="olora")
        of_peft(check, "patterns", rank_pattern={"q_proj": 2}, alpha_pattern={"layers.0.*.up_proj": 3}, layers_to_transform=[0, 2])
        other = untied(check)
        whole_head(other, data, steps)
        of_peft(other, "lora and a whole head", modules_to_save=["lm_head"])
        choices(check)
        choices_untied(other)
    sys.exit(0 if check.good and other.good else 1)


if __name__ == "__main__":
    main()
