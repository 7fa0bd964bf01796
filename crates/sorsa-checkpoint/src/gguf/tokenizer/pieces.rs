//! Byte-pair encoding on characters, as SentencePiece does it: llama.cpp's tokenizer `llama`.
//!
//! It merges the neighbours whose union is the token with the highest score, where `tokenizer.json` merges the pair that
//! stands first in its list. That list is SentencePiece's: for each token, best score first, all the ways to make it from
//! two others. So the score of a token is minus its place in the order in which the merges make tokens.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::{Table, TokenKind, pre};

/// SentencePiece's stand-in for a space.
const SPACE: &str = "\u{2581}";
/// The score of tokens that no merge makes, below all others.
const NEVER: f32 = -1e9;

/// Whether spaces are written as `▁`, by the normalizer or the pre-tokenizer.
pub(super) fn replaces_spaces(json: &Json) -> bool {
    let replaces =
        |step: &&Json| step["type"] == "Replace" && step["content"] == SPACE && step["pattern"]["String"] == " ";
    normalizers(json).iter().any(replaces) || metaspace(json).is_some()
}

/// Whether a space is put before a text.
pub(super) fn adds_space(json: &Json) -> bool {
    let prepends = |step: &&Json| step["type"] == "Prepend" && step["prepend"] == SPACE;
    let scheme = |step: &Json| match step["prepend_scheme"].as_str() {
        Some(scheme) => scheme != "never",
        None => step["add_prefix_space"] != false,
    };
    normalizers(json).iter().any(prepends) || metaspace(json).is_some_and(scheme)
}

fn normalizers(json: &Json) -> Vec<&Json> {
    let normalizer = &json["normalizer"];
    normalizer["normalizers"].as_array().map_or_else(|| vec![normalizer], |list| list.iter().collect())
}

fn metaspace(json: &Json) -> Option<&Json> {
    pre::steps(json).into_iter().find(|step| step["type"] == "Metaspace")
}

/// Marks the unknown token and the bytes; says what llama.cpp does in another way.
pub(super) fn mark(table: &mut Table, model: &Json) -> Vec<String> {
    let unknown = model["unk_token"].as_str();
    let fallback = model["byte_fallback"] == true;
    for (token, kind) in table.tokens.iter().zip(&mut table.kinds) {
        if Some(token.as_str()) == unknown {
            *kind = TokenKind::Unknown;
        } else if fallback && is_byte(token) {
            *kind = TokenKind::Byte;
        }
    }
    if fallback && table.kinds.iter().filter(|kind| **kind == TokenKind::Byte).count() == 256 {
        return Vec::new();
    }
    let note =
        "the tokenizer has no tokens for single bytes: llama.cpp aborts at a character that is not in the vocabulary";
    vec![note.to_owned()]
}

/// Whether a token is `<0x00>` to `<0xFF>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Says how many pairs llama.cpp merges that `merges` does not list. There are none in a list made from SentencePiece's.
pub(super) fn unlisted(tokens: &[String], merges: &[[String; 2]]) -> Option<String> {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let listed: HashSet<(&str, &str)> = merges.iter().map(|[left, right]| (left.as_str(), right.as_str())).collect();
    let made: HashSet<String> = merges.iter().map(|[left, right]| format!("{left}{right}")).collect();
    let splits = made.iter().flat_map(|token| token.char_indices().skip(1).map(|(at, _)| token.split_at(at)));
    let count = splits.filter(|(a, b)| known.contains(a) && known.contains(b) && !listed.contains(&(a, b))).count();
    (count > 0).then(|| {
        format!("llama.cpp merges {count} pairs of tokens that the list of merges does not have: some texts become other tokens")
    })
}

/// The score of each token.
pub(super) fn scores(tokens: &[String], merges: &[[String; 2]]) -> Vec<f32> {
    let mut order: HashMap<String, usize> = HashMap::new();
    for [left, right] in merges {
        let next = order.len();
        order.entry(format!("{left}{right}")).or_insert(next);
    }
    tokens.iter().map(|token| order.get(token).map_or(NEVER, |place| -(*place as f32))).collect()
}
