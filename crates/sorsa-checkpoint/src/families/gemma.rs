//! Gemma (arXiv 2403.08295): norms scale by one plus their weight, embeddings by the root of their width and serve as
//! the head; GELU in place of SiLU.

use serde_json::{Map, Value};

use super::Family;
use super::decoder::{self, DEFAULTS, Defaults};
use crate::config::{Activation, Architecture, ModelConfig, TransformerConfig};
use crate::fields::Fields;
use crate::gguf::{Limits, LlamaCpp};
use crate::rope::RopeScaling;

pub(super) static FAMILY: Family =
    Family { model_type: "gemma", class: "GemmaForCausalLM", read, write, llama_cpp: Some(LLAMA_CPP) };

const LLAMA_CPP: LlamaCpp =
    LlamaCpp { name: "gemma", rotates_pairs: false, check, metadata: |_, _| Vec::new(), import: |_| () };

fn read(fields: &mut Fields) -> ModelConfig {
    let defaults = Defaults { num_key_value_heads: Some(16), ..defaults() };
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_act", Activation::GeluTanh));
    // Transformers 4.57 computes with `hidden_act` and keeps the later field without a use.
    fields.take("hidden_activation");
    make_gemma(&mut decoder);
    decoder::read_attention_bias(fields, &mut decoder);
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_act") else { return };
    json.insert("hidden_activation".to_owned(), json["hidden_act"].clone());
    json.insert("attention_bias".to_owned(), decoder.qkv_bias.into());
}

/// The defaults of all three generations.
pub(super) fn defaults() -> Defaults {
    Defaults { max_position_embeddings: 8192, head_dim: Some(256), tie_word_embeddings: true, ..DEFAULTS }
}

/// What all three generations do.
pub(super) fn make_gemma(decoder: &mut TransformerConfig) {
    decoder.norm_offset = true;
    decoder.scale_embedding = true;
}

fn check(limits: &mut Limits<'_>) {
    if limits.decoder.activation == Activation::Gelu {
        // What the first Gemma's file says, and not what it was trained with.
        limits.note(
            "`hidden_act` is gelu, which is computed exactly here and as its tanh approximation by llama.cpp"
                .to_owned(),
        );
    } else {
        limits.activation("hidden_act", Activation::GeluTanh);
    }
    limits.no_biases();
    limits.tied_embeddings();
    limits.rope_scaling(|scaling| matches!(scaling, RopeScaling::None | RopeScaling::Linear { .. }));
}
