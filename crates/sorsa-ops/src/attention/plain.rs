//! Attention in burn's operations.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, FloatDType};

use super::AttentionMask;
use crate::soft_cap::soft_cap;

pub(super) fn attention(
    [q, k, v]: [Tensor<4>; 3],
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
) -> Tensor<4> {
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    assert_eq!(heads % kv_heads, 0, "{heads} query heads cannot share {kv_heads} key heads");
    let dtype = FloatDType::from(q.dtype());

    let grouped = (q * scale).reshape([batch, kv_heads, heads / kv_heads * queries, head_dim]);
    let mut scores = grouped.matmul(k.swap_dims(2, 3)).reshape([batch, heads, queries, keys]);
    if scores.dtype() != DType::F32 {
        scores = scores.cast(FloatDType::F32);
    }
    if let Some(cap) = cap {
        scores = soft_cap(scores, cap);
    }
    if let Some(mask) = mask.filter(|mask| !mask.hides_nothing()) {
        // A large finite number, not infinity: a row with nothing visible stays finite.
        scores = scores.mask_fill(mask.table().expand([batch, heads, queries, keys]), -1e30);
    }
    let probabilities = softmax(scores, 3).cast(dtype);
    probabilities
        .reshape([batch, kv_heads, heads / kv_heads * queries, keys])
        .matmul(v)
        .reshape([batch, heads, queries, head_dim])
}
