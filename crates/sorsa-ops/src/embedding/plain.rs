//! Rows of a packed matrix in burn's operations.

use burn::prelude::*;

use crate::packed::PackedWeight;

pub(super) fn packed_embedding(weight: &PackedWeight, ids: Tensor<2, Int>) -> Tensor<3> {
    burn::tensor::module::embedding(weight.stored_values(), ids)
}
