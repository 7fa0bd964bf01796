"""llama.cpp on exported files, against `sorsa generate`, the tokenizers library and a merged model.

    python gguf_llama.py text MODEL_FOLDER [PROMPT...]     greedy text, f32, f16, bf16 and q8_0
    python gguf_llama.py tokens MODEL_FOLDER TEXT_FILE     token ids of every line of a text
    python gguf_llama.py adapter MODEL_FOLDER [MERGED]     logits with an adapter against those of the merged model

Without MERGED, the adapter is a random LoRA of rank 4 on every linear layer. MERGED is a folder that `sorsa merge` wrote:
the adapter is then the difference of its weights from those of MODEL_FOLDER, as two factors.

Run at the root of the repository, after `cargo build --release --workspace --example export_gguf --bin sorsa`.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from llama_cpp import Llama

EXPORT = "target/release/examples/export_gguf"
SORSA = "target/release/sorsa"
NEW_TOKENS = 60
ALPHA = 6.0


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def export(model, out, *options):
    run(EXPORT, model, out, *options)
    return out


def load(file, **options):
    # Keys and values are kept as f32 (type 0); by default they would be rounded to f16.
    return Llama(str(file), n_ctx=256, logits_all=True, type_k=0, type_v=0, verbose=False, **options)


def logits(llm, ids):
    llm.reset()
    llm.eval(ids)
    return np.array(llm.scores[: len(ids)])


def greedy(llm, prompt):
    """The continuation, up to the end token."""
    ids = llm.tokenize(prompt.encode(), add_bos=True, special=True)
    start = len(ids)
    llm.reset()
    llm.eval(ids)
    while len(ids) < start + NEW_TOKENS:
        token = int(np.argmax(llm.scores[len(ids) - 1]))
        if token == llm.token_eos():
            break
        ids.append(token)
        llm.eval([token])
    return llm.detokenize(ids[start:], prev_tokens=ids[:start]).decode(errors="replace")


def text(folder, prompts):
    good = True
    with tempfile.TemporaryDirectory() as dir:
        for dtype in ["f32", "f16", "bf16", "q8_0"]:
            llm = load(export(folder, Path(dir) / f"{dtype}.gguf", dtype))
            for prompt in prompts:
                wanted = run(SORSA, "generate", "--model", folder, "--max-new-tokens", NEW_TOKENS, prompt).strip()
                found = greedy(llm, prompt).strip()
                same = found == wanted
                # Quantized weights may well choose another token.
                good &= same or dtype not in ("f32", "f16")
                print(f"{Path(folder).name} {dtype} {prompt!r}: {'the same text' if same else 'OTHER TEXT'}")
                print(f"    llama.cpp {found!r}")
                if not same:
                    print(f"    sorsa     {wanted!r}")
    return good


def tokens(folder, file, pre=None):
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    config = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    bos = config.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    with tempfile.TemporaryDirectory() as dir:
        llm = Llama(str(export(folder, Path(dir) / "m.gguf", "f16")), vocab_only=True, verbose=False)
        assert pre is None or llm.metadata["tokenizer.ggml.pre"] == pre, llm.metadata["tokenizer.ggml.pre"]
        lines = [line for line in Path(file).read_text().split("\n") if line.strip()]
        different = count = 0
        for line in lines:
            wanted = reference.encode(line, add_special_tokens=False).ids
            found = llm.tokenize(line.encode(), add_bos=False, special=True)
            count += len(wanted)
            if found != wanted:
                different += 1
                if different <= 3:
                    print(f"    {line!r}\n    llama.cpp  {found}\n    tokenizers {wanted}")
        added = llm.tokenize(b"a", add_bos=True, special=True)
        same_start = added == reference.encode("a").ids
        print(f"{Path(folder).name}: {len(lines)} lines, {count} tokens, {different} lines differ; the beginning of a text "
              f"is {'the same' if same_start else 'ANOTHER'}")
    return different == 0 and same_start


def random_lora(weights):
    """Factors of rank 4 by layer, and the weights with their product added."""
    random = np.random.default_rng(5)
    rank, factors, merged = 4, {}, dict(weights)
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            a = random.normal(0, 0.3, (rank, weight.shape[1])).astype(np.float32)
            b = random.normal(0, 0.012, (weight.shape[0], rank)).astype(np.float32)
            factors[name.removesuffix(".weight")] = a, b
            merged[name] = (weight + np.float32(ALPHA / rank) * (b @ a)).astype(np.float32)
    return factors, merged


def difference(weights, merged):
    """What was trained, as factors: singular values below the rounding of the merged weights are left out."""
    factors = {}
    for name, weight in weights.items():
        change = merged[name].astype(np.float64) - weight
        if not change.any():
            continue
        u, s, v = np.linalg.svd(change, full_matrices=False)
        rank = int((s > 1e-5 * np.linalg.norm(weight, 2)).sum())
        a = np.ascontiguousarray(v[:rank], np.float32)
        b = np.ascontiguousarray(u[:, :rank] * s[:rank] * (rank / ALPHA), np.float32)
        factors[name.removesuffix(".weight")] = a, b
    return factors


def adapter(folder, merged_folder=None):
    from safetensors.numpy import load_file, save_file

    config = json.loads((Path(folder) / "config.json").read_text())
    weights = load_file(Path(folder) / "model.safetensors")
    if merged_folder:
        merged = load_file(Path(merged_folder) / "model.safetensors")
        factors = difference(weights, merged)
    else:
        factors, merged = random_lora(weights)
    lora, ranks = {}, set()
    for stem, (a, b) in factors.items():
        lora[f"base_model.model.{stem}.lora_A.weight"] = a
        lora[f"base_model.model.{stem}.lora_B.weight"] = b
        ranks.add(a.shape[0])
    with tempfile.TemporaryDirectory() as dir:
        dir = Path(dir)
        for name in ["merged", "peft"]:
            (dir / name).mkdir()
        save_file(lora, dir / "peft" / "adapter_model.safetensors")
        targets = sorted({stem.split(".")[-1] for stem in factors})
        peft = {"peft_type": "LORA", "r": max(ranks), "lora_alpha": ALPHA, "target_modules": targets}
        peft["rank_pattern"] = {stem: a.shape[0] for stem, (a, _) in factors.items()}
        (dir / "peft" / "adapter_config.json").write_text(json.dumps(peft))
        for file in Path(folder).iterdir():
            if file.name != "model.safetensors" and file.is_file():
                shutil.copyfile(file, dir / "merged" / file.name)
        save_file(merged, dir / "merged" / "model.safetensors", {"format": "pt"})
        base = export(folder, dir / "base.gguf", "f32")
        lora_file = dir / "lora.gguf"
        run(SORSA, "export", "--model", folder, "--adapter", dir / "peft", "--format", "gguf-lora", "--out", lora_file)
        ids = [int(id) for id in np.random.default_rng(5).integers(3, config["vocab_size"], 40)]
        plain = load(base)
        applied = load(base, lora_path=str(lora_file))
        whole = load(export(dir / "merged", dir / "merged.gguf", "f32"))
        found, wanted, before = logits(applied, ids), logits(whole, ids), logits(plain, ids)
        scale = np.abs(wanted).max()
        error, moved = np.abs(found - wanted).max() / scale, np.abs(before - wanted).max() / scale
        texts = greedy(applied, ""), greedy(whole, ""), greedy(plain, "")
        print(f"{Path(folder).name}: {len(lora) // 2} modules of rank {sorted(ranks)}; logits differ by {error:.1e} of the "
              f"largest from the merged model's, which the adapter moved by {moved:.1e}")
        for name, shown in zip(["--lora", "merged", "base"], texts):
            print(f"    {name:7} {shown!r}")
    return error < 2e-5 and moved > 1e-2 and texts[0] == texts[1]


if __name__ == "__main__":
    print(f"llama-cpp-python {version('llama-cpp-python')}, numpy {np.__version__}")
    what, folder, *rest = sys.argv[1:]
    good = {"text": lambda: text(folder, rest or [""]), "tokens": lambda: tokens(folder, *rest),
            "adapter": lambda: adapter(folder, *rest)}[what]()
    sys.exit(0 if good else 1)
