//! Gemma 2 (arXiv 2408.00118): norms before and after each part, soft-capped scores and logits, a sliding window in
//! every other layer, a scale of the scores of its own.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults};
use super::{Family, gemma};
use crate::config::{Activation, Architecture, BlockNorms, ModelConfig, TransformerConfig};
use crate::fields::Fields;
use crate::gguf::{self, Import, Limits, LlamaCpp};
use crate::rope::RopeScaling;

pub(super) static FAMILY: Family =
    Family { model_type: "gemma2", class: "Gemma2ForCausalLM", read, write, llama_cpp: Some(LLAMA_CPP) };

const LLAMA_CPP: LlamaCpp = LlamaCpp { name: "gemma2", rotates_pairs: false, check, metadata: window_metadata, import };

fn read(fields: &mut Fields) -> ModelConfig {
    let defaults = Defaults { num_key_value_heads: Some(4), ..gemma::defaults() };
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_activation", Activation::GeluTanh));
    read_shared_with_gemma3(fields, &mut decoder);
    decoder.attention_soft_cap = fields.optional_number("attn_logit_softcapping", Some(50.0));
    decoder.logit_soft_cap = fields.optional_number("final_logit_softcapping", Some(30.0));
    decoder::read_layer_types(fields, &mut decoder, |layer| layer.is_multiple_of(2));
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_activation") else { return };
    write_shared_with_gemma3(decoder, json);
}

pub(super) fn read_shared_with_gemma3(fields: &mut Fields, decoder: &mut TransformerConfig) {
    // Read by nothing in Transformers since `hidden_activation` took its place.
    fields.take("hidden_act");
    gemma::make_gemma(decoder);
    decoder.block_norms = BlockNorms::BeforeAndAfter;
    decoder.query_pre_attn_scalar = fields.number("query_pre_attn_scalar", 256.0);
    decoder.sliding_window = fields.optional_size("sliding_window", Some(4096));
    decoder::read_attention_bias(fields, decoder);
}

pub(super) fn write_shared_with_gemma3(decoder: &TransformerConfig, json: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
    put("query_pre_attn_scalar", integer_if_whole(decoder.query_pre_attn_scalar));
    put("sliding_window", decoder.sliding_window.into());
    put("attention_bias", decoder.qkv_bias.into());
    put("attn_logit_softcapping", decoder.attention_soft_cap.into());
    put("final_logit_softcapping", decoder.logit_soft_cap.into());
    put("layer_types", decoder.layer_types_json());
}

/// The number as Transformers declares it: Transformers 5 refuses 256.0 for an integer.
fn integer_if_whole(number: f64) -> Value {
    if number.fract() == 0.0 && number < 2f64.powi(53) { (number as u64).into() } else { number.into() }
}

/// Number of blocks of the 27 billion model.
const BLOCKS_OF_27B: usize = 46;

fn check(limits: &mut Limits<'_>) {
    check_shared_with_gemma3(limits, BLOCKS_OF_27B);
    limits.full_layer_every(2);
    limits.tied_embeddings();
    limits.rope_scaling(|scaling| *scaling == RopeScaling::None);
    if limits.decoder.attention_soft_cap.is_none() || limits.decoder.logit_soft_cap.is_none() {
        limits.fault("llama.cpp's gemma2 needs both soft caps".to_owned());
    }
}

pub(super) fn check_shared_with_gemma3(limits: &mut Limits<'_>, blocks_of_27b: usize) {
    limits.activation("hidden_activation", Activation::GeluTanh);
    limits.no_biases();
    // llama.cpp knows the 27 billion models by their number of blocks, and scales queries by the head's width in all
    // others.
    let (config, decoder) = (limits.config, limits.decoder);
    let blocks = config.num_hidden_layers;
    let is_27b = blocks == blocks_of_27b;
    let scalar = if is_27b { config.hidden_size / decoder.num_attention_heads } else { decoder.head_dim };
    let found = decoder.query_pre_attn_scalar;
    if found != scalar as f64 {
        limits.fault(format!("`query_pre_attn_scalar` should be {scalar} with {blocks} blocks, found {found}"));
    }
}

fn import(import: &mut Import<'_>) {
    import_shared_with_gemma3(import, BLOCKS_OF_27B);
}

/// The window, and the scale of the scores, which llama.cpp derives from the number of blocks.
pub(super) fn import_shared_with_gemma3(import: &mut Import<'_>, blocks_of_27b: usize) {
    let window = import.size("attention.sliding_window");
    import.put("sliding_window", window);
    let is_27b = import.known_size("num_hidden_layers") == blocks_of_27b as u64;
    let scalar = match import.known_size("hidden_size").checked_div(import.known_size("num_attention_heads")) {
        Some(width) if is_27b => width,
        _ => import.known_size("head_dim"),
    };
    import.put("query_pre_attn_scalar", Some(scalar));
}

pub(super) fn window_metadata(_: &ModelConfig, decoder: &TransformerConfig) -> Vec<(&'static str, gguf::Value)> {
    let window = decoder.sliding_window.map(|window| ("attention.sliding_window", (window as u32).into()));
    window.into_iter().collect()
}
