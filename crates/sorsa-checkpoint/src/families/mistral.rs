//! Mistral (arXiv 2310.06825): a Llama whose layers all have a sliding window.

use serde_json::{Map, Value};

use super::Family;
use super::decoder::{self, DEFAULTS, Defaults};
use crate::config::{Activation, Architecture, LayerType, ModelConfig};
use crate::fields::Fields;
use crate::gguf::{Limits, LlamaCpp};
use crate::rope::RopeScaling;

pub(super) static FAMILY: Family =
    Family { model_type: "mistral", class: "MistralForCausalLM", read, write, llama_cpp: Some(LLAMA_CPP) };

const LLAMA_CPP: LlamaCpp =
    LlamaCpp { name: "llama", rotates_pairs: true, check, metadata: |_, _| Vec::new(), import: |_| () };

fn read(fields: &mut Fields) -> ModelConfig {
    let mut defaults = Defaults { max_position_embeddings: 131_072, num_key_value_heads: Some(8), ..DEFAULTS };
    if fields.is_null("num_key_value_heads") {
        defaults.num_key_value_heads = None;
    }
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_act", Activation::Silu));
    decoder.sliding_window = fields.optional_size("sliding_window", Some(4096));
    if decoder.sliding_window.is_some() {
        decoder.layer_types.fill(LayerType::Sliding);
    }
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_act") else { return };
    json.insert("sliding_window".to_owned(), decoder.sliding_window.into());
}

fn check(limits: &mut Limits<'_>) {
    limits.activation("hidden_act", Activation::Silu);
    limits.rope_scaling(|scaling| {
        matches!(scaling, RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. })
    });
    limits.ignores_window();
}
