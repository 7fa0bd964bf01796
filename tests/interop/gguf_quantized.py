"""A model in a quantized GGUF file, its exports and its adapters, run by llama.cpp, beside `sorsa generate`.

    python gguf_quantized.py FILE.gguf ADAPTER [PROMPT...]

ADAPTER is the folder of an adapter that was trained on the model (`sorsa finetune --model FILE.gguf`). Greedy text of 24 tokens, or up to
the end token, is compared between `sorsa generate` on the unpacked model in f32 and llama.cpp on
- `export --format gguf` as f32 (the same text), q8_0 (the first 8 tokens), q4_k_m, q6_k and the file itself (shown),
- the adapter on the f32 export (the same text) and on the file itself (shown); if the adapter has a residual of its own, on that,
- the merged model as f32 and q8_0.

Run at the root of the repository, after `cargo build --release --workspace --bin sorsa`.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from llama_cpp import Llama

SORSA = "target/release/sorsa"
NEW_TOKENS = 24
FIRST = 8
# Texts between these make prompts in the form of SmolLM2's chat template.
CHAT = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = ["What is the capital of France?", "Tom has 12 apples and eats 5. How many are left?", "Name three colours.",
             "Why is the sky blue?"]


def sorsa(*arguments, check=True):
    done = subprocess.run([SORSA, *(str(argument) for argument in arguments)], capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout if check else done


def greedy(llm, prompt):
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
    return ids[start:], llm.detokenize(ids[start:], prev_tokens=ids[:start]).decode(errors="replace")


def check(what, prompts, ours, file, exact, lora=None):
    """Compares llama.cpp's text with ours: all of it, the first tokens, or nothing (`exact` is None)."""
    # Keys and values are kept as f32 (type 0).
    llm = Llama(str(file), lora_path=lora and str(lora), n_ctx=256, logits_all=True, type_k=0, type_v=0, verbose=False)
    good = True
    for prompt, wanted in zip(prompts, ours):
        ids, text = greedy(llm, prompt)
        first = llm.detokenize(ids[:FIRST]).decode(errors="replace").strip()
        same, same_first = text.strip() == wanted, wanted.startswith(first)
        words = "the same text" if same else f"the same {FIRST} tokens" if same_first else "OTHER TEXT"
        good &= {True: same, False: same_first, None: True}[exact]
        print(f"{what}: {words}\n    {text!r}", flush=True)
    return good


def main(file, adapter, prompts):
    good = True
    with tempfile.TemporaryDirectory() as dir:
        dir = Path(dir)
        wide = dir / "wide"
        sorsa("unpack", file, "--out", wide, "--dtype", "f32")
        # The file as a model's folder.
        base = dir / "base"
        base.mkdir()
        (base / file.name).symlink_to(file.resolve())

        def generated(*options):
            arguments = ["generate", "--max-new-tokens", NEW_TOKENS, *options]
            return [sorsa(*arguments, prompt).strip() for prompt in prompts]

        def export(name, *options):
            out = dir / name
            printed = sorsa("export", "--format", "gguf", "--model", base, "--out", out, *options)
            print("\n".join(f"    {line}" for line in printed.splitlines() if "off by" in line or " in " in line))
            return out

        ours = generated("--model", wide)
        for prompt, text in zip(prompts, ours):
            print(f"sorsa, {prompt!r}\n    {text!r}")
        good &= check("f32", prompts, ours, export("f32.gguf", "--dtype", "f32"), True)
        good &= check("q8_0", prompts, ours, export("q8_0.gguf", "--dtype", "q8_0"), False)
        for dtype in ["q6_k", "q4_k_m"]:
            check(dtype, prompts, ours, export(f"{dtype}.gguf", "--dtype", dtype), None)
        check("the file itself", prompts, ours, file, None)

        merged, lora, residual = dir / "merged", dir / "lora.gguf", dir / "residual.gguf"
        sorsa("merge", "--model", base, "--adapter", adapter, "--dtype", "f32", "--out", merged)
        ours = generated("--model", merged)
        for prompt, text in zip(prompts, ours):
            print(f"sorsa with the adapter, {prompt!r}\n    {text!r}")
        arguments = ["export", "--format", "gguf-lora", "--model", base, "--adapter", adapter, "--out", lora]
        done = sorsa(*arguments, check=False)
        if "--residual" in done.stderr:
            print("\n".join(f"    {line}" for line in sorsa(*arguments, "--residual", residual).splitlines()))
            check("the adapter on its residual", prompts, ours, residual, None, lora)
            sorsa(*arguments, "--residual", dir / "residual-f32.gguf", "--residual-dtype", "f32")
            good &= check("the adapter on its residual as f32", prompts, ours, dir / "residual-f32.gguf", True, lora)
        elif done.returncode:
            sys.exit(done.stderr)
        else:
            good &= check("the adapter on f32", prompts, ours, dir / "f32.gguf", True, lora)
            check("the adapter on the file itself", prompts, ours, file, None, lora)
        for dtype, exact in [("f32", True), ("q8_0", False), ("q4_k_m", None)]:
            out = export(f"merged-{dtype}.gguf", "--adapter", adapter, "--dtype", dtype)
            good &= check(f"merged {dtype}", prompts, ours, out, exact)
    return good


if __name__ == "__main__":
    print(f"llama-cpp-python {version('llama-cpp-python')}, numpy {np.__version__}")
    file, adapter, *prompts = sys.argv[1:]
    sys.exit(0 if main(Path(file), Path(adapter), prompts or [CHAT.format(question) for question in QUESTIONS]) else 1)
