//! A matrix plus a product.

mod flex;
mod plain;
#[cfg(test)]
mod tests;

use burn::prelude::*;

use crate::form::{fused_form_applies, operand};

/// `sum + factor a b`. On the CPU backend `flex`, without autodiff, the result is in the memory of `sum` if nothing else holds it.
///
/// # Shapes
///
/// - `sum`, output: `[m, n]`
/// - `a`: `[m, k]`
/// - `b`: `[k, n]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn add_product(sum: Tensor<2>, a: Tensor<2>, b: Tensor<2>, factor: f64) -> Tensor<2> {
    let operands = [&sum, &a, &b];
    if operands.iter().all(|t| !t.is_autodiff()) && fused_form_applies(operands.map(operand)) {
        flex::add_product(sum, a, b, factor)
    } else {
        plain::add_product(sum, a, b, factor)
    }
}
