#!/usr/bin/env python3
"""Makes `llama/choices/`: the ways in which PEFT chooses modules and ranks, and what it saves beside the adapter.

Like make.py, with whose Llama it begins: `llama/checkpoint` must be there. The folders `tied_*` are for the same model without its
head (`tie_word_embeddings`).
"""

import json
import shutil
import warnings

import torch
from make import HERE, noise, save, save_json
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

CHOICES = {
    # A copy of the head is written beside its adapter.
    "head": dict(target_modules=["q_proj", "lm_head"]),
    "dora_head": dict(target_modules=["v_proj", "lm_head"], use_dora=True),
    # Python's regular expressions.
    "patterns": dict(target_modules=r".*\.self_attn\.(?!k)[a-z]_proj", exclude_modules=r".*(?<=\.1)\.self_attn\.o_proj",
                     rank_pattern={r"layers\.(?!0\b)\d+\.self_attn\.q_proj": 3}, alpha_pattern={"(?P<which>v|o)_proj": 5, "^q_proj": 100}),
    # Every norm, as PEFT compares the ends of names alone.
    "norms": dict(target_modules=["q_proj"], modules_to_save=["norm"]),
    # Both matrices are written, although no setting names them.
    "beside": dict(target_modules=["q_proj"]),
    "tied_head": dict(target_modules=["q_proj", "lm_head"]),
    "tied_whole_head": dict(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "tied_whole_embedding": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "tied_beside": dict(target_modules=["q_proj"]),
}


def main():
    out = HERE / "llama/choices"
    shutil.rmtree(out, ignore_errors=True)
    batch = load_file(HERE / "llama/io.safetensors")
    batch = {name: batch[name] for name in ["input_ids", "attention_mask", "labels"]}
    for number, (name, options) in enumerate(CHOICES.items()):
        torch.manual_seed(number)
        model = LlamaForCausalLM.from_pretrained(HERE / "llama/checkpoint", dtype=torch.float32, attn_implementation="eager")
        if name.startswith("tied"):
            model.config.tie_word_embeddings = True
            model.tie_weights()
        model.double().eval()
        adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, task_type="CAUSAL_LM", **options))
        for path, parameter in adapted.named_parameters():
            is_beside = "beside" in name and ("embed_tokens" in path or "lm_head" in path)
            if "lora_" in path or "modules_to_save" in path or is_beside:
                parameter.data = (parameter.data + noise(parameter.shape, 0.1)).float().double()
        expected = adapted(**batch)
        save(out / name / "expected.safetensors", {"logits": expected.logits, "loss": expected.loss.reshape(1)}, 6)
        more = {"save_embedding_layers": True} if "beside" in name else {}
        adapted.float().save_pretrained(out / name / "adapter", **more)
        (out / name / "adapter/README.md").unlink(missing_ok=True)
        path = out / name / "adapter/adapter_config.json"
        settings = json.loads(path.read_text())
        targets = settings["target_modules"]
        settings |= {"target_modules": targets if isinstance(targets, str) else sorted(targets), "base_model_name_or_path": "checkpoint"}
        save_json(path, settings)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main()
