//! Several linear maps of one input, each with or without an adapter: queries, keys and values, or gate and up.
//!
//! ```text
//! y_i = x W_i + ((x A_i) * s_i) B_i * scale_i + bias_i
//! ```
//!
//! The fused form reads the input once for all maps, and forms its gradient in one sum of products.

mod flex;
#[cfg(test)]
mod tests;

use burn::prelude::*;

use crate::factored::{LowRankFactors, factored_linear};
use crate::form::{fused_form_applies, operand};
use crate::linear::linear;
use crate::packed::WeightOperand;
use crate::weight::fused_form_takes_weight;

/// One map.
#[derive(Debug, Clone)]
pub struct LinearMap {
    /// `[d_in, d_out]`.
    pub weight: WeightOperand,
    /// `[d_out]`.
    pub bias: Option<Tensor<1>>,
    /// The adapter, whose input is that of the weight.
    pub factors: Option<LowRankFactors>,
}

/// The output of each map of `x`. With two or three maps on the CPU backend `flex` whose weights and biases are frozen and of which one has
/// an adapter, all of them are one operation; otherwise each is [`factored_linear`] or [`linear`].
///
/// # Shapes
///
/// - `x`: `[.., d_in]`
/// - outputs: `[.., d_out]` each
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn linear_maps<const D: usize, const N: usize>(x: Tensor<D>, maps: [LinearMap; N]) -> [Tensor<D>; N] {
    let applies = (2..=flex::MOST).contains(&N)
        && fused_form_applies([operand(&x)])
        && maps.iter().all(takes_fused_form)
        && maps.iter().any(|map| map.factors.is_some());
    if applies {
        return flex::linear_maps(x, maps);
    }
    maps.map(|LinearMap { weight, bias, factors }| match factors {
        Some(factors) => factored_linear(x.clone(), weight, bias, None, factors),
        None => linear(x.clone(), weight, bias),
    })
}

fn takes_fused_form(map: &LinearMap) -> bool {
    let LinearMap { weight, bias, factors } = map;
    let is_frozen = match weight {
        WeightOperand::Dense(weight) => !weight.is_tracked(),
        WeightOperand::Packed(_) => true,
    };
    let takes_bias = bias.as_ref().is_none_or(|bias| !bias.is_tracked() && fused_form_applies([operand(bias)]));
    let takes_factors = factors.as_ref().is_none_or(|LowRankFactors { a, s, b, .. }| {
        s.as_ref().is_none_or(|s| fused_form_applies([operand(s)])) && fused_form_applies([operand(a), operand(b)])
    });
    is_frozen && takes_bias && takes_factors && fused_form_takes_weight(weight)
}
