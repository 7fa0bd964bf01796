//! Products of f32 activations with a bf16 weight: `out [rows, n] (+)= x [rows, k] W [k, n]`.
//!
//! On a processor with AVX-512 BF16, the kernel rounds activations to bf16, to nearest even. Products of two bf16 numbers are
//! then exact, and sums are f32, like PyTorch's autocast on the same processor. A result differs from the f32 product with the
//! same weight only by the rounding of the activations. That changes each term by at most 1/256 of it, by half of that on
//! average and with either sign; a sum of many terms changes by about 0.2 % of the root of the sum of their squares.
//! Subnormal numbers count as zero. On other processors the kernel widens the weight to f32, one block at a time, and does not
//! round activations: more exact, and slower than a processor with fast instructions for bf16.
//!
//! Both kernels read a weight `[k, n]` in place, row-major or transposed, and allocate nothing of its size.

#[cfg(target_arch = "x86_64")]
mod pack;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use crate::avx512;
use crate::matrix::last_index;
use crate::product::Update;
use crate::widened;

#[cfg(target_arch = "x86_64")]
pub(crate) use pack::{paired_columns, paired_matrix, paired_rows};

/// A view of a bf16 matrix that is contiguous along one axis; along the other, elements are `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct Bf16Matrix<'a> {
    data: &'a [bf16],
    rows: usize,
    columns: usize,
    stride: usize,
    order: Order,
}

/// The largest number of rows for which reading a weight in place is faster than packing it first; measured.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "there is one kernel"))]
pub(crate) fn most_few_rows(order: Order) -> usize {
    match order {
        // Each group of rows interleaves the weight's rows again.
        Order::Rows => 8,
        Order::Columns => 32,
    }
}

/// The axis along which a matrix is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The elements of a row are contiguous.
    Rows,
    /// The elements of a column are contiguous.
    Columns,
}

impl<'a> Bf16Matrix<'a> {
    /// A contiguous, row-major matrix.
    ///
    /// # Panics
    ///
    /// Panics if `data` has fewer than `rows * columns` elements.
    pub fn new(data: &'a [bf16], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, stride: columns, order: Order::Rows }.checked()
    }

    /// A matrix whose element `(row, column)` is `data[row * row_stride + column * column_stride]`; `None` if it is contiguous
    /// along neither axis.
    ///
    /// # Panics
    ///
    /// Panics if the matrix is larger than `data`.
    pub fn with_strides(
        data: &'a [bf16],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Option<Self> {
        let (stride, order) = match (row_stride, column_stride) {
            (stride, 1) => (stride, Order::Rows),
            (1, stride) => (stride, Order::Columns),
            _ => return None,
        };
        Some(Self { data, rows, columns, stride, order }.checked())
    }

    /// The same elements with rows and columns exchanged; nothing is copied.
    pub fn transposed(self) -> Self {
        let order = if self.order == Order::Rows { Order::Columns } else { Order::Rows };
        Self { rows: self.columns, columns: self.rows, order, ..self }
    }

    /// The number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    #[inline]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The element at `row` and `column`.
    #[inline]
    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.data[self.index(row, column)].to_f32()
    }

    /// The columns from `start` to `end`.
    ///
    /// # Panics
    ///
    /// Panics if the range is empty or reaches beyond the last column.
    pub fn column_range(self, start: usize, end: usize) -> Self {
        assert!(start < end && end <= self.columns, "columns {start} to {end} of {}", self.columns);
        Self { data: &self.data[self.index(0, start)..], columns: end - start, ..self }.checked()
    }

    /// The distance between neighbouring lines, in elements.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels of AVX-512 prefetch"))]
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// A row if rows are contiguous, otherwise a column.
    pub(crate) fn line(&self, index: usize) -> &'a [bf16] {
        let length = if self.order == Order::Rows { self.columns } else { self.rows };
        &self.data[index * self.stride..][..length]
    }

    fn index(&self, row: usize, column: usize) -> usize {
        match self.order {
            Order::Rows => row * self.stride + column,
            Order::Columns => column * self.stride + row,
        }
    }

    fn checked(self) -> Self {
        if self.rows > 0 && self.columns > 0 {
            let [lines, length] = match self.order {
                Order::Rows => [self.rows, self.columns],
                Order::Columns => [self.columns, self.rows],
            };
            let inside = last_index([lines, length], [self.stride, 1]).is_some_and(|last| last < self.data.len());
            assert!(inside, "a matrix reaches beyond its {} elements", self.data.len());
        }
        self
    }
}

/// The product `x W`, on all threads if it is large enough.
///
/// A row of `out` depends on the same row of `x`, and on whether there are more than [`most_few_rows`]; neither on the other
/// rows nor on the number of threads.
///
/// # Shapes
///
/// - `out`: `[rows, n]`, row-major
/// - `x`: `[rows, k]`, row-major
/// - `weight`: `[k, n]`
pub(crate) fn multiply(out: &mut [f32], x: &[f32], weight: Bf16Matrix<'_>, update: Update) {
    let (k, n) = (weight.rows, weight.columns);
    let rows = out.len() / n.max(1);
    assert_eq!(out.len(), rows * n, "a product with {n} columns");
    assert_eq!(x.len(), rows * k, "[{rows}, {k}] times [{k}, {n}]");
    if out.is_empty() {
        return;
    }
    if k == 0 {
        if update == Update::Overwrite {
            out.fill(0.0);
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::has_bf16() {
        if rows <= most_few_rows(weight.order) {
            avx512::multiply_few_rows_bf16(out, x, weight, update);
        } else {
            avx512::multiply_bf16(out, x, weight, update);
        }
        return;
    }
    widened::multiply(out, x, weight, update);
}

#[cfg(test)]
mod tests;
