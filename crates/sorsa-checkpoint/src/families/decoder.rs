//! What the transformer families share: the fields that all of them have, read into a plain decoder (norms before
//! each part, no biases, no windows) that each family then changes, and written back.

use serde_json::{Map, Value};

use super::{MOST_LAYERS, Sizes};
use crate::config::{Activation, BlockNorms, LayerType, ModelConfig, TransformerConfig};
use crate::fields::Fields;
use crate::rope::Rope;

/// A family's values of fields that a file leaves out.
pub(super) struct Defaults {
    pub max_position_embeddings: usize,
    /// Absent: as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// Absent: the width of the model divided by the number of heads.
    pub head_dim: Option<usize>,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
}

/// The defaults of most families.
pub(super) const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 32_768,
    num_key_value_heads: None,
    head_dim: None,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
};

/// Reads the shared fields. `activation` names the field of the activation function and its default.
pub(super) fn read(
    fields: &mut Fields,
    defaults: &Defaults,
    activation: (&str, Activation),
) -> (Sizes, TransformerConfig) {
    let hidden_size = fields.size("hidden_size", None);
    let heads = fields.size("num_attention_heads", None);
    let kv_heads = fields.size("num_key_value_heads", Some(defaults.num_key_value_heads.unwrap_or(heads)));
    if !heads.is_multiple_of(kv_heads) {
        fields.faults.push(format!("{heads} attention heads cannot share {kv_heads} key-value heads"));
    }
    let head_dim = fields.size("head_dim", Some(defaults.head_dim.unwrap_or((hidden_size / heads).max(1))));
    if !head_dim.is_multiple_of(2) {
        fields.faults.push(format!("`head_dim` should be even, found {head_dim}"));
    }
    let max_position_embeddings = fields.size("max_position_embeddings", Some(defaults.max_position_embeddings));
    let layers = fields.peek_size("num_hidden_layers", MOST_LAYERS);
    let decoder = TransformerConfig {
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        partial_rotary_factor: 1.0,
        rms_norm_eps: fields.number("rms_norm_eps", defaults.rms_norm_eps),
        norm_offset: false,
        block_norms: BlockNorms::Before,
        query_key_norm: false,
        activation: Activation::read(fields, activation.0, activation.1),
        query_pre_attn_scalar: head_dim as f64,
        attention_soft_cap: None,
        logit_soft_cap: None,
        scale_embedding: false,
        fused_projections: false,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        rope: Rope::read(fields, defaults.rope_theta, max_position_embeddings),
        local_rope: None,
        sliding_window: None,
        layer_types: vec![LayerType::Full; layers],
    };
    let sizes = Sizes {
        hidden_size,
        intermediate_size: fields.size("intermediate_size", None),
        max_position_embeddings,
        tie_word_embeddings: fields.flag("tie_word_embeddings", defaults.tie_word_embeddings),
    };
    (sizes, decoder)
}

/// Writes the shared fields.
pub(super) fn write<'a>(
    config: &'a ModelConfig,
    json: &mut Map<String, Value>,
    activation: &str,
) -> Option<&'a TransformerConfig> {
    let decoder = config.transformer()?;
    let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
    put("num_attention_heads", decoder.num_attention_heads.into());
    put("num_key_value_heads", decoder.num_key_value_heads.into());
    put("head_dim", decoder.head_dim.into());
    put("max_position_embeddings", config.max_position_embeddings.into());
    put("rms_norm_eps", decoder.rms_norm_eps.into());
    put(activation, decoder.activation.name().into());
    decoder.rope.write(json);
    Some(decoder)
}

/// Takes `attention_bias`: q, k, v and o have one, or none of them.
pub(super) fn read_attention_bias(fields: &mut Fields, decoder: &mut TransformerConfig) {
    let bias = fields.flag("attention_bias", false);
    (decoder.qkv_bias, decoder.output_bias) = (bias, bias);
}

/// Takes `layer_types`, or makes them by `rule` (whether the layer of this index has the window).
pub(super) fn read_layer_types(fields: &mut Fields, decoder: &mut TransformerConfig, rule: impl Fn(usize) -> bool) {
    let layers = decoder.layer_types.len();
    let by_rule = |index| if rule(index) { LayerType::Sliding } else { LayerType::Full };
    decoder.layer_types = match fields.take("layer_types") {
        None => (0..layers).map(by_rule).collect(),
        Some(found) => {
            let names = found.as_array().map(Vec::as_slice).unwrap_or_default();
            let types: Option<Vec<LayerType>> = names.iter().map(|name| LayerType::named(name.as_str()?)).collect();
            types.filter(|types| types.len() == layers).unwrap_or_else(|| {
                let expected = format!("a list of {layers} names, sliding_attention or full_attention");
                fields.wrong("layer_types", &expected, &found);
                vec![LayerType::Full; layers]
            })
        }
    };
    if decoder.sliding_window.is_none() && decoder.layer_types.contains(&LayerType::Sliding) {
        fields.faults.push("`layer_types` has sliding_attention, but there is no window".to_owned());
    }
}

impl TransformerConfig {
    /// The value of `layer_types`.
    pub(crate) fn layer_types_json(&self) -> Value {
        self.layer_types.iter().map(|layer_type| layer_type.name()).collect()
    }
}

impl LayerType {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "full_attention",
            Self::Sliding => "sliding_attention",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Full, Self::Sliding].into_iter().find(|layer_type| layer_type.name() == name)
    }
}

impl Activation {
    /// Transformers' name; `gelu_new` and `gelu_fast` are other names of the last.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }

    fn read(fields: &mut Fields, field: &str, default: Self) -> Self {
        let Some(found) = fields.take(field) else { return default };
        match found.as_str() {
            Some("silu" | "swish") => Self::Silu,
            Some("gelu") => Self::Gelu,
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Self::GeluTanh,
            _ => {
                fields.wrong(field, "silu, gelu or gelu_pytorch_tanh", &found);
                default
            }
        }
    }
}
