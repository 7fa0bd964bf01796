"""The template of a `Modelfile` in Go, beside the model's own chat template in Transformers.

    python modelfile.py MODEL_FOLDER...

`sorsa export --format gguf` writes the `Modelfile`; a program in Go executes its TEMPLATE with conversations in the form that Ollama gives
them (`.System`, `.Messages` with `.Role` and `.Content`). What Go writes after the begin token that llama.cpp adds should be what
`apply_chat_template` writes. A model whose Modelfile has no TEMPLATE is said so.

Run at the root of the repository, after `cargo build --release --workspace --bin sorsa`; needs `go` in the search path.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader
from transformers import AutoTokenizer

SORSA = "target/release/sorsa"
PROGRAM = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var input struct {
		Template, System string
		Messages         []Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Parse(input.Template))
	if err := parsed.Execute(os.Stdout, input); err != nil {
		panic(err)
	}
}
"""
TALK = [("user", "How many?"), ("assistant", "Two apples."), ("user", "And pears?")]
SYSTEM = [("system", "Answer like a pirate.")]


def check(folder, dir, program):
    file = dir / "model.gguf"
    command = [SORSA, "export", "--format", "gguf", "--model", str(folder), "--dtype", "f16", "--out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    modelfile = (dir / "Modelfile").read_text()
    found = re.search(r'^TEMPLATE """(.*?)"""$', modelfile, re.DOTALL | re.MULTILINE)
    if not found:
        print(f"{folder.name}: no TEMPLATE")
        return True
    default = re.search(r'^SYSTEM """(.*?)"""$', modelfile, re.DOTALL | re.MULTILINE)
    fields = GGUFReader(file).fields
    adds = fields["tokenizer.ggml.add_bos_token"].contents()
    begin = fields["tokenizer.ggml.tokens"].contents()[fields["tokenizer.ggml.bos_token_id"].contents()] if adds else ""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    good, checked = True, 0
    for messages in [TALK[:1], TALK, SYSTEM + TALK[:1], SYSTEM + TALK]:
        messages = [{"role": role, "content": content} for role, content in messages]
        try:
            wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            print(f"    {messages[0]['role']}: {error}")
            continue
        # Ollama puts the text of SYSTEM before a conversation that has none.
        if default and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": default[1]}, *messages]
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        given = {"Template": found[1], "System": system, "Messages": messages}
        written = subprocess.run([program], input=json.dumps(given), check=True, capture_output=True, text=True).stdout
        checked += 1
        if begin + written != wanted:
            good = False
            print(f"    Go           {begin + written!r}\n    Transformers {wanted!r}")
    print(f"{folder.name}: {checked} conversations {'the same' if good else 'DIFFERENT'}")
    return good


if __name__ == "__main__":
    good = True
    with tempfile.TemporaryDirectory() as dir:
        dir = Path(dir)
        (dir / "main.go").write_text(PROGRAM)
        program = dir / "render"
        subprocess.run(["go", "build", "-o", str(program), str(dir / "main.go")], check=True)
        for folder in sys.argv[1:]:
            good &= check(Path(folder), dir, program)
    sys.exit(0 if good else 1)
