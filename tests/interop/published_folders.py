"""Folders of chat models like their publishers write them, with random weights: the whole way from such a folder to its exports.

    python published_folders.py [FOLDER]

Each folder has the fields of its publisher's `config.json` beside those that Transformers writes, a generation_config.json, the
tokenizer's files and a chat template. It is saved by the Transformers that is installed. Then, for each folder,
- the logits of `sorsa` beside those of Transformers (`sorsa verify`),
- `sorsa finetune --template chat` for two steps, `sorsa generate --template chat`,
- `sorsa merge` and `sorsa export --format hf`, loaded by Transformers, `--format peft`, loaded by PEFT: their logits beside those of
  `sorsa` with the adapter,
- `sorsa export --format gguf`: the number of its tensors, if `gguf` is installed.
FOLDER keeps the files. Run at the root of the repository, after `cargo build --release --workspace --bin sorsa`, once with each version
of Transformers. Exits with 1 if a command fails or logits differ by more than 1e-4.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from peft import __version__ as peft_version
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig,
                          PreTrainedTokenizerFast)

try:
    from gguf import GGUFReader
except ImportError:
    GGUFReader = None

SORSA = "target/release/sorsa"
TOLERANCE = 1e-4
VOCABULARY = 259
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
BASE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY,
            max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128, rope_type="llama3")
LONGROPE = dict(type="longrope", short_factor=[1.0 + 0.1 * i for i in range(8)], long_factor=[2.0 + 0.3 * i for i in range(8)])
# Name: the model's type, fields that shape it, and fields that its publisher's file has beside them.
FOLDERS = {
    "llama2": ("llama", dict(rms_norm_eps=1e-5), {"pretraining_tp": 1, "rope_scaling": None, "_name_or_path": "x", "max_length": 4096,
                                                  "temperature": 0.6, "top_p": 0.9}),
    "llama3": ("llama", dict(num_key_value_heads=2, rope_theta=5e5, eos_token_id=[2, 0], rope_scaling=LLAMA3),
               {"mlp_bias": False, "attention_bias": False}),
    "smollm2": ("llama", dict(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e5),
                {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}}),
    "vicuna": ("llama", {}, {"max_length": 4096, "num_key_value_heads": None, "head_dim": None, "temperature": 0.9, "top_p": 0.6,
                             "tune_mm_mlp_adapter": False}),
    "mistral": ("mistral", dict(num_key_value_heads=2, sliding_window=None), {"head_dim": None}),
    "qwen2": ("qwen2", dict(num_key_value_heads=2, use_sliding_window=False, sliding_window=32768, max_window_layers=2),
              {"use_mrope": False}),
    "qwen25": ("qwen2", dict(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e6, use_sliding_window=False,
                             max_window_layers=2), {"unsloth_fixed": True}),
    "qwen3": ("qwen3", dict(num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, use_sliding_window=False,
                            sliding_window=None, max_window_layers=2), {}),
    # The first Gemma's own files say "gelu", which Transformers 5 reads as the tanh approximation, and Transformers 4, like sorsa, as the exact
    # function: docs/interop.md. Here is what all read alike.
    "gemma": ("gemma", dict(num_key_value_heads=1, head_dim=32), {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("gemma2", dict(num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
               {"cache_implementation": "hybrid"}),
    "gemma3": ("gemma3_text", dict(num_hidden_layers=7, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
               {"cache_implementation": "hybrid"}),
    "phi3": ("phi3", dict(rms_norm_eps=1e-5, sliding_window=2047), {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
                                                                    "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    "phi3-longrope": ("phi3", dict(original_max_position_embeddings=64, sliding_window=None, rope_scaling=LONGROPE), {}),
    "gemma3-with-vision": (None, {}, {}),
}
CHATS = [[("user", "How many legs has a cat?"), ("assistant", "Four.")],
         [("system", "Be short."), ("user", "Name a colour."), ("assistant", "Red."), ("user", "Another."), ("assistant", "Blue.")]] * 4


def tokenizer(folder):
    """A tokenizer of bytes with the marks of ChatML."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[], unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   additional_special_tokens=["<|im_start|>", "<|im_end|>"], model_max_length=2048)
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


def make(name, folder):
    """Writes a folder, and returns the model and tokens to compare."""
    kind, fields, published = FOLDERS[name]
    torch.manual_seed(0)
    if kind is None:
        text = dict(BASE, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, sliding_window=16, num_hidden_layers=7)
        vision = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
        model = Gemma3ForConditionalGeneration(Gemma3Config(
            text_config=dict(text, model_type="gemma3_text"), vision_config=vision, mm_tokens_per_image=4, image_token_index=258,
            boi_token_index=257, eoi_token_index=256))
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**BASE, **fields}))
    model = model.float().eval()
    centre = 0.0 if "gemma" in name else 1.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.dim() > 1 else centre, 0.1)
    sampling = dict(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05) if "qwen" in name else {}
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0, **sampling)
    model.save_pretrained(folder)
    tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **published}, indent=2))
    # Beyond the original context of LongRoPE; below the tokens that stand for images.
    return torch.randint(3, 250, (2, 100 if name == "phi3-longrope" else 40), generator=torch.Generator().manual_seed(1))


def load(folder):
    kind = Gemma3ForConditionalGeneration if "ConditionalGeneration" in (folder / "config.json").read_text() else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def sorsa(*arguments):
    command = [SORSA, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1) or (done.returncode == 1 and arguments[0] != "verify"):
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def difference(scratch, folder, ids, theirs, *options):
    """The largest difference of a logit of `sorsa` to those of a PyTorch model."""
    golden = scratch / "golden.safetensors"
    with torch.no_grad():
        logits = theirs(input_ids=ids).logits
    save_file({"input_ids": ids, "logits": logits.float().contiguous()}, golden)
    return json.loads(sorsa("verify", "--model", folder, "--golden", golden, "--format", "json", *options))["checks"][0]["difference"]


def check(name, scratch):
    folder, run, merged, exported, adapter = (scratch / name / part for part in ("model", "run", "merged", "hf", "peft"))
    folder.mkdir(parents=True)
    ids = make(name, folder)
    found = {"model": difference(scratch, folder, ids, load(folder))}
    data = scratch / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": [{"role": role, "content": text} for role, text in chat]}) + "\n" for chat in CHATS))
    # Phi-3 has fused projections, whose names the default targets are not.
    fused = ["--set", 'adapter.target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]'] if name.startswith("phi3") else []
    sorsa("finetune", *fused, "--quiet", "--model", folder, "--data", data, "--template", "chat", "--rank", 4, "--batch-size", 2, "--max-steps", 2,
          "--lr", "1e-3", "--set", "data.validation_rows=0", "--set", "svd.cache=false", "--run-dir", run)
    sorsa("generate", "--adapter", run, "--template", "chat", "--max-new-tokens", 8, "Name a colour.")
    sorsa("merge", "--adapter", run, "--out", merged)
    sorsa("export", "--adapter", run, "--format", "hf", "--out", exported)
    sorsa("export", "--adapter", run, "--format", "peft", "--out", adapter)
    sorsa("export", "--adapter", run, "--format", "gguf", "--out", scratch / name / "model.gguf")
    found["merged"] = difference(scratch, folder, ids, load(merged), "--adapter", run)
    found["hf"] = difference(scratch, folder, ids, load(exported), "--adapter", run)
    base = folder
    if FOLDERS[name][0] is None:
        # PEFT finds the modules of the text model in that model alone, which the export's warning says.
        base = scratch / name / "text"
        sorsa("export", "--model", folder, "--format", "hf", "--out", base)
    found["peft"] = difference(scratch, folder, ids, PeftModel.from_pretrained(load(base), adapter), "--adapter", run)
    tensors = f", gguf {len(GGUFReader(scratch / name / 'model.gguf').tensors)} tensors" if GGUFReader else ""
    same = max(found.values()) <= TOLERANCE
    print(f"{name:<20} {', '.join(f'{what} {value:.1e}' for what, value in found.items())}{tensors}{'' if same else '  DIFFERENT'}", flush=True)
    return same


def main():
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft_version}")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        scratch.mkdir(exist_ok=True)
        same = [check(name, scratch) for name in FOLDERS]
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
