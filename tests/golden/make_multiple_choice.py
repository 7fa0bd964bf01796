#!/usr/bin/env python3
"""Makes `multiple_choice/`: questions like ARC's, and the log-likelihood of each choice after its question by Transformers on the
embedded base model (`datasets/base`), as lm-evaluation-harness asks for it: the prompt `Question: ..\\nAnswer:`, the choice after a blank, the
tokens of both together without the tokens of the prompt.

    venv/bin/python make_multiple_choice.py

with the versions of `make.py`.
"""

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from make import HERE

QUESTIONS = [
    ("Tom has 3 apples and buys 4 more apples. How many apples does Tom have?", ["7 apples", "12", "Tom has 7 apples.", "1"], "C"),
    ("Anna has 9 books and gives 2 books to Ben. What is left?", ["11 books", "7 books", "9 books"], "B"),
    ("Which is more?", ["5 is more than 3, and 3 is less than 5.", "3 is more than 5.", "5", "they are equal"], "A"),
    ("What comes after 2, 4, 6, 8?", ["7", "9", "10", "2"], "C"),
    ("Where does the cat sleep?", ["on the box", "under", "in the house of the old king", "x"], "A"),
]


def main():
    folder = HERE / "multiple_choice"
    folder.mkdir(exist_ok=True)
    base = HERE.parent.parent / "datasets" / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    lines = []
    for question, choices, key in QUESTIONS:
        prompt = f"Question: {question}\nAnswer:"
        asked = tokenizer.encode(prompt)
        row = {"question": question, "choices": {"text": choices, "label": list("ABCD")[: len(choices)]}, "answerKey": key}
        row["log_likelihoods"], row["tokens"] = [], []
        for choice in choices:
            tokens = tokenizer.encode(f"{prompt} {choice}")
            assert tokens[: len(asked)] == asked
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
            scored = range(len(asked), len(tokens))
            row["log_likelihoods"].append(sum(logits[index - 1, tokens[index]].item() for index in scored))
            row["tokens"].append(len(scored))
        lines.append(json.dumps(row) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
