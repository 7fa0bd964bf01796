//! The rotation in burn's operations.

use burn::prelude::*;
use burn::tensor::FloatDType;

pub(super) fn rotate_half(x: Tensor<4>, (cos, sin): (Tensor<4>, Tensor<4>)) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let dtype = FloatDType::from(x.dtype());
    let (cos, sin) = (cos.cast(dtype), sin.cast(dtype));
    let first = x.clone().narrow(3, 0, half);
    let second = x.narrow(3, half, half);
    let rotated_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let rotated_second = second * cos + first * sin;
    Tensor::cat(vec![rotated_first, rotated_second], 3)
}
