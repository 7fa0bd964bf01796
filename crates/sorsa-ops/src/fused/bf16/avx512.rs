//! The product by AVX-512 BF16. `vdpbf16ps` adds, in each of 16 f32 lanes, two products of bf16 numbers that are
//! neighbours in `k`: so both operands are read as pairs.
//!
//! A thread takes panels of 32 columns of the weight. A part of a panel, some hundred rows high, is packed as pairs; all
//! rows of the activations, packed before, pass over it, twelve at a time. Their tile of the result stays in 24
//! registers for as long as that part lasts.

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::pack::row_blocks;
use super::{Bf16Matrix, Order};

/// Rows of a tile.
const HEIGHT: usize = 12;
/// Columns of a tile: two registers.
const WIDTH: usize = 32;
/// Pairs of `k` of a packed part, which then takes half of a core's first cache.
const PAIRS: usize = 128;
/// Multiplications from which waking threads costs less than it saves.
const PARALLEL: usize = 128 * 128 * 128;

/// Whether this processor has the instructions.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512f")
}

/// The result, of which each thread writes columns that are its own.
struct Output {
    data: *mut f32,
    columns: usize,
}

#[allow(
    unsafe_code,
    reason = "the columns that two threads write do not overlap, and nobody reads before all are done"
)]
// SAFETY: see the reason; the pointer is to f32, which may be sent.
unsafe impl Sync for Output {}

/// `out (+)= x W`, as [`super::multiply`].
///
/// # Panics
///
/// Panics where the processor lacks the instructions.
pub(super) fn multiply(out: &mut [f32], x: &[f32], weight: Bf16Matrix<'_>, accumulate: bool) {
    assert!(available(), "called for its instructions");
    let (k, n) = (weight.rows, weight.columns);
    let (rows, pairs) = (x.len() / k, k.div_ceil(2));
    assert_eq!(out.len(), rows * n, "a product of [{rows}, {n}]");
    let x = row_blocks(x, k, HEIGHT);
    let output = Output { data: out.as_mut_ptr(), columns: n };
    let panel = |part: &mut Vec<u32>, first: usize| {
        part.resize(PAIRS * WIDTH, 0);
        for start in (0..pairs).step_by(PAIRS) {
            let some = start..pairs.min(start + PAIRS);
            // SAFETY: `available` was asked; columns from `first` on are this call's alone.
            #[allow(unsafe_code, reason = "functions compiled for instructions that were asked for")]
            unsafe {
                match weight.order {
                    Order::Rows => pack_rows(part, weight, some.clone(), first),
                    Order::Columns => pack_columns(part, weight, some.clone(), first),
                }
                tiles(&output, &x, [rows, pairs], part, some, first, accumulate || start > 0);
            }
        }
    };
    let panels = n.div_ceil(WIDTH);
    if rows * n * k < PARALLEL {
        let mut part = Vec::new();
        (0..panels).for_each(|index| panel(&mut part, index * WIDTH));
    } else {
        let panels = (0..panels).into_par_iter().with_min_len(2);
        panels.for_each_init(Vec::new, |part, index| panel(part, index * WIDTH));
    }
}

/// Packs the pairs `some` of `k` of the columns from `first` on: for each pair, that of each of 32 columns, zeros beyond
/// the last.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_rows(part: &mut [u32], weight: Bf16Matrix<'_>, some: std::ops::Range<usize>, first: usize) {
    const ZEROS: [burn::tensor::bf16; WIDTH] = [burn::tensor::bf16::ZERO; WIDTH];
    let columns = WIDTH.min(weight.columns - first);
    for (out, pair) in part.chunks_exact_mut(WIDTH).zip(some) {
        let row = |row: usize| match row < weight.rows {
            true => &weight.data[weight.index(row, first)..][..columns],
            false => &ZEROS[..columns],
        };
        let (low, high) = (row(2 * pair), row(2 * pair + 1));
        let both = |low: &burn::tensor::bf16, high: &burn::tensor::bf16| {
            u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
        };
        if let (Ok(low), Ok(high)) = (<&[_; WIDTH]>::try_from(low), <&[_; WIDTH]>::try_from(high)) {
            for index in 0..WIDTH {
                out[index] = both(&low[index], &high[index]);
            }
        } else {
            out.fill(0);
            out.iter_mut().zip(low.iter().zip(high)).for_each(|(out, (low, high))| *out = both(low, high));
        }
    }
}

/// [`pack_rows`] of a matrix whose columns are contiguous: squares of 16 pairs of 16 columns are transposed.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_columns(part: &mut [u32], weight: Bf16Matrix<'_>, some: std::ops::Range<usize>, first: usize) {
    for start in some.clone().step_by(16) {
        for half in 0..WIDTH / 16 {
            let mut square = [_mm512_setzero_si512(); 16];
            for (index, column) in square.iter_mut().enumerate() {
                let at = first + half * 16 + index;
                if at < weight.columns {
                    *column = load(&weight.data[weight.index(2 * start, at)..][..(weight.rows - 2 * start).min(32)]);
                }
            }
            let rows = transpose(square);
            let part = &mut part[(start - some.start) * WIDTH + half * 16..];
            for (row, out) in rows.into_iter().zip(part.chunks_mut(WIDTH)).take(some.end - start) {
                store(out, row);
            }
        }
    }
}

/// Up to 32 numbers, zeros beyond.
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code, reason = "a load from a slice, masked to its length")]
pub(super) fn load(values: &[burn::tensor::bf16]) -> __m512i {
    let mask = u32::MAX.checked_shr(32 - values.len().min(32) as u32).unwrap_or(0);
    // SAFETY: lanes beyond the slice are masked out, and not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, values.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a store of a register to sixteen elements that are there")]
fn store(out: &mut [u32], values: __m512i) {
    let out = &mut out[..16];
    // SAFETY: `out` has 16 elements of 32 bits.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), values) }
}

/// The transpose of 16 rows of 16 numbers of 32 bits.
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = r;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    // Of four rows, in each quarter of a register: the same column of all four.
    let mut fours = r;
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = r;
    for i in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x44>(fours[i], fours[4 + i]);
        let high = _mm512_shuffle_i32x4::<0xEE>(fours[i], fours[4 + i]);
        let next_low = _mm512_shuffle_i32x4::<0x44>(fours[8 + i], fours[12 + i]);
        let next_high = _mm512_shuffle_i32x4::<0xEE>(fours[8 + i], fours[12 + i]);
        columns[i] = _mm512_shuffle_i32x4::<0x88>(low, next_low);
        columns[4 + i] = _mm512_shuffle_i32x4::<0xDD>(low, next_low);
        columns[8 + i] = _mm512_shuffle_i32x4::<0x88>(high, next_high);
        columns[12 + i] = _mm512_shuffle_i32x4::<0xDD>(high, next_high);
    }
    columns
}

/// The tiles of all rows over one packed part.
///
/// # Safety
///
/// Nobody else may use the columns of `output` from `first` on to the end of the panel. `output` has `rows` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code, reason = "tiles are written through the pointer that threads share")]
unsafe fn tiles(
    output: &Output,
    x: &[u32],
    [rows, pairs]: [usize; 2],
    part: &[u32],
    some: std::ops::Range<usize>,
    first: usize,
    accumulate: bool,
) {
    let columns = WIDTH.min(output.columns - first);
    let part = &part[..some.len() * WIDTH];
    for block in (0..rows).step_by(HEIGHT) {
        let height = HEIGHT.min(rows - block);
        let x = &x[block * pairs + some.start * height..][..some.len() * height];
        // SAFETY: rows from `block` to `block + height` and `columns` columns from `first` on are within the output.
        unsafe {
            let out = output.data.add(block * output.columns + first);
            macro_rules! by_height {
                ($($height:literal)*) => {
                    match height {
                        $($height => tile::<$height>(out, output.columns, columns, x, part, accumulate),)*
                        _ => unreachable!("a block has at most {HEIGHT} rows"),
                    }
                };
            }
            by_height!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }
}

/// One tile of `ROWS` rows and `columns` columns, `stride` apart from row to row.
///
/// # Safety
///
/// The tile's elements must be valid for reads and writes, and this call's alone.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code, reason = "loads and stores of registers; the bounds are asserted or the caller's")]
unsafe fn tile<const ROWS: usize>(
    out: *mut f32,
    stride: usize,
    columns: usize,
    x: &[u32],
    part: &[u32],
    accumulate: bool,
) {
    let pairs = part.len() / WIDTH;
    assert_eq!(x.len(), pairs * ROWS, "pairs of activations and of the weight");
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let (mut x, mut part) = (x.as_ptr(), part.as_ptr());
    for _ in 0..pairs {
        // SAFETY: `x` has ROWS and `part` has WIDTH elements for each of the pairs.
        unsafe {
            let weights =
                [pairs_of(_mm512_loadu_si512(part.cast())), pairs_of(_mm512_loadu_si512(part.add(16).cast()))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = pairs_of(_mm512_set1_epi32(x.add(row).read().cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], x, weights[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], x, weights[1]);
            }
            (x, part) = (x.add(ROWS), part.add(WIDTH));
        }
    }
    let mask = u32::MAX >> (WIDTH - columns);
    let masks = [mask as __mmask16, (mask >> 16) as __mmask16];
    for (row, sums) in sums.into_iter().enumerate() {
        for (half, (sum, mask)) in sums.into_iter().zip(masks).enumerate() {
            // SAFETY: the mask keeps to the tile, which is the caller's; a masked lane is not touched.
            unsafe {
                let out = out.wrapping_add(row * stride + half * 16);
                let before = if accumulate { _mm512_maskz_loadu_ps(mask, out) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(before, sum));
            }
        }
    }
}

/// A register of numbers of 16 bits, as `vdpbf16ps` takes it.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code, reason = "two names of the same 512 bits")]
pub(super) fn pairs_of(values: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of plain data.
    unsafe { std::mem::transmute(values) }
}
