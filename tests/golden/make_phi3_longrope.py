#!/usr/bin/env python3
"""Makes `phi3_longrope/`: a small Phi-3 whose rotary frequencies change where a sequence outgrows the context of the pretraining.

    venv/bin/python make_phi3_longrope.py

with the versions of `make.py`. Greedy tokens are computed without a cache. `generate` with one gives others in Transformers
4.57.6: where the factors change it drops the cache and takes all tokens in again, as it should, but with the mask of
a single query, so that in this one pass tokens see those after them.
"""

import json
import shutil

import torch
from transformers import Phi3Config, Phi3ForCausalLM

from make import HERE, noise, save, save_json

SHORT, LONG, PROMPT, GREEDY = 14, 27, 12, 16


def main():
    folder = HERE / "phi3_longrope"
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(20240903)
    # Half of a head is rotated: as in Phi-4-mini, whose part is three quarters.
    config = Phi3Config(
        vocab_size=48, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, original_max_position_embeddings=16, partial_rotary_factor=0.5,
        rope_scaling={"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.2, 2.0, 3.5, 5.0]},
        pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
    )
    model = Phi3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        around, scale = (1.0, 0.1) if "norm" in name else (0.0, 0.3)
        parameter.data = (around + noise(parameter.shape, scale)).float()
    model.save_pretrained(folder / "checkpoint")
    (folder / "checkpoint/generation_config.json").unlink()
    model.double().eval()

    ids = torch.randint(3, 48, (2, LONG))
    with torch.no_grad():
        # All tokens of a pass have the factors of its longest sequence.
        short, long = model(ids[:, :SHORT]).logits, model(ids).logits
        greedy = model.generate(ids[:, :PROMPT], max_new_tokens=GREEDY, do_sample=False, use_cache=False, eos_token_id=None)
    save(folder / "io.safetensors", {"input_ids": ids, "short_logits": short, "long_logits": long, "greedy_ids": greedy}, 6)
    # Greedy tokens can be compared only where the choices are clear.
    with torch.no_grad():
        steps = [model(greedy[:, :length]).logits[:, -1] for length in range(PROMPT, PROMPT + GREEDY)]
    best = torch.stack(steps).topk(2, dim=-1).values
    margin = (best[..., 0] - best[..., 1]).min().item()
    save_json(folder / "io.json", {"prompt": PROMPT, "short": SHORT, "smallest_margin": round(margin, 4)})
    config = folder / "checkpoint/config.json"
    save_json(config, json.loads(config.read_text()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main()
