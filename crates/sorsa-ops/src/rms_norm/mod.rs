//! Root-mean-square normalisation (Zhang and Sennrich, 2019): `y = x / sqrt(mean(x^2) + eps) * weight`.

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use crate::fused;

/// Normalises the last axis of `x` `[.., d_model]` and scales it by `weight` `[d_model]`.
///
/// The mean is taken in f32; the result has the dtype of `x`. Models whose scale is `1 + weight` pass that sum.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    if fused::applies([fused::kind(&x), fused::kind(&weight)]) {
        fused::rms_norm(x, weight, epsilon)
    } else {
        plain(x, weight, epsilon)
    }
}

pub(crate) fn plain<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    let x = if x.dtype() == DType::F32 { x } else { x.cast(FloatDType::F32) };
    let scale = (x.clone().square().mean_dim(D - 1) + epsilon).sqrt().recip();
    let y = (x * scale).cast(dtype);
    y * weight.cast(dtype).unsqueeze()
}

/// Normalises the last axis of `x` `[.., d_model]` and scales it by `1 + weight` `[d_model]`, as Gemma does:
/// `y = x / sqrt(mean(x^2) + eps) * (1 + weight)`.
///
/// All of it is computed in f32; the result has the dtype of `x`.
pub fn rms_norm_offset<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    let x = if x.dtype() == DType::F32 { x } else { x.cast(FloatDType::F32) };
    rms_norm(x, weight.cast(FloatDType::F32) + 1.0, epsilon).cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_of_zero_is_a_scale_of_one() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[1.0, -2.0, 3.0], [0.5, 0.25, -4.0]], &device);
        let found = rms_norm_offset(x.clone(), Tensor::zeros([3], &device), 1e-6);
        let expected = rms_norm(x, Tensor::ones([3], &device), 1e-6);
        assert_eq!(found.into_data(), expected.into_data());
    }

    #[test]
    fn a_row_of_equal_values_becomes_the_weight() {
        let device = Device::flex();
        let x = Tensor::<2>::full([2, 4], -3.0, &device);
        let y = rms_norm(x, Tensor::from_floats([1.0, 2.0, 3.0, 4.0], &device), 0.0);
        let values = y.into_data().try_into_vec::<f32>().unwrap();
        for (value, weight) in values.iter().zip([1.0, 2.0, 3.0, 4.0].iter().cycle()) {
            assert!((value + weight).abs() < 1e-6);
        }
    }
}
