//! Products in bf16 with a packed weight: a part of a panel is packed from a small tile, which is widened first. Nothing of the weight's size exists.

use std::ops::Range;

use half::bf16;

use super::{HEIGHT, LANES, Tile, Update, WIDTH};
use crate::bf16::{Bf16Matrix, paired_rows};
use crate::f32_panels::{prefetch_stored, step};
use crate::instructions::Instructions;
use crate::packed::{Orientation, PackedView};
use crate::panels::{self, Left, PARALLEL, Panels, Right, Store, Term};

/// Units of `k` of a tile, so that it stays in a core's first-level cache.
const TILE: usize = 64;

/// The product of activations and weights rounded to bf16.
///
/// # Panics
///
/// Panics if the processor lacks the instructions.
pub fn multiply_bf16(out: &mut [f32], x: &[f32], weight: PackedView<'_>, update: Update) {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    let (k, n) = (weight.rows(), weight.columns());
    let (rows, pairs) = (x.len() / k, k.div_ceil(2));
    let units = paired_rows(x, k);
    let x = Left { units: &units, rows, row_stride: pairs, unit_stride: 1 };
    // SAFETY: the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        panels::multiply(out, x, Bf16Panels(weight), Store { factor: 1.0, update }, rows * n * k >= PARALLEL);
    }
}

/// The product of `x` in pairs ([`paired_rows`]) with a packed weight as a term of a sum.
pub fn packed_term<'a>(pairs: &'a [u32], rows: usize, weight: PackedView<'a>) -> Box<dyn Term + 'a> {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    let x = Left { units: pairs, rows, row_stride: weight.rows().div_ceil(2), unit_stride: 1 };
    Box::new(Panels::new(x, Bf16Panels(weight), 1.0))
}

/// A unit is two numbers that are neighbours along `k`.
struct Bf16Panels<'a>(PackedView<'a>);

impl Right for Bf16Panels<'_> {
    type Unit = u32;
    const LANES: usize = LANES;
    const HEIGHT: usize = HEIGHT;

    fn shape(&self) -> [usize; 2] {
        [self.0.rows().div_ceil(2), self.0.columns()]
    }

    fn step(&self) -> usize {
        step(&self.0, 2)
    }

    #[allow(unsafe_code, reason = "calls functions compiled for instructions, for which the caller vouches")]
    unsafe fn pack(&self, part: &mut [u32], units: Range<usize>, columns: Range<usize>) {
        let mut buffer = [bf16::ZERO; 2 * TILE * WIDTH];
        let width = part.len() / units.len();
        for (part, start) in part.chunks_mut(TILE * width).zip(units.clone().step_by(TILE)) {
            let k = 2 * start..self.0.rows().min(2 * units.end).min(2 * (start + TILE));
            let tile = &mut buffer[..k.len() * columns.len()];
            self.0.widen_bf16(k.clone(), columns.clone(), tile);
            let (units, tile_columns) = (0..k.len().div_ceil(2), 0..columns.len());
            let tile = match self.0.orientation() {
                Orientation::Stored => Bf16Matrix::new(tile, k.len(), tile_columns.len()),
                Orientation::Transposed => Bf16Matrix::new(tile, tile_columns.len(), k.len()).transposed(),
            };
            // SAFETY: the caller's.
            unsafe { tile.pack(part, units, tile_columns) }
        }
    }

    fn prefetch(&self, units: Range<usize>, columns: Range<usize>) {
        let rows = self.0.rows();
        prefetch_stored(&self.0, rows.min(2 * units.start)..rows.min(2 * units.end), columns);
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile(rows: usize, vectors: usize, at: Tile<u32>, part: &[u32]) {
        // SAFETY: the caller's.
        unsafe { Bf16Matrix::tile(rows, vectors, at, part) }
    }
}
