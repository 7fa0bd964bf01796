//! A matrix plus a product on flex, without a backward pass.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;
use sorsa_kernels::{Product, Update};

use crate::flex::tensors::{FlexTensor, contiguous, into_vec, matrix, shape, tensor, with_matrix_strides};
use crate::form::count_fused_call;

#[backend_extension(Flex, Autodiff)]
pub(crate) trait AddProductExtension: Backend {
    fn fused_add_product(
        sum: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        factor: f64,
    ) -> FloatTensor<Self>;
}

impl AddProductExtension for Flex {
    fn fused_add_product(
        sum: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        factor: f64,
    ) -> FloatTensor<Self> {
        forward(sum, a, b, factor)
    }
}

impl<C: CheckpointStrategy> AddProductExtension for Autodiff<Flex, C> {
    fn fused_add_product(
        sum: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        factor: f64,
    ) -> FloatTensor<Self> {
        Self::from_inner(forward(sum.into_primitive(), a.into_primitive(), b.into_primitive(), factor))
    }
}

pub(super) fn add_product(sum: Tensor<2>, a: Tensor<2>, b: Tensor<2>, factor: f64) -> Tensor<2> {
    count_fused_call();
    let (sum, a, b) = (sum.into_dispatch(), a.into_dispatch(), b.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_add_product(sum, a, b, factor))
}

fn forward(sum: FlexTensor, a: FlexTensor, b: FlexTensor, factor: f64) -> FlexTensor {
    let (shape, a, b) = (shape(&sum), with_matrix_strides(a), with_matrix_strides(b));
    let mut sum = into_vec(contiguous(sum));
    let (a, b) = (matrix(&a), matrix(&b));
    assert_eq!(shape[..], [a.rows(), b.columns()], "the sum has another shape than the product");
    Product::new(a, b).with_factor(factor as f32).compute(&mut sum, Update::Add);
    tensor(sum, shape)
}
