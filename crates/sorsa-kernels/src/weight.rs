//! A weight in any of its storage formats, and the one place where a product with a weight chooses its kernel.
//!
//! A new format, a packed one for example, is one variant here with its view and its kernels.

use crate::bf16::{self, Bf16Matrix};
use crate::few_rows;
use crate::matmul_precision::MatmulPrecision;
use crate::matrix::Matrix;
use crate::packed::{self, PackedView};
use crate::packed_less::PackedLess;
use crate::product::{Product, Update};

/// A view of a weight `[d_in, d_out]`.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// f32.
    F32(Matrix<'a>),
    /// bf16.
    Bf16(Bf16Matrix<'a>),
    /// A packed format; the product widens it in parts.
    Packed(PackedView<'a>),
    /// A packed format less the product of two narrow factors.
    PackedLess(PackedLess<'a>),
}

/// Evaluates the same expression for every format.
macro_rules! for_each_format {
    ($weight:expr, $matrix:ident => $body:expr) => {
        match $weight {
            Weight::F32($matrix) => $body,
            Weight::Bf16($matrix) => $body,
            Weight::Packed($matrix) => $body,
            Weight::PackedLess($matrix) => $body,
        }
    };
}

impl Weight<'_> {
    /// `d_in`.
    #[inline]
    pub fn rows(&self) -> usize {
        for_each_format!(self, matrix => matrix.rows())
    }

    /// `d_out`.
    #[inline]
    pub fn columns(&self) -> usize {
        for_each_format!(self, matrix => matrix.columns())
    }

    /// The element at `row` and `column`.
    #[inline]
    pub fn at(&self, row: usize, column: usize) -> f32 {
        for_each_format!(self, matrix => matrix.at(row, column))
    }

    /// The elements of a column; those of a packed weight are rounded to its precision.
    ///
    /// # Panics
    ///
    /// Panics if `values` has another size than the column.
    pub fn column(&self, column: usize, values: &mut [f32]) {
        assert_eq!(values.len(), self.rows(), "the elements of a column");
        if let Self::Packed(matrix) = self {
            return matrix.column(column, values);
        }
        values.iter_mut().enumerate().for_each(|(row, value)| *value = self.at(row, column));
    }

    /// `W^T`; nothing is copied.
    pub fn transposed(self) -> Self {
        match self {
            Self::F32(matrix) => Self::F32(matrix.transposed()),
            Self::Bf16(matrix) => Self::Bf16(matrix.transposed()),
            Self::Packed(matrix) => Self::Packed(matrix.transposed()),
            Self::PackedLess(weight) => Self::PackedLess(weight.transposed()),
        }
    }

    /// The columns from `start` to `end`.
    ///
    /// # Panics
    ///
    /// Panics if the range is empty or reaches beyond the last column.
    pub fn column_range(self, start: usize, end: usize) -> Self {
        match self {
            Self::F32(matrix) => Self::F32(matrix.column_range(start, end)),
            Self::Bf16(matrix) => Self::Bf16(matrix.column_range(start, end)),
            Self::Packed(matrix) => Self::Packed(matrix.column_range(start, end)),
            Self::PackedLess(weight) => Self::PackedLess(weight.column_range(start, end)),
        }
    }

    /// The product `x W`, on all threads if it is large enough. An f32 weight is multiplied in the [`MatmulPrecision`] of the process.
    ///
    /// # Shapes
    ///
    /// - `out`: `[rows, d_out]`, row-major
    /// - `x`: `[rows, d_in]`, row-major
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn multiply(self, out: &mut [f32], x: &[f32], update: Update) {
        if self.columns() == 0 {
            return;
        }
        let rows = out.len() / self.columns();
        assert_eq!(x.len(), rows * self.rows(), "the rows of x have another width than the weight has rows");
        match self {
            Self::Bf16(matrix) => bf16::multiply(out, x, matrix, update),
            Self::Packed(matrix) => packed::multiply(out, x, matrix, update),
            Self::PackedLess(weight) => weight.multiply(out, x, update),
            Self::F32(matrix) if rows > 0 && rows <= few_rows::most_rows() && matrix.has_contiguous_axis() => {
                few_rows::multiply(out, x, matrix, update);
            }
            Self::F32(matrix) => {
                let product = Product::new(Matrix::new(x, rows, matrix.rows()), matrix);
                product.at_precision(MatmulPrecision::used()).compute(out, update);
            }
        }
    }
}
