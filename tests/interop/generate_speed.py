"""Speed of greedy generation by Transformers with its key-value cache, beside the example `generate_speed` of sorsa-models.

    OMP_NUM_THREADS=2 python tests/interop/generate_speed.py [S|FOLDER] [batch] [f32|bf16] [new tokens] [prompt tokens]

`S` is a random Llama of width 288, 6 layers, 6 heads, feed-forward 768, vocabulary 32,000. The prompts are the example's. One
line of JSON: tokens/s of the best of three runs, after one that is not counted, each with its prefill; CPU time is
of all three. Needs torch and transformers.
"""

import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

RUNS = 3


def model(name, dtype):
    if name != "S":
        return AutoModelForCausalLM.from_pretrained(name, torch_dtype=dtype)
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=288,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        vocab_size=32_000,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config).to(dtype)


def main():
    arguments = sys.argv[1:] + ["S", "1", "f32", "128", "32"][len(sys.argv) - 1 :]
    name, batch, dtype, new, prompt = arguments[0], int(arguments[1]), arguments[2], int(arguments[3]), int(arguments[4])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    network = model(name, {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]).eval()
    vocabulary = network.config.vocab_size
    rows = [[(row * 31 + i * 7 + 1) * 7919 % vocabulary for i in range(prompt)] for row in range(batch)]
    ids = torch.tensor(rows)
    options = dict(
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
    )

    def run():
        start = time.perf_counter()
        with torch.inference_mode():
            out = network.generate(ids, **options)
        return batch * new / (time.perf_counter() - start), out

    run()
    start = time.process_time()
    runs = [run() for _ in range(RUNS)]
    cpu = time.process_time() - start
    print(
        json.dumps(
            {
                "model": name,
                "weights": dtype,
                "batch": batch,
                "new_tokens": new,
                "prompt_tokens": prompt,
                "tokens_per_s": round(max(speed for speed, _ in runs)),
                "cpu_ms_per_token": round(1e3 * cpu / (RUNS * batch * new), 2),
                "first_ids": runs[0][1][0, prompt : prompt + 8].tolist(),
            }
        )
    )


main()
