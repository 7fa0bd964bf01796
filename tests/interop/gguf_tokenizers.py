"""Small tokenizers with the pre-tokenizers of well-known models: token ids in llama.cpp against the tokenizers library.

    python gguf_tokenizers.py TEXT_TO_LEARN_FROM TEXT_TO_CHECK

Each is trained here, 1500 tokens, and put beside a random model. The regular expressions are those of the `tokenizer.json` of
Llama 3, Qwen 2, Mistral Nemo (Tekken) and GPT-4o. Run at the root of the repository, after
`cargo build --release --workspace --example export_gguf`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from gguf_llama import tokens

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
START = r"[^\r\n\p{L}\p{N}]?"
SLASH_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
EXPRESSIONS = {
    "llama-bpe": CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST,
    "dbrx": CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST,
    "qwen2": CONTRACTIONS + WORDS + r"\p{N}" + REST,
    "tekken": f"{START}{UPPER}*{LOWER}+|{START}{UPPER}+{LOWER}*|" + r"\p{N}" + SLASH_REST,
    "gpt-4o": f"{START}{UPPER}*{LOWER}+{CONTRACTIONS}?|{START}{UPPER}+{LOWER}*{CONTRACTIONS}?|" + r"\p{N}{1,3}" + SLASH_REST,
}
WHOLE_WORDS = ["llama-bpe", "tekken"]


def make(name, text):
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))
    if name == "gpt-2":
        steps = bytes_only
    elif name == "smollm":
        steps = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_only])
    else:
        split = pre_tokenizers.Split(Regex(EXPRESSIONS[name]), behavior="isolated")
        steps = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in WHOLE_WORDS))
    tokenizer.pre_tokenizer = steps
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train([text], trainer)
    return tokenizer


def model(folder, vocab):
    folder.mkdir()
    config = dict(model_type="llama", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                  num_key_value_heads=2, vocab_size=vocab, max_position_embeddings=256, tie_word_embeddings=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    block = "model.layers.0."
    names = [f"{block}self_attn.{kind}_proj" for kind in "qkvo"] + [f"{block}mlp.{kind}_proj" for kind in ["gate", "up", "down"]]
    weights = {f"{name}.weight": np.zeros((32, 32), np.float32) for name in names}
    weights["model.embed_tokens.weight"] = np.zeros((vocab, 32), np.float32)
    for name in [f"{block}input_layernorm", f"{block}post_attention_layernorm", "model.norm"]:
        weights[f"{name}.weight"] = np.ones(32, np.float32)
    save_file(weights, folder / "model.safetensors")


if __name__ == "__main__":
    good = True
    with tempfile.TemporaryDirectory() as dir:
        for name in ["gpt-2", "smollm", *EXPRESSIONS]:
            tokenizer = make(name, sys.argv[1])
            folder = Path(dir) / name
            model(folder, tokenizer.get_vocab_size())
            tokenizer.save(str(folder / "tokenizer.json"))
            good &= tokens(folder, sys.argv[2], name)
    sys.exit(0 if good else 1)
