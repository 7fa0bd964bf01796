//! Products of a few rows with an f32 weight. Reading the weight is what they cost, so it is read once and in its own
//! order, by all threads.

use std::ops::Range;

use rayon::prelude::*;

use super::bf16::PARALLEL_NARROW;
use super::product::Matrix;
use super::simd::{dot, wide};

/// Rows of the weight that are read side by side.
const ROWS: usize = 8;
/// Columns whose sums stay in registers.
const LANES: usize = 32;

/// `out = x W`, and `out += x W` where `accumulate`; `x` `[rows, k]` and `out` `[rows, n]` are row-major. The weight must
/// have neighbours along one axis.
pub(super) fn multiply(out: &mut [f32], x: &[f32], weight: Matrix<'_>, accumulate: bool) {
    let (k, n) = (weight.rows(), weight.columns());
    by_columns(out, [k, n], accumulate, |columns, part| match weight.contiguous_rows() {
        true => stream(part, x, weight, columns),
        false => inner(part, x, weight, columns),
    });
}

/// Calls `body` for runs of columns of a weight `[k, n]` that together are all, on all threads where that pays, each
/// with its part `[rows, columns]` of `out`, to which the product is to be added.
pub(super) fn by_columns(
    out: &mut [f32],
    [k, n]: [usize; 2],
    accumulate: bool,
    body: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let threads = if k * n < PARALLEL_NARROW { 1 } else { rayon::current_num_threads() };
    if threads == 1 {
        if !accumulate {
            out.fill(0.0);
        }
        return body(0..n, out);
    }
    let rows = out.len() / n;
    let width = n.div_ceil(threads).next_multiple_of(64);
    let part = |first: usize| {
        let columns = first..n.min(first + width);
        let mut part = vec![0.0; rows * columns.len()];
        body(columns.clone(), &mut part);
        (columns, part)
    };
    let starts: Vec<usize> = (0..n).step_by(width).collect();
    let parts: Vec<_> = starts.into_par_iter().map(part).collect();
    for (columns, part) in parts {
        for (out, part) in out.chunks_exact_mut(n).zip(part.chunks_exact(columns.len())) {
            let out = &mut out[columns.clone()];
            if accumulate {
                out.iter_mut().zip(part).for_each(|(out, part)| *out += part);
            } else {
                out.copy_from_slice(part);
            }
        }
    }
}

/// Adds `x W` of some columns to `part`, for a weight whose rows are contiguous.
fn stream(part: &mut [f32], x: &[f32], weight: Matrix<'_>, columns: Range<usize>) {
    let (k, width) = (weight.rows(), columns.len());
    wide(
        #[inline(always)]
        || {
            for start in (0..k).step_by(ROWS) {
                let count = ROWS.min(k - start);
                let rows: [&[f32]; ROWS] =
                    std::array::from_fn(|row| &weight.row((start + row).min(k - 1))[columns.clone()]);
                for (part, x) in part.chunks_exact_mut(width).zip(x.chunks_exact(k)) {
                    let x = &x[start..start + count];
                    let mut chunks = part.chunks_exact_mut(LANES);
                    for (index, out) in (&mut chunks).enumerate() {
                        let mut sums: [f32; LANES] = (&*out).try_into().expect("a whole chunk");
                        for (x, row) in x.iter().zip(&rows) {
                            let row = &row[index * LANES..][..LANES];
                            sums.iter_mut().zip(row).for_each(|(sum, weight)| *sum += x * weight);
                        }
                        out.copy_from_slice(&sums);
                    }
                    let done = width / LANES * LANES;
                    for (index, out) in chunks.into_remainder().iter_mut().enumerate() {
                        for (x, row) in x.iter().zip(&rows) {
                            *out += x * row[done + index];
                        }
                    }
                }
            }
        },
    );
}

/// Adds `x W` of some columns to `part`, for a weight whose columns are contiguous.
fn inner(part: &mut [f32], x: &[f32], weight: Matrix<'_>, columns: Range<usize>) {
    let (k, width) = (weight.rows(), columns.len());
    let weight = weight.transposed();
    wide(
        #[inline(always)]
        || {
            for (index, column) in columns.enumerate() {
                let column = weight.row(column);
                for (part, x) in part.chunks_exact_mut(width).zip(x.chunks_exact(k)) {
                    part[index] += dot(x, column);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_product_is_the_product_for_either_order_and_any_size() {
        for (rows, k, n) in [(1, 1, 1), (1, 17, 33), (3, 8, 64), (8, 100, 70), (2, 400, 700)] {
            let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
            let x: Vec<f32> = (0..rows * k).map(value).collect();
            let w: Vec<f32> = (0..k * n).map(|i| value(i * 3 + 1)).collect();
            for (weight, at) in [
                (Matrix::new(&w, k, n), [n, 1]),
                (Matrix::new(&w, n, k).transposed(), [1, k]),
            ] {
                for accumulate in [false, true] {
                    let mut out = vec![7.0; rows * n];
                    multiply(&mut out, &x, weight, accumulate);
                    for (index, found) in out.iter().enumerate() {
                        let (row, column) = (index / n, index % n);
                        let exact: f64 = (0..k)
                            .map(|i| f64::from(x[row * k + i]) * f64::from(w[i * at[0] + column * at[1]]))
                            .sum::<f64>()
                            + if accumulate { 7.0 } else { 0.0 };
                        assert!((f64::from(*found) - exact).abs() < 1e-5 * k as f64 + 1e-6, "{found} {exact}");
                    }
                }
            }
        }
    }
}
