"""Small random models of each family: the logits of llama.cpp against those of Transformers.

    python gguf_families.py make FOLDER      (torch, transformers)
    python gguf_families.py check FOLDER     (llama-cpp-python)

Weights, biases and norms are far from their initial values, sequences are longer than the sliding windows of Gemma, and
scaled rotary embeddings are beyond their original context, so that nothing that is left out can go unseen.

Run `check` at the root of the repository, after `cargo build --release --workspace --example export_gguf`.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

LENGTH = 48
# On a CPU, ggml computes Gemma's GELU by a table of f16 numbers. So there are Gemmas without that error too.
CLOSED = "-gates-closed"
SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=100, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]}
GEMMA = dict(SMALL, head_dim=32, query_pre_attn_scalar=32)
MODELS = {
    "llama": ("Llama", SMALL),
    "llama-untied-heads-of-24": ("Llama", dict(SMALL, head_dim=24, tie_word_embeddings=False)),
    "llama-biases": ("Llama", dict(SMALL, attention_bias=True, mlp_bias=True)),
    "llama-3-rope": ("Llama", dict(SMALL, rope_theta=500_000.0, rope_scaling=LLAMA3)),
    "llama-linear-rope": ("Llama", dict(SMALL, rope_scaling={"rope_type": "linear", "factor": 4.0})),
    "mistral": ("Mistral", dict(SMALL, head_dim=24, sliding_window=None)),
    "qwen2": ("Qwen2", dict(SMALL, tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(SMALL, head_dim=32)),
    "gemma": ("Gemma", dict(SMALL, head_dim=32)),
    "gemma2": ("Gemma2", dict(GEMMA, sliding_window=16)),
    "gemma3": ("Gemma3", dict(GEMMA, num_hidden_layers=7, sliding_window=16)),
    "gemma3-linear-rope": ("Gemma3", dict(GEMMA, num_hidden_layers=7, sliding_window=16,
                                          rope_scaling={"rope_type": "linear", "factor": 8.0})),
    "gemma-gates-closed": ("Gemma", dict(SMALL, head_dim=32)),
    "gemma2-gates-closed": ("Gemma2", dict(GEMMA, sliding_window=16)),
    "gemma3-gates-closed": ("Gemma3", dict(GEMMA, num_hidden_layers=7, sliding_window=16)),
    "phi3": ("Phi3", dict(SMALL, original_max_position_embeddings=256, sliding_window=None)),
    "phi3-longrope": ("Phi3", dict(SMALL, original_max_position_embeddings=32, rope_scaling=LONGROPE)),
}


def make(folder):
    import torch
    import transformers

    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for number, (name, (family, fields)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        suffix = "Text" if family == "Gemma3" else ""
        config = getattr(transformers, f"{family}{suffix}Config")(**fields)
        config._attn_implementation = "eager"
        model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                centre = 1.0 if path.endswith("norm.weight") and "Gemma" not in family else 0.0
                scale = 0.15 if parameter.dim() == 2 else 0.2
                parameter.copy_(centre + scale * torch.randn_like(parameter))
            if name.endswith(CLOSED):
                for block in model.model.layers:
                    block.mlp.gate_proj.weight.zero_()
            ids = torch.randint(3, config.vocab_size, (1, LENGTH))
            logits = model(ids, use_cache=False).logits[0]
        out = Path(folder) / name
        model.save_pretrained(out)
        np.save(out / "ids.npy", ids[0].numpy())
        np.save(out / "logits.npy", logits.numpy())


def check(folder):
    from llama_cpp import Llama

    print(f"llama-cpp-python {version('llama-cpp-python')}, numpy {np.__version__}")
    good = True
    for name in MODELS:
        model = Path(folder) / name
        ids, wanted = np.load(model / "ids.npy").tolist(), np.load(model / "logits.npy")
        errors = []
        for dtype in ["f32", "f16", "q8_0"]:
            file = model / f"{dtype}.gguf"
            command = ["target/release/examples/export_gguf", model, file, dtype, "--no-tokenizer"]
            subprocess.run(command, check=True, capture_output=True)
            # Keys and values are kept as f32 (type 0); by default they would be rounded to f16.
            llm = Llama(str(file), n_ctx=256, logits_all=True, type_k=0, type_v=0, verbose=False)
            llm.eval(ids)
            errors.append(np.abs(np.array(llm.scores[: len(ids)]) - wanted).max() / np.abs(wanted).max())
        table = name.startswith("gemma") and not name.endswith(CLOSED)
        same = errors[0] < (1e-3 if table else 2e-5) and errors[1] < 1e-2
        good &= bool(same)
        shown = ", ".join(f"{dtype} {error:.1e}" for dtype, error in zip(["f32", "f16", "q8_0"], errors))
        print(f"{name:26} {shown}  {'' if same else 'DIFFERENT'}")
    return good


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        sys.exit(0 if check(sys.argv[2]) else 1)
