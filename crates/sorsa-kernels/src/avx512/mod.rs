//! The kernels of AVX-512: of f32 numbers, and of bf16 numbers with sums in f32. A tile has 12 rows, in 24 registers.

mod bf16_packed_product;
mod bf16_product;
mod f32_kernel;
mod few_rows;
mod rounded_product;
mod widen;

use std::arch::x86_64::*;
use std::ops::Range;

pub(crate) use self::bf16_packed_product::{multiply_bf16 as multiply_packed_bf16, packed_term as packed_bf16_term};
pub(crate) use self::bf16_product::{multiply as multiply_bf16, term as bf16_term};
pub(crate) use self::f32_kernel::Avx512;
pub(crate) use self::few_rows::{add_product_bf16, add_product_f32, multiply_bf16 as multiply_few_rows_bf16};
pub(crate) use self::rounded_product::{multiply_rounded, term as rounded_term};
pub(crate) use self::widen::{MOST_DOTS, add_dots_bf16, add_dots_f32, widen_bf16, widen_f32};
use crate::instructions::Instructions;
use crate::panels::{Tile, by_size};
use crate::product::Update;

/// Lanes of a register.
const LANES: usize = 16;
/// Columns of a panel.
const WIDTH: usize = 2 * LANES;
/// Rows of a tile.
const HEIGHT: usize = 12;

/// Whether kernels of AVX-512 are used.
pub(crate) fn has_f32() -> bool {
    Instructions::used() >= Instructions::Avx512
}

/// Whether kernels of AVX-512 BF16 are used.
pub(crate) fn has_bf16() -> bool {
    Instructions::used() >= Instructions::Avx512Bf16
}

/// Defines the function `tile` behind [`Right::tile`] for lanes of `$unit`, compiled for `$features`; `$product` is
/// `sum + x w`, lane by lane.
macro_rules! tile {
    ($unit:ty, $features:literal, |$sum:ident, $x:ident, $w:ident| $product:expr) => {
        #[target_feature(enable = $features)]
        #[allow(unsafe_code, reason = "loads and stores of registers; the caller vouches for the memory")]
        unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile<$unit>, part: &[$unit]) {
            let Tile { out, stride, columns, x, row_stride, unit_stride, store } = tile;
            let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
            let rows: [*const $unit; ROWS] = std::array::from_fn(|row| x.wrapping_add(row * row_stride));
            let mut at = 0;
            for weights in part.chunks_exact(16 * VECTORS) {
                let weights: [_; VECTORS] = std::array::from_fn(|vector| {
                    // SAFETY: 16 units of the part.
                    unsafe { _mm512_loadu_ps(weights[16 * vector..][..16].as_ptr().cast()) }
                });
                for (row, sums) in rows.iter().zip(&mut sums) {
                    // SAFETY: a unit of `x`, of 32 bits.
                    let $x = _mm512_set1_ps(unsafe { row.wrapping_add(at).cast::<f32>().read() });
                    for (sum, weights) in sums.iter_mut().zip(&weights) {
                        let ($sum, $w) = (*sum, *weights);
                        *sum = $product;
                    }
                }
                at += unit_stride;
            }
            let factor = _mm512_set1_ps(store.factor);
            for (row, sums) in sums.into_iter().enumerate() {
                for (vector, sum) in sums.into_iter().enumerate() {
                    let mask = mask(columns - 16 * vector);
                    let out = out.wrapping_add(row * stride + 16 * vector);
                    // SAFETY: the mask selects elements of the tile alone; the others are neither read nor written.
                    unsafe {
                        let before = match store.update {
                            Update::Add => _mm512_maskz_loadu_ps(mask, out),
                            Update::Overwrite => _mm512_setzero_ps(),
                        };
                        _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(sum, factor, before));
                    }
                }
            }
        }
    };
}
use tile;

/// A mask of the first `count` of 16 lanes; all lanes if `count` is 16 or more.
fn mask(count: usize) -> __mmask16 {
    u16::MAX.checked_shr(16 - count.min(16) as u32).unwrap_or(0)
}

/// The transpose of 16 rows of 16 numbers of 32 bits.
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = r;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    // Each quarter of a register holds the same column of four rows.
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

/// Packs contiguous columns, in squares of 16 units of 16 columns. `load` returns a range of at most 16 units of a column, padded
/// with zeros.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_transposed<U>(
    part: &mut [U],
    units: Range<usize>,
    columns: Range<usize>,
    load: impl Fn(Range<usize>, usize) -> __m512i,
) {
    const { assert!(size_of::<U>() == 4, "units of 32 bits") };
    let width = part.len() / units.len();
    for start in units.clone().step_by(16) {
        let some = start..units.end.min(start + 16);
        for half in (0..width).step_by(16) {
            let mut square = [_mm512_setzero_si512(); 16];
            for (column, square) in (columns.start + half..columns.end).zip(&mut square) {
                *square = load(some.clone(), column);
            }
            for (unit, row) in some.clone().zip(transpose(square)) {
                let out = &mut part[(unit - units.start) * width + half..][..16];
                // SAFETY: `out` has 16 elements of 32 bits.
                #[allow(unsafe_code, reason = "a store of a register to sixteen elements")]
                unsafe {
                    _mm512_storeu_si512(out.as_mut_ptr().cast(), row);
                }
            }
        }
    }
}
