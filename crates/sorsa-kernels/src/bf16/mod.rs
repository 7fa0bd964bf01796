//! Products of f32 activations with a weight that is kept in bf16: `out [rows, n] (+)= x [rows, k] W [k, n]`.
//!
//! Where the processor has AVX-512 BF16, activations are rounded to bf16, to nearest even, products of two bf16 numbers
//! are exact and sums are f32, as PyTorch's autocast does on the same processor. A result then differs from the f32
//! product with the same weight by the rounding of the activations alone: each term by at most a part in 256, half of
//! that on average of either sign, so a sum of many terms by about 0.2 % of the root of the sum of their squares.
//! Numbers below the smallest normal one count as zero. Elsewhere the weight is widened, a block at a time, and
//! activations stay f32: more exact and slower.
//!
//! Both read the weight as burn keeps it, `[k, n]` row by row or transposed. Nothing of its size is kept beside it.

#[cfg(target_arch = "x86_64")]
mod pack;
mod portable;

use burn::tensor::bf16;

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::storage::Values;

#[cfg(target_arch = "x86_64")]
pub(super) use pack::{paired_rows, rounded_rows};

/// Rows up to which a product that reads the weight where it lies is faster than one that packs it first; measured.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "there is one kernel"))]
pub(super) const NARROW: usize = 4;

/// Elements of a weight from which its product with few rows runs on all threads.
pub(super) const PARALLEL_NARROW: usize = 1 << 17;

/// A view of a bf16 matrix. Along one axis its elements are neighbours, along the other they are `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Bf16Matrix<'a> {
    data: &'a [bf16],
    rows: usize,
    columns: usize,
    stride: usize,
    order: Order,
}

/// Along which axis the elements of a matrix are neighbours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Elements of a row are neighbours.
    Rows,
    /// Elements of a column are.
    Columns,
}

impl<'a> Bf16Matrix<'a> {
    /// `data` as rows of `columns` elements.
    #[cfg(test)]
    fn new(data: &'a [bf16], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, stride: columns, order: Order::Rows }.checked()
    }

    /// A tensor of two axes, one of which has neighbours as its elements.
    pub fn of(tensor: &'a Values) -> Option<Self> {
        let layout = tensor.layout();
        let (&[rows, columns], &[row_stride, column_stride]) = (&layout.shape()[..], layout.strides()) else {
            return None;
        };
        let (row_stride, column_stride) = (usize::try_from(row_stride).ok()?, usize::try_from(column_stride).ok()?);
        let (stride, order) = match (row_stride, column_stride) {
            (stride, 1) => (stride, Order::Rows),
            (1, stride) => (stride, Order::Columns),
            _ => return None,
        };
        let data = &tensor.storage::<bf16>()[layout.start_offset()..];
        Some(Self { data, rows, columns, stride, order }.checked())
    }

    pub fn transposed(self) -> Self {
        let order = if self.order == Order::Rows { Order::Columns } else { Order::Rows };
        Self { rows: self.columns, columns: self.rows, order, ..self }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The element of a row and a column.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.data[self.index(row, column)].to_f32()
    }

    /// The columns from `start` to `end`.
    pub fn column_range(self, start: usize, end: usize) -> Self {
        assert!(start < end && end <= self.columns, "columns {start} to {end} of {}", self.columns);
        Self { data: &self.data[self.index(0, start)..], columns: end - start, ..self }.checked()
    }

    #[cfg(target_arch = "x86_64")]
    pub fn order(&self) -> Order {
        self.order
    }

    /// A row or a column, whichever has neighbours as its elements.
    pub fn line(&self, index: usize) -> &'a [bf16] {
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
            let last = self.index(self.rows - 1, self.columns - 1);
            assert!(last < self.data.len(), "a matrix reaches beyond its {} elements", self.data.len());
        }
        self
    }
}

/// `out = x W`, and `out += x W` where `accumulate`, on all threads where the product is worth it. `x` is row-major
/// `[rows, W.rows]`, `out` row-major `[rows, W.columns]`.
///
/// What a row of `out` becomes depends on that row of `x`, and on whether there are few rows; not on the other rows, nor on
/// the number of threads.
pub(super) fn multiply(out: &mut [f32], x: &[f32], weight: Bf16Matrix<'_>, accumulate: bool) {
    let (k, n) = (weight.rows, weight.columns);
    let rows = out.len() / n.max(1);
    assert_eq!(out.len(), rows * n, "a product with {n} columns");
    assert_eq!(x.len(), rows * k, "[{rows}, {k}] times [{k}, {n}]");
    if out.is_empty() {
        return;
    }
    if k == 0 {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::has_bf16() {
        if rows <= NARROW {
            avx512::multiply_narrow_bf16(out, x, weight, accumulate);
        } else {
            avx512::multiply_bf16(out, x, weight, accumulate);
        }
        return;
    }
    portable::multiply(out, x, weight, accumulate);
}

#[cfg(test)]
mod tests;
