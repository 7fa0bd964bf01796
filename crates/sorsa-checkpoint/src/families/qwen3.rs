//! Qwen 3 (arXiv 2505.09388): a Llama whose queries and keys are normalised head by head, with Qwen 2's window.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults};
use super::{Family, qwen2};
use crate::config::{Activation, Architecture, ModelConfig};
use crate::fields::Fields;
use crate::gguf::{Limits, LlamaCpp};
use crate::rope::RopeScaling;

pub(super) static FAMILY: Family =
    Family { model_type: "qwen3", class: "Qwen3ForCausalLM", read, write, llama_cpp: Some(LLAMA_CPP) };

const LLAMA_CPP: LlamaCpp =
    LlamaCpp { name: "qwen3", rotates_pairs: false, check, metadata: |_, _| Vec::new(), import: |_| () };

fn read(fields: &mut Fields) -> ModelConfig {
    let head_dim = (!fields.is_null("head_dim")).then_some(128);
    let defaults = Defaults { head_dim, ..qwen2::defaults(fields) };
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_act", Activation::Silu));
    decoder.query_key_norm = true;
    decoder::read_attention_bias(fields, &mut decoder);
    qwen2::read_window(fields, &mut decoder);
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_act") else { return };
    json.insert("attention_bias".to_owned(), decoder.qkv_bias.into());
    qwen2::write_window(decoder, json);
}

fn check(limits: &mut Limits<'_>) {
    limits.activation("hidden_act", Activation::Silu);
    limits.no_biases();
    limits.rope_scaling(|scaling| matches!(scaling, RopeScaling::None | RopeScaling::Linear { .. }));
    limits.ignores_window();
}
