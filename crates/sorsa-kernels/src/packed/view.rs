//! A view of a packed matrix as an operand of a product.

use std::ops::Range;

use half::bf16;

use super::PackedMatrix;
#[cfg(target_arch = "x86_64")]
use crate::panels::Left;
use crate::rounding::round;
use crate::simd::wide;

/// What the values of a packed weight are widened to inside a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32: the values as they are.
    F32,
    /// bf16: values, and on a processor with AVX-512 BF16 activations too, are rounded to 8 bits. Sums are f32.
    Bf16,
}

/// A view of a part of a [`PackedMatrix`], as it is stored or transposed.
#[derive(Debug, Clone, Copy)]
pub struct PackedView<'a> {
    matrix: &'a PackedMatrix,
    /// First and end of the rows as they are stored.
    rows: [usize; 2],
    /// First and end of the columns as they are stored.
    columns: [usize; 2],
    orientation: Orientation,
}

/// Whether the rows of a view are the rows or the columns of its matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orientation {
    Stored,
    Transposed,
}

impl<'a> PackedView<'a> {
    /// The transpose `[d_in, d_out]` of a matrix `[d_out, d_in]`.
    pub fn new(matrix: &'a PackedMatrix) -> Self {
        let [rows, columns] = matrix.shape();
        Self { matrix, rows: [0, rows], columns: [0, columns], orientation: Orientation::Transposed }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        match self.orientation {
            Orientation::Stored => self.rows[1] - self.rows[0],
            Orientation::Transposed => self.columns[1] - self.columns[0],
        }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.transposed().rows()
    }

    /// The element at `row` and `column`, as f32 whatever the precision.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        let [row, column] = match self.orientation {
            Orientation::Stored => [row, column],
            Orientation::Transposed => [column, row],
        };
        let (row, column) = (self.rows[0] + row, self.columns[0] + column);
        let mut value = [0.0];
        self.matrix.widen(row..row + 1, column..column + 1, &mut value);
        value[0]
    }

    /// The same elements with rows and columns exchanged; nothing is copied.
    pub fn transposed(self) -> Self {
        let orientation = match self.orientation {
            Orientation::Stored => Orientation::Transposed,
            Orientation::Transposed => Orientation::Stored,
        };
        Self { orientation, ..self }
    }

    /// The columns from `start` to `end`.
    ///
    /// # Panics
    ///
    /// Panics if the range is empty or reaches beyond the last column.
    pub fn column_range(self, start: usize, end: usize) -> Self {
        assert!(start < end && end <= self.columns(), "columns {start} to {end} of {}", self.columns());
        match self.orientation {
            Orientation::Stored => Self { columns: [self.columns[0] + start, self.columns[0] + end], ..self },
            Orientation::Transposed => Self { rows: [self.rows[0] + start, self.rows[0] + end], ..self },
        }
    }

    /// The elements of a column in f32, rounded to the precision.
    ///
    /// # Panics
    ///
    /// Panics if `values` has another size than the column.
    pub fn column(&self, column: usize, values: &mut [f32]) {
        self.widen_f32(0..self.rows(), column..column + 1, values);
    }

    /// Widens a part of the view to f32, rounded to the precision, in the order of the stored rows.
    pub(crate) fn widen_f32(&self, rows: Range<usize>, columns: Range<usize>, values: &mut [f32]) {
        let [stored_rows, stored_columns] = self.stored(rows, columns);
        self.matrix.widen(stored_rows, stored_columns, values);
        if self.precision() == Precision::Bf16 {
            wide(
                #[inline(always)]
                || values.iter_mut().for_each(|value| *value = f32::from_bits(u32::from(round(*value)) << 16)),
            );
        }
    }

    /// Widens a part of the view and rounds it to bf16, in the order of the stored rows.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels of AVX-512 take bf16"))]
    pub(crate) fn widen_bf16(&self, rows: Range<usize>, columns: Range<usize>, values: &mut [bf16]) {
        let [stored_rows, stored_columns] = self.stored(rows, columns);
        self.matrix.widen_bf16(stored_rows, stored_columns, values);
    }

    /// Adds to `sums` `[rows of x, columns]` the product of `x` with some columns of a transposed view, if the matrix can without widening a
    /// tile; returns whether it could.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn add_dots_f32(&self, columns: Range<usize>, x: Left<'_, f32>, sums: &mut [f32]) -> bool {
        let [stored_rows, stored_columns] = self.stored(0..self.rows(), columns);
        // Values in another precision are rounded while a tile is widened.
        let applies = self.orientation == Orientation::Transposed && self.precision() == Precision::F32;
        applies && self.matrix.add_dots_f32(stored_rows, stored_columns, x, sums)
    }

    /// Like [`add_dots_f32`](Self::add_dots_f32), of values rounded to bf16; the units of `x` are pairs of neighbours.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn add_dots_bf16(&self, columns: Range<usize>, x: Left<'_, u32>, sums: &mut [f32]) -> bool {
        let [stored_rows, stored_columns] = self.stored(0..self.rows(), columns);
        self.orientation == Orientation::Transposed && self.matrix.add_dots_bf16(stored_rows, stored_columns, x, sums)
    }

    /// The address of the byte that holds an element, or of the first of several.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels of AVX-512 prefetch"))]
    pub(crate) fn address(&self, row: usize, column: usize) -> *const u8 {
        let [rows, columns] = self.stored(row..row + 1, column..column + 1);
        self.matrix.address(rows.start, columns.start)
    }

    pub(crate) fn orientation(&self) -> Orientation {
        self.orientation
    }

    pub(crate) fn precision(&self) -> Precision {
        self.matrix.precision()
    }

    /// Rows and columns of the matrix that are these rows and columns of the view.
    fn stored(&self, rows: Range<usize>, columns: Range<usize>) -> [Range<usize>; 2] {
        let [rows, columns] = match self.orientation {
            Orientation::Stored => [rows, columns],
            Orientation::Transposed => [columns, rows],
        };
        let shifted = |range: Range<usize>, [start, end]: [usize; 2]| {
            assert!(range.end <= end - start, "a part {range:?} of {}", end - start);
            start + range.start..start + range.end
        };
        [shifted(rows, self.rows), shifted(columns, self.columns)]
    }
}
