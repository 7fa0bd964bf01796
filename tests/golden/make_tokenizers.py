#!/usr/bin/env python3
"""Makes `tokenizers/`: folders of tokenizers as people publish them, and what AutoTokenizer of Transformers makes of them.

    venv/bin/python make_tokenizers.py

with transformers 4.57.6, tokenizers 0.22, sentencepiece 0.2.3 and protobuf. `cases.json` holds, for each case, the files of its folder (a name
stands for a file in `files/`, anything else is the content) and the ids of every text.
"""

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.utils import logging

from make import HERE

logging.set_verbosity_error()
FOLDER = HERE / "tokenizers"

TEXTS = [
    "", " ", "Hello world", "  two blanks  inside  ", "Once upon a time, there was a little dog.",
    "def f(x):\n    return x + 1\n\n\tif x:\n\t\treturn\n", "1234567 3.14159 1,000", "Émile naïve Ångström \u00c5 A\u030a",
    "日本語のテキスト 한국어 العربية", "🍎🍏 👩‍👩‍👧 \U0001F1E9\U0001F1EA", "tabs\tand\u00a0nbsp\u2003em\u200bzero", "don't we're I'll",
    "a<s>b</s>c", "<|x|> a <|x|>b", "<unk>", "<pad><eos><bos>", "<start_of_turn>user\nhi<end_of_turn>\n", "\u2581 lower \u2581",
    "line\r\nline\n\n\n\nend", "ﬁ ﷺ ½ Ⅷ", "x" * 40, "<extra_id_0> and <extra_id_99>", "<|endoftext|>text<|im_start|>", "[PAD] [MASK]",
]
SENTENCES = [
    "Once upon a time, there was a little dog.", "Hello world, hello dog.", "def f(x): return x + 1", "The little dog said hello.",
    "She had 12 apples and 34 pears.", "if x: return", "don't we're I'll", "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "The world was a little cold, and the dog was cold.", "naïve Émile", "user and model", "1234567890",
] * 4


def sentence_piece(**options):
    """The bytes of a SentencePiece model."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=out, minloglevel=2, hard_vocab_limit=False, num_threads=1, **options
    )
    return out.getvalue()


def byte_level():
    """`tokenizer.json` of a byte-level tokenizer with a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), special_tokens=["<s>", "</s>"]
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def make_files():
    files = FOLDER / "files"
    files.mkdir(parents=True)
    llama = dict(model_type="bpe", vocab_size=340, byte_fallback=True, normalization_rule_name="identity", split_digits=True,
                 allow_whitespace_only_pieces=True, remove_extra_whitespaces=False)
    (files / "llama.model").write_bytes(sentence_piece(**llama))
    (files / "llama_user.model").write_bytes(sentence_piece(**llama, user_defined_symbols=["<|x|>", "   "], control_symbols=["<|im_start|>"]))
    (files / "llama_unigram.model").write_bytes(sentence_piece(**{**llama, "model_type": "unigram"}))
    gemma = dict(llama, pad_id=0, eos_id=1, bos_id=2, unk_id=3, add_dummy_prefix=False, bos_piece="<bos>", eos_piece="<eos>",
                 user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "  ", "   "])
    (files / "gemma.model").write_bytes(sentence_piece(**gemma))
    # The model holds the name of the file, so that it should be the same everywhere.
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        rules = Path("rules.tsv")
        # From code points to code points: fi ligature, one half, wide letters, a blank that does not break.
        lines = ["FB01\t66 69", "00BD\t31 2F 32", "FF21\t41", "00A0\t20", "41 030A\tC5", "FDFA\t635 644 649 20 627 644 644 647"]
        rules.write_text("\n".join(lines) + "\n")
        t5 = dict(model_type="unigram", vocab_size=120, normalization_rule_tsv=str(rules), pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        (files / "t5.model").write_bytes(sentence_piece(**t5))
    tokenizer = byte_level()
    tokenizer.save(str(files / "byte_level.json"), pretty=False)
    parts = json.loads(tokenizer.to_str())["model"]
    (files / "vocab.json").write_text(json.dumps(parts["vocab"], ensure_ascii=False))
    (files / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in parts["merges"]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.save(str(files / "byte_level_post.json"), pretty=False)
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_tokens([AddedToken("plain", special=False)])
    tokenizer.save(str(files / "byte_level_prefix.json"), pretty=False)


def token(text, **flags):
    flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, **flags}
    return {"content": text, **flags}


def cases():
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    llama = {"tokenizer_class": "LlamaTokenizer"}

    def of(name, config, model=None, **files):
        vocabulary = {"json": {"tokenizer.json": "byte_level.json"}, "post": {"tokenizer.json": "byte_level_post.json"},
                      "prefix": {"tokenizer.json": "byte_level_prefix.json"}, None: {}}
        start = vocabulary[model] if model in vocabulary else {"tokenizer.model": model}
        files = {key.replace("__", "."): value for key, value in files.items()}
        return name, {**start, "tokenizer_config.json": config, **files}

    yield of("as the file says", fast, "json")
    yield of("a post-processor on both sides", fast, "post")
    yield of("the generic class does not look at add_bos_token", {**fast, "add_bos_token": True}, "json")
    yield of("nor at its absence", {**fast, "add_bos_token": False}, "post")
    yield of("added_tokens_decoder", {**fast, "added_tokens_decoder": {
        "0": token("<s>"), "1": token("</s>"), "330": token("<|x|>", rstrip=True), "331": token("dog", special=False, single_word=True)}}, "json")
    yield of("ids of added_tokens_decoder with a gap", {**fast, "added_tokens_decoder": {"700": token("world"), "600": token("<|x|>", lstrip=True)}}, "json")
    yield of("additional_special_tokens", {**fast, "additional_special_tokens": ["<|x|>", "hello"]}, "json")
    yield of("additional tokens that are objects", {**fast, "additional_special_tokens": [{"__type": "AddedToken", **token("<|x|>", rstrip=True)}]}, "json")
    yield of("extra_special_tokens", {**fast, "extra_special_tokens": {"image_token": "<|x|>"}}, "json")
    yield of("added_tokens.json", fast, "json", added_tokens__json={"<|x|>": 330, "[PAD]": 331})
    yield of("added_tokens.json and a name", {**fast, "pad_token": "[PAD]"}, "json", added_tokens__json={"<|x|>": 330, "[PAD]": 331})
    yield of("special_tokens_map.json replaces", {**fast, "pad_token": "</s>"}, "json", special_tokens_map__json={
        "bos_token": token("<|x|>", rstrip=True), "pad_token": "[PAD]", "additional_special_tokens": ["[MASK]"]})
    yield of("special_tokens_map.json beside added_tokens_decoder is not read", {**fast, "added_tokens_decoder": {"0": token("<s>")}}, "json",
             special_tokens_map__json={"pad_token": "[PAD]", "bos_token": "</s>"})
    yield of("tokens that no vocabulary has", {**fast, "pad_token": "[PAD]", "unk_token": "<unk>", "mask_token": "[MASK]"}, "json")
    yield of("a token that becomes special", {**fast, "pad_token": "plain"}, "prefix")
    yield of("no blank before the first word unless the configuration asks", fast, "prefix")
    yield of("a blank before the first word", {**fast, "add_prefix_space": True}, "prefix")
    yield of("null changes nothing", {**fast, "add_prefix_space": None}, "prefix")
    yield of("a blank that the file does not ask for", {**fast, "add_prefix_space": True}, "json")
    yield of("GPT-2's class", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}, "json")
    yield of("Llama's class makes its own post-processor", {**llama, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}, "json")
    yield of("Llama's class without the begin token", {**llama, "add_bos_token": False, "add_eos_token": True, "legacy": False, "unk_token": "</s>"}, "post")
    yield of("GPT-NeoX' class", {"tokenizer_class": "GPTNeoXTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}, "post")
    yield of("Cohere's class", {"tokenizer_class": "CohereTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}, "json")
    yield of("Gemma's class", {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>", "pad_token": "</s>"}, "json")
    yield of("Qwen's class", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>", "pad_token": "</s>", "unk_token": None}, "json")
    yield of("the class of the model's type", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}, "json", config__json={"model_type": "llama"})

    yield of("SentencePiece: Llama", llama, "llama.model")
    yield of("SentencePiece: Llama, not legacy", {**llama, "legacy": False}, "llama.model")
    yield of("SentencePiece: Llama without a blank", {**llama, "add_prefix_space": False}, "llama.model")
    yield of("SentencePiece: Llama without a blank, not legacy", {**llama, "add_prefix_space": False, "legacy": False}, "llama.model")
    yield of("SentencePiece: Llama, null for a blank", {**llama, "add_prefix_space": None}, "llama.model")
    yield of("SentencePiece: Llama, own flags", {**llama, "add_bos_token": False, "add_eos_token": True}, "llama.model")
    yield of("SentencePiece: symbols of the model", {**llama, "legacy": False}, "llama_user.model")
    yield of("SentencePiece: added_tokens.json", {**llama, "pad_token": "[PAD]"}, "llama.model", added_tokens__json={"[PAD]": 340, "<|x|>": 341})
    yield of("SentencePiece: added_tokens_decoder", {**llama, "added_tokens_decoder": {
        "0": token("<unk>"), "1": token("<s>"), "2": token("</s>"), "340": token("<|im_start|>"), "341": token("<|x|>", normalized=True, special=False)}}, "llama.model")
    yield of("SentencePiece: special_tokens_map.json", llama, "llama.model", special_tokens_map__json={"pad_token": token("[PAD]"), "eos_token": "<|x|>"})
    yield of("SentencePiece: the class of the model's type", {}, "llama.model", config__json={"model_type": "mistral"})
    yield of("SentencePiece: unigram", llama, "llama_unigram.model")
    yield of("SentencePiece: Gemma", {"tokenizer_class": "GemmaTokenizer"}, "gemma.model")
    yield of("SentencePiece: T5", {"tokenizer_class": "T5Tokenizer"}, None, spiece__model="t5.model")
    yield of("SentencePiece: T5, not legacy", {"tokenizer_class": "T5Tokenizer", "legacy": False, "extra_ids": 3}, None, spiece__model="t5.model")
    old = {"vocab__json": "vocab.json", "merges__txt": "merges.txt"}
    yield of("old files: GPT-2", {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}, None, **old)
    yield of("old files: GPT-2 with a begin token", {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>", "add_bos_token": True, "add_prefix_space": True}, None, **old)
    yield of("old files: Qwen 2", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "</s>",
                                   "additional_special_tokens": ["<|im_start|>"]}, None, **old)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    make_files()
    out = []
    for name, files in cases():
        with tempfile.TemporaryDirectory() as place:
            for file, content in files.items():
                source = FOLDER / "files" / content if isinstance(content, str) else None
                if source:
                    shutil.copyfile(source, Path(place) / file)
                else:
                    (Path(place) / file).write_text(json.dumps(content))
            tokenizer = AutoTokenizer.from_pretrained(place)
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
        around = tokenizer("a").input_ids
        inside = tokenizer("a", add_special_tokens=False).input_ids
        start = max(at for at in range(len(around)) if around[at:at + len(inside)] == inside)
        decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        # What the second half of the ids adds to the first.
        halves = [(tokenizer.decode(row[:len(row) // 2], skip_special_tokens=True), whole) for row, whole in zip(ids, decoded)]
        out.append({
            "name": name, "files": files, "ids": ids, "before": around[:start], "after": around[start + len(inside):], "decoded": decoded,
            "second_half": [whole[len(half):] if whole.startswith(half) else None for half, whole in halves],
            "special": {key: tokenizer.convert_tokens_to_ids(value) if (value := getattr(tokenizer, key)) is not None else None
                        for key in ("bos_token", "eos_token", "pad_token", "unk_token")},
            "size": len(tokenizer),
        })
    rows = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in out)
    texts = json.dumps(TEXTS, ensure_ascii=False)
    (FOLDER / "cases.json").write_text(f'{{"texts": {texts},\n"cases": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
