//! Reads `vocab.json` and `merges.txt`, the older files of GPT-2 and Qwen2, and makes the `tokenizer.json` of them that Transformers makes.

use serde_json::{Map, Value, json};

use super::class::TokenizerClass;

/// How Qwen2 cuts a text into words.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A `tokenizer.json` of the two files, without the tokens that other files add.
///
/// # Errors
///
/// One sentence on a file that does not hold what it should, or on a class whose two files mean something else.
pub(super) fn convert(
    vocab: &[u8],
    merges: &[u8],
    class: TokenizerClass,
    config: &Map<String, Value>,
) -> Result<Value, String> {
    let vocab: Map<String, Value> =
        serde_json::from_slice(vocab).map_err(|error| format!("vocab.json should map tokens to ids: {error}"))?;
    let merges = std::str::from_utf8(merges).map_err(|error| format!("merges.txt is not UTF-8: {error}"))?;
    let lines: Vec<&str> = match class {
        TokenizerClass::Qwen2 => {
            let lines = merges.lines().map(str::trim).enumerate();
            let kept = lines.filter(|(index, line)| !(line.is_empty() || *index == 0 && line.starts_with("#version:")));
            kept.map(|(_, line)| line).collect()
        }
        TokenizerClass::Gpt2 => {
            // The first line is a heading, whatever it says.
            let mut lines: Vec<&str> = merges.split('\n').skip(1).collect();
            lines.pop();
            lines
        }
        _ => return Err("vocab.json and merges.txt are read for GPT2Tokenizer and Qwen2Tokenizer only".to_owned()),
    };
    let mut pairs = Vec::with_capacity(lines.len());
    for line in lines {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [left, right] => pairs.push([left, right]),
            _ => return Err(format!("merges.txt should have two tokens in a line, found `{line}`")),
        }
    }
    let add_prefix_space = config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex});
    let (normalizer, pre_tokenizer) = match class {
        TokenizerClass::Qwen2 => {
            let split = json!({"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false});
            (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]}))
        }
        _ => (Value::Null, byte_level(true)),
    };
    Ok(json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": pairs}}))
}
