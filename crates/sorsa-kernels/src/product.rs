//! Matrix products into a buffer that exists: by the kernels of [`super::avx512`] where the processor has the
//! instructions, else by those that flex itself uses.

use gemm::Parallelism;

#[cfg(target_arch = "x86_64")]
use super::avx512;
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

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// From row to row, and from column to column.
    #[cfg(target_arch = "x86_64")]
    pub fn strides(&self) -> [usize; 2] {
        [self.row_stride, self.column_stride]
    }

    /// The elements, from the first of the first row on.
    #[cfg(target_arch = "x86_64")]
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Whether elements of a row are neighbours.
    pub fn contiguous_rows(&self) -> bool {
        self.column_stride == 1
    }

    /// Whether elements of a row are neighbours, or those of a column.
    pub fn has_neighbours(&self) -> bool {
        self.column_stride == 1 || self.row_stride == 1
    }

    /// A row whose elements are neighbours.
    pub fn row(&self, row: usize) -> &'a [f32] {
        debug_assert!(self.contiguous_rows(), "a row of neighbours");
        &self.data[row * self.row_stride..][..self.columns]
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
pub(super) fn multiply(
    out: &mut [f32],
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    factor: f32,
    accumulate: bool,
    threads: Threads,
) {
    #[cfg(target_arch = "x86_64")]
    if rhs.has_neighbours() && avx512::has_f32() {
        return avx512::multiply_f32(out, lhs, rhs, factor, accumulate, threads);
    }
    multiply_portable(out, lhs, rhs, factor, accumulate, threads);
}

/// [`multiply`] by the crate `gemm`.
#[allow(unsafe_code, reason = "gemm takes pointers; every bound that it relies on is asserted here or in `Matrix`")]
fn multiply_portable(
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
    use crate::testing::values;

    type Product = fn(&mut [f32], Matrix<'_>, Matrix<'_>, f32, bool, Threads);

    /// One of each; odd numbers; one more and one less than tiles, parts, panels and tasks; narrow results.
    const SIZES: [[usize; 3]; 16] = [
        [1, 1, 1],
        [2, 3, 2],
        [1, 300, 33],
        [12, 192, 32],
        [13, 193, 65],
        [25, 191, 31],
        [7, 15, 16],
        [64, 385, 17],
        [300, 7, 16],
        [37, 520, 130],
        [130, 131, 129],
        [600, 20, 40],
        [1030, 40, 16],
        [3000, 50, 16],
        [3, 0, 5],
        [0, 4, 5],
    ];

    fn agrees(product: Product) {
        for [m, k, n] in SIZES {
            let (a, b, start) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            let both =
                |data, rows, columns| [Matrix::new(data, rows, columns), Matrix::new(data, columns, rows).transposed()];
            for (lhs, rhs) in both(&a, m, k).into_iter().flat_map(|lhs| both(&b, k, n).map(|rhs| (lhs, rhs))) {
                for (factor, accumulate, threads) in [(1.0, false, Threads::All), (-0.5, true, Threads::One)] {
                    let mut out = start.clone();
                    product(&mut out, lhs, rhs, factor, accumulate, threads);
                    for (index, found) in out.iter().enumerate() {
                        let (row, column) = (index / n, index % n);
                        let before = if accumulate { f64::from(start[index]) } else { 0.0 };
                        let terms = (0..k).map(|i| f64::from(lhs.at(row, i)) * f64::from(rhs.at(i, column)));
                        let exact = before + f64::from(factor) * terms.clone().sum::<f64>();
                        // Sums of k terms in f32, in some order: a few units of rounding, far below k of them.
                        let size = before.abs() + terms.map(f64::abs).sum::<f64>();
                        let bound = (2.0 + (k as f64).sqrt()) * size * f64::from(f32::EPSILON) + 1e-30;
                        assert!((f64::from(*found) - exact).abs() <= bound, "{m} {k} {n}: {found}, not {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_of_any_size_and_order_are_exact_to_the_sums_of_f32() {
        agrees(multiply);
        agrees(multiply_portable);
    }

    #[test]
    fn views_with_rows_apart_are_multiplied_where_they_lie() {
        let (a, b) = (values(40 * 30, 4), values(30 * 50, 5));
        let (lhs, rhs) = (Matrix::with_stride(&a[3..], 39, 21, 30), Matrix::with_stride(&b[7..], 21, 33, 50));
        let copied = |m: Matrix<'_>| -> Vec<f32> { (0..m.rows()).flat_map(|row| m.row(row).to_vec()).collect() };
        let (dense_lhs, dense_rhs) = (copied(lhs), copied(rhs));
        let product = |lhs, rhs| {
            let mut out = vec![0.0; 39 * 33];
            multiply(&mut out, lhs, rhs, 1.0, false, Threads::All);
            out
        };
        assert_eq!(product(lhs, rhs), product(Matrix::new(&dense_lhs, 39, 21), Matrix::new(&dense_rhs, 21, 33)));
    }

    #[test]
    fn a_row_is_the_same_in_any_company() {
        let [m, k, n] = [40, 300, 70];
        let (a, b) = (values(m * k, 7), values(k * n, 8));
        let product = |x: &[f32], rows, threads| {
            let mut out = vec![0.0; rows * n];
            multiply(&mut out, Matrix::new(x, rows, k), Matrix::new(&b, k, n), 1.0, false, threads);
            out
        };
        let together = product(&a, m, Threads::All);
        assert_eq!(together, product(&a, m, Threads::One));
        #[cfg(target_arch = "x86_64")]
        if avx512::has_f32() {
            let alone: Vec<f32> = a.chunks_exact(k).flat_map(|row| product(row, 1, Threads::One)).collect();
            assert_eq!(together, alone);
        }
    }

    #[test]
    #[should_panic(expected = "reaches beyond")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        Matrix::with_stride(&[0.0; 10], 3, 4, 4);
    }
}
