"""Why llama.cpp chooses other tokens than `sorsa` on a quantized GGUF file: it rounds the inputs of each product to 8 bits.

    python gguf_rounding.py FILE.gguf [PROMPT...]

llama.cpp writes 24 tokens greedily. Then the logits along its own text, step by step, are those of
- llama.cpp,
- the exact model: Transformers with the file's widened weights and products in f64,
- the rounded model: the exact one, but the inputs of every product are rounded to 8 bits like llama.cpp rounds them for the weight's type (Q8_0,
  Q8_1 or Q8_K of ggml),
- the rounded model with embeddings that differ by one part in a million: roundings that flip move it, so this is how near another program can be to the rounded model,
- `sorsa`, by `sorsa verify` on the same file.
A step parts if llama.cpp's token is not the exact model's. The script prints the margin there: the exact logit of the exact model's token less that
of llama.cpp's. Last, llama.cpp runs the same weights as an f32 file, which rounds no inputs: its text is that of `sorsa` on the quantized file.

Run at the root of the repository, after `cargo build --release --workspace --bin sorsa`. Exits with 1 if token ids differ, `sorsa` is 1e-3 from the exact model, the
f32 file has another text, llama.cpp's distance from the exact model is not that of the rounded model within a factor of 2, or its distance from the rounded model is more
than 1.5 times that of a part in a million.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from llama_cpp import Llama
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

SORSA = "target/release/sorsa"
NEW_TOKENS = 24
CHAT_QUESTIONS = ["What is the capital of France?", "Tom has 12 apples and eats 5. How many are left?", "Name three colours.",
                  "Why is the sky blue?"]
PROMPTS = ["Question: Tom has 12 apples and eats 5. How many are left?\nAnswer:", "The capital of France is"]
LAYERS = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
          "down_proj": "ffn_down"}


def sorsa(*arguments, check=True):
    done = subprocess.run([SORSA, *map(str, arguments)], capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


def to_f16(values):
    return values.float().half().to(values.dtype)


class Rounded(torch.nn.Module):
    """A linear layer whose inputs are rounded like ggml's CPU products round them for the weight's type."""

    def __init__(self, linear, tensor):
        super().__init__()
        self.linear, self.type, self.minima, self.on = linear, tensor.tensor_type, None, False
        if self.type in (Type.Q4_1, Type.Q5_1):
            blocks = np.asarray(tensor.data).reshape(linear.weight.shape[0], linear.weight.shape[1] // 32, -1)
            minima = np.ascontiguousarray(blocks[:, :, 2:4]).view(np.float16)[:, :, 0]
            self.minima = torch.from_numpy(minima.astype(np.float64))

    def forward(self, x):
        if not self.on:
            return self.linear(x)
        if self.type in (Type.F16, Type.BF16):
            return self.linear(x.to(torch.float16 if self.type == Type.F16 else torch.bfloat16).to(x.dtype))
        if self.type == Type.F32:
            return self.linear(x)
        if self.type in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
            blocks = x.unflatten(-1, (-1, 256))
            largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
            step = torch.where(largest == 0, torch.ones_like(largest), -largest / 127)
            return self.linear(((blocks / step).round().clamp(max=127) * step).flatten(-2))
        blocks = x.unflatten(-1, (-1, 32))
        step = blocks.abs().amax(-1, keepdim=True) / 127
        codes = torch.where(step == 0, torch.zeros_like(blocks), blocks / step).round()
        y = self.linear((codes * to_f16(step)).flatten(-2))
        if self.minima is not None:
            sums = codes.sum(-1)
            y = y + (to_f16(step[..., 0] * sums) - to_f16(step[..., 0]) * sums) @ self.minima.T
        return y


def exact_model(file):
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager").eval().double()
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    rounded = []
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear):
            continue
        if name == "lm_head":
            tensor = tensors.get("output.weight", tensors["token_embd.weight"])
            parent = model
        else:
            parent = model.get_submodule(name.rsplit(".", 1)[0])
            tensor = tensors[f"blk.{name.split('.')[2]}.{LAYERS[name.split('.')[-1]]}.weight"]
        rounded.append(Rounded(module, tensor))
        setattr(parent, name.split(".")[-1], rounded[-1])
    return model, rounded


def load(file):
    # Keys and values are kept as f32 (type 0).
    return Llama(str(file), n_ctx=256, logits_all=True, type_k=0, type_v=0, verbose=False)


def greedy(llm, ids):
    """Ids with the continuation, and the logits of each step."""
    ids, start, ends = list(ids), len(ids), {llm.token_eos()}
    llm.reset()
    llm.eval(ids)
    while len(ids) < start + NEW_TOKENS:
        token = int(np.argmax(llm.scores[len(ids) - 1]))
        ids.append(token)
        if token in ends:
            break
        llm.eval([token])
    return ids, np.array(llm.scores[start - 1 : len(ids) - 1], np.float64)


def size(values):
    """The root of the mean square of differences of logits, without what is added to all logits of a step."""
    values = values - values.mean(-1, keepdims=True)
    return float(np.sqrt(np.mean(values**2)))


def text_of(llm, ids, start):
    return llm.detokenize(ids[start:], prev_tokens=ids[:start]).decode(errors="replace")


def main(file, prompts):
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if not prompts:
        prompts = list(PROMPTS)
        if tokenizer.chat_template:
            ask = lambda question: tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
            prompts += map(ask, CHAT_QUESTIONS)
    model, rounded = exact_model(file)
    llm = load(file)
    errors, good = {"llama.cpp - exact": [], "rounded - exact": [], "llama.cpp - rounded": [], "nudged - rounded": []}, True
    parted, steps, by_rounding, largest = [], 0, 0, 0.0
    sequences = []
    with tempfile.TemporaryDirectory() as dir:
        dir = Path(dir)
        wide = dir / "wide"
        sorsa("unpack", file, "--out", wide, "--dtype", "f32")
        ours_of = Tokenizer.from_file(str(wide / "tokenizer.json"))
        for prompt in prompts:
            start_ids = llm.tokenize(prompt.encode(), add_bos=bool(llm.metadata.get("tokenizer.ggml.add_bos_token") == "true"), special=True)
            same_ids = start_ids == ours_of.encode(prompt).ids
            ids, theirs = greedy(llm, start_ids)
            start = len(start_ids)
            logits = []
            for rounds, nudge in [(False, 0.0), (True, 0.0), (True, 1e-6)]:
                for layer in rounded:
                    layer.on = rounds
                with torch.no_grad():
                    vectors = model.get_input_embeddings()(torch.tensor([ids[:-1]]))
                    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0), dtype=vectors.dtype)
                    logits.append(model(inputs_embeds=vectors * (1 + nudge * noise)).logits[0])
            exact, near, nudged = (values[start - 1 :].numpy() for values in logits)
            golden = dir / "golden.safetensors"
            save_file({"input_ids": torch.tensor([ids[:-1]]), "logits": logits[0][None].float().contiguous()}, golden)
            printed = json.loads(sorsa("verify", "--model", file, "--golden", golden, "--format", "json", check=False))
            ours = printed["checks"][0]["difference"]
            largest = max(largest, ours)
            errors["llama.cpp - exact"].append(theirs - exact)
            errors["rounded - exact"].append(near - exact)
            errors["llama.cpp - rounded"].append(theirs - near)
            errors["nudged - rounded"].append(nudged - near)
            steps += len(exact)
            notes = []
            for step, (row, token) in enumerate(zip(exact, ids[start:])):
                best = int(row.argmax())
                if best == token:
                    continue
                margin = row[best] - row[token]
                moved = (near[step, token] - near[step, best]) + margin
                parted.append(margin)
                by_rounding += int(near[step].argmax()) == token
                notes.append(f"token {step + 1}: margin {margin:.3f}, which rounding moves by {moved:.3f} and llama.cpp by "
                             f"{theirs[step, token] - theirs[step, best] + margin:.3f}")
            print(f"{prompt!r}: ids {'the same' if same_ids else 'OTHERS'}, sorsa off by {ours:.1e}; "
                  f"{len(notes)} of {len(exact)} steps part{': ' if notes else ''}{'; '.join(notes)}", flush=True)
            good &= same_ids and ours <= 1e-3
            sequences.append((prompt, start_ids))
        # Products of the same weights in f32.
        sorsa("export", "--format", "gguf", "--dtype", "f32", "--model", wide, "--out", dir / "f32.gguf")
        dense = load(dir / "f32.gguf")
        same = 0
        for prompt, start_ids in sequences:
            ids, _ = greedy(dense, start_ids)
            found = text_of(dense, ids, len(start_ids)).strip()
            wanted = sorsa("generate", "--model", file, "--max-new-tokens", NEW_TOKENS, prompt).strip()
            same += found == wanted
            if found != wanted:
                print(f"    {prompt!r}\n    llama.cpp, f32 {found!r}\n    sorsa          {wanted!r}")
    sizes = {what: size(np.concatenate(values)) for what, values in errors.items()}
    print(f"differences of logits (root of the mean square): {', '.join(f'{what} {value:.4f}' for what, value in sizes.items())}")
    print(f"{len(parted)} of {steps} steps part, by margins up to {max(parted, default=0):.3f}; the rounded model takes llama.cpp's token in {by_rounding} of them")
    print(f"sorsa on the quantized file is off by at most {largest:.1e}; its text is that of llama.cpp on the f32 file for {same} of {len(prompts)} prompts")
    as_far = 0.5 < sizes["llama.cpp - exact"] / sizes["rounded - exact"] < 2
    as_near = sizes["llama.cpp - rounded"] < 1.5 * sizes["nudged - rounded"]
    return good and same == len(prompts) and as_far and as_near


if __name__ == "__main__":
    print(f"llama-cpp-python {version('llama-cpp-python')}, torch {torch.__version__}")
    file, *prompts = sys.argv[1:]
    sys.exit(0 if main(Path(file).resolve(), prompts) else 1)
