//! The kernel of bf16 numbers: a unit is two numbers that are neighbours along `k`. `vdpbf16ps` adds two products of bf16
//! numbers in each of 16 f32 lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{HEIGHT, LANES, Tile, Update, by_size, mask, pack_transposed, tile};
use crate::bf16::{Bf16Matrix, Order, paired_rows};
use crate::instructions::Instructions;
use crate::panels::{self, Left, PARALLEL, Panels, Right, Store, Term, prefetch};

/// Like [`crate::bf16::multiply`], for `k` of 1 or more.
///
/// # Panics
///
/// Panics if the processor lacks the instructions.
pub fn multiply(out: &mut [f32], x: &[f32], weight: Bf16Matrix<'_>, update: Update) {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    let (k, n) = (weight.rows(), weight.columns());
    let (rows, pairs) = (x.len() / k, k.div_ceil(2));
    let units = paired_rows(x, k);
    let x = Left { units: &units, rows, row_stride: pairs, unit_stride: 1 };
    // SAFETY: the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        panels::multiply(out, x, weight, Store { factor: 1.0, update }, rows * n * k >= PARALLEL);
    }
}

/// The product of `x` in pairs ([`paired_rows`]) with a bf16 weight as a term of a sum.
pub fn term<'a>(pairs: &'a [u32], rows: usize, weight: Bf16Matrix<'a>) -> Box<dyn Term + 'a> {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    let x = Left { units: pairs, rows, row_stride: weight.rows().div_ceil(2), unit_stride: 1 };
    Box::new(Panels::new(x, weight, 1.0))
}

impl Right for Bf16Matrix<'_> {
    type Unit = u32;
    const LANES: usize = LANES;
    const HEIGHT: usize = HEIGHT;

    fn shape(&self) -> [usize; 2] {
        [self.rows().div_ceil(2), self.columns()]
    }

    #[allow(unsafe_code, reason = "calls functions compiled for instructions, for which the caller vouches")]
    unsafe fn pack(&self, part: &mut [u32], units: Range<usize>, columns: Range<usize>) {
        // SAFETY: the caller's.
        unsafe {
            match self.order() {
                Order::Rows => pack_rows(part, *self, units, columns),
                Order::Columns => pack_columns(part, *self, units, columns),
            }
        }
    }

    fn prefetch(&self, units: Range<usize>, columns: Range<usize>) {
        match self.order() {
            Order::Rows => {
                let rows = 2 * units.start..self.rows().min(2 * units.end);
                rows.for_each(|row| {
                    self.line(row)[columns.clone()].iter().step_by(32).for_each(|value| prefetch(value))
                });
            }
            Order::Columns if units.is_empty() => {}
            Order::Columns => columns.for_each(|column| prefetch(&self.line(column)[2 * units.start])),
        }
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile(rows: usize, vectors: usize, at: Tile<u32>, part: &[u32]) {
        // SAFETY: the caller's.
        unsafe { by_size!(tile(rows, vectors, at, part), 1 2 3 4 5 6 7 8 9 10 11 12) }
    }
}

tile!(u32, "avx512f,avx512bw,avx512bf16", |sum, x, w| {
    _mm512_dpbf16_ps(sum, pairs_of(_mm512_castps_si512(x)), pairs_of(_mm512_castps_si512(w)))
});

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_rows(part: &mut [u32], weight: Bf16Matrix<'_>, units: Range<usize>, columns: Range<usize>) {
    let width = part.len() / units.len();
    for (out, pair) in part.chunks_exact_mut(width).zip(units) {
        let row = |row: usize| match row < weight.rows() {
            true => load(&weight.line(row)[columns.clone()]),
            false => _mm512_setzero_si512(),
        };
        for (out, pairs) in out.chunks_exact_mut(16).zip(interleaved(row(2 * pair), row(2 * pair + 1))) {
            // SAFETY: `out` has 16 elements of 32 bits.
            #[allow(unsafe_code, reason = "a store of a register to sixteen elements")]
            unsafe {
                _mm512_storeu_si512(out.as_mut_ptr().cast(), pairs);
            }
        }
    }
}

/// Interleaves the numbers of two registers: those of their lower halves, and those of their upper halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn interleaved(even: __m512i, odd: __m512i) -> [__m512i; 2] {
    const fn order(first: i16) -> [i16; 32] {
        let mut lanes = [0; 32];
        let mut lane = 0;
        while lane < 32 {
            lanes[lane] = first + lane as i16 / 2 + (lane as i16 % 2) * 32;
            lane += 1;
        }
        lanes
    }
    const ORDERS: [[i16; 32]; 2] = [order(0), order(16)];
    ORDERS.each_ref().map(|order| _mm512_permutex2var_epi16(even, integers(order), odd))
}

/// A register of 32 numbers of 16 bits.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a load of 64 bytes from an array of 64 bytes")]
pub(super) fn integers<T>(values: &[T; 32]) -> __m512i {
    assert_eq!(size_of::<T>(), 2, "numbers of 16 bits");
    // SAFETY: 32 elements of two bytes.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_columns(part: &mut [u32], weight: Bf16Matrix<'_>, units: Range<usize>, columns: Range<usize>) {
    pack_transposed(part, units, columns, |units, column| {
        let line = weight.line(column);
        load(&line[2 * units.start..line.len().min(2 * units.end)])
    });
}

/// A register of up to 32 numbers, padded with zeros.
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code, reason = "a load from a slice, masked to its length")]
pub(super) fn load(values: &[half::bf16]) -> __m512i {
    let mask = u32::MAX.checked_shr(32 - values.len().min(32) as u32).unwrap_or(0);
    // SAFETY: the mask excludes lanes beyond the slice, so they are not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, values.as_ptr().cast()) }
}

/// The same register as the operand type of `vdpbf16ps`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code, reason = "two types of the same 512 bits")]
pub(super) fn pairs_of(values: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of plain data.
    unsafe { std::mem::transmute(values) }
}
