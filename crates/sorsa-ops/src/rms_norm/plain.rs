//! RMSNorm in burn's operations.

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    let x = if x.dtype() == DType::F32 { x } else { x.cast(FloatDType::F32) };
    let scale = (x.clone().square().mean_dim(D - 1) + epsilon).sqrt().recip();
    let y = (x * scale).cast(dtype);
    y * weight.cast(dtype).unsqueeze()
}
