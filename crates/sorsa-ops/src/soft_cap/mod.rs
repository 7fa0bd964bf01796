//! Soft-capping (Gemma 2): `y = cap * tanh(x / cap)` keeps scores within `(-cap, cap)` and leaves small ones nearly unchanged.
//! There is no fused form.

#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::linear::linear;
use crate::loss::sum_over_chunks;
use crate::packed::WeightOperand;

/// `cap * tanh(x / cap)`, elementwise, in the dtype of `x`.
pub fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    (x / cap).tanh() * cap
}

/// [`head_loss_sum`](crate::head_loss_sum) of logits that go through [`soft_cap`] in f32. Its memory is that of the plain form of
/// [`head_loss_sum`](crate::head_loss_sum).
///
/// # Shapes
///
/// - `hidden`: `[rows, d_model]`
/// - `weight`: `[d_model, vocabulary]`
/// - `targets`: `[rows]`
/// - output: `[1]`
pub fn soft_capped_head_loss_sum(
    hidden: Tensor<2>,
    weight: impl Into<WeightOperand>,
    targets: Tensor<1, Int>,
    cap: f64,
) -> Tensor<1> {
    let weight = weight.into();
    let logits = |hidden| soft_cap(linear(hidden, weight.clone(), None).cast(FloatDType::F32), cap);
    sum_over_chunks(hidden, targets, logits)
}
