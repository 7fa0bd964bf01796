//! The kernel of f32 numbers: a unit is one number.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{
    Left, PARALLEL, Right, Store, Tile, WIDTH, mask, multiply as multiply_panels, pack_transposed, prefetch, tile,
};
use crate::matrix::Matrix;
use crate::product::{Product, Threads, Update};

/// Whether this processor has the instructions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// Computes the product.
///
/// # Panics
///
/// Panics if the shapes do not fit each other, if the right operand is contiguous along neither axis, or if the processor lacks
/// the instructions.
pub fn multiply(out: &mut [f32], product: &Product<'_>, update: Update) {
    let Product { lhs: x, rhs: weight, factor, threads } = *product;
    assert!(available(), "the processor lacks the instructions");
    assert!(weight.has_contiguous_axis() && x.columns() == weight.rows(), "operands of a product");
    let parallel = threads == Threads::All && x.rows() * x.columns() * weight.columns() >= PARALLEL;
    let [row_stride, unit_stride] = x.strides();
    let x = Left { units: x.data(), rows: x.rows(), row_stride, unit_stride };
    // SAFETY: `available` says that the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        multiply_panels(out, x, &weight, Store { factor, update }, parallel);
    }
}

impl Right for Matrix<'_> {
    type Unit = f32;

    fn shape(&self) -> [usize; 2] {
        [self.rows(), self.columns()]
    }

    #[allow(unsafe_code, reason = "calls functions compiled for instructions, for which the caller vouches")]
    unsafe fn pack(&self, part: &mut [f32], units: Range<usize>, columns: Range<usize>) {
        if self.has_contiguous_rows() {
            // SAFETY: the caller's.
            unsafe { pack_rows(part, *self, units, columns) }
        } else {
            // SAFETY: the caller's.
            unsafe { pack_columns(part, *self, units, columns) }
        }
    }

    fn prefetch(&self, units: Range<usize>, columns: Range<usize>) {
        if self.has_contiguous_rows() {
            units.for_each(|unit| self.row(unit)[columns.clone()].iter().step_by(16).for_each(|value| prefetch(value)));
        } else if !units.is_empty() {
            columns.for_each(|column| prefetch(&self.transposed().row(column)[units.start]));
        }
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile<const ROWS: usize, const VECTORS: usize>(at: Tile<f32>, part: &[f32]) {
        // SAFETY: the caller's.
        unsafe { tile::<ROWS, VECTORS>(at, part) }
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
