//! A view of an f32 matrix.

/// A view of an f32 matrix of any strides, transposed or not.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A contiguous, row-major matrix.
    ///
    /// # Panics
    ///
    /// Panics if `data` has fewer than `rows * columns` elements.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::with_row_stride(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    ///
    /// Panics if the matrix is larger than `data`.
    pub fn with_row_stride(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self::with_strides(data, [rows, columns], [row_stride, 1])
    }

    /// Element `(row, column)` is `data[row * row_stride + column * column_stride]`.
    ///
    /// # Panics
    ///
    /// Panics if the matrix is larger than `data`.
    pub fn with_strides(data: &'a [f32], [rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> Self {
        Self { data, rows, columns, row_stride, column_stride }.checked()
    }

    /// The same elements with rows and columns exchanged; nothing is copied.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The number of columns.
    #[inline]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The elements, from the first element of the first row on.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// The distance between neighbouring rows and between neighbouring columns, in elements.
    pub fn strides(&self) -> [usize; 2] {
        [self.row_stride, self.column_stride]
    }

    /// Whether the elements of a row are contiguous.
    pub fn has_contiguous_rows(&self) -> bool {
        self.column_stride == 1
    }

    /// Whether the elements of a row or the elements of a column are contiguous.
    pub fn has_contiguous_axis(&self) -> bool {
        self.column_stride == 1 || self.row_stride == 1
    }

    /// A row of a matrix with contiguous rows.
    #[inline]
    pub fn row(&self, row: usize) -> &'a [f32] {
        debug_assert!(self.has_contiguous_rows(), "a contiguous row");
        &self.data[row * self.row_stride..][..self.columns]
    }

    /// The element at `row` and `column`.
    #[inline]
    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_stride + column * self.column_stride]
    }

    /// The columns from `start` to `end`.
    ///
    /// # Panics
    ///
    /// Panics if the range is empty or reaches beyond the last column.
    pub fn column_range(self, start: usize, end: usize) -> Self {
        assert!(start < end && end <= self.columns, "columns {start} to {end} of {}", self.columns);
        Self { data: &self.data[start * self.column_stride..], columns: end - start, ..self }.checked()
    }

    fn checked(self) -> Self {
        if self.rows > 0 && self.columns > 0 {
            let inside = last_index([self.rows, self.columns], [self.row_stride, self.column_stride])
                .is_some_and(|last| last < self.data.len());
            assert!(inside, "a matrix reaches beyond its {} elements", self.data.len());
        }
        self
    }
}

/// The index of the last element of a matrix that is not empty; `None` if it overflows.
pub(crate) fn last_index([rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> Option<usize> {
    let last_row = (rows - 1).checked_mul(row_stride)?;
    let last_column = (columns - 1).checked_mul(column_stride)?;
    last_row.checked_add(last_column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "reaches beyond")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        Matrix::with_row_stride(&[0.0; 10], 3, 4, 4);
    }

    #[test]
    #[should_panic(expected = "reaches beyond")]
    fn a_matrix_whose_last_index_overflows_is_refused() {
        Matrix::with_strides(&[0.0; 10], [3, 2], [1 << 63, 1]);
    }
}
