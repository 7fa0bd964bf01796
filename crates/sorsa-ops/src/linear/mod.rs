//! The linear map of a weight that may have another storage format than the activations.

mod flex;
mod plain;
#[cfg(test)]
mod tests;

use burn::prelude::*;

pub(crate) use plain::linear as plain;

use crate::form::{fused_form_applies, operand};
use crate::packed::WeightOperand;
use crate::weight::fused_form_takes_weight;

/// `x W + bias`. The plain form casts the weight to the dtype of `x`; it widens a packed one a part at a time. The fused form multiplies with the weight in its own
/// [`WeightStorage`](crate::WeightStorage) or packed format; on a processor with AVX-512 BF16 it rounds `x` to bf16 beside a bf16 weight, and sums
/// in f32.
///
/// For the backward pass, a frozen weight keeps nothing; a trained weight keeps `x`.
///
/// # Shapes
///
/// - `x`: `[.., d_in]`
/// - `weight`: `[d_in, d_out]`
/// - `bias`: `[d_out]`
/// - output: `[.., d_out]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn linear<const D: usize>(x: Tensor<D>, weight: impl Into<WeightOperand>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let weight = weight.into();
    let bias_operand = bias.as_ref().map_or_else(|| operand(&x), operand);
    if fused_form_takes_weight(&weight) && fused_form_applies([operand(&x), bias_operand]) {
        flex::linear(x, weight, bias)
    } else {
        plain(x, weight, bias)
    }
}
