//! Limits what a tokenizer's file can make of a text: a normalizer that replaces one letter by a thousand, five times over, needs more memory
//! than there is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use crate::panics::caught;

/// A step that makes more bytes of one is refused. Unicode's largest is 11, `▁` for a blank is 3.
const LARGEST_FACTOR: f64 = 4096.0;
/// Bytes that a normalizer may make of any text.
const SMALL: usize = 16 << 20;
/// Times that a normalizer may lengthen a larger text.
const USUAL_FACTOR: usize = 64;

/// How much a normalizer can lengthen a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth {
    /// Bytes that it makes of one byte, at most.
    factor: f64,
}

impl Growth {
    /// Reads the steps of `tokenizer.json` that make text of text.
    ///
    /// # Errors
    ///
    /// One sentence on a step that is damaged or lengthens texts beyond measure.
    pub fn of(normalizer: &Value, decoder: &Value) -> Result<Self, String> {
        let growth = Self { factor: factor(normalizer)? };
        for (name, factor) in [("normalizer", growth.factor), ("decoder", factor(decoder)?)] {
            if factor > LARGEST_FACTOR {
                return Err(format!(
                    "the {name} makes up to {factor:.1e} bytes of one, at most {LARGEST_FACTOR} are allowed"
                ));
            }
        }
        Ok(growth)
    }

    /// Checks that the normalizer does not lengthen `text` beyond measure.
    ///
    /// # Errors
    ///
    /// One sentence.
    pub fn check(self, text: &str, normalizer: Option<&NormalizerWrapper>) -> Result<(), String> {
        let Some(normalizer) = normalizer else { return Ok(()) };
        let limit = SMALL.max(text.len().saturating_mul(USUAL_FACTOR));
        if self.factor * text.len() as f64 <= limit as f64 {
            return Ok(());
        }
        // Part by part, each small enough for the worst case.
        let part = (SMALL as f64 / self.factor) as usize;
        let (mut rest, mut made) = (text, 0);
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.ceil_char_boundary(part));
            let mut normalized = NormalizedString::from(head);
            caught(|| normalizer.normalize(&mut normalized))?.map_err(|error| error.to_string())?;
            made += normalized.get().len();
            if made > limit {
                return Err(format!("the normalizer makes more than {limit} bytes of a text of {}", text.len()));
            }
            rest = tail;
        }
        Ok(())
    }
}

/// Bytes that a step makes of one byte, at most.
fn factor(step: &Value) -> Result<f64, String> {
    let length = |key: &str| step[key].as_str().map_or(0, str::len) as f64;
    Ok(match step["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            let steps = step["normalizers"].as_array().or_else(|| step["decoders"].as_array());
            let mut product = 1.0;
            for step in steps.into_iter().flatten() {
                product *= factor(step)?;
            }
            product
        }
        "Replace" => match step["pattern"]["String"].as_str() {
            Some(pattern) if !pattern.is_empty() => (length("content") / pattern.len() as f64).max(1.0),
            // A regular expression may match the empty text between two letters.
            _ => 1.0 + length("content"),
        },
        // Before each piece of text between added tokens.
        "Prepend" => 1.0 + length("prepend"),
        "Precompiled" => longest_entry(step["precompiled_charsmap"].as_str().unwrap_or_default())?,
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "BertNormalizer" => 11.0,
        "ByteLevel" => 2.0,
        _ => 1.0,
    })
}

/// The longest text that SentencePiece's table puts in place of another: a trie of as many bytes as the first four say, then texts that end in 0.
fn longest_entry(table: &str) -> Result<f64, String> {
    let bytes =
        STANDARD.decode(table).map_err(|error| format!("the table of the normalizer is not base64: {error}"))?;
    let (size, rest) = match bytes.split_first_chunk() {
        Some((size, rest)) => (u32::from_le_bytes(*size) as usize, rest),
        None => return Err(format!("the table of the normalizer has {} bytes, at least 4 are needed", bytes.len())),
    };
    let Some(texts) = rest.get(size..) else {
        return Err(format!("the table of the normalizer names a trie of {size} bytes and has {}", rest.len()));
    };
    if size < 4 {
        return Err("the table of the normalizer has an empty trie".to_owned());
    }
    Ok(texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1) as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(pattern: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
    }

    #[test]
    fn usual_normalizers_pass_and_those_that_explode_do_not() {
        let llama =
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]});
        assert_eq!(Growth::of(&llama, &Value::Null).unwrap().factor, 12.0);
        let bomb = json!({"type": "Sequence", "normalizers": vec![replace("a", &"a".repeat(50)); 5]});
        insta::assert_snapshot!(Growth::of(&bomb, &Value::Null).unwrap_err(),
            @"the normalizer makes up to 3.1e8 bytes of one, at most 4096 are allowed");
        let decoder = json!({"type": "Sequence", "decoders": vec![replace("a", &"a".repeat(50)); 5]});
        assert!(Growth::of(&Value::Null, &decoder).unwrap_err().contains("decoder"));
    }

    #[test]
    fn a_text_is_refused_if_it_does_grow() {
        let step = replace("a", &"a".repeat(1000));
        let growth = Growth::of(&step, &Value::Null).unwrap();
        let normalizer: NormalizerWrapper = serde_json::from_value(step).unwrap();
        let check = |text: &str| growth.check(text, Some(&normalizer));
        assert_eq!(check("aaa"), Ok(()));
        assert_eq!(check(&"é".repeat(100_000)), Ok(()));
        assert_eq!(
            check(&"a".repeat(100_000)),
            Err("the normalizer makes more than 16777216 bytes of a text of 100000".to_owned())
        );
    }

    #[test]
    fn damaged_tables_are_found_before_anything_is_allocated() {
        let table = |bytes: &[u8]| longest_entry(&STANDARD.encode(bytes)).unwrap_err();
        assert_eq!(table(&[0]), "the table of the normalizer has 1 bytes, at least 4 are needed");
        assert_eq!(table(&[255; 12]), "the table of the normalizer names a trie of 4294967295 bytes and has 8");
        assert_eq!(table(&[0; 4]), "the table of the normalizer has an empty trie");
        assert!(longest_entry("?").unwrap_err().contains("base64"));
    }
}
