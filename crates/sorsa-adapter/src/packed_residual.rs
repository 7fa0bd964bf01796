//! The residual of a packed weight: the weight as it is beside the product that is subtracted from it, packed again after the product is
//! subtracted, or dense.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_linalg::faer::linalg::matmul::matmul;
use sorsa_linalg::faer::{Accum, MatMut, Par};
use sorsa_ops::{PackedError, PackedFormat, PackedMatrix};

use crate::factors::FactorPair;
use crate::host_tensor::HostTensorExt;

/// What the residual of a packed weight is stored in, for methods that split the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResidualStorage {
    /// The packed weight as it is, and beside it the factors at the start, frozen, whose product is subtracted. Nothing is lost, and the
    /// adapter is one of the original model.
    Exact,
    /// The format of the packed weight, or NF4 if nothing can be packed to that format. Packing the residual loses a part of it.
    Packed,
    /// The dtype of dense weights. Nothing is lost by packing, and the residual is as large as that of a dense weight.
    Dense,
}

/// When a packed weight was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackingTime {
    /// Before: its file holds it packed. The values before are not known.
    InFile,
    /// While the model was read, from a dense weight.
    WhileRead,
}

/// How the residual of one weight is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResidualPacking {
    pub format: PackedFormat,
    /// How often the factors are fitted to the error of the packing.
    pub rounds: usize,
}

/// Rows that are computed together. Their number does not depend on the number of threads, as the order of sums may depend on it.
const ROWS: usize = 128;

/// `pack(W - A B)` for `weight`, which is `W^T` `[d_out, d_in]`. The same arguments give the same bits, however many threads there
/// are.
pub(crate) fn packed_residual(
    mut weight: HostTensor,
    subtracted: Option<&FactorPair>,
    format: PackedFormat,
) -> Result<PackedMatrix, PackedError> {
    let [d_out, d_in] = weight.shape[..] else { panic!("a weight has two axes, not {:?}", weight.shape) };
    if let Some(pair) = subtracted {
        subtract_product(&mut weight, pair);
    }
    PackedMatrix::pack(format, [d_out, d_in], &weight.values)
}

/// Subtracts `(A B)^T` from `transposed` `[d_out, d_in]`.
pub(crate) fn subtract_product(transposed: &mut HostTensor, pair: &FactorPair) {
    let d_in = transposed.shape[1];
    let (a, b) = (pair.a.matrix(), pair.b.matrix());
    let parts = transposed.values.par_chunks_mut(ROWS * d_in).enumerate();
    parts.for_each(|(index, part)| {
        let rows = part.len() / d_in;
        let columns_of_b = b.subcols(index * ROWS, rows);
        let part = MatMut::from_row_major_slice_mut(part, rows, d_in);
        matmul(part, Accum::Add, columns_of_b.transpose(), a.transpose(), -1.0, Par::Seq);
    });
}

/// `W^T - widen(q)`, of `W^T` `[d_out, d_in]`.
pub(crate) fn packing_error(weight: &HostTensor, packed: &PackedMatrix) -> HostTensor {
    let d_in = weight.shape[1];
    let mut error = weight.clone();
    error.values.par_chunks_mut(ROWS * d_in).enumerate().for_each(|(index, part)| {
        let rows: Range<usize> = index * ROWS..index * ROWS + part.len() / d_in;
        let mut widened = vec![0.0; part.len()];
        packed.widen(rows, 0..d_in, &mut widened);
        part.iter_mut().zip(widened).for_each(|(value, widened)| *value -= widened);
    });
    error
}

/// A packed format by its name, in files.
pub(crate) mod format_name {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use sorsa_ops::PackedFormat;

    pub fn serialize<S: Serializer>(format: &Option<PackedFormat>, serializer: S) -> Result<S::Ok, S::Error> {
        match format {
            Some(format) => serializer.serialize_str(format.name()),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PackedFormat>, D::Error> {
        let name = Option::<String>::deserialize(deserializer)?;
        name.map(|name| name.parse().map_err(D::Error::custom)).transpose()
    }
}
