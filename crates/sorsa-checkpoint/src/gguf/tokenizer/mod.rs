//! From `tokenizer.json` and the files beside it to the metadata that llama.cpp tokenizes by.
//!
//! llama.cpp has its own tokenizers. Two of them do what byte-pair encoding in `tokenizer.json` does: `gpt2`, which works
//! on bytes and is given the merges, and `llama`, which works on characters as SentencePiece does and is given a score
//! for each token.

mod import;
mod pieces;
mod pre;
mod special;

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value as Json};

pub(super) use self::import::files;
use self::special::Special;
use super::translation::read_json;
use super::{GgufError, Value};

/// The kinds of tokens, by llama.cpp's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum TokenKind {
    Normal = 1,
    Unknown = 2,
    /// Has no text: begin, end, turns of a chat.
    Control = 3,
    /// Added as a whole: found in a text before anything is merged.
    UserDefined = 4,
    /// A row of the embedding without a token.
    Unused = 5,
    /// One byte of a character that has no token of its own.
    Byte = 6,
}

impl TokenKind {
    /// The kind with llama.cpp's number; a number that is not known is a normal token's, as in llama.cpp.
    pub fn from_number(number: i32) -> Self {
        let all = [Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];
        all.into_iter().find(|kind| *kind as i32 == number).unwrap_or(Self::Normal)
    }
}

/// The metadata of a tokenizer, and what llama.cpp does in another way.
#[derive(Debug, Default)]
pub(super) struct TokenizerMetadata {
    pub metadata: Vec<(String, Value)>,
    pub notes: Vec<String>,
}

/// Stands in for a tokenizer: llama.cpp then takes and gives token ids only.
pub(super) fn without_tokenizer() -> TokenizerMetadata {
    TokenizerMetadata { metadata: vec![("tokenizer.ggml.model".to_owned(), "no_vocab".into())], notes: Vec::new() }
}

/// Reads the tokenizer of a model's folder for an embedding of `rows` rows.
///
/// # Errors
///
/// [`GgufError::Unsupported`] if the folder has no tokenizer, or one that llama.cpp has no counterpart of.
pub(super) fn read(folder: &Path, rows: usize) -> Result<TokenizerMetadata, GgufError> {
    let unsupported = |faults| GgufError::Unsupported { folder: folder.to_owned(), faults };
    let Some(json) = read_json::<Json>(&folder.join("tokenizer.json"))? else {
        let fault = "there is no tokenizer.json; a model can be written without a tokenizer, for token ids only";
        return Err(unsupported(vec![fault.to_owned()]));
    };
    let special = Special::read(folder, &json, rows)?;
    convert(&json, &special, rows).map_err(unsupported)
}

/// The metadata of a whole `tokenizer.json`; the error lists every fault.
fn convert(json: &Json, special: &Special, rows: usize) -> Result<TokenizerMetadata, Vec<String>> {
    let model = &json["model"];
    // Old files leave the type out.
    let kind = model["type"].as_str().unwrap_or(if model["merges"].is_array() { "BPE" } else { "unknown" });
    let Some(vocabulary) = model["vocab"].as_object().filter(|_| kind == "BPE") else {
        return Err(vec![format!("a tokenizer of type {kind} is not supported, only BPE is")]);
    };
    let bytes = pre::steps(json).iter().any(|step| step["type"] == "ByteLevel");
    let characters = pieces::replaces_spaces(json);
    if bytes == characters {
        let fault = "the tokenizer works neither on bytes (ByteLevel) nor on text with `▁` for spaces".to_owned();
        return Err(vec![fault]);
    }
    let mut table = Table::new(vocabulary, &json["added_tokens"], rows)?;
    let mut out = TokenizerMetadata::default();
    out.notes.extend(table.note_on_beyond(rows));
    let mut add = |key: &str, value: Value| out.metadata.push((format!("tokenizer.ggml.{key}"), value));
    if bytes {
        let (pre, notes) = pre::choose(json);
        out.notes.extend(notes);
        add("model", "gpt2".into());
        add("pre", pre.into());
        add("merges", merges(model)?.into_iter().map(|[left, right]| joined(&left, &right)).collect::<Vec<_>>().into());
    } else {
        out.notes.extend(pieces::mark(&mut table, model));
        add("model", "llama".into());
        add("pre", "default".into());
        let merges = merges(model)?;
        out.notes.extend(pieces::unlisted(&table.tokens, &merges));
        add("scores", pieces::scores(&table.tokens, &merges).into());
        add("add_space_prefix", pieces::adds_space(json).into());
    }
    add("token_type", table.kinds.iter().map(|kind| *kind as i32).collect::<Vec<_>>().into());
    add("tokens", table.tokens.into());
    out.metadata.extend(special.metadata());
    Ok(out)
}

/// Tokens by id.
struct Table {
    tokens: Vec<String>,
    kinds: Vec<TokenKind>,
    /// Tokens whose id has no row in the embedding. No text of the model uses them.
    beyond: Vec<String>,
}

impl Table {
    /// The tokens of the vocabulary and those added to it; ids that no token has are filled up to `rows`.
    fn new(vocabulary: &Map<String, Json>, added: &Json, rows: usize) -> Result<Self, Vec<String>> {
        let mut slots: Vec<Option<(String, TokenKind)>> = vec![None; rows];
        let (mut faults, mut beyond) = (Vec::new(), Vec::new());
        let mut put = |token: &str, id: &Json, kind: TokenKind| {
            let Some(number) = id.as_u64() else {
                return faults.push(format!("token `{token}` should have an id, found {id}"));
            };
            match slots.get_mut(usize::try_from(number).unwrap_or(usize::MAX)) {
                None => {
                    let token = format!("`{token}` ({number})");
                    if !beyond.contains(&token) {
                        beyond.push(token);
                    }
                }
                Some(Some((other, _))) if other != token => {
                    faults.push(format!("`{other}` and `{token}` have the id {id}"));
                }
                Some(slot) => *slot = Some((token.to_owned(), kind)),
            }
        };
        for (token, id) in vocabulary {
            put(token, id, TokenKind::Normal);
        }
        for token in added.as_array().into_iter().flatten() {
            let kind = if token["special"] == true { TokenKind::Control } else { TokenKind::UserDefined };
            put(token["content"].as_str().unwrap_or_default(), &token["id"], kind);
        }
        let mut seen: HashSet<String> = slots.iter().flatten().map(|(token, _)| token.clone()).collect();
        if seen.len() != slots.iter().flatten().count() {
            faults.push("a token has two ids".to_owned());
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut table = Self { tokens: Vec::with_capacity(rows), kinds: Vec::with_capacity(rows), beyond };
        for (id, slot) in slots.into_iter().enumerate() {
            // llama.cpp's converter fills gaps with the same names; it, too, needs each only once.
            let unused = || {
                let mut name = format!("[PAD{id}]");
                while !seen.insert(name.clone()) {
                    name.insert(1, '_');
                }
                (name, TokenKind::Unused)
            };
            let (token, kind) = slot.unwrap_or_else(unused);
            table.tokens.push(token);
            table.kinds.push(kind);
        }
        Ok(table)
    }

    /// Says which tokens are left out.
    fn note_on_beyond(&self, rows: usize) -> Option<String> {
        let first = self.beyond.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        match self.beyond.len() {
            0 => None,
            count @ 1..=5 => Some(format!("{count} tokens beyond the embedding's {rows} rows are left out: {first}")),
            count => Some(format!(
                "{count} tokens beyond the embedding's {rows} rows are left out: {first} and {} more",
                count - 5
            )),
        }
    }
}

/// The pairs that are merged, in order; `["a", "b"]` in new files, `"a b"` in old ones.
fn merges(model: &Json) -> Result<Vec<[String; 2]>, Vec<String>> {
    let pair = |merge: &Json| -> Option<[String; 2]> {
        let (left, right) = match merge {
            Json::String(text) => text.split_once(' ')?,
            other => (other.get(0)?.as_str()?, other.get(1)?.as_str()?),
        };
        Some([left.to_owned(), right.to_owned()])
    };
    let list = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let wrong = |merge: &Json| vec![format!("a merge should be two tokens, found {merge}")];
    list.iter().map(|merge| pair(merge).ok_or_else(|| wrong(merge))).collect()
}

/// A merge as llama.cpp splits it, at the space; a space within a token is shifted out of the way, as it is there.
fn joined(left: &str, right: &str) -> String {
    let shifted = |token: &str| token.replace(' ', "\u{120}");
    format!("{} {}", shifted(left), shifted(right))
}

#[cfg(test)]
mod tests;
