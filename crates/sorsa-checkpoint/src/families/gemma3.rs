//! Gemma 3, text only (arXiv 2503.19786): Gemma 2 with normalised queries and keys in place of soft caps, five layers
//! with a window to one without, and rotary frequencies of their own for the layers with a window.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults};
use super::{Family, gemma, gemma2};
use crate::config::{Activation, Architecture, ModelConfig};
use crate::fields::Fields;
use crate::gguf::{Import, Limits, LlamaCpp};
use crate::rope::{Rope, RopeScaling};

pub(super) static FAMILY: Family =
    Family { model_type: "gemma3_text", class: "Gemma3ForCausalLM", read, write, llama_cpp: Some(LLAMA_CPP) };

const LLAMA_CPP: LlamaCpp =
    LlamaCpp { name: "gemma3", rotates_pairs: false, check, metadata: gemma2::window_metadata, import };

/// Base of the rotary embedding in the layers with a window, unless the file has another.
const LOCAL_THETA: f64 = 10_000.0;

fn read(fields: &mut Fields) -> ModelConfig {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        ..gemma::defaults()
    };
    let context = fields.peek_size("max_position_embeddings", usize::MAX).max(1);
    let local_rope = Rope::take_local(fields, LOCAL_THETA, context);
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_activation", Activation::GeluTanh));
    gemma2::read_shared_with_gemma3(fields, &mut decoder);
    decoder.query_key_norm = true;
    // Transformers has the field and computes without it; a cap that is wanted would be missed.
    if let Some(cap) = fields.take("attn_logit_softcapping") {
        fields.wrong("attn_logit_softcapping", "null", &cap);
    }
    decoder.logit_soft_cap = fields.optional_number("final_logit_softcapping", None);
    fields.only("use_bidirectional_attention", false);
    let theta = fields.number("rope_local_base_freq", LOCAL_THETA);
    let local_rope = local_rope.unwrap_or(Rope { theta, scaling: RopeScaling::None });
    if local_rope.scaling != RopeScaling::None {
        fields.faults.push("`rope_parameters.sliding_attention` should have the rope type default".to_owned());
    }
    decoder.local_rope = Some(local_rope);
    // Files of Transformers 4.52 and later have an underscore before the name.
    let newer = fields.size("_sliding_window_pattern", Some(6));
    let pattern = fields.size("sliding_window_pattern", Some(newer));
    decoder::read_layer_types(fields, &mut decoder, |layer| !(layer + 1).is_multiple_of(pattern));
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_activation") else { return };
    gemma2::write_shared_with_gemma3(decoder, json);
    json.insert("rope_local_base_freq".to_owned(), decoder.local_rope.as_ref().map(|rope| rope.theta).into());
    json.insert("use_bidirectional_attention".to_owned(), false.into());
}

/// Number of blocks of the 27 billion model.
const BLOCKS_OF_27B: usize = 62;

fn check(limits: &mut Limits<'_>) {
    gemma2::check_shared_with_gemma3(limits, BLOCKS_OF_27B);
    limits.full_layer_every(6);
    limits.rope_scaling(|scaling| matches!(scaling, RopeScaling::None | RopeScaling::Linear { .. }));
}

fn import(import: &mut Import<'_>) {
    gemma2::import_shared_with_gemma3(import, BLOCKS_OF_27B);
    let theta = import.number("rope.freq_base_swa");
    import.put("rope_local_base_freq", theta);
}
