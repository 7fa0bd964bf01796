//! Rows of a packed matrix in burn's operations.

use burn::prelude::*;

use crate::packed::{PackedWeight, StoredMatrix};

pub(super) fn packed_embedding(weight: &PackedWeight, ids: Tensor<2, Int>) -> Tensor<3> {
    let [rows, len] = ids.dims();
    let stored = StoredMatrix::new(weight);
    let width = stored.shape()[1];
    stored.rows_of_ids(ids.reshape([rows * len])).reshape([rows, len, width])
}
