//! Phi-3 and 4 (arXiv 2404.14219): a Llama whose queries, keys and values are one linear layer and whose gate and up
//! are another; a part of each head may stay unrotated.

use serde_json::{Map, Value, json};

use super::Family;
use super::decoder::{self, DEFAULTS, Defaults};
use crate::config::{Activation, Architecture, LayerType, ModelConfig, TransformerConfig};
use crate::fields::Fields;
use crate::gguf::{self, Import, Limits, LlamaCpp};
use crate::rope::{LongRope, RopeScaling};

pub(super) static FAMILY: Family =
    Family { model_type: "phi3", class: "Phi3ForCausalLM", read, write, llama_cpp: Some(LLAMA_CPP) };

const LLAMA_CPP: LlamaCpp = LlamaCpp { name: "phi3", rotates_pairs: false, check, metadata, import };

fn read(fields: &mut Fields) -> ModelConfig {
    let defaults = Defaults { max_position_embeddings: 4096, rms_norm_eps: 1e-5, ..DEFAULTS };
    // Transformers 5 has it among the `rope_parameters`.
    let factor = fields.take_object("rope_parameters").and_then(|mut inner| {
        let factor = inner.take("partial_rotary_factor");
        fields.put_back("rope_parameters", inner);
        factor
    });
    if let Some(factor) = factor {
        fields.put("partial_rotary_factor", factor);
    }
    let long = LongRope::take(fields, defaults.max_position_embeddings);
    let (sizes, mut decoder) = decoder::read(fields, &defaults, ("hidden_act", Activation::Silu));
    decoder.fused_projections = true;
    if decoder.rope.scaling != RopeScaling::None {
        fields.faults.push("`rope_scaling` should be null or a longrope: a phi3 knows no other".into());
    }
    // Without a longrope it counts for nothing.
    fields.take("original_max_position_embeddings");
    decoder.partial_rotary_factor = fields.number("partial_rotary_factor", 1.0);
    if decoder.partial_rotary_factor > 1.0 || !decoder.rotary_dim().is_multiple_of(2) || decoder.rotary_dim() == 0 {
        let (factor, width) = (decoder.partial_rotary_factor, decoder.head_dim);
        fields.faults.push(format!("`partial_rotary_factor` {factor} rotates no even part of heads of {width}"));
    }
    if let Some(long) = long {
        long.check_planes(decoder.rotary_dim() / 2, fields);
        decoder.rope.scaling = RopeScaling::LongRope(long);
    }
    decoder.sliding_window = fields.optional_size("sliding_window", None);
    if decoder.sliding_window.is_some() {
        decoder.layer_types.fill(LayerType::Sliding);
    }
    fields.only("attention_bias", false);
    // Phi-4 mini says that it has none of what its own code could do.
    fields.only("mlp_bias", false);
    fields.only("lm_head_bias", false);
    fields.only("full_attn_mod", 1);
    fields.only("interpolate_factor", 1);
    sizes.config(&FAMILY, fields, Architecture::Transformer(decoder))
}

fn write(config: &ModelConfig, json: &mut Map<String, Value>) {
    let Some(decoder) = decoder::write(config, json, "hidden_act") else { return };
    json.insert("partial_rotary_factor".to_owned(), decoder.partial_rotary_factor.into());
    json.insert("sliding_window".to_owned(), decoder.sliding_window.into());
    json.insert("original_max_position_embeddings".to_owned(), original_context(config, decoder).into());
}

fn check(limits: &mut Limits<'_>) {
    limits.activation("hidden_act", Activation::Silu);
    limits.no_biases();
    limits.heads_divide_width();
    limits.ignores_window();
}

fn metadata(config: &ModelConfig, decoder: &TransformerConfig) -> Vec<(&'static str, gguf::Value)> {
    vec![
        ("rope.scaling.original_context_length", (original_context(config, decoder) as u32).into()),
        // Phi 4 has none and says so with a zero.
        ("attention.sliding_window", (decoder.sliding_window.unwrap_or(0) as u32).into()),
    ]
}

/// Context of the pretraining.
fn original_context(config: &ModelConfig, decoder: &TransformerConfig) -> usize {
    match &decoder.rope.scaling {
        RopeScaling::LongRope(long) => long.original_max_position_embeddings,
        _ => config.max_position_embeddings,
    }
}

fn import(import: &mut Import<'_>) {
    let window = import.size("attention.sliding_window").filter(|window| *window > 0);
    import.put("sliding_window", window);
    let original = import.size("rope.scaling.original_context_length");
    let attention_factor = import.number("rope.scaling.attn_factor");
    let factors = (import.tensor("rope_factors_long.weight"), import.tensor("rope_factors_short.weight"));
    if let (Some(long), Some(short)) = factors {
        let mut scaling = json!({"rope_type": "longrope", "long_factor": long, "short_factor": short});
        if let Some(factor) = attention_factor {
            scaling["attention_factor"] = factor.into();
        }
        import.put("rope_scaling", Some(scaling));
        import.put("original_max_position_embeddings", original);
    }
}
