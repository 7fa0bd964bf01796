//! Rows of a packed matrix by their numbers: the embeddings of token ids.

mod flex;
mod plain;
#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::DType;

use crate::form::fused_form_applies;
use crate::packed::PackedWeight;

/// The rows `ids` of the stored matrix `[vocabulary, width]` of `weight`, widened to f32. The fused form widens these rows only, and
/// so does the plain form, but for 4 bits of bitsandbytes, GPTQ and AWQ. The weight is frozen: the result is no part of a graph.
///
/// # Shapes
///
/// - `ids`: `[rows, len]`
/// - output: `[rows, len, width]`
///
/// # Panics
///
/// Panics if an id is outside the vocabulary.
pub fn packed_embedding(weight: &PackedWeight, ids: Tensor<2, Int>) -> Tensor<3> {
    let ids = ids.without_autodiff();
    if fused_form_applies([(weight.device(), DType::F32)]) {
        flex::packed_embedding(weight, ids)
    } else {
        plain::packed_embedding(weight, ids)
    }
}
