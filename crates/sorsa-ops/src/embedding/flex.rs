//! Rows of a packed matrix on flex.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;

use crate::flex::tensors::{packed_matrix, shape, tensor, tokens};
use crate::form::count_fused_call;
use crate::packed::PackedWeight;

#[backend_extension(Flex)]
pub(crate) trait PackedEmbeddingExtension: Backend {
    fn fused_packed_embedding(words: IntTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;
}

impl PackedEmbeddingExtension for Flex {
    fn fused_packed_embedding(words: IntTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        let matrix = packed_matrix(words);
        let mut shape = shape(&ids);
        let rows: Vec<usize> = tokens(ids).into_iter().map(|row| row.expect("an id of at least 0")).collect();
        let values = matrix.widen_rows(&rows);
        shape.push(matrix.shape()[1]);
        tensor(values, shape)
    }
}

pub(super) fn packed_embedding(weight: &PackedWeight, ids: Tensor<2, Int>) -> Tensor<3> {
    count_fused_call();
    Tensor::from_dispatch(Dispatch::fused_packed_embedding(weight.words().into_dispatch(), ids.into_dispatch()))
}
