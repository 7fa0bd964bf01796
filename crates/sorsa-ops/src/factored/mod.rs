//! The linear map of an adapted weight in factored form, without ever forming the dense sum:
//!
//! ```text
//! y = x W + ((x_a A) * s) B * scale        x [.., d_in]  W [d_in, d_out]  A [d_in, r]  s [r]  B [r, d_out]
//! ```
//!
//! Two products with narrow factors replace one product of size `d_in * d_out`, and the backward pass keeps nothing of that size.

mod flex;
mod plain;
#[cfg(test)]
mod tests;

use burn::prelude::*;

pub use plain::low_rank_product;

use crate::form::{Form, fused_form_applies, operand};
use crate::memory::OperationMemory;
use crate::packed::WeightOperand;
use crate::weight::fused_form_takes_weight;

/// The factors of an adapter: `A diag(s) B * scale`.
#[derive(Debug, Clone)]
pub struct LowRankFactors {
    /// `[d_in, r]`.
    pub a: Tensor<2>,
    /// `[r]`; all ones if absent.
    pub s: Option<Tensor<1>>,
    /// `[r, d_out]`.
    pub b: Tensor<2>,
    /// Multiplies the product.
    pub scale: f64,
}

/// `x W + bias +` [`low_rank_product`] of `adapter_input` and `factors`. `adapter_input` is `x` after the adapter's dropout; if
/// absent, it is `x` itself.
///
/// # Shapes
///
/// - `x`, `adapter_input`: `[.., d_in]`
/// - `weight`: `[d_in, d_out]`
/// - `bias`: `[d_out]`
/// - output: `[.., d_out]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn factored_linear<const D: usize>(
    x: Tensor<D>,
    weight: impl Into<WeightOperand>,
    bias: Option<Tensor<1>>,
    adapter_input: Option<Tensor<D>>,
    factors: LowRankFactors,
) -> Tensor<D> {
    let weight = weight.into();
    let vector = |t: &Option<Tensor<1>>| t.as_ref().map_or_else(|| operand(&x), operand);
    let operands = [
        operand(&x),
        vector(&bias),
        operand(adapter_input.as_ref().unwrap_or(&x)),
        operand(&factors.a),
        vector(&factors.s),
        operand(&factors.b),
    ];
    if fused_form_applies(operands) && fused_form_takes_weight(&weight) {
        flex::factored_linear(x, weight, bias, adapter_input, factors)
    } else {
        plain::factored_linear(x, weight, bias, adapter_input, factors)
    }
}

/// The sizes of a [`factored_linear`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FactoredLinearShape {
    /// Rows of the input.
    pub rows: usize,
    /// Columns of `A`.
    pub rank: usize,
    /// Whether there is an `s`.
    pub has_s: bool,
}

/// The memory of [`factored_linear`] with a frozen weight, beside its input: `x_a A`, `[rows, rank]`, and in the plain form its
/// product with `s`. The workspace is three temporaries of that shape. An adapter input of its own is not counted.
pub fn factored_linear_memory(form: Form, shape: FactoredLinearShape) -> OperationMemory {
    let bytes = 4 * (shape.rows * shape.rank) as u64;
    let kept = match form {
        Form::Plain if shape.has_s => 2 * bytes,
        Form::Plain | Form::Fused => bytes,
    };
    OperationMemory { kept, workspace: 3 * bytes }
}
