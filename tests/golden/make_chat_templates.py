#!/usr/bin/env python3
"""Makes `chat_templates/cases.json`: what Transformers renders from chat templates, and what the assistant says in it.

    venv/bin/pip install transformers==4.57.6 jinja2==3.1.6
    venv/bin/python make_chat_templates.py                      # the small templates in chat_templates/
    venv/bin/python make_chat_templates.py FOLDER OUT.json      # all *.jinja files below a folder, such as published ones

The second form is for templates that are not ours to keep; compare with

    SORSA_CHAT_TEMPLATES=OUT.json cargo test --release --workspace --test chat_templates -- --nocapture

Who writes what comes from Transformers' `{% generation %}` marks: the template's own, or those of `NAME_training.jinja` if it
renders the same text. The tokens of both are those of `datasets/base`. Otherwise it comes from FAMILIES: the text that opens the assistant's turns, and what may open any
other turn, as expressions. What the generation prompt writes is not the assistant's. A template without either is compared by its text alone.
"""

import json
import re
import sys
from pathlib import Path

import jinja2
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
# The tokens of a text do not depend on the template: one tokenizer serves all.
TOKENIZER = AutoTokenizer.from_pretrained(HERE.parent.parent / "datasets" / "base")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city, in °C & <html>.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "It's a \"city\"."},
                "days": {"type": "integer", "description": "How many."},
            },
            "required": ["city"],
        },
    },
}

S = lambda text: {"role": "system", "content": text}
U = lambda text: {"role": "user", "content": text}
A = lambda text: {"role": "assistant", "content": text}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Bern", "days": 2}}}
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "12 degrees, sunny"}

CONVERSATIONS = {
    "one exchange": {"messages": [U("What is 2 + 2?"), A("It is four.")]},
    "several turns": {
        "messages": [U("Hello there"), A("Good day!"), U("Who <are> you?"), A("A 'model' & more."), U("Bye"), A("So long")]
    },
    "system": {"messages": [S("You answer briefly."), U("Why?"), A("Because."), U("And how?"), A("Like this.")]},
    "thoughts": {
        "messages": [
            U("Sum 1, 2, 3"),
            A("<think>\nFirst three, then six.\n</think>\n\nSix."),
            U("And 4?"),
            A("<think>\nSix and four.\n</think>\n\nTen."),
        ]
    },
    "reasoning": {
        "messages": [
            U("Sum 1, 2, 3"),
            {"role": "assistant", "reasoning_content": "First three, then six.", "content": "Six."},
            U("And 4?"),
            {"role": "assistant", "reasoning_content": "Six and four.", "content": "Ten."},
        ]
    },
    "tools": {"messages": [U("Weather in Bern?"), CALL, RESULT, A("It is sunny."), U("Thanks"), A("Welcome!")], "tools": [WEATHER]},
    "user last": {"messages": [U("Say one"), A("One"), U("Say two")]},
    "blanks": {"messages": [U(" Give me code\n"), A("\n  def f():\n    return 'é'\n\n"), U("Zürich 🍎?"), A("Yes  ")]},
    "assistant first": {"messages": [A("How can I help?"), U("Tell me"), A("Told.")]},
}

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

# By the name of the template: what opens the assistant's turns, and what opens other turns.
IM = r"<\|im_start\|>"
FAMILIES = [
    (r"chatml|qwen|lfm2|nemotron|falcon_h1|smol", IM + r"assistant\n", IM + r"(?!assistant\n)"),
    (r"think", r"<A>", r"<U>"),
    (r"llama3|llama-3|llama3_2_vision", r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n", r"<\|start_header_id\|>(?!assistant)"),
    (r"llama4", r"<\|header_start\|>assistant<\|header_end\|>\n\n", r"<\|header_start\|>(?!assistant)"),
    (r"gemma4|diffusion", None, None),
    (r"gemma", r"<start_of_turn>model\n", r"<start_of_turn>(?!model)"),
    # The user's turn ends with the opening of the answer.
    (r"axolotl/phi_3$", r"<\|assistant\|>\n|^<s>(?=How can)", r"<\|(user|system|tool)\|>"),
    (r"phi-3-small|phi3|phi_3|phi-3|phi_35|phi3_5|phi-else", r"<\|assistant\|>\n", r"<\|(user|system|tool)\|>"),
    (r"phi_4", r"<\|im_start\|>assistant<\|im_sep\|>", r"<\|im_start\|>(?!assistant)"),
    (r"zephyr", r"<\|assistant\|>\n", r"<\|(user|system)\|>"),
    (r"llama-2|mistral-instruct|mistral_v1", r"\[/INST\]", r"<s> ?\[INST\]|(?<=</s>) *\[INST\]"),
    (r"vicuna", r"ASSISTANT:", r"USER:"),
    (r"openchat", r"GPT4 Correct Assistant:", r"GPT4 Correct (User|System):"),
    (r"solar", r"### Assistant:\n", r"### (User|System):"),
    (r"deepseek_v2", r"<｜Assistant｜>", r"<｜User｜>"),
    (r"granite", r"<\|start_of_role\|>assistant<\|end_of_role\|>", r"<\|start_of_role\|>(?!assistant)"),
    (r"exaone", r"\[\|assistant\|\]", r"\[\|(user|system|tool)\|\]"),
    (r"saiga", r"<s>bot\n", r"<s>(user|system)\n"),
    (r"metharme", r"<\|model\|>", r"<\|user\|>|<\|system\|>"),
    (r"chatqa|falcon-instruct", r"Assistant:", r"\n\nUser:"),
    (r"alpaca", r"### Response:\n", r"### Instruction:"),
    (r"cohere|aya", r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>(<\|START_RESPONSE\|>)?", r"<\|START_OF_TURN_TOKEN\|>(?!<\|CHATBOT)"),
    (r"amberchat", r"###Assistant:", r"###Human:"),
]


def compiled(source):
    template = chat_template_utils._compile_jinja_template(source)
    # The date is fixed, and unknown to templates that ask whether there is one: see the documentation of `ChatTemplate`.
    if "strftime_now is defined" in source:
        template.environment.globals.pop("strftime_now", None)
    else:
        import datetime

        fixed = datetime.datetime(2024, 7, 26)
        template.environment.globals["strftime_now"] = fixed.strftime
    return template


def render(source, conversation, add_generation_prompt):
    """The text and the character ranges of the marks, or the error."""
    variables = {"tools": None, "documents": None} | TOKENS | conversation | {"add_generation_prompt": add_generation_prompt}
    try:
        return chat_template_utils._render_with_assistant_indices(compiled_template=compiled(source), **variables)
    except (jinja2.TemplateError, TypeError, AttributeError, KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        return None, f"{type(error).__name__}: {error}"


def in_bytes(text, spans):
    return [[len(text[:at].encode()) for at in span] for span in spans]


def tokens(text, spans):
    """Token ids and `assistant_masks`, by the rule of Transformers' `apply_chat_template` with `return_assistant_tokens_mask`."""
    encoded = TOKENIZER(text, add_special_tokens=False)
    mask = [0] * len(encoded["input_ids"])
    for start, end in spans:
        first, last = encoded.char_to_token(start), encoded.char_to_token(end - 1)
        if first is None:
            break
        for at in range(first, last + 1 if last else len(mask)):
            mask[at] = 1
    return {"ids": " ".join(map(str, encoded["input_ids"])), "mask": "".join(map(str, mask))}


def family_spans(name, text):
    for pattern, opener, other in FAMILIES:
        if re.search(pattern, name):
            break
    else:
        return None
    if opener is None:
        return None
    borders = sorted(
        [(m.start(), m.end(), True) for m in re.finditer(opener, text)]
        + [(m.start(), m.end(), False) for m in re.finditer(other, text)]
    )
    spans = []
    for at, (_, end, ours) in enumerate(borders):
        if ours:
            spans.append([end, borders[at + 1][0] if at + 1 < len(borders) else len(text)])
    return spans


def after_the_prompt(source, text, conversation, spans):
    """The spans without what the generation prompt writes, and joined if nothing is between them."""
    variables = {name: value for name, value in conversation.items() if name != "messages"}
    messages = conversation["messages"]
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]

    def opening(index):
        for before in [messages[: turns[index]]] if index < len(turns) and turns[index] else []:
            (asked, _), (prompt, _) = [render(source, {"messages": before} | variables, more) for more in (False, True)]
            if asked and prompt and prompt.startswith(asked):
                return prompt[len(asked) :]
        question = {"messages": [U("?")]} | variables
        (asked, _), (prompt, _) = render(source, question, False), render(source, question, True)
        return prompt[len(asked) :] if prompt and asked and prompt.startswith(asked) else ""

    joined = []
    for index, (start, end) in enumerate(spans):
        # A thought that the prompt opens is not opened in every text.
        for written in [opening(index), opening(index).split("<think>")[0]]:
            moved = [start + n for n in range(len(written) + 1) if text[: start + n].endswith(written)]
            if written and moved:
                start = min(moved[-1], end)
                break
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        elif start < end:
            joined.append([start, end])
    return joined


def case(name, source, marked, conversation):
    text, marks = render(source, conversation, False)
    if text is None:
        return {"error": marks}
    prompt, _ = render(source, conversation, True)
    spans, by = None, None
    if re.search(r"\{%[-+]?\s*generation\b", source):
        spans, by = marks, "marks"
    elif marked:
        marked_text, marks = render(marked, conversation, False)
        if marked_text == text:
            spans, by = marks, "training template"
    if spans is None:
        spans, by = family_spans(name, text), "family"
    result = {"text": text, "prompt": prompt}
    if spans is not None:
        if by != "marks":
            spans = after_the_prompt(source, text, conversation, spans)
        spans = [span for span in spans if span[0] < span[1]]
        result |= {"spans": in_bytes(text, spans), "by": by} | tokens(text, spans)
    return result


def cases_of(folder):
    templates = []
    for path in sorted(folder.rglob("*.jinja")):
        # As `TextTokenizer` and Transformers read the file: with its line breaks.
        source = path.read_text()
        name = str(path.relative_to(folder).with_suffix(""))
        training = path.with_name(path.stem + "_training.jinja")
        marked = training.read_text() if training.exists() else None
        cases = [
            {"name": title} | conversation | case(name, source, marked, conversation)
            for title, conversation in CONVERSATIONS.items()
        ]
        templates.append({"name": name, "source": source, "cases": cases})
    return {"tokens": TOKENS, "templates": templates}


def expressions(folder):
    """What jinja2 writes for each line of `expressions.txt`, if it writes anything."""
    messages = CONVERSATIONS["several turns"]["messages"]
    results = []
    for line in (folder / "expressions.txt").read_text().splitlines():
        text, error = render(line, {"messages": messages}, False)
        results.append({"source": line, "text": text} | ({"error": error} if text is None else {}))
    return {"messages": messages, "lines": results}


def main():
    if len(sys.argv) == 3:
        Path(sys.argv[2]).write_text(json.dumps(cases_of(Path(sys.argv[1])), ensure_ascii=False))
        return
    folder = HERE / "chat_templates"
    results = cases_of(folder) | {"expressions": expressions(folder)}
    (folder / "cases.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
