//! The kernel of AVX2: tiles of 6 rows in 12 registers of 8 lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::f32_panels::F32Kernel;
use crate::instructions::Instructions;
use crate::matrix::Matrix;
use crate::panels::{Tile, by_size};
use crate::product::Update;

/// Lanes of a register.
const LANES: usize = 8;

/// The kernel.
pub(crate) struct Avx2;

impl F32Kernel for Avx2 {
    const LANES: usize = LANES;
    const HEIGHT: usize = 6;

    fn is_available() -> bool {
        Instructions::Avx2.is_available()
    }

    #[allow(unsafe_code, reason = "calls functions compiled for instructions, for which the caller vouches")]
    unsafe fn pack(matrix: Matrix<'_>, part: &mut [f32], units: Range<usize>, columns: Range<usize>) {
        if matrix.has_contiguous_rows() {
            // SAFETY: the caller's.
            unsafe { pack_rows(part, matrix, units, columns) }
        } else {
            // SAFETY: the caller's.
            unsafe { pack_columns(part, matrix, units, columns) }
        }
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile(rows: usize, vectors: usize, at: Tile<f32>, part: &[f32]) {
        // SAFETY: the caller's.
        unsafe { by_size!(tile(rows, vectors, at, part), 1 2 3 4 5 6) }
    }
}

#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code, reason = "loads and stores of registers; the caller vouches for the memory")]
unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile<f32>, part: &[f32]) {
    let Tile { out, stride, columns, x, row_stride, unit_stride, store } = tile;
    let mut sums = [[_mm256_setzero_ps(); VECTORS]; ROWS];
    let rows: [*const f32; ROWS] = std::array::from_fn(|row| x.wrapping_add(row * row_stride));
    let mut at = 0;
    for weights in part.chunks_exact(LANES * VECTORS) {
        // SAFETY: 8 units of the part.
        let weights: [_; VECTORS] =
            std::array::from_fn(|vector| unsafe { _mm256_loadu_ps(weights[LANES * vector..][..LANES].as_ptr()) });
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: a unit of `x`.
            let x = unsafe { _mm256_broadcast_ss(&*row.wrapping_add(at)) };
            for (sum, weights) in sums.iter_mut().zip(&weights) {
                *sum = _mm256_fmadd_ps(x, *weights, *sum);
            }
        }
        at += unit_stride;
    }
    let factor = _mm256_set1_ps(store.factor);
    for (row, sums) in sums.into_iter().enumerate() {
        for (vector, sum) in sums.into_iter().enumerate() {
            let rest = columns - LANES * vector;
            let out = out.wrapping_add(row * stride + LANES * vector);
            // A masked store takes as long as a dozen whole ones.
            if rest >= LANES {
                // SAFETY: 8 elements of the tile.
                unsafe {
                    let before = match store.update {
                        Update::Add => _mm256_loadu_ps(out),
                        Update::Overwrite => _mm256_setzero_ps(),
                    };
                    _mm256_storeu_ps(out, _mm256_fmadd_ps(sum, factor, before));
                }
                continue;
            }
            let mask = mask(rest);
            // SAFETY: the mask selects elements of the tile alone; the others are neither read nor written.
            unsafe {
                let before = match store.update {
                    Update::Add => _mm256_maskload_ps(out, mask),
                    Update::Overwrite => _mm256_setzero_ps(),
                };
                _mm256_maskstore_ps(out, mask, _mm256_fmadd_ps(sum, factor, before));
            }
        }
    }
}

/// A mask of the first `count` of 8 lanes; all lanes if `count` is 8 or more.
#[target_feature(enable = "avx2")]
fn mask(count: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(LANES) as i32), lanes)
}

#[target_feature(enable = "avx2,fma")]
fn pack_rows(part: &mut [f32], matrix: Matrix<'_>, units: Range<usize>, columns: Range<usize>) {
    let width = part.len() / units.len();
    for (out, unit) in part.chunks_exact_mut(width).zip(units) {
        let row = &matrix.row(unit)[columns.clone()];
        // The copy of a known length takes two registers.
        if let (Ok(out), Ok(row)) = (<&mut [f32; 16]>::try_from(&mut *out), <&[f32; 16]>::try_from(row)) {
            *out = *row;
        } else {
            out[..row.len()].copy_from_slice(row);
            out[row.len()..].fill(0.0);
        }
    }
}

/// Packs contiguous columns, in squares of 8 units of 8 columns.
#[target_feature(enable = "avx2,fma")]
fn pack_columns(part: &mut [f32], matrix: Matrix<'_>, units: Range<usize>, columns: Range<usize>) {
    let turned = matrix.transposed();
    let width = part.len() / units.len();
    for start in units.clone().step_by(LANES) {
        let some = start..units.end.min(start + LANES);
        for half in (0..width).step_by(LANES) {
            let mut square = [_mm256_setzero_ps(); LANES];
            for (column, square) in (columns.start + half..columns.end).zip(&mut square) {
                let values = &turned.row(column)[some.clone()];
                // SAFETY: the mask excludes lanes beyond the slice, so they are not read.
                #[allow(unsafe_code, reason = "a load from a slice, masked to its length")]
                unsafe {
                    *square = _mm256_maskload_ps(values.as_ptr(), mask(values.len()));
                }
            }
            for (unit, row) in some.clone().zip(transpose(square)) {
                let out = &mut part[(unit - units.start) * width + half..][..LANES];
                // SAFETY: `out` has 8 elements.
                #[allow(unsafe_code, reason = "a store of a register to eight elements")]
                unsafe {
                    _mm256_storeu_ps(out.as_mut_ptr(), row);
                }
            }
        }
    }
}

/// The transpose of 8 rows of 8 numbers.
#[target_feature(enable = "avx2")]
fn transpose(r: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = r;
    for i in (0..8).step_by(2) {
        pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    // Each half of a register holds the same column of four rows.
    let mut fours = r;
    for i in (0..8).step_by(4) {
        fours[i] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm256_shuffle_ps::<0xEE>(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm256_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm256_shuffle_ps::<0xEE>(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = r;
    for i in 0..4 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
        columns[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
    }
    columns
}
