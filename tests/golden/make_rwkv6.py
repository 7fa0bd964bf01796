#!/usr/bin/env python3
"""Makes `rwkv6/`: a small RWKV 6 under the names of Hugging Face's checkpoints, with the logits of the official package.

    venv/bin/pip install --no-deps rwkv==0.8.32
    venv/bin/python make_rwkv6.py

besides what `make.py` needs. Transformers has no RWKV 6 of its own; `rwkv` is by the model's author and reads his checkpoints,
with other names for the same tensors. It computes in single precision: token by token and all at once it differs by
about 1e-5.
"""

import os
import shutil
import tempfile
from pathlib import Path

os.environ |= {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "0"}

import torch
from rwkv.model import RWKV

from make import HERE, noise, save, save_json

D, FFN, LAYERS, VOCABULARY, HEAD = 16, 24, 2, 32, 8
# Ranks of the low-rank maps: in no file, they follow from the width.
MIX, DECAY = 32, 64
TOKENS, PROMPT, GREEDY = 41, 19, 12


def weights():
    """The author's names and shapes; every vector away from its start."""
    scaled = lambda *shape: noise(shape, 0.3).float()
    around = lambda centre, *shape: centre + scaled(*shape)
    w = {"emb.weight": scaled(VOCABULARY, D), "head.weight": scaled(VOCABULARY, D)}
    norms = ["ln_out", "blocks.0.ln0"]
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        att, ffn = f"{block}.att", f"{block}.ffn"
        norms += [f"{block}.ln1", f"{block}.ln2", f"{att}.ln_x"]
        w |= {f"{att}.time_maa_{name}": around(0.5, 1, 1, D) for name in "xwkvrg"}
        w |= {f"{att}.time_maa_w1": scaled(D, 5 * MIX), f"{att}.time_maa_w2": scaled(5, MIX, D)}
        w |= {f"{att}.time_decay": around(-1.0, 1, 1, D)}
        w |= {f"{att}.time_decay_w1": scaled(D, DECAY), f"{att}.time_decay_w2": scaled(DECAY, D)}
        w |= {f"{att}.time_faaaa": scaled(D // HEAD, HEAD)}
        w |= {f"{att}.{name}.weight": scaled(D, D) for name in ["receptance", "key", "value", "gate", "output"]}
        w |= {f"{ffn}.time_maa_{name}": around(0.5, 1, 1, D) for name in "kr"}
        w |= {f"{ffn}.key.weight": scaled(FFN, D), f"{ffn}.receptance.weight": scaled(D, D), f"{ffn}.value.weight": scaled(D, FFN)}
    for norm in norms:
        w |= {f"{norm}.weight": around(1.0, D), f"{norm}.bias": scaled(D)}
    return w


def hugging_face(name):
    if name.startswith("head."):
        return name
    for theirs, name_there in [("emb.", "embeddings."), (".att.", ".attention."), (".ffn.", ".feed_forward."), (".ln0.", ".pre_ln.")]:
        name = name.replace(theirs, name_there)
    return f"rwkv.{name}"


def main():
    folder = HERE / "rwkv6"
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(20240904)
    w = weights()
    save(folder / "checkpoint/model.safetensors", {hugging_face(name): tensor for name, tensor in w.items()})
    save_json(folder / "checkpoint/config.json", {
        "architectures": ["Rwkv6ForCausalLM"], "model_type": "rwkv6", "model_version": "6_0", "hidden_size": D,
        "attention_hidden_size": D, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEAD,
        "head_size": HEAD, "head_size_divisor": 8, "vocab_size": VOCABULARY, "layer_norm_epsilon": 1e-5, "rescale_every": 6,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "use_cache": True, "torch_dtype": "float32",
    })
    with tempfile.TemporaryDirectory() as scratch:
        torch.save(w, Path(scratch) / "model.pth")
        model = RWKV(str(Path(scratch) / "model"), "cpu fp32", verbose=False)

    ids = torch.randint(1, VOCABULARY, (TOKENS,)).tolist()
    logits, _ = model.forward(ids, None, full_output=True)
    last, state = model.forward(ids[:PROMPT], None)
    greedy, margin = ids[:PROMPT], float("inf")
    for _ in range(GREEDY):
        best = last.topk(2).values
        margin = min(margin, (best[0] - best[1]).item())
        greedy.append(last.argmax().item())
        last, state = model.forward(greedy[-1:], state)
    tensors = {"input_ids": torch.tensor([ids]), "logits": logits[None], "greedy_ids": torch.tensor([greedy])}
    save(folder / "io.safetensors", tensors, 5)
    save_json(folder / "io.json", {"prompt": PROMPT, "smallest_margin": round(margin, 3)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main()
