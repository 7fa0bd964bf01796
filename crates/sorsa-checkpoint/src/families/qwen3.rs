//! Qwen 3 (arXiv 2505.09388): a Llama whose queries and keys are normalised head by head, with Qwen 2's window.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults};
use super::{Family, qwen2};
use crate::config::{Activation, Architecture, ModelConfig};
use crate::fields::Fields;

pub(super) static FAMILY: Family = Family { model_type: "qwen3", class: "Qwen3ForCausalLM", read, write };

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
