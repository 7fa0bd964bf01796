//! The linear map in burn's operations.

use burn::prelude::*;
use burn::tensor::FloatDType;

pub(crate) fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let dtype = x.dtype();
    let weight = if weight.dtype() == dtype { weight } else { weight.cast(FloatDType::from(dtype)) };
    burn::tensor::module::linear(x, weight, bias.map(|bias| bias.cast(FloatDType::from(dtype))))
}
