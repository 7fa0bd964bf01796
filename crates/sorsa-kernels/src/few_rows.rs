//! Products of a few rows with an f32 weight. Their cost is the reading of the weight, so all threads together read it once,
//! in its own order in memory.

use std::ops::Range;

use rayon::prelude::*;

use crate::matrix::Matrix;
use crate::product::Update;
use crate::simd::wide;
#[cfg(target_arch = "x86_64")]
use crate::{avx512, panels::Left};

/// Elements of a weight from which its product with few rows runs on all threads.
const PARALLEL: usize = 1 << 17;
/// Rows of the weight that one pass reads side by side.
const SIDE: usize = 8;
/// Sums of one vector operation.
const LANES: usize = 16;
/// Sums of one block of columns; they stay in a core's first-level cache.
const SUMS: usize = 8192;

/// Rows up to which AVX-512 reads a weight in place; measured.
#[cfg(target_arch = "x86_64")]
const MOST_OF_AVX512: usize = 32;

/// The largest number of rows for which reading the weight in place is faster than packing it first; measured.
pub(crate) fn most_rows() -> usize {
    #[cfg(target_arch = "x86_64")]
    if crate::instructions::Instructions::used() >= crate::instructions::Instructions::Avx512 {
        return MOST_OF_AVX512;
    }
    8
}

/// The product `x W`.
///
/// # Shapes
///
/// - `out`: `[rows, n]`, row-major
/// - `x`: `[rows, k]`, row-major
/// - `weight`: `[k, n]`, contiguous along one axis
pub(crate) fn multiply(out: &mut [f32], x: &[f32], weight: Matrix<'_>, update: Update) {
    let (k, n) = (weight.rows(), weight.columns());
    by_columns(out, [k, n], update, |columns, part| match x.len() == k {
        // For one row, the loops that take longer lines of the weight are faster; measured.
        true => add_product_portable(part, x, weight, columns),
        false => add_product(part, x, weight, columns),
    });
}

/// Adds `x W` of a range of columns to `part` `[rows, columns]`.
pub(crate) fn add_product(part: &mut [f32], x: &[f32], weight: Matrix<'_>, columns: Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    if avx512::has_f32() {
        let k = weight.rows();
        let x = Left { units: x, rows: x.len() / k, row_stride: k, unit_stride: 1 };
        return avx512::add_product_f32(part, x, weight, columns);
    }
    add_product_portable(part, x, weight, columns);
}

fn add_product_portable(part: &mut [f32], x: &[f32], weight: Matrix<'_>, columns: Range<usize>) {
    match weight.has_contiguous_rows() {
        true => stream(part, x, weight, columns),
        false => inner(part, x, weight, columns),
    }
}

/// Splits the columns of a weight `[k, n]` into ranges, on all threads if that pays. `body` adds the product of each range to
/// a part `[rows, columns]` of the result.
pub(crate) fn by_columns(
    out: &mut [f32],
    [k, n]: [usize; 2],
    update: Update,
    body: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let threads = if k * n < PARALLEL { 1 } else { rayon::current_num_threads() };
    if threads == 1 {
        if update == Update::Overwrite {
            out.fill(0.0);
        }
        return body(0..n, out);
    }
    let rows = out.len() / n;
    let width = n.div_ceil(threads).next_multiple_of(64);
    if rows == 1 {
        if update == Update::Overwrite {
            out.fill(0.0);
        }
        let parts = out.par_chunks_mut(width).enumerate();
        return parts.for_each(|(task, part)| body(task * width..task * width + part.len(), part));
    }
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
            match update {
                Update::Add => out.iter_mut().zip(part).for_each(|(out, part)| *out += part),
                Update::Overwrite => out.copy_from_slice(part),
            }
        }
    }
}

/// Columns of one block of `rows` rows.
fn block_of_columns(rows: usize) -> usize {
    (SUMS / rows.max(1) / LANES * LANES).max(LANES)
}

/// Calls a function for four rows at a time, then for the two rows or the one row that remain.
macro_rules! by_rows {
    ($rows:expr, $function:ident($part:expr, $width:expr, $x:expr, $k:expr, $($rest:expr),*)) => {
        let mut done = 0;
        while done < $rows {
            let (part, x) = (&mut $part[done * $width..], &$x[done * $k..]);
            match $rows - done {
                1 => $function::<1>(part, $width, x, $k, $($rest),*),
                2 | 3 => $function::<2>(part, $width, x, $k, $($rest),*),
                _ => $function::<4>(part, $width, x, $k, $($rest),*),
            }
            done += match $rows - done {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
        }
    };
}

/// Adds `x W` of a range of columns to `part`, for a weight with contiguous rows.
fn stream(part: &mut [f32], x: &[f32], weight: Matrix<'_>, columns: Range<usize>) {
    let (k, width) = (weight.rows(), columns.len());
    let rows = x.len() / k;
    wide(
        #[inline(always)]
        || {
            for first in (0..width).step_by(block_of_columns(rows)) {
                let block = first..width.min(first + block_of_columns(rows));
                let columns = columns.start + block.start..columns.start + block.end;
                let part = &mut part[first..];
                for start in (0..k).step_by(SIDE) {
                    let some = start..k.min(start + SIDE);
                    let lines: [&[f32]; SIDE] =
                        std::array::from_fn(|line| &weight.row((start + line).min(k - 1))[columns.clone()]);
                    by_rows!(rows, add_lines(part, width, x, k, &lines, some.clone()));
                }
            }
        },
    );
}

/// Adds the products with the weight's rows `some` to `ROWS` rows of `part`, which start `stride` elements apart.
#[inline(always)]
fn add_lines<const ROWS: usize>(
    part: &mut [f32],
    stride: usize,
    x: &[f32],
    k: usize,
    lines: &[&[f32]; SIDE],
    some: Range<usize>,
) {
    let width = lines[0].len();
    let whole = width / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        let mut sums = [[0.0; LANES]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            sums.copy_from_slice(&part[row * stride + first..][..LANES]);
        }
        for (index, line) in some.clone().zip(lines) {
            let line: &[f32; LANES] = line[first..first + LANES].try_into().expect("whole lanes");
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = x[row * k + index];
                sums.iter_mut().zip(line).for_each(|(sum, weight)| *sum += x * weight);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            part[row * stride + first..][..LANES].copy_from_slice(sums);
        }
    }
    for row in 0..ROWS {
        for column in whole..width {
            for (index, line) in some.clone().zip(lines) {
                part[row * stride + column] += x[row * k + index] * line[column];
            }
        }
    }
}

/// Adds `x W` of a range of columns to `part`, for a weight with contiguous columns.
fn inner(part: &mut [f32], x: &[f32], weight: Matrix<'_>, columns: Range<usize>) {
    let (k, width) = (weight.rows(), columns.len());
    let rows = x.len() / k;
    let weight = weight.transposed();
    wide(
        #[inline(always)]
        || {
            for (index, column) in columns.enumerate() {
                by_rows!(rows, add_inner(part, width, x, k, weight.row(column), index));
            }
        },
    );
}

/// Adds the inner products of `ROWS` rows of `x` with a column to element `index` of the rows of `part`.
#[inline(always)]
fn add_inner<const ROWS: usize>(part: &mut [f32], width: usize, x: &[f32], k: usize, column: &[f32], index: usize) {
    let mut lanes = [[0.0; LANES]; ROWS];
    let whole = k / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        let weights: &[f32; LANES] = column[first..first + LANES].try_into().expect("whole lanes");
        for (row, lanes) in lanes.iter_mut().enumerate() {
            let x: &[f32; LANES] = x[row * k + first..][..LANES].try_into().expect("whole lanes");
            lanes.iter_mut().zip(x.iter().zip(weights)).for_each(|(lane, (x, weight))| *lane += x * weight);
        }
    }
    for (row, lanes) in lanes.into_iter().enumerate() {
        let rest: f32 = (whole..k).map(|i| x[row * k + i] * column[i]).sum();
        part[row * width + index] += lanes.into_iter().sum::<f32>() + rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_of_few_rows_is_the_product_for_either_order_and_any_size() {
        for (rows, k, n) in
            [(1, 1, 1), (1, 17, 33), (3, 8, 64), (8, 100, 70), (2, 400, 700), (7, 33, 16), (8, 9, 2100), (3, 9, 3000)]
        {
            let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
            let x: Vec<f32> = (0..rows * k).map(value).collect();
            let w: Vec<f32> = (0..k * n).map(|i| value(i * 3 + 1)).collect();
            for (weight, at) in [(Matrix::new(&w, k, n), [n, 1]), (Matrix::new(&w, n, k).transposed(), [1, k])] {
                for update in [Update::Overwrite, Update::Add] {
                    let mut out = vec![7.0; rows * n];
                    multiply(&mut out, &x, weight, update);
                    for (index, found) in out.iter().enumerate() {
                        let (row, column) = (index / n, index % n);
                        let exact: f64 = (0..k)
                            .map(|i| f64::from(x[row * k + i]) * f64::from(w[i * at[0] + column * at[1]]))
                            .sum::<f64>()
                            + if update == Update::Add { 7.0 } else { 0.0 };
                        assert!((f64::from(*found) - exact).abs() < 1e-5 * k as f64 + 1e-6, "{found} {exact}");
                    }
                }
            }
        }
    }
}
