//! Activations that the backward pass gets in bf16, while the forward pass goes on with the exact ones.

mod flex;
#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::form::{fused_form_applies, operand};

/// The same values. If `kept` is bf16, operations that take the result and need it in their backward pass get it rounded to bf16 there, at
/// half of the memory; otherwise they get what the forward pass had. The gradient passes unchanged.
///
/// It has an effect on f32 tensors of the CPU backend `flex` that are tracked, and before operations with a fused form that ask the graph
/// for their operand: norms, attention and linear maps. Give the result to nothing else: an operation of burn keeps the exact values.
///
/// # Shapes
///
/// - `x`, output: any, the same
pub fn stored_as<const D: usize>(x: Tensor<D>, kept: FloatDType) -> Tensor<D> {
    if kept == FloatDType::BF16 && fused_form_applies([operand(&x)]) { flex::stored_in_bf16(x) } else { x }
}
