//! The factored linear map in burn's operations.

use burn::prelude::*;
use burn::tensor::FloatDType;
use burn::tensor::module::linear;

use super::LowRankFactors;
use crate::linear::plain as plain_linear;
use crate::packed::WeightOperand;

/// `((x A) * s) B * scale`. The factors are cast to the dtype of `x`; gradients come back in the dtype of the factors.
///
/// # Shapes
///
/// - `x`: `[.., d_in]`
/// - output: `[.., d_out]`
pub fn low_rank_product<const D: usize>(x: Tensor<D>, factors: LowRankFactors) -> Tensor<D> {
    let LowRankFactors { a, s, b, scale } = factors;
    let dtype = FloatDType::from(x.dtype());
    let mut h = linear(x, a.cast(dtype), None);
    // The scale multiplies the smallest operand.
    match s {
        Some(s) => h = h * (s * scale).cast(dtype).unsqueeze(),
        None if scale != 1.0 => h = h * scale,
        None => {}
    }
    linear(h, b.cast(dtype), None)
}

pub(super) fn factored_linear<const D: usize>(
    x: Tensor<D>,
    weight: WeightOperand,
    bias: Option<Tensor<1>>,
    adapter_input: Option<Tensor<D>>,
    factors: LowRankFactors,
) -> Tensor<D> {
    let adapter_input = adapter_input.unwrap_or_else(|| x.clone());
    plain_linear(x, weight, bias) + low_rank_product(adapter_input, factors)
}
