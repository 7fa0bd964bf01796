//! Weights that kernels widen to f32 a part at a time: packed ones, and bf16 on a processor without instructions for it.
//!
//! Kernels widen a small tile when they pack a panel. Without such kernels, some stored lines are widened at a time, and the crate `gemm`
//! multiplies by them.

pub(crate) mod few_rows;

use std::ops::Range;

use rayon::prelude::*;

use crate::bf16::{Bf16Matrix, Order};
use crate::few_rows::most_rows;
use crate::instructions::Instructions;
use crate::matrix::Matrix;
use crate::packed::{Orientation, PIECE, PackedView};
use crate::product::{OutputColumns, Product, Update};
use crate::simd::wide;
#[cfg(target_arch = "x86_64")]
use crate::{avx2::Avx2, avx512::Avx512, f32_panels::multiply_widened, panels::Left};

/// Values that are widened at a time for `gemm`.
const WIDENED: usize = 1 << 19;
/// The least values that a task widens.
const TASK: usize = 1 << 14;

/// A weight `[rows, columns]` that is stored in another format than f32.
pub(crate) trait WidenedWeight: Copy + Sync {
    /// Rows and columns.
    fn shape(&self) -> [usize; 2];

    /// Whether rows or columns are stored one after another.
    fn orientation(&self) -> Orientation;

    /// Widens a part to f32, in the order in which it is stored.
    fn widen_f32(&self, rows: Range<usize>, columns: Range<usize>, values: &mut [f32]);

    /// Adds to `sums` `[rows, columns]` the product of `x` `[rows, k]` with some columns, if that needs no widened tile; returns whether it did.
    fn add_dots(&self, columns: Range<usize>, x: &[f32], sums: &mut [f32]) -> bool;

    /// The address of the byte that holds an element, or of the first of several.
    fn address(&self, row: usize, column: usize) -> *const u8;

    /// Elements of a stored line that are widened together.
    fn piece(&self) -> usize;
}

impl WidenedWeight for PackedView<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.rows(), self.columns()]
    }

    fn orientation(&self) -> Orientation {
        self.orientation()
    }

    fn widen_f32(&self, rows: Range<usize>, columns: Range<usize>, values: &mut [f32]) {
        self.widen_f32(rows, columns, values);
    }

    fn add_dots(&self, columns: Range<usize>, x: &[f32], sums: &mut [f32]) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let k = self.rows();
            self.add_dots_f32(columns, Left { units: x, rows: x.len() / k, row_stride: k, unit_stride: 1 }, sums)
        }
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    fn address(&self, row: usize, column: usize) -> *const u8 {
        self.address(row, column)
    }

    fn piece(&self) -> usize {
        PIECE
    }
}

impl WidenedWeight for Bf16Matrix<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.rows(), self.columns()]
    }

    fn orientation(&self) -> Orientation {
        match self.order() {
            Order::Rows => Orientation::Stored,
            Order::Columns => Orientation::Transposed,
        }
    }

    fn widen_f32(&self, rows: Range<usize>, columns: Range<usize>, values: &mut [f32]) {
        let (lines, elements) = match self.order() {
            Order::Rows => (rows, columns),
            Order::Columns => (columns, rows),
        };
        wide(
            #[inline(always)]
            || {
                for (line, values) in lines.zip(values.chunks_exact_mut(elements.len())) {
                    for (wide, value) in values.iter_mut().zip(&self.line(line)[elements.clone()]) {
                        *wide = f32::from_bits(u32::from(value.to_bits()) << 16);
                    }
                }
            },
        );
    }

    fn add_dots(&self, _: Range<usize>, _: &[f32], _: &mut [f32]) -> bool {
        false
    }

    fn address(&self, row: usize, column: usize) -> *const u8 {
        let (line, element) = match self.order() {
            Order::Rows => (row, column),
            Order::Columns => (column, row),
        };
        (&raw const self.line(line)[element]).cast()
    }

    fn piece(&self) -> usize {
        1
    }
}

/// The product `x W` in f32, of at least one row and one `k`.
///
/// A row of `out` depends on the same row of `x`, and on whether there are few rows; neither on the other rows nor, unless `gemm`
/// multiplies, on the number of threads.
///
/// # Shapes
///
/// - `out`: `[rows, n]`, row-major
/// - `x`: `[rows, k]`, row-major
/// - `weight`: `[k, n]`
pub(crate) fn multiply(out: &mut [f32], x: &[f32], weight: impl WidenedWeight, update: Update) {
    if x.len() / weight.shape()[0] <= few_rows::MOST.max(most_rows()) {
        return few_rows::multiply(out, weight, update, &few_rows::F32Tiles::new(x, weight));
    }
    match Instructions::used() {
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 | Instructions::Avx512Bf16 => multiply_widened::<Avx512>(out, x, weight, update),
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => multiply_widened::<Avx2>(out, x, weight, update),
        _ => multiply_portable(out, x, weight, update),
    }
}

/// [`multiply`] by the crate `gemm`.
pub(crate) fn multiply_portable(out: &mut [f32], x: &[f32], weight: impl WidenedWeight, update: Update) {
    let [k, n] = weight.shape();
    let rows = out.len() / n;
    let (lines, length) = match weight.orientation() {
        Orientation::Stored => (k, n),
        Orientation::Transposed => (n, k),
    };
    let step = (WIDENED / length).clamp(1, lines);
    let mut values = vec![0.0; step * length];
    for first in (0..lines).step_by(step) {
        let some = first..lines.min(first + step);
        let values = &mut values[..some.len() * length];
        let task_lines = (TASK / length).max(1);
        values.par_chunks_mut(task_lines * length).enumerate().for_each(|(task, values)| {
            let first = some.start + task * task_lines;
            let lines = first..first + values.len() / length;
            match weight.orientation() {
                Orientation::Stored => weight.widen_f32(lines, 0..n, values),
                Orientation::Transposed => weight.widen_f32(0..k, lines, values),
            }
        });
        let widened = Matrix::new(values, some.len(), length);
        match weight.orientation() {
            Orientation::Stored => {
                let x = Matrix::with_row_stride(&x[some.start..], rows, some.len(), k);
                let update = if some.start > 0 { Update::Add } else { update };
                Product::new(x, widened).compute_portable(OutputColumns::all(out, n), update);
            }
            Orientation::Transposed => {
                let out = OutputColumns { data: out, row_stride: n, columns: some };
                Product::new(Matrix::new(x, rows, k), widened.transposed()).compute_portable(out, update);
            }
        }
    }
}
