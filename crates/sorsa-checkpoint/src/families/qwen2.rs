//! Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115): a Llama with biases on q, k and v, and a window in its last layers
//! if `use_sliding_window` is true.

use serde_json::{Map, Value};

use super::Family;
use super::decoder::{self, DEFAULTS, Defaults};
use crate::config::{Activation, Architecture, LayerType, ModelConfig, TransformerConfig};
use crate::fields::Fields;
use crate::gguf::{Limits, LlamaCpp};
use crate::rope::RopeScaling;

pub(super) static FAMILY: Family =
    Family { model_type: "qwen2", class: "Qwen2ForCausalLM", read, write, llama_cpp: Some(LLAMA_CPP) };

const LLAMA_CPP: LlamaCpp =
    LlamaCpp { name: "qwen2", rotates_pairs: false, check, metadata: |_, _| Vec::new(), import: |_| () };

fn read(fields: &mut Fields) -> ModelConfig {
    let defaults = defaults(fields);
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_act", Activation::Silu));
    decoder.qkv_bias = true;
    // Positions in three parts, of the models that see; the published files of the others say that they have none.
    fields.only("use_mrope", false);
    read_window(fields, &mut decoder);
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_act") else { return };
    write_window(decoder, json);
}

/// Transformers' defaults, which are those of a model with 32 heads.
pub(super) fn defaults(fields: &Fields) -> Defaults {
    Defaults { num_key_value_heads: (!fields.is_null("num_key_value_heads")).then_some(32), ..DEFAULTS }
}

/// The window of Qwen 2 and 3: in the layers from `max_window_layers` on, or as `layer_types` says.
pub(super) fn read_window(fields: &mut Fields, decoder: &mut TransformerConfig) {
    let window = fields.optional_size("sliding_window", Some(4096));
    let first = fields.index("max_window_layers", 28);
    let wanted = fields.flag("use_sliding_window", false);
    decoder.sliding_window = window.filter(|_| wanted);
    let has_window = decoder.sliding_window.is_some();
    decoder::read_layer_types(fields, decoder, |layer| has_window && layer >= first);
}

pub(super) fn write_window(decoder: &TransformerConfig, json: &mut Map<String, Value>) {
    let first = decoder.layer_types.iter().position(|layer_type| *layer_type == LayerType::Sliding);
    let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
    put("use_sliding_window", decoder.sliding_window.is_some().into());
    put("sliding_window", decoder.sliding_window.into());
    put("max_window_layers", first.unwrap_or(decoder.layer_types.len()).into());
    put("layer_types", decoder.layer_types_json());
}

fn check(limits: &mut Limits<'_>) {
    limits.activation("hidden_act", Activation::Silu);
    limits.no_biases();
    limits.heads_divide_width();
    limits.rope_scaling(|scaling| matches!(scaling, RopeScaling::None | RopeScaling::Linear { .. }));
    limits.ignores_window();
}
