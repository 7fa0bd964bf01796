//! The tokens that begin, end and fill a text, and the template of a chat.

use std::path::Path;

use serde_json::Value as Json;

use super::super::translation::read_json;
use super::{GgufError, Value};

/// Where special tokens are named, by text in the first two files and by id in the others.
const FILES: [&str; 4] = ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"];

/// What is said about special tokens beside the vocabulary.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Special {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    template: Option<String>,
    named_templates: Vec<(String, String)>,
}

impl Special {
    /// Reads the files of a model's folder; all may be absent.
    ///
    /// # Errors
    ///
    /// [`GgufError::Json`], [`GgufError::Io`].
    pub fn read(folder: &Path, tokenizer: &Json, rows: usize) -> Result<Self, GgufError> {
        let mut files = Vec::new();
        for name in FILES {
            // The last must be there, and was read before.
            files.push(read_json::<Json>(&folder.join(name))?.unwrap_or(Json::Null));
        }
        let file = folder.join("chat_template.jinja");
        let template = match std::fs::read_to_string(&file) {
            Ok(template) => Some(template),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(GgufError::io(file)(error)),
        };
        Ok(Self::parse(tokenizer, &files, template, rows))
    }

    pub(super) fn parse(tokenizer: &Json, files: &[Json], template: Option<String>, rows: usize) -> Self {
        let find = |key: &str| named(tokenizer, files, key).filter(|id| (*id as usize) < rows);
        let mut special = Self {
            bos: find("bos_token"),
            eos: find("eos_token"),
            unk: find("unk_token"),
            pad: find("pad_token"),
            ..Self::default()
        };
        let (first, last) = surrounding(&tokenizer["post_processor"]);
        let is = |text: Option<&str>, id: Option<u32>| id.is_some() && text.and_then(|t| token_id(tokenizer, t)) == id;
        let asked = |key: &str, default: bool| files[0][key].as_bool().unwrap_or(default);
        let (begins, ends) = (is(first, special.bos), is(last, special.eos));
        // These classes of Transformers make a post-processor of their own; the generic one uses that of the file.
        let (adds_bos, adds_eos) = match files[0]["tokenizer_class"].as_str().map(|name| name.trim_end_matches("Fast"))
        {
            Some("LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer" | "CohereTokenizer") => {
                (asked("add_bos_token", true), asked("add_eos_token", false))
            }
            Some("GPTNeoXTokenizer") => (asked("add_bos_token", false), asked("add_eos_token", false)),
            Some("PreTrainedTokenizer") => (begins, ends),
            _ => (begins || asked("add_bos_token", false), ends || asked("add_eos_token", false)),
        };
        special.adds_bos = special.bos.is_some() && adds_bos;
        special.adds_eos = special.eos.is_some() && adds_eos;
        match &files[0]["chat_template"] {
            Json::String(text) => special.template = Some(text.clone()),
            Json::Array(list) => {
                for entry in list {
                    if let (Some(name), Some(text)) = (entry["name"].as_str(), entry["template"].as_str()) {
                        if name == "default" {
                            special.template = Some(text.to_owned());
                        } else {
                            special.named_templates.push((name.to_owned(), text.to_owned()));
                        }
                    }
                }
            }
            _ => {}
        }
        special.template = template.or(special.template);
        special
    }

    /// The metadata that llama.cpp reads.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        let ids = [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk), ("padding", self.pad)];
        let ids = ids.into_iter().filter_map(|(name, id)| Some((format!("ggml.{name}_token_id"), Value::from(id?))));
        let mut list: Vec<(String, Value)> = ids.collect();
        list.push(("ggml.add_bos_token".to_owned(), self.adds_bos.into()));
        list.push(("ggml.add_eos_token".to_owned(), self.adds_eos.into()));
        list.extend(self.template.clone().map(|text| ("chat_template".to_owned(), text.into())));
        if !self.named_templates.is_empty() {
            let names: Vec<String> = self.named_templates.iter().map(|(name, _)| name.clone()).collect();
            list.push(("chat_templates".to_owned(), names.into()));
        }
        let named = self.named_templates.iter();
        list.extend(named.map(|(name, text)| (format!("chat_template.{name}"), text.as_str().into())));
        list.into_iter().map(|(key, value)| (format!("tokenizer.{key}"), value)).collect()
    }
}

/// The id of a special token, by the first file that names it. A `null` in one of the first two files means that there is
/// no such token, whatever the ids in the others say: Qwen names a `bos_token_id` that it never saw at a beginning. Nor is there
/// one if the vocabulary lacks the text: Transformers would add it, and no row of the embedding knows it.
fn named(tokenizer: &Json, files: &[Json], key: &str) -> Option<u32> {
    for file in files.iter().take(2) {
        let text = match file.get(key) {
            None => continue,
            Some(Json::Null) if key == "bos_token" => return None,
            Some(Json::Null) => break,
            Some(token) => token.as_str().or_else(|| token.get("content")?.as_str()),
        };
        return text.and_then(|text| token_id(tokenizer, text));
    }
    let one = |id: &Json| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let id_key = format!("{key}_id");
    let ids = files.iter().skip(2).filter_map(|file| match &file[id_key.as_str()] {
        Json::Array(list) => list.first().and_then(one),
        id => one(id),
    });
    ids.into_iter().next()
}

/// The id of a token, added tokens first.
fn token_id(tokenizer: &Json, text: &str) -> Option<u32> {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten().find(|token| token["content"] == text);
    let id = added.map_or_else(|| tokenizer["model"]["vocab"].get(text), |token| token.get("id"));
    id.and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok())
}

/// The texts of the tokens that the post-processor puts before and after a text.
fn surrounding(processor: &Json) -> (Option<&str>, Option<&str>) {
    let list = match processor["processors"].as_array() {
        Some(list) => list.iter().collect(),
        None => vec![processor],
    };
    let single =
        list.iter().find_map(|step| step["single"].as_array().filter(|_| step["type"] == "TemplateProcessing"));
    let Some(single) = single else { return (None, None) };
    (single.first().and_then(special_text), single.last().and_then(special_text))
}

fn special_text(step: &Json) -> Option<&str> {
    step["SpecialToken"]["id"].as_str()
}
