//! The product of a few rows, like in generation. Its cost is the reading of the weight, so the kernel reads the weight once, in
//! its own order in memory and without packing. Each thread takes a range of columns and writes a copy of its part of the result.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::bf16_product::{integers, interleaved, load, pairs_of};
use super::mask;
use crate::bf16::{Bf16Matrix, FEW_ROWS, Order, rounded_rows};
use crate::few_rows::by_columns;
use crate::instructions::Instructions;
use crate::product::Update;
use crate::rounding::round;

/// Pairs of rows of the weight that one pass reads side by side.
const PAIRS: usize = 8;
/// bf16 numbers of a register.
const LANES: usize = 32;

/// Like [`crate::bf16::multiply`], of at most [`FEW_ROWS`] rows.
///
/// # Panics
///
/// Panics if there are more rows, or if the processor lacks the instructions.
pub fn multiply(out: &mut [f32], x: &[f32], weight: Bf16Matrix<'_>, update: Update) {
    let (k, n) = (weight.rows(), weight.columns());
    let rows = x.len() / k;
    let x = left_operand(x, k, weight.order());
    by_columns(out, [k, n], update, |columns, part| add_product(part, rows, &x, weight, columns));
}

/// `x` `[rows, k]`, rounded and laid out for [`add_product`] with a weight of this order. If rows are contiguous, the layout of two rows of the
/// weight and of those that follow begins at each even row.
pub fn left_operand(x: &[f32], k: usize, order: Order) -> Vec<u16> {
    match order {
        Order::Rows => pairs(x, k),
        Order::Columns => rounded_rows(x, k, k.next_multiple_of(LANES)),
    }
}

/// Adds `x W` of a range of columns to `part` `[rows, columns]`.
///
/// # Panics
///
/// Panics if there are more than [`FEW_ROWS`] rows, or if the processor lacks the instructions.
pub fn add_product(part: &mut [f32], rows: usize, x: &[u16], weight: Bf16Matrix<'_>, columns: Range<usize>) {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match (rows, weight.order()) {
                // SAFETY: the processor has the instructions.
                $(($rows, Order::Rows) => unsafe { stream::<$rows>(part, x, weight, columns) },
                ($rows, Order::Columns) => unsafe { inner::<$rows>(part, x, weight, columns) },)*
                _ => panic!("{rows} rows, at most {FEW_ROWS}"),
            }
        };
    }
    #[allow(unsafe_code, reason = "functions compiled for instructions that the processor has")]
    {
        by_rows!(1 2 3 4);
    }
}

/// Rounds `x` and reorders it: for each pair of neighbours along `k`, the pair of each row. An odd last number is paired with zero.
fn pairs(x: &[f32], k: usize) -> Vec<u16> {
    let at = |row: &[f32], index: usize| row.get(index).map_or(0, |x| round(*x));
    let pair = |first: usize| x.chunks_exact(k).flat_map(move |row| [at(row, first), at(row, first + 1)]);
    (0..k).step_by(2).flat_map(pair).collect()
}

/// Adds `x W` of a range of columns to `part` `[ROWS, columns]`, for a weight with contiguous rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn stream<const ROWS: usize>(part: &mut [f32], x: &[u16], weight: Bf16Matrix<'_>, columns: Range<usize>) {
    let width = columns.len();
    let pairs = weight.rows().div_ceil(2);
    for start in (0..pairs).step_by(PAIRS) {
        for first in (0..width).step_by(LANES) {
            let count = LANES.min(width - first);
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for (row, sums) in sums.iter_mut().enumerate() {
                let part = &part[row * width + first..][..count];
                *sums = [floats(&part[..count.min(16)]), floats(&part[count.min(16)..])];
            }
            for pair in start..pairs.min(start + PAIRS) {
                let values = |row: usize| load(&weight.line(row)[columns.start + first..][..count]);
                let low = values(2 * pair);
                let high = if 2 * pair + 1 < weight.rows() { values(2 * pair + 1) } else { _mm512_setzero_si512() };
                let weights = interleaved(low, high).map(|pairs| pairs_of(pairs));
                let x = &x[2 * pair * ROWS..][..2 * ROWS];
                for (sums, x) in sums.iter_mut().zip(x.chunks_exact(2)) {
                    let both = u32::from(x[0]) | u32::from(x[1]) << 16;
                    let x = pairs_of(_mm512_set1_epi32(both.cast_signed()));
                    *sums = [_mm512_dpbf16_ps(sums[0], x, weights[0]), _mm512_dpbf16_ps(sums[1], x, weights[1])];
                }
            }
            for (row, sums) in sums.into_iter().enumerate() {
                let (left, right) = part[row * width + first..][..count].split_at_mut(count.min(16));
                put(left, sums[0]);
                put(right, sums[1]);
            }
        }
    }
}

/// Adds `x W` of a range of columns to `part` `[ROWS, columns]`, for a weight with contiguous columns. Rows of `x` are padded to
/// whole registers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn inner<const ROWS: usize>(part: &mut [f32], x: &[u16], weight: Bf16Matrix<'_>, columns: Range<usize>) {
    let width = columns.len();
    let padded = x.len() / ROWS;
    // Two columns at a time, so that a sum does not wait for the sum before it.
    for first in (0..width).step_by(2) {
        let count = 2.min(width - first);
        let column = |index: usize| weight.line(columns.start + first + index);
        let pair: [&[bf16]; 2] = [column(0), column(count - 1)];
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for start in (0..weight.rows()).step_by(LANES) {
            let end = weight.rows().min(start + LANES);
            let weights = pair.map(|column| pairs_of(load(&column[start..end])));
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = pairs_of(integers(x[row * padded + start..][..LANES].try_into().expect("whole registers")));
                *sums = [_mm512_dpbf16_ps(sums[0], x, weights[0]), _mm512_dpbf16_ps(sums[1], x, weights[1])];
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (out, sum) in part[row * width + first..][..count].iter_mut().zip(sums) {
                *out += _mm512_reduce_add_ps(sum);
            }
        }
    }
}

/// A register of up to 16 numbers, padded with zeros.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a load from a slice, masked to its length")]
fn floats(values: &[f32]) -> __m512 {
    // SAFETY: the mask excludes lanes beyond the slice, so they are not read.
    unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a store to a slice, masked to its length")]
fn put(out: &mut [f32], values: __m512) {
    // SAFETY: the mask excludes lanes beyond the slice, so they are not written.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask(out.len()), values) }
}
