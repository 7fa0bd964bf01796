//! What a tensor holds on its way into a file.

use sorsa_kernels::packed::PackedMatrix;

/// The content of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorContent {
    /// Numbers, row-major.
    Values(Vec<f32>),
    /// A matrix that is packed already. A file whose format is the matrix's holds the same bytes.
    Packed(PackedMatrix),
}

impl From<Vec<f32>> for TensorContent {
    fn from(values: Vec<f32>) -> Self {
        Self::Values(values)
    }
}

impl From<PackedMatrix> for TensorContent {
    fn from(matrix: PackedMatrix) -> Self {
        Self::Packed(matrix)
    }
}
