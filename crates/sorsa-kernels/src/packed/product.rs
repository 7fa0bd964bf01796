//! Products with a packed weight: which kernel computes them, and the product without AVX-512.
//!
//! The kernels of AVX-512 widen a small tile when they pack a panel. Without them, some stored rows are widened at a time, and the crate
//! `gemm` multiplies by them.

use rayon::prelude::*;

use super::few_rows;
use super::view::{Orientation, PackedView};
#[cfg(target_arch = "x86_64")]
use super::{Precision, few_rows::Bf16Tiles};
#[cfg(target_arch = "x86_64")]
use crate::avx512;
use crate::few_rows::most_rows;
use crate::matrix::Matrix;
use crate::product::{OutputColumns, Product, Update};

/// Values that are widened at a time without AVX-512.
const WIDENED: usize = 1 << 19;
/// The least values that a task widens.
const TASK: usize = 1 << 14;

/// The product `x W`.
///
/// A row of `out` depends on the same row of `x`, and on whether there are few rows; neither on the other rows nor, with AVX-512, on the
/// number of threads.
///
/// # Shapes
///
/// - `out`: `[rows, n]`, row-major
/// - `x`: `[rows, k]`, row-major
/// - `weight`: `[k, n]`
pub(crate) fn multiply(out: &mut [f32], x: &[f32], weight: PackedView<'_>, update: Update) {
    let (k, n) = (weight.rows(), weight.columns());
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
    if weight.precision() == Precision::Bf16 && avx512::has_bf16() {
        return match rows <= few_rows::MOST {
            true => few_rows::multiply(out, weight, update, &Bf16Tiles::new(x, weight)),
            false => avx512::multiply_packed_bf16(out, x, weight, update),
        };
    }
    if rows <= few_rows::MOST.max(most_rows()) {
        return few_rows::multiply(out, weight, update, &few_rows::F32Tiles::new(x, weight));
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::has_f32() {
        return avx512::multiply_packed_f32(out, x, weight, update);
    }
    multiply_portable(out, x, weight, update);
}

/// [`multiply`] by the crate `gemm`.
pub(super) fn multiply_portable(out: &mut [f32], x: &[f32], weight: PackedView<'_>, update: Update) {
    let (k, n) = (weight.rows(), weight.columns());
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
