//! The kernel of f32 numbers: a unit is one number.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{HEIGHT, LANES, Tile, Update, WIDTH, by_size, mask, pack_transposed, tile};
use crate::f32_panels::F32Kernel;
use crate::instructions::Instructions;
use crate::matrix::Matrix;

/// The kernel.
pub(crate) struct Avx512;

impl F32Kernel for Avx512 {
    const LANES: usize = LANES;
    const HEIGHT: usize = HEIGHT;

    fn is_available() -> bool {
        Instructions::Avx512.is_available()
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
        unsafe { by_size!(tile(rows, vectors, at, part), 1 2 3 4 5 6 7 8 9 10 11 12) }
    }
}

tile!(f32, "avx512f,avx512bw", |sum, x, w| _mm512_fmadd_ps(x, w, sum));

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_rows(part: &mut [f32], weight: Matrix<'_>, units: Range<usize>, columns: Range<usize>) {
    let width = part.len() / units.len();
    for (out, unit) in part.chunks_exact_mut(width).zip(units) {
        let row = &weight.row(unit)[columns.clone()];
        // The copy of a known length takes two registers.
        if let (Ok(out), Ok(row)) = (<&mut [f32; WIDTH]>::try_from(&mut *out), <&[f32; WIDTH]>::try_from(row)) {
            *out = *row;
        } else {
            out[..row.len()].copy_from_slice(row);
            out[row.len()..].fill(0.0);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_columns(part: &mut [f32], weight: Matrix<'_>, units: Range<usize>, columns: Range<usize>) {
    let turned = weight.transposed();
    pack_transposed(part, units, columns, |units, column| {
        let values = &turned.row(column)[units];
        // SAFETY: the mask excludes lanes beyond the slice, so they are not read.
        #[allow(unsafe_code, reason = "a load from a slice, masked to its length")]
        unsafe {
            _mm512_castps_si512(_mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()))
        }
    });
}
