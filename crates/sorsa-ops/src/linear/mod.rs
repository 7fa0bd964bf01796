//! The linear map of a weight that may be kept in bf16 beside f32 activations.

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use crate::fused;

/// The dtype of activations beside weights `[.., ..]` of the dtype and on the device of `weight`: that of the weights, but
/// f32 on the CPU backend `flex`, whose products with bf16 take f32 and give f32.
pub fn activation_dtype<const D: usize>(weight: &Tensor<D>) -> FloatDType {
    let (device, dtype) = fused::kind(weight);
    if dtype == DType::BF16 && fused::is_flex(&device) { FloatDType::F32 } else { FloatDType::from(dtype) }
}

/// `x W + bias` for `x` `[.., d_in]`, `weight` `[d_in, d_out]`, `bias` `[d_out]`. The weight may be narrower than `x`: the
/// plain form widens it; the fused one of `flex` keeps it in bf16 and, on a processor with AVX-512 BF16, rounds `x`
/// to bf16 for the product, whose sums are f32.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    if fused::linear_applies(&x, &weight, &bias) { fused::linear(x, weight, bias) } else { plain(x, weight, bias) }
}

pub(crate) fn plain<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let dtype = x.dtype();
    let weight = if weight.dtype() == dtype { weight } else { weight.cast(FloatDType::from(dtype)) };
    burn::tensor::module::linear(x, weight, bias.map(|bias| bias.cast(FloatDType::from(dtype))))
}
