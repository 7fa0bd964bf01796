//! The product without bf16 instructions: widens blocks of the weight's columns to f32, which is exact, and multiplies by the
//! kernels of f32.

use rayon::prelude::*;

use super::{Bf16Matrix, Order};
use crate::matrix::Matrix;
use crate::product::{Product, Update};
use crate::simd::wide;

/// Columns of one block.
const COLUMNS: usize = 512;

/// Like [`super::multiply`], but without rounding `x`.
pub(super) fn multiply(out: &mut [f32], x: &[f32], weight: Bf16Matrix<'_>, update: Update) {
    let (k, n) = (weight.rows, weight.columns);
    let rows = out.len() / n;
    let x = Matrix::new(x, rows, k);
    let mut widened = vec![0.0; k * COLUMNS.min(n)];
    let mut products = vec![0.0; rows * COLUMNS.min(n)];
    for first in (0..n).step_by(COLUMNS) {
        let some = weight.column_range(first, (first + COLUMNS).min(n));
        let (widened, products) = (&mut widened[..k * some.columns], &mut products[..rows * some.columns]);
        Product::new(x, widen(some, widened)).compute(products, Update::Overwrite);
        for (out, product) in out.chunks_exact_mut(n).zip(products.chunks_exact(some.columns)) {
            let out = &mut out[first..first + some.columns];
            match update {
                Update::Add => out.iter_mut().zip(product).for_each(|(out, product)| *out += product),
                Update::Overwrite => out.copy_from_slice(product),
            }
        }
    }
}

/// Widens the matrix to f32 into `buffer`, in the order of its own memory.
fn widen<'a>(weight: Bf16Matrix<'_>, buffer: &'a mut [f32]) -> Matrix<'a> {
    let [lines, length] = match weight.order {
        Order::Rows => [weight.rows, weight.columns],
        Order::Columns => [weight.columns, weight.rows],
    };
    buffer.par_chunks_exact_mut(length).enumerate().with_min_len(64).for_each(|(line, out)| {
        let line = weight.line(line);
        wide(
            #[inline(always)]
            || {
                for (out, value) in out.iter_mut().zip(line) {
                    *out = f32::from_bits(u32::from(value.to_bits()) << 16);
                }
            },
        );
    });
    let widened = Matrix::new(buffer, lines, length);
    if weight.order == Order::Rows { widened } else { widened.transposed() }
}
