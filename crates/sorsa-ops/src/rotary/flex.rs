//! The rotation on flex, without a backward pass.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;
use sorsa_kernels::rotary::rotate;

use crate::flex::tensors::{FlexTensor, angles, contiguous, heads, shape_of_four, tensor, with_contiguous_rows};
use crate::form::count_fused_call;

#[backend_extension(Flex, Autodiff)]
pub(crate) trait RotationExtension: Backend {
    fn fused_rotation(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl RotationExtension for Flex {
    fn fused_rotation(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        forward(x, cos, sin)
    }
}

impl<C: CheckpointStrategy> RotationExtension for Autodiff<Flex, C> {
    fn fused_rotation(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(forward(x.into_primitive(), cos.into_primitive(), sin.into_primitive()))
    }
}

pub(super) fn rotate_half(x: Tensor<4>, (cos, sin): (Tensor<4>, Tensor<4>)) -> Tensor<4> {
    count_fused_call();
    Tensor::from_dispatch(Dispatch::fused_rotation(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()))
}

fn forward(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
    let (x, cos, sin) = (with_contiguous_rows(x), contiguous(cos), contiguous(sin));
    tensor(rotate(heads(&x), angles(&cos, &sin)), shape_of_four(&x))
}
