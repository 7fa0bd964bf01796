//! Gemma 3, text only (arXiv 2503.19786): Gemma 2 with normalised queries and keys in place of soft caps, five layers
//! with a window to one without, and rotary frequencies of their own for the layers with a window.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults};
use super::{Family, gemma, gemma2};
use crate::config::{Activation, Architecture, ModelConfig};
use crate::fields::Fields;
use crate::rope::{Rope, RopeScaling};

pub(super) static FAMILY: Family = Family { model_type: "gemma3_text", class: "Gemma3ForCausalLM", read, write };

fn read(fields: &mut Fields) -> ModelConfig {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        ..gemma::defaults()
    };
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_activation", Activation::GeluTanh));
    gemma2::read_shared_with_gemma3(fields, &mut decoder);
    decoder.query_key_norm = true;
    // Transformers has the field and computes without it; a cap that is wanted would be missed.
    if let Some(cap) = fields.take("attn_logit_softcapping") {
        fields.wrong("attn_logit_softcapping", "null", &cap);
    }
    decoder.logit_soft_cap = fields.optional_number("final_logit_softcapping", None);
    fields.only("use_bidirectional_attention", false);
    let theta = fields.number("rope_local_base_freq", 10_000.0);
    decoder.local_rope = Some(Rope { theta, scaling: RopeScaling::None });
    let pattern = fields.size("sliding_window_pattern", Some(6));
    decoder::read_layer_types(fields, &mut decoder, |layer| !(layer + 1).is_multiple_of(pattern));
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_activation") else { return };
    gemma2::write_shared_with_gemma3(decoder, json);
    json.insert("rope_local_base_freq".to_owned(), decoder.local_rope.as_ref().map(|rope| rope.theta).into());
    json.insert("use_bidirectional_attention".to_owned(), false.into());
}
