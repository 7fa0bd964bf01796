//! Names and shapes of the tensors of a GGUF file, and how each is changed on its way into it.

use sorsa_kernels::packed::PackedMatrix;

use super::translation::Translation;
use crate::config::BlockNorms;
use crate::rope::RopeScaling;
use crate::weights::Expected;

/// How a tensor is changed on its way into the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    None,
    /// Rows are reordered: llama.cpp rotates neighbouring pairs of values, Transformers rotates the two halves of each
    /// head. The number is that of heads.
    Heads(usize),
    /// Gemma's norms multiply by one more than the weight.
    PlusOne,
    /// The tensor follows from the configuration.
    Values(Vec<f32>),
    /// The divisors of Llama 3's scaling. They are computed when they are written: the configuration may say that there are
    /// more of them than memory holds.
    Llama3Divisors,
}

/// One tensor of the GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    /// Name in the GGUF file.
    pub name: String,
    /// Name and shape in the checkpoint; for tensors that no checkpoint has, the shape alone.
    pub source: Expected,
    pub change: Change,
}

/// All tensors of a model, in the order of computation.
pub(super) fn plan(translation: &Translation) -> Vec<Planned> {
    let Translation { config, decoder, .. } = translation;
    let norm = if decoder.norm_offset { Change::PlusOne } else { Change::None };
    let mut plan = Vec::new();
    let mut add = |name: String, source: String, shape: &[usize], change: &Change| {
        plan.push(Planned { name, source: Expected::new(source, shape), change: change.clone() });
    };
    add(
        "token_embd.weight".into(),
        "model.embed_tokens.weight".into(),
        &[config.vocab_size, config.hidden_size],
        &Change::None,
    );
    if let RopeScaling::Llama3 { .. } = decoder.rope.scaling {
        add("rope_freqs.weight".into(), String::new(), &[decoder.rotary_dim() / 2], &Change::Llama3Divisors);
    }
    let mut divisors = |name: &str, values: Vec<f32>| {
        add(format!("{name}.weight"), String::new(), &[values.len()], &Change::Values(values));
    };
    if let RopeScaling::LongRope(long) = &decoder.rope.scaling {
        let as_f32 = |factors: &[f64]| factors.iter().map(|factor| *factor as f32).collect();
        divisors("rope_factors_long", as_f32(&long.long_factor));
        divisors("rope_factors_short", as_f32(&long.short_factor));
    }
    for block in 0..config.num_hidden_layers {
        let mut vector = |name: &str, source: &str, width: usize| {
            add(format!("blk.{block}.{name}.weight"), format!("model.layers.{block}.{source}.weight"), &[width], &norm);
        };
        vector("attn_norm", "input_layernorm", config.hidden_size);
        if decoder.block_norms == BlockNorms::BeforeAndAfter {
            vector("post_attention_norm", "post_attention_layernorm", config.hidden_size);
            vector("ffn_norm", "pre_feedforward_layernorm", config.hidden_size);
            vector("post_ffw_norm", "post_feedforward_layernorm", config.hidden_size);
        } else {
            vector("ffn_norm", "post_attention_layernorm", config.hidden_size);
        }
        if decoder.query_key_norm {
            vector("attn_q_norm", "self_attn.q_norm", decoder.head_dim);
            vector("attn_k_norm", "self_attn.k_norm", decoder.head_dim);
        }
        for linear in linears(translation) {
            let source = format!("model.layers.{block}.{}", linear.source);
            let name = format!("blk.{block}.{}", linear.name);
            add(format!("{name}.weight"), format!("{source}.weight"), &linear.shape, &linear.change);
            if linear.bias {
                add(format!("{name}.bias"), format!("{source}.bias"), &linear.shape[..1], &linear.change);
            }
        }
    }
    add("output_norm.weight".into(), "model.norm.weight".into(), &[config.hidden_size], &norm);
    if !config.tie_word_embeddings {
        add("output.weight".into(), "lm_head.weight".into(), &[config.vocab_size, config.hidden_size], &Change::None);
    }
    plan
}

/// One linear layer of every block.
pub(super) struct Linear {
    /// Name in the GGUF file, after the block.
    pub name: &'static str,
    /// Path in the block.
    pub source: &'static str,
    /// `[d_out, d_in]`.
    pub shape: [usize; 2],
    pub bias: bool,
    pub change: Change,
}

/// The linear layers of a block.
pub(super) fn linears(translation: &Translation) -> Vec<Linear> {
    let Translation { config, decoder, .. } = translation;
    let (q, kv) = (translation.query_width(), translation.key_width());
    let heads = |count| if translation.rotates_pairs { Change::Heads(count) } else { Change::None };
    let linear = |name, source, shape, bias, change| Linear { name, source, shape, bias, change };
    let mut list = Vec::new();
    if decoder.fused_projections {
        list.push(linear("attn_qkv", "self_attn.qkv_proj", [q + 2 * kv, config.hidden_size], false, Change::None));
    } else {
        list.push(linear(
            "attn_q",
            "self_attn.q_proj",
            [q, config.hidden_size],
            decoder.qkv_bias,
            heads(decoder.num_attention_heads),
        ));
        list.push(linear(
            "attn_k",
            "self_attn.k_proj",
            [kv, config.hidden_size],
            decoder.qkv_bias,
            heads(decoder.num_key_value_heads),
        ));
        list.push(linear("attn_v", "self_attn.v_proj", [kv, config.hidden_size], decoder.qkv_bias, Change::None));
    }
    list.push(linear("attn_output", "self_attn.o_proj", [config.hidden_size, q], decoder.output_bias, Change::None));
    if decoder.fused_projections {
        list.push(linear(
            "ffn_up",
            "mlp.gate_up_proj",
            [2 * config.intermediate_size, config.hidden_size],
            false,
            Change::None,
        ));
    } else {
        list.push(linear(
            "ffn_gate",
            "mlp.gate_proj",
            [config.intermediate_size, config.hidden_size],
            decoder.mlp_bias,
            Change::None,
        ));
        list.push(linear(
            "ffn_up",
            "mlp.up_proj",
            [config.intermediate_size, config.hidden_size],
            decoder.mlp_bias,
            Change::None,
        ));
    }
    list.push(linear(
        "ffn_down",
        "mlp.down_proj",
        [config.hidden_size, config.intermediate_size],
        decoder.mlp_bias,
        Change::None,
    ));
    list
}

impl Change {
    /// Changes the values of a tensor whose first axis has `rows` entries.
    pub fn apply(&self, values: Vec<f32>, rows: usize) -> Vec<f32> {
        match self {
            Self::None | Self::Llama3Divisors => values,
            Self::Heads(heads) => interleave(&values, rows, *heads),
            Self::PlusOne => values.into_iter().map(|value| value + 1.0).collect(),
            Self::Values(values) => values.clone(),
        }
    }
}

impl Change {
    /// Changes the order of the rows of a packed matrix; nothing if the change needs the numbers, or if the matrix is not blocks.
    pub fn apply_to_rows(&self, matrix: &PackedMatrix) -> Option<PackedMatrix> {
        let (format, bytes) = matrix.blocks()?;
        match self {
            Self::None => Some(matrix.clone()),
            Self::Heads(heads) => {
                let bytes = interleave(bytes, matrix.shape()[0], *heads);
                PackedMatrix::from_blocks(format, matrix.shape(), bytes).ok()
            }
            Self::PlusOne | Self::Values(_) | Self::Llama3Divisors => None,
        }
    }
}

impl Change {
    /// The values that [`apply`](Self::apply) changed to `values`.
    pub fn undo(&self, values: Vec<f32>, rows: usize) -> Vec<f32> {
        match self {
            Self::None | Self::Values(_) | Self::Llama3Divisors => values,
            Self::Heads(heads) => separate(&values, rows, *heads),
            Self::PlusOne => values.into_iter().map(|value| value - 1.0).collect(),
        }
    }
}

/// The inverse of [`interleave`], of numbers or of the bytes of packed rows.
pub(super) fn separate<T: Copy>(values: &[T], rows: usize, heads: usize) -> Vec<T> {
    let (width, dim) = (values.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (head, within) = (row / dim, row % dim);
        let from = head * dim + within % (dim / 2) * 2 + within / (dim / 2);
        out.extend_from_slice(&values[from * width..(from + 1) * width]);
    }
    out
}

/// Row `h d + 2 i + s` of the result is row `h d + s d / 2 + i`, for heads `h` of `d` rows and halves `s`: what stood in
/// two halves, stands in pairs. Rows may be numbers or the bytes of whole blocks.
fn interleave<T: Copy>(values: &[T], rows: usize, heads: usize) -> Vec<T> {
    let (width, dim) = (values.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (head, within) = (row / dim, row % dim);
        let from = head * dim + within % 2 * (dim / 2) + within / 2;
        out.extend_from_slice(&values[from * width..(from + 1) * width]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_interleaved_is_separated_again() {
        let values: Vec<f32> = (0..48).map(|i| i as f32).collect();
        let change = Change::Heads(2);
        let changed = change.apply(values.clone(), 16);
        assert_ne!(changed, values);
        assert_eq!(change.undo(changed, 16), values);
        assert_eq!(Change::PlusOne.undo(Change::PlusOne.apply(vec![0.25, -1.0], 2), 2), [0.25, -1.0]);
    }

    fn planned(model_type: &str) -> Vec<Planned> {
        let config = serde_json::json!({"model_type": model_type, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 16});
        let mut config = config.as_object().unwrap().clone();
        config.retain(|key, _| {
            model_type == "gemma2"
                || !key.contains("softcapping") && (model_type == "gemma3_text" || !key.contains("scalar"))
        });
        plan(&Translation::parse(config).unwrap())
    }

    #[test]
    fn gemma_has_norms_around_both_parts_and_one_is_added_to_each() {
        for (model_type, norms) in [("gemma", 3), ("gemma2", 5), ("gemma3_text", 7)] {
            let plan = planned(model_type);
            let (vectors, matrices): (Vec<_>, Vec<_>) = plan.iter().partition(|p| p.name.ends_with("norm.weight"));
            assert_eq!((vectors.len(), matrices.len()), (norms, 8), "{model_type}");
            assert!(vectors.iter().all(|planned| planned.change == Change::PlusOne));
            assert!(matrices.iter().all(|planned| planned.change == Change::None));
        }
        // Where there are four norms, the names of two change their meaning.
        let source = |model_type, name| planned(model_type).into_iter().find(|p| p.name == name).unwrap().source.name;
        assert_eq!(source("gemma", "blk.0.ffn_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(source("gemma2", "blk.0.ffn_norm.weight"), "model.layers.0.pre_feedforward_layernorm.weight");
        assert_eq!(Change::PlusOne.apply(vec![-0.25, 0.5], 2), [0.75, 1.5]);
    }

    #[test]
    fn phi_3_keeps_its_joined_matrices_and_qwen_2_has_biases() {
        let shape = |plan: &[Planned], name: &str| plan.iter().find(|p| p.name == name).map(|p| p.source.shape.clone());
        let phi = planned("phi3");
        assert_eq!(shape(&phi, "blk.0.attn_qkv.weight"), Some(vec![128, 64]));
        assert_eq!(shape(&phi, "blk.0.ffn_up.weight"), Some(vec![192, 64]));
        assert_eq!(shape(&phi, "blk.0.ffn_gate.weight"), None);
        let qwen = planned("qwen2");
        assert_eq!(shape(&qwen, "blk.0.attn_k.bias"), Some(vec![32]));
        assert_eq!(shape(&qwen, "blk.0.attn_output.bias"), None);
    }

    #[test]
    fn halves_of_a_head_become_pairs() {
        // Two heads of four rows, two columns.
        let values: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let rows: Vec<f32> = interleave(&values, 8, 2).chunks(2).map(|row| row[0] / 2.0).collect();
        assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
