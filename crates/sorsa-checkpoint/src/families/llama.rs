//! Llama (arXiv 2302.13971, 2307.09288, 2407.21783) and what shares its architecture.

use serde_json::{Map, Value};

use super::Family;
use super::decoder::{self, DEFAULTS, Defaults};
use crate::config::{Activation, Architecture, ModelConfig};
use crate::fields::Fields;
use crate::gguf::{Limits, LlamaCpp};
use crate::rope::RopeScaling;

pub(super) static FAMILY: Family =
    Family { model_type: "llama", class: "LlamaForCausalLM", read, write, llama_cpp: Some(LLAMA_CPP) };

const LLAMA_CPP: LlamaCpp =
    LlamaCpp { name: "llama", rotates_pairs: true, check, metadata: |_, _| Vec::new(), import: |_| () };

fn read(fields: &mut Fields) -> ModelConfig {
    let defaults = Defaults { max_position_embeddings: 2048, ..DEFAULTS };
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_act", Activation::Silu));
    // Tensor-parallel slices of the products, a relic of the pretraining.
    fields.only("pretraining_tp", 1);
    decoder::read_attention_bias(fields, &mut decoder);
    decoder.mlp_bias = fields.flag("mlp_bias", false);
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_act") else { return };
    json.insert("attention_bias".to_owned(), decoder.qkv_bias.into());
    json.insert("mlp_bias".to_owned(), decoder.mlp_bias.into());
}

fn check(limits: &mut Limits<'_>) {
    limits.activation("hidden_act", Activation::Silu);
    limits.rope_scaling(|scaling| {
        matches!(scaling, RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. })
    });
}
