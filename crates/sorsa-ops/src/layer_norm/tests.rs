use burn::prelude::*;

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
