//! Which of llama.cpp's pre-tokenizers cuts a text as the one in `tokenizer.json` does.

use serde_json::{Value as Json, json};

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Regular expression, whether a word that is a token is taken whole, llama.cpp's name. The sources are the expressions
/// that `llama-vocab.cpp` quotes as the originals of its own.
const KNOWN: [(&str, bool, &str); 5] = [
    (LLAMA_3, true, "llama-bpe"),
    (LLAMA_3, false, "dbrx"),
    (QWEN_2, false, "qwen2"),
    (TEKKEN, true, "tekken"),
    (GPT_4O, false, "gpt-4o"),
];

/// The steps of the pre-tokenizer.
pub(super) fn steps(json: &Json) -> Vec<&Json> {
    let pre = &json["pre_tokenizer"];
    match pre["pretokenizers"].as_array() {
        Some(list) => list.iter().collect(),
        None if pre.is_null() => Vec::new(),
        None => vec![pre],
    }
}

/// The pre-tokenizer of `tokenizer.json` that cuts like llama.cpp's of this name, and whether a word that is a token is taken whole.
pub(in super::super) fn pre_tokenizer(name: &str) -> Option<(Json, bool)> {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let sequence = |first: Json, second: Json| json!({"type": "Sequence", "pretokenizers": [first, second]});
    match name {
        "gpt-2" | "default" => Some((byte_level(true), false)),
        "smollm" => Some((sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true)), false)),
        _ => {
            let name = if matches!(name, "llama3" | "llama-v3") { "llama-bpe" } else { name };
            let (pattern, whole, _) = KNOWN.iter().find(|known| known.2 == name)?;
            let split =
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            Some((sequence(split, byte_level(false)), *whole))
        }
    }
}

/// llama.cpp's name of the pre-tokenizer and, if it has none, `default` with a note of what it does in another way.
pub(super) fn choose(json: &Json) -> (&'static str, Vec<String>) {
    let whole = json["model"]["ignore_merges"] == true;
    let steps = steps(json);
    let kinds: Vec<&str> = steps.iter().map(|step| step["type"].as_str().unwrap_or_default()).collect();
    // GPT-2's expression is part of the byte-level step unless that is told otherwise.
    let gpt_2 = steps.last().is_some_and(|step| step["use_regex"] != false);
    let found = match (kinds.as_slice(), gpt_2, whole) {
        (["ByteLevel"], true, false) => Some("gpt-2"),
        (["Digits", "ByteLevel"], true, false) if steps[0]["individual_digits"] == true => Some("smollm"),
        (["Split", "ByteLevel"], false, _) if steps[0]["behavior"] == "Isolated" && steps[0]["invert"] != true => {
            let pattern = steps[0]["pattern"]["Regex"].as_str().unwrap_or_default();
            KNOWN.iter().find(|known| known.0 == pattern && known.1 == whole).map(|known| known.2)
        }
        _ => None,
    };
    let mut notes = Vec::new();
    if found.is_none() {
        notes.push(format!(
            "llama.cpp has no pre-tokenizer that is known to cut as this one does ({}): `default` is written, and some \
             texts become other tokens",
            kinds.join(", ")
        ));
    }
    if steps.iter().any(|step| step["add_prefix_space"] == true) {
        notes.push("llama.cpp does not put a space before the first word, this tokenizer does".to_owned());
    }
    if !json["normalizer"].is_null() {
        let kind = json["normalizer"]["type"].as_str().unwrap_or("unknown");
        notes.push(format!("llama.cpp does not normalize texts, this tokenizer does ({kind})"));
    }
    (found.unwrap_or("default"), notes)
}
