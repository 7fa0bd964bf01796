//! Matrix products into a buffer that exists, by the kernels that flex itself uses.

use gemm::Parallelism;

use super::storage::Values;

/// A view of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// Which threads a product runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// The caller's.
    One,
    /// All, where the product is worth it.
    All,
}

impl<'a> Matrix<'a> {
    /// `data` as rows of `columns` elements.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::with_stride(data, rows, columns, columns)
    }

    /// Rows of `columns` elements that start `row_stride` apart.
    pub fn with_stride(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }.checked()
    }

    /// A tensor of two axes, transposed or not.
    pub fn of(tensor: &'a Values) -> Option<Self> {
        let layout = tensor.layout();
        let (&[rows, columns], &[row_stride, column_stride]) = (&layout.shape()[..], layout.strides()) else {
            return None;
        };
        let (row_stride, column_stride) = (usize::try_from(row_stride).ok()?, usize::try_from(column_stride).ok()?);
        let data = &tensor.storage::<f32>()[layout.start_offset()..];
        Some(Self { data, rows, columns, row_stride, column_stride }.checked())
    }

    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The element of a row and a column.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_stride + column * self.column_stride]
    }

    /// The columns from `start` to `end`.
    pub fn column_range(self, start: usize, end: usize) -> Self {
        assert!(start < end && end <= self.columns, "columns {start} to {end} of {}", self.columns);
        Self { data: &self.data[start * self.column_stride..], columns: end - start, ..self }.checked()
    }

    fn checked(self) -> Self {
        if self.rows > 0 && self.columns > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
            assert!(last < self.data.len(), "a matrix reaches beyond its {} elements", self.data.len());
        }
        self
    }
}

/// `out = factor * lhs rhs`, and `out += factor * lhs rhs` where `accumulate`; `out` is row-major `[lhs.rows,
/// rhs.columns]`.
#[allow(unsafe_code, reason = "gemm takes pointers; every bound that it relies on is asserted here or in `Matrix`")]
pub(super) fn multiply(
    out: &mut [f32],
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    factor: f32,
    accumulate: bool,
    threads: Threads,
) {
    let (m, n, k) = (lhs.rows, rhs.columns, lhs.columns);
    assert_eq!(k, rhs.rows, "[{m}, {k}] times [{}, {n}]", rhs.rows);
    assert_eq!(out.len(), m * n, "a product of [{m}, {n}]");
    if m == 0 || n == 0 {
        return;
    }
    // The threshold of flex: below it, waking threads costs more than they save.
    let parallelism = match threads {
        Threads::All if m * n * k >= 192 * 192 * 192 => Parallelism::Rayon(0),
        _ => Parallelism::None,
    };
    let read_out = accumulate;
    // SAFETY: `out` has m * n elements and nobody else sees them; `checked` bounds every element of lhs and rhs.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            read_out,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_accumulate_and_transpose() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.5, -1.0, 2.0, 0.0, 3.0]);
        let mut out = [10.0; 4];
        multiply(&mut out, Matrix::new(&a, 2, 3), Matrix::new(&b, 3, 2), 2.0, true, Threads::One);
        assert_eq!(out, [8.0, 37.0, 8.0, 70.0]);
        multiply(&mut out, Matrix::new(&a, 3, 2).transposed(), Matrix::new(&b, 3, 2), 1.0, false, Threads::All);
        assert_eq!(out, [1.0 - 3.0, 0.5 + 6.0 + 15.0, 2.0 - 4.0, 1.0 + 8.0 + 18.0]);
    }

    #[test]
    #[should_panic(expected = "reaches beyond")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        Matrix::with_stride(&[0.0; 10], 3, 4, 4);
    }
}
