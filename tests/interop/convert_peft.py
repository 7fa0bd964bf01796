"""Compares the base with a converted LoRA, loaded by PEFT, to the tuned folder that the LoRA was made of.

    python convert_peft.py BASE TUNED LORA

Needs torch, transformers and peft.
"""

import sys

import peft
import torch
import transformers


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def main():
    base, tuned, lora = sys.argv[1:4]
    load = lambda folder: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    model = load(base)
    tokens = torch.randint(0, model.config.vocab_size, (2, 32))
    before = logits(model, tokens)
    expected = logits(load(tuned), tokens)
    adapted = peft.PeftModel.from_pretrained(model, lora).eval()
    ranks = {module.r["default"] for module in adapted.modules() if isinstance(module, peft.tuners.lora.Linear)}
    count = sum(isinstance(module, peft.tuners.lora.Linear) for module in adapted.modules())
    found = logits(adapted, tokens)
    far = (found - expected).abs().max().item()
    moved = (before - expected).abs().max().item()
    print(f"PEFT {peft.__version__}, Transformers {transformers.__version__}: {count} modules of ranks {sorted(ranks)}")
    print(f"logits differ by {far:.1e} at most from the tuned model's, which tuning moved by {moved:.1e}")


main()
