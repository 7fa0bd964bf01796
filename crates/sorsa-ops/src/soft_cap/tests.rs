use burn::prelude::*;

use super::{soft_cap, soft_capped_head_loss_sum};
use crate::loss::{CHUNK_ROWS, cross_entropy_sum};
use crate::testing::normal;

#[test]
fn small_values_stay_and_large_ones_end_at_the_cap() {
    let x = Tensor::<1>::from_floats([0.01, -0.01, 1e6, -1e6, 2.0], &Device::flex());
    let y = soft_cap(x, 4.0).into_data().try_into_vec::<f32>().unwrap();
    let expected = [0.01, -0.01, 4.0, -4.0, 4.0 * 0.5f32.tanh()];
    assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
}

#[test]
fn the_slope_is_one_minus_the_square_of_the_capped_share() {
    let device = Device::flex().autodiff();
    let x = Tensor::<1>::from_floats([-3.0, 0.0, 0.7, 9.0], &device).require_grad();
    let gradient = x.grad(&soft_cap(x.clone(), 2.5).sum().backward()).unwrap();
    let gradient = gradient.into_data().try_into_vec::<f32>().unwrap();
    for (gradient, x) in gradient.iter().zip([-3.0f32, 0.0, 0.7, 9.0]) {
        assert!((gradient - (1.0 - (x / 2.5).tanh().powi(2))).abs() < 1e-6);
    }
}

#[test]
fn chunks_of_capped_logits_sum_to_the_whole() {
    let device = Device::flex();
    let rows = CHUNK_ROWS + 3;
    let (hidden, weight) = (normal([rows, 3], 2.0, 1, &device), normal([3, 5], 2.0, 2, &device));
    let targets = Tensor::<1, Int>::zeros([rows], &device);
    let logits = hidden.clone().matmul(weight.clone());
    let whole = cross_entropy_sum(soft_cap(logits.clone(), 1.5), targets.clone()).into_scalar::<f32>();
    let plain = cross_entropy_sum(logits, targets.clone()).into_scalar::<f32>();
    let chunked = soft_capped_head_loss_sum(hidden, weight, targets, 1.5).into_scalar::<f32>();
    assert!((whole - chunked).abs() < 1e-4 * whole, "{whole} {chunked}");
    assert!((whole - plain).abs() > 0.1 * plain, "the cap is seen: {whole} {plain}");
}
