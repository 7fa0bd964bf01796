//! Layer normalization (Ba et al., 2016) and its form by groups (Wu and He, 2018):
//! `y = (x - mean) / sqrt(variance + eps) * weight + bias`, mean and variance over the last axis or a part of it. There is no
//! fused form.

#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::memory::OperationMemory;

/// Normalizes the last axis of `x`. Computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// - `x`, output: `[.., d_model]`
/// - `weight`, `bias`: `[d_model]`
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    let y = standardize(x.cast(FloatDType::F32), epsilon);
    (y * weight.cast(FloatDType::F32).unsqueeze() + bias.cast(FloatDType::F32).unsqueeze()).cast(dtype)
}

/// Normalizes each of `groups` equal parts of the last axis of `x` by itself. Computed in f32; the result has the dtype of `x`.
///
/// # Shapes
///
/// - `x`, output: `[rows, seq, d_model]`
/// - `weight`, `bias`: `[d_model]`
///
/// # Panics
///
/// Panics if `d_model` is not a multiple of `groups`.
pub fn group_norm(x: Tensor<3>, groups: usize, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<3> {
    let dtype = FloatDType::from(x.dtype());
    let [rows, seq, width] = x.dims();
    assert_eq!(width % groups, 0, "{width} values do not make {groups} equal groups");
    let parts = x.cast(FloatDType::F32).reshape([rows, seq, groups, width / groups]);
    let y = standardize(parts, epsilon).reshape([rows, seq, width]);
    (y * weight.cast(FloatDType::F32).unsqueeze() + bias.cast(FloatDType::F32).unsqueeze()).cast(dtype)
}

/// The memory of [`layer_norm`] of `x` `[rows, width]`: about four tensors of that shape.
pub fn layer_norm_memory([rows, width]: [usize; 2]) -> OperationMemory {
    OperationMemory::keeping(4 * rows * width)
}

/// Mean 0 and variance 1 along the last axis.
fn standardize<const D: usize>(x: Tensor<D>, epsilon: f64) -> Tensor<D> {
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = centred.clone().square().mean_dim(D - 1);
    centred * (variance + epsilon).sqrt().recip()
}
