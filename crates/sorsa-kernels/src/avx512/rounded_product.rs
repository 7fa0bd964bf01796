//! Products of f32 matrices whose operands are rounded to bf16: the left one before the product, the right one while a part of a panel is
//! packed. The kernel is that of bf16 weights.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{HEIGHT, LANES, Tile, mask, pack_transposed};
use crate::bf16::{Bf16Matrix, paired_columns, paired_rows};
use crate::instructions::Instructions;
use crate::matrix::Matrix;
use crate::panels::{self, Left, PARALLEL, Panels, Right, Store, Term, prefetch};
use crate::product::{Product, Threads, Update};

/// The product of rounded matrices, each of which is contiguous along one axis.
///
/// # Panics
///
/// Panics if the shapes do not fit each other, if a matrix is contiguous along neither axis, or if the processor lacks the instructions.
pub fn multiply_rounded(out: &mut [f32], product: &Product<'_>, update: Update) {
    let Product { lhs, rhs, factor, threads, .. } = *product;
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    assert!(
        lhs.has_contiguous_axis() && rhs.has_contiguous_axis() && lhs.columns() == rhs.rows(),
        "operands of a product"
    );
    let parallel = threads == Threads::All && lhs.rows() * lhs.columns() * rhs.columns() >= PARALLEL;
    let (rows, k) = (lhs.rows(), lhs.columns());
    // Units of a row beside each other, or those of all rows.
    let (units, row_stride, unit_stride) = match lhs.has_contiguous_rows() {
        true if lhs.strides()[0] == k => (paired_rows(&lhs.data()[..rows * k], k), k.div_ceil(2), 1),
        true => {
            let rows: Vec<f32> = (0..rows).flat_map(|row| lhs.row(row).iter().copied()).collect();
            (paired_rows(&rows, k), k.div_ceil(2), 1)
        }
        false => (paired_columns(lhs), 1, rows),
    };
    let x = Left { units: &units, rows, row_stride, unit_stride };
    // SAFETY: the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        panels::multiply(out, x, RoundedPanels(rhs), Store { factor, update }, parallel);
    }
}

/// The product of `x` in pairs ([`paired_rows`]) with an f32 matrix that is contiguous along one axis, as a term of a sum.
pub fn term<'a>(pairs: &'a [u32], rows: usize, rhs: Matrix<'a>) -> Box<dyn Term + 'a> {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    let x = Left { units: pairs, rows, row_stride: rhs.rows().div_ceil(2), unit_stride: 1 };
    Box::new(Panels::new(x, RoundedPanels(rhs), 1.0))
}

/// A unit is two numbers that are neighbours along `k`.
struct RoundedPanels<'a>(Matrix<'a>);

impl Right for RoundedPanels<'_> {
    type Unit = u32;
    const LANES: usize = LANES;
    const HEIGHT: usize = HEIGHT;

    fn shape(&self) -> [usize; 2] {
        [self.0.rows().div_ceil(2), self.0.columns()]
    }

    #[allow(unsafe_code, reason = "calls functions compiled for instructions, for which the caller vouches")]
    unsafe fn pack(&self, part: &mut [u32], units: Range<usize>, columns: Range<usize>) {
        // SAFETY: the caller's.
        unsafe {
            match self.0.has_contiguous_rows() {
                true => pack_rows(part, self.0, units, columns),
                false => pack_columns(part, self.0, units, columns),
            }
        }
    }

    fn prefetch(&self, units: Range<usize>, columns: Range<usize>) {
        let rows = 2 * units.start..self.0.rows().min(2 * units.end);
        if self.0.has_contiguous_rows() {
            rows.for_each(|row| self.0.row(row)[columns.clone()].iter().step_by(16).for_each(|value| prefetch(value)));
        } else if !rows.is_empty() {
            let line = self.0.transposed();
            columns
                .for_each(|column| line.row(column)[rows.clone()].iter().step_by(16).for_each(|value| prefetch(value)));
        }
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile(rows: usize, vectors: usize, at: Tile<u32>, part: &[u32]) {
        // SAFETY: the caller's.
        unsafe { Bf16Matrix::tile(rows, vectors, at, part) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_rows(part: &mut [u32], weight: Matrix<'_>, units: Range<usize>, columns: Range<usize>) {
    let width = part.len() / units.len();
    for (out, unit) in part.chunks_exact_mut(width).zip(units) {
        let low = &weight.row(2 * unit)[columns.clone()];
        let high = if 2 * unit + 1 < weight.rows() { &weight.row(2 * unit + 1)[columns.clone()] } else { &[] };
        for (index, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let from = |line: &[f32]| words(load(&line[line.len().min(16 * index)..]));
            let pairs = _mm512_or_si512(from(low), _mm512_slli_epi32::<16>(from(high)));
            // SAFETY: `out` has 16 elements of 32 bits.
            #[allow(unsafe_code, reason = "a store of a register to sixteen elements")]
            unsafe {
                _mm512_storeu_si512(out.as_mut_ptr().cast(), pairs);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_columns(part: &mut [u32], weight: Matrix<'_>, units: Range<usize>, columns: Range<usize>) {
    let turned = weight.transposed();
    pack_transposed(part, units, columns, |units, column| {
        let line = turned.row(column);
        let values = &line[2 * units.start..line.len().min(2 * units.end)];
        let both = _mm512_cvtne2ps_pbh(load(&values[values.len().min(16)..]), load(values));
        // SAFETY: both are 512 bits of plain data.
        #[allow(unsafe_code, reason = "two types of the same 512 bits")]
        unsafe {
            std::mem::transmute::<__m512bh, __m512i>(both)
        }
    });
}

/// Sixteen numbers rounded to bf16, in the lower halves of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code, reason = "two types of the same 256 bits")]
fn words(values: __m512) -> __m512i {
    // SAFETY: both are 256 bits of plain data.
    _mm512_cvtepu16_epi32(unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) })
}

/// A register of up to 16 numbers, padded with zeros.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a load from a slice, masked to its length")]
fn load(values: &[f32]) -> __m512 {
    // SAFETY: the mask excludes lanes beyond the slice, so they are not read.
    unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
}
