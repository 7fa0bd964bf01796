//! Causal attention with grouped keys and values: `softmax(q k^T * scale + mask) v`.

mod flex;
mod mask;
mod plain;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::prelude::*;

pub use mask::AttentionMask;
pub(crate) use mask::FirstVisible;

use crate::form::{Form, fused_form_applies, operand};
use crate::memory::OperationMemory;
use crate::rotary::{RotaryAngles, rotate_half};
use mask::Visibility;

/// [`causal_attention`] of `q` and `k` rotated by `angles`. The fused form rotates and attends in one operation. Queries and keys
/// are those of whole sequences: they have the same positions.
///
/// # Shapes
///
/// - `q`, output: `[batch, heads, seq, head_dim]`
/// - `k`, `v`: `[batch, kv_heads, seq, head_dim]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn rotary_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    angles: &RotaryAngles,
    mask: &AttentionMask,
    scale: f64,
) -> Tensor<4> {
    match mask_of_the_fused_form(&q, &k, &v, Some(mask)) {
        Some(first) if angles.fits(&q) => flex::rotary_attention([q, k, v], Some(angles.tables()), first, scale),
        _ => causal_attention(rotate_half(q, angles), rotate_half(k, angles), v, Some(mask), scale),
    }
}

/// Attention of `q` over `k` and `v`. `heads` is a multiple of `kv_heads`, and each key head serves `heads / kv_heads`
/// neighbouring query heads without a copy. Scores and softmax are f32. Without a mask, every query sees every key.
///
/// # Shapes
///
/// - `q`, output: `[batch, heads, queries, head_dim]`
/// - `k`, `v`: `[batch, kv_heads, keys, head_dim]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn causal_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
) -> Tensor<4> {
    soft_capped_attention(q, k, v, mask, scale, None)
}

/// [`causal_attention`] whose scores go through [`soft_cap`](crate::soft_cap) before the mask, if there is a `cap` (Gemma 2).
///
/// # Shapes
///
/// - `q`, output: `[batch, heads, queries, head_dim]`
/// - `k`, `v`: `[batch, kv_heads, keys, head_dim]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn soft_capped_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
) -> Tensor<4> {
    if let Some(first) = first_keys_of_the_fused_step(&q, &k, &v, mask) {
        return flex::decode([q, k, v], first, scale, cap);
    }
    match mask_of_the_fused_form(&q, &k, &v, mask) {
        // The fused form has no cap.
        Some(first) if cap.is_none() => flex::rotary_attention([q, k, v], None, first, scale),
        _ => plain::attention([q, k, v], mask, scale, cap),
    }
}

/// The sizes of attention within whole sequences.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether scores are soft-capped.
    pub soft_capped: bool,
}

/// The memory of [`rotary_attention`], or of [`soft_capped_attention`] of queries and keys that are rotated before it.
///
/// The fused form keeps q, k, v and the output; its workspace is the gradients of each query head, before those of a key head's
/// group are summed. The plain form keeps rotated queries and keys, too, and the scores before and after the softmax. Soft-capped
/// attention has no fused form: beside other fused operations it keeps one copy less of q, k and v than it does in the plain form
/// of a whole model.
pub fn attention_memory(form: Form, shape: AttentionShape) -> OperationMemory {
    let AttentionShape { batch, heads, kv_heads, seq, head_dim, soft_capped } = shape;
    let [q, kv] = [heads, kv_heads].map(|heads| batch * seq * heads * head_dim);
    let scores = 3 * batch * heads * seq * seq;
    match (form, soft_capped) {
        (Form::Fused, false) => OperationMemory { kept: 4 * (2 * q + 2 * kv) as u64, workspace: 4 * 3 * q as u64 },
        (Form::Fused, true) => OperationMemory::keeping(3 * q + 3 * kv + scores),
        (Form::Plain, _) => OperationMemory::keeping(4 * q + 5 * kv + scores),
    }
}

/// The mask of the fused form, if that applies.
fn mask_of_the_fused_form(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    mask: Option<&AttentionMask>,
) -> Option<FirstVisible> {
    let Visibility::Causal { first, .. } = &mask?.visibility else { return None };
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    let fits = first.fits(batch, queries, keys)
        && heads % kv_heads == 0
        && k.dims() == [batch, kv_heads, keys, head_dim]
        && v.dims() == k.dims();
    if fits && fused_form_applies([operand(q), operand(k), operand(v)]) { Some(first.clone()) } else { None }
}

/// The first visible keys of the fused form of one query a row, if that applies. It has no backward pass.
fn first_keys_of_the_fused_step(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    mask: Option<&AttentionMask>,
) -> Option<Arc<[usize]>> {
    let Visibility::Last { first, keys, .. } = &mask?.visibility else { return None };
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, ..] = k.dims();
    let fits = queries == 1
        && first.len() == batch
        && first.iter().all(|first| first < keys)
        && heads % kv_heads == 0
        && k.dims() == [batch, kv_heads, *keys, head_dim]
        && v.dims() == k.dims();
    let tracked = [q, k, v].into_iter().any(|t| t.device().is_autodiff());
    if fits && !tracked && fused_form_applies([operand(q), operand(k), operand(v)]) {
        Some(first.clone())
    } else {
        None
    }
}
