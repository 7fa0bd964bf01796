//! Root-mean-square normalization (Zhang and Sennrich, 2019): `y = x / sqrt(mean(x^2) + eps) * weight`.

mod flex;
mod plain;
#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use crate::form::{Form, fused_form_applies, operand};
use crate::memory::OperationMemory;

/// Normalizes the last axis of `x` and scales it by `weight`.
///
/// The mean is taken in f32; the result has the dtype of `x`. A model whose scale is `1 + weight` passes that sum, or calls
/// [`rms_norm_offset`].
///
/// # Shapes
///
/// - `x`, output: `[.., d_model]`
/// - `weight`: `[d_model]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    if fused_form_applies([operand(&x), operand(&weight)]) {
        flex::rms_norm(x, weight, epsilon)
    } else {
        plain::rms_norm(x, weight, epsilon)
    }
}

/// Normalizes the last axis of `x` and scales it by `1 + weight`, like Gemma: `y = x / sqrt(mean(x^2) + eps) * (1 + weight)`.
///
/// All of it is computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// - `x`, output: `[.., d_model]`
/// - `weight`: `[d_model]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn rms_norm_offset<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    let x = if x.dtype() == DType::F32 { x } else { x.cast(FloatDType::F32) };
    rms_norm(x, weight.cast(FloatDType::F32) + 1.0, epsilon).cast(dtype)
}

/// The memory of [`rms_norm`] of `x` `[rows, width]`. The fused form keeps its input; operations that need its result compute it
/// again. The plain form keeps about four tensors of that shape.
pub fn rms_norm_memory(form: Form, [rows, width]: [usize; 2]) -> OperationMemory {
    match form {
        Form::Fused => OperationMemory::keeping(rows * width),
        Form::Plain => OperationMemory::keeping(4 * rows * width),
    }
}
