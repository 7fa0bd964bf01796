//! The tokens that the files beside `tokenizer.json` add to it, by the rules of Transformers (`PreTrainedTokenizerBase._from_pretrained` and
//! `PreTrainedTokenizerFast.__init__`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// The special tokens that files name, in the order of Transformers.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Fields that name several.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// The files that name tokens, parsed.
pub(super) struct TokenFiles<'a> {
    /// `tokenizer_config.json`, with the fields of `special_tokens_map.json` and the defaults of the class, if they count.
    pub config: &'a Map<String, Value>,
    /// `added_tokens.json`.
    pub added_tokens: Option<&'a Value>,
    /// The tokens that were added already, by id.
    pub existing: &'a BTreeMap<u32, AddedToken>,
}

impl TokenFiles<'_> {
    /// The tokens to add, in the order in which they get new ids.
    ///
    /// # Errors
    ///
    /// One sentence for each entry that is no token.
    pub fn tokens(&self) -> Result<Vec<AddedToken>, Vec<String>> {
        let mut problems = Vec::new();
        let listed = self.listed(&mut problems);
        let named = self.named(&listed, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let exists = |token: &AddedToken| self.existing.values().any(|other| other == token);
        let is_known = |text: &str| listed.iter().chain(self.existing.values()).any(|other| other.content == text);
        let mut tokens: Vec<AddedToken> = Vec::new();
        for token in listed.iter().filter(|token| !exists(token)) {
            let special = token.special || named.iter().any(|other| other.token.content == token.content);
            tokens.push(AddedToken { special, ..token.clone() });
        }
        for named in &named {
            if !(named.is_text && is_known(&named.token.content)) {
                tokens.push(AddedToken { special: true, ..named.token.clone() });
            }
        }
        tokens.retain(|token| !token.content.is_empty());
        Ok(tokens)
    }

    /// The special tokens that files name.
    fn named(&self, listed: &[AddedToken], problems: &mut Vec<String>) -> Vec<NamedToken> {
        let mut named: Vec<NamedToken> = Vec::new();
        let mut add = |key: &str, value: &Value, listed: &[AddedToken]| {
            let Some(token) = special(value) else {
                problems.push(format!("tokenizer_config.json: `{key}` should be a text or a token, found {value}"));
                return;
            };
            if named.iter().any(|other| other.token.content == token.content) {
                return;
            }
            named.push(match listed.iter().rfind(|other| other.content == token.content) {
                Some(known) => NamedToken { token: known.clone(), is_text: false },
                None => NamedToken { token, is_text: value.is_string() },
            });
        };
        for key in SPECIAL_TOKENS {
            if let Some(value) = self.config.get(key).filter(|value| !value.is_null()) {
                add(key, value, listed);
            }
        }
        for key in LISTS {
            match self.config.get(key) {
                Some(Value::Array(values)) => values.iter().for_each(|value| add(key, value, &[])),
                Some(Value::Object(values)) => values.values().for_each(|value| add(key, value, &[])),
                _ => {}
            }
        }
        named
    }

    /// The tokens that `added_tokens_decoder` lists by id; without it, those of `added_tokens.json` and of `tokenizer.json`.
    fn listed(&self, problems: &mut Vec<String>) -> Vec<AddedToken> {
        let mut listed: BTreeMap<u32, AddedToken> = BTreeMap::new();
        if let Some(decoder) = self.config.get("added_tokens_decoder") {
            for (id, token) in decoder.as_object().into_iter().flatten() {
                match (id.parse(), token_of(token, false)) {
                    (Ok(id), Some(token)) => drop(listed.insert(id, token)),
                    _ => problems.push(format!(
                        "tokenizer_config.json: `added_tokens_decoder` should have a token for each id, found {token} for {id}"
                    )),
                }
            }
            return listed.into_values().collect();
        }
        let lists = LISTS[..1].iter().filter_map(|key| self.config.get(*key)?.as_array()).flatten();
        let named: Vec<&str> =
            SPECIAL_TOKENS.iter().filter_map(|key| self.config.get(*key)).chain(lists).filter_map(text_of).collect();
        for (text, id) in self.added_tokens.and_then(Value::as_object).into_iter().flatten() {
            match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => drop(listed.insert(id, AddedToken::from(text.clone(), named.contains(&text.as_str())))),
                None => problems.push(format!("added_tokens.json: `{text}` should have an id, found {id}")),
            }
        }
        listed.extend(self.existing.iter().map(|(id, token)| (*id, token.clone())));
        listed.into_values().collect()
    }
}

/// A special token that a file names.
struct NamedToken {
    token: AddedToken,
    /// Whether the file gives its text alone, and no other file says more.
    is_text: bool,
}

/// The text of a token that is a text or an object.
pub(super) fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A special token: a text, or an object.
fn special(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text.clone(), true)),
        _ => token_of(value, value.get("__type").is_none()),
    }
}

/// A token that is an object; `special` holds if the object does not say.
fn token_of(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    Some(AddedToken {
        content: value.get("content")?.as_str()?.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
