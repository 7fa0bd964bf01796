//! The model families: one file each, which maps the fields of `config.json` to a [`ModelConfig`] and back, and says what
//! llama.cpp makes of the family. Nothing outside these files asks for a family's name.

mod decoder;
mod gemma;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
pub(crate) mod nested;
mod phi3;
mod qwen2;
mod qwen3;
mod rwkv4;
mod rwkv6;

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::config::{Architecture, ModelConfig};
use crate::fields::Fields;
use crate::gguf::LlamaCpp;

/// All families.
static FAMILIES: [&Family; 10] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &rwkv4::FAMILY,
    &rwkv6::FAMILY,
];

/// No model has more blocks. A file that says so is refused before a list of that length is made.
const MOST_LAYERS: usize = 1 << 16;

/// A model family: its names, and how its `config.json` is read and written.
pub struct Family {
    model_type: &'static str,
    class: &'static str,
    read: fn(&mut Fields) -> ModelConfig,
    write: fn(&ModelConfig, &mut Map<String, Value>),
    /// Absent: no GGUF file is made of it.
    llama_cpp: Option<LlamaCpp>,
}

impl Family {
    /// Hugging Face's `model_type`.
    pub fn model_type(&self) -> &'static str {
        self.model_type
    }

    /// What llama.cpp makes of the family; nothing for one that is not exported.
    pub(crate) fn llama_cpp(&self) -> Option<&LlamaCpp> {
        self.llama_cpp.as_ref()
    }

    pub(crate) fn read(&self, fields: &mut Fields) -> ModelConfig {
        (self.read)(fields)
    }

    pub(crate) fn write(&self, config: &ModelConfig) -> Value {
        let mut json = Map::new();
        let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
        put("architectures", json!([self.class]));
        put("model_type", self.model_type.into());
        put("hidden_size", config.hidden_size.into());
        put("intermediate_size", config.intermediate_size.into());
        put("num_hidden_layers", config.num_hidden_layers.into());
        put("vocab_size", config.vocab_size.into());
        put("tie_word_embeddings", config.tie_word_embeddings.into());
        put("initializer_range", config.initializer_range.into());
        put("bos_token_id", config.bos_token_id.into());
        let eos = match config.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => (*id).into(),
            ids => ids.into(),
        };
        put("eos_token_id", eos);
        // Where it is not written, some classes of Transformers take one that a small vocabulary does not have.
        put("pad_token_id", config.pad_token_id.into());
        put("torch_dtype", "float32".into());
        (self.write)(config, &mut json);
        Value::Object(json)
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}

/// The family of a `model_type`.
pub(crate) fn named(model_type: &str) -> Option<&'static Family> {
    FAMILIES.into_iter().find(|family| family.model_type == model_type)
}

/// Every `model_type`.
pub(crate) fn names() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.model_type).collect()
}

/// Every `model_type` that GGUF files are made of.
pub(crate) fn names_in_llama_cpp() -> Vec<&'static str> {
    let exported = FAMILIES.iter().filter(|family| family.llama_cpp.is_some());
    exported.map(|family| family.model_type).collect()
}

/// The family that a llama.cpp architecture is read as: the first that is written as it.
pub(crate) fn from_llama_cpp(name: &str) -> Option<(&'static Family, &'static LlamaCpp)> {
    let named = FAMILIES.into_iter().filter_map(|family| Some((family, family.llama_cpp.as_ref()?)));
    named.into_iter().find(|(_, llama_cpp)| llama_cpp.name == name)
}

/// llama.cpp's names of all architectures, in order.
pub(crate) fn architectures_in_llama_cpp() -> Vec<&'static str> {
    let names: BTreeSet<_> = FAMILIES.into_iter().filter_map(|family| Some(family.llama_cpp.as_ref()?.name)).collect();
    names.into_iter().collect()
}

/// What all families have, whatever the architecture.
struct Sizes {
    hidden_size: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

impl Sizes {
    /// The rest of what all families have, taken from `fields`, around `architecture`.
    fn config(self, family: &'static Family, fields: &mut Fields, architecture: Architecture) -> ModelConfig {
        let num_hidden_layers = fields.size("num_hidden_layers", None);
        if num_hidden_layers > MOST_LAYERS {
            fields.wrong("num_hidden_layers", &format!("at most {MOST_LAYERS}"), &num_hidden_layers.into());
        }
        ModelConfig {
            family,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers,
            vocab_size: fields.size("vocab_size", None),
            max_position_embeddings: self.max_position_embeddings,
            tie_word_embeddings: self.tie_word_embeddings,
            initializer_range: fields.number("initializer_range", 0.02),
            bos_token_id: fields.tokens("bos_token_id").first().copied(),
            eos_token_ids: fields.tokens("eos_token_id"),
            // Some files say -1 for none.
            pad_token_id: fields.take("pad_token_id").and_then(|id| u32::try_from(id.as_u64()?).ok()),
            architecture,
        }
    }
}

#[cfg(test)]
mod tests;
