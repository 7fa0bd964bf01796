//! A view of a packed matrix as an operand of a product.

use std::ops::Range;

use super::PackedMatrix;

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
pub(super) enum Orientation {
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
            Orientation::Stored => self.stored_rows().len(),
            Orientation::Transposed => self.stored_columns().len(),
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

    pub(super) fn matrix(&self) -> &'a PackedMatrix {
        self.matrix
    }

    pub(super) fn stored_rows(&self) -> Range<usize> {
        self.rows[0]..self.rows[1]
    }

    pub(super) fn stored_columns(&self) -> Range<usize> {
        self.columns[0]..self.columns[1]
    }

    pub(super) fn orientation(&self) -> Orientation {
        self.orientation
    }

    pub(super) fn precision(&self) -> Precision {
        self.matrix.precision()
    }
}
