//! Layer normalisation (Ba et al., 2016) and its form by groups (Wu and He, 2018):
//! `y = (x - mean) / sqrt(variance + eps) * weight + bias`, mean and variance over the last axis or a part of it.

use burn::prelude::*;
use burn::tensor::FloatDType;

/// Normalises the last axis of `x` `[.., d_model]`; `weight` and `bias` are `[d_model]`.
///
/// Computed in f32; the result has the dtype of `x`.
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    let y = standardise(x.cast(FloatDType::F32), epsilon);
    (y * weight.cast(FloatDType::F32).unsqueeze() + bias.cast(FloatDType::F32).unsqueeze()).cast(dtype)
}

/// Normalises each of `groups` equal parts of the last axis of `x` `[rows, seq, d_model]` by itself; `weight` and
/// `bias` are `[d_model]`.
///
/// Computed in f32; the result has the dtype of `x`.
///
/// # Panics
///
/// Panics where `groups` does not divide `d_model`.
pub fn group_norm(x: Tensor<3>, groups: usize, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<3> {
    let dtype = FloatDType::from(x.dtype());
    let [rows, seq, width] = x.dims();
    assert_eq!(width % groups, 0, "{width} values do not make {groups} equal groups");
    let parts = x.cast(FloatDType::F32).reshape([rows, seq, groups, width / groups]);
    let y = standardise(parts, epsilon).reshape([rows, seq, width]);
    (y * weight.cast(FloatDType::F32).unsqueeze() + bias.cast(FloatDType::F32).unsqueeze()).cast(dtype)
}

/// Mean 0 and variance 1 along the last axis.
fn standardise<const D: usize>(x: Tensor<D>, epsilon: f64) -> Tensor<D> {
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = centred.clone().square().mean_dim(D - 1);
    centred * (variance + epsilon).sqrt().recip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn rows_get_mean_and_deviation_of_bias_and_weight() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[1.0, 2.0, 3.0, 6.0]], &device);
        let y = values(layer_norm(x, Tensor::full([4], 2.0, &device), Tensor::full([4], 0.5, &device), 0.0));
        // Mean 3, variance 3.5.
        for (y, x) in y.iter().zip([1.0f32, 2.0, 3.0, 6.0]) {
            assert!((y - (2.0 * (x - 3.0) / 3.5f32.sqrt() + 0.5)).abs() < 1e-6);
        }
    }

    #[test]
    fn a_group_is_a_layer_norm_of_its_own_part() {
        let device = Device::flex();
        let x = normal([2, 3, 8], 2.0, 1, &device) + 1.0;
        let weight = normal([8], 1.0, 2, &device);
        let bias = normal([8], 1.0, 3, &device);
        let found = group_norm(x.clone(), 2, weight.clone(), bias.clone(), 1e-3);
        let part = |at: usize| {
            let cut = |t: &Tensor<1>| t.clone().narrow(0, at, 4);
            layer_norm(x.clone().narrow(2, at, 4), cut(&weight), cut(&bias), 1e-3)
        };
        let expected = Tensor::cat(vec![part(0), part(4)], 2);
        assert!((found - expected).abs().max().into_scalar::<f32>() < 1e-6);
    }
}
