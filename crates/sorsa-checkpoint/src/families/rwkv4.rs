//! RWKV-4 (arXiv 2305.13048), `model_type` rwkv in Transformers.

use serde_json::{Map, Value};

use super::{Family, Sizes};
use crate::config::{Architecture, ModelConfig, RwkvConfig, RwkvVersion};
use crate::fields::Fields;

pub(super) static FAMILY: Family =
    Family { model_type: "rwkv", class: "RwkvForCausalLM", read, write, llama_cpp: None };

fn read(fields: &mut Fields) -> ModelConfig {
    let (sizes, rwkv) = read_rwkv(fields, |hidden_size| 4 * hidden_size, 1024, RwkvVersion::V4);
    sizes.config(&FAMILY, fields, Architecture::Rwkv(rwkv))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    write_rwkv(config, json);
}

/// Reads what both versions have. `default_width` is that of the feed-forward layers, if the file does not say.
pub(super) fn read_rwkv(
    fields: &mut Fields,
    default_width: fn(usize) -> usize,
    default_context: usize,
    version: RwkvVersion,
) -> (Sizes, RwkvConfig) {
    let hidden_size = fields.size("hidden_size", None);
    let rwkv = RwkvConfig {
        version,
        attention_hidden_size: fields.size("attention_hidden_size", Some(hidden_size)),
        layer_norm_epsilon: fields.number("layer_norm_epsilon", 1e-5),
        rescale_every: fields.take("rescale_every").map_or(6, |value| {
            value.as_i64().unwrap_or_else(|| {
                fields.wrong("rescale_every", "an integer", &value);
                6
            })
        }),
    };
    let context = fields.size("max_position_embeddings", Some(default_context));
    let sizes = Sizes {
        hidden_size,
        intermediate_size: fields.size("intermediate_size", Some(default_width(hidden_size))),
        max_position_embeddings: fields.size("context_length", Some(context)),
        tie_word_embeddings: fields.flag("tie_word_embeddings", false),
    };
    (sizes, rwkv)
}

pub(super) fn write_rwkv<'a>(config: &'a ModelConfig, json: &mut Map<String, Value>) -> Option<&'a RwkvConfig> {
    let Architecture::Rwkv(rwkv) = &config.architecture else { return None };
    let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
    put("attention_hidden_size", rwkv.attention_hidden_size.into());
    put("context_length", config.max_position_embeddings.into());
    put("layer_norm_epsilon", rwkv.layer_norm_epsilon.into());
    put("rescale_every", rwkv.rescale_every.into());
    Some(rwkv)
}
