//! A weight of either dtype, and the one place where a product with it finds its kernel.

use burn::tensor::DType;

use super::bf16::{self, Bf16Matrix};
use super::narrow;
use super::product::{self, Matrix, Threads};
use super::storage::Values;

/// A view of a weight `[d_in, d_out]`.
#[derive(Clone, Copy)]
pub(super) enum Weight<'a> {
    F32(Matrix<'a>),
    Bf16(Bf16Matrix<'a>),
}

/// Runs the same expression for both dtypes.
macro_rules! either {
    ($weight:expr, $matrix:ident => $body:expr) => {
        match $weight {
            Weight::F32($matrix) => $body,
            Weight::Bf16($matrix) => $body,
        }
    };
}

/// The tensor itself where its strides are those of a [`Weight`], else a copy.
pub(super) fn with_weight_strides(tensor: Values) -> Values {
    if Weight::view(&tensor).is_some() { tensor } else { tensor.to_contiguous() }
}

impl<'a> Weight<'a> {
    fn view(tensor: &'a Values) -> Option<Self> {
        match tensor.dtype() {
            DType::BF16 => Bf16Matrix::of(tensor).map(Self::Bf16),
            _ => Matrix::of(tensor).map(Self::F32),
        }
    }

    /// A tensor that went through [`with_weight_strides`].
    pub fn of(tensor: &'a Values) -> Self {
        Self::view(tensor).expect("two axes, strides of zero or more")
    }

    pub fn rows(&self) -> usize {
        either!(self, matrix => matrix.rows())
    }

    pub fn columns(&self) -> usize {
        either!(self, matrix => matrix.columns())
    }

    pub fn at(&self, row: usize, column: usize) -> f32 {
        either!(self, matrix => matrix.at(row, column))
    }

    pub fn transposed(self) -> Self {
        match self {
            Self::F32(matrix) => Self::F32(matrix.transposed()),
            Self::Bf16(matrix) => Self::Bf16(matrix.transposed()),
        }
    }

    /// The columns from `start` to `end`.
    pub fn column_range(self, start: usize, end: usize) -> Self {
        match self {
            Self::F32(matrix) => Self::F32(matrix.column_range(start, end)),
            Self::Bf16(matrix) => Self::Bf16(matrix.column_range(start, end)),
        }
    }

    /// `out = x W`, and `out += x W` where `accumulate`, on all threads where the product is worth it. `x` is row-major
    /// `[rows, d_in]`, `out` row-major `[rows, d_out]`.
    pub fn multiply(self, out: &mut [f32], x: &[f32], accumulate: bool) {
        let rows = out.len() / self.columns().max(1);
        assert_eq!(x.len(), rows * self.rows(), "the rows of x have another width than the weight has rows");
        match self {
            Self::Bf16(matrix) => bf16::multiply(out, x, matrix, accumulate),
            Self::F32(matrix) if rows > 0 && rows <= narrow::most_rows() && matrix.has_neighbours() => {
                narrow::multiply(out, x, matrix, accumulate);
            }
            Self::F32(matrix) => {
                let x = Matrix::new(x, rows, matrix.rows());
                product::multiply(out, x, matrix, 1.0, accumulate, Threads::All);
            }
        }
    }
}
