//! Products with a packed weight: a part of a panel is packed from a small tile, which is widened first. Nothing of the weight's size exists.

use std::ops::Range;

use half::bf16;

use super::{Left, PARALLEL, Right, Store, Tile, WIDTH, has_bf16, has_f32, multiply as multiply_panels, prefetch};
use crate::bf16::{Bf16Matrix, paired_rows};
use crate::matrix::Matrix;
use crate::packed::{Orientation, PIECE, PackedView};
use crate::product::Update;

/// Units of `k` of a tile, so that it stays in a core's first-level cache.
const TILE: usize = 64;

/// The product with the weight's values in f32, or rounded to bf16 if that is its precision.
///
/// # Panics
///
/// Panics if the processor lacks the instructions.
pub fn multiply_f32(out: &mut [f32], x: &[f32], weight: PackedView<'_>, update: Update) {
    assert!(has_f32(), "the processor lacks the instructions");
    let (k, n) = (weight.rows(), weight.columns());
    let rows = x.len() / k;
    let x = Left { units: x, rows, row_stride: k, unit_stride: 1 };
    // SAFETY: `has_f32` says that the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        multiply_panels(out, x, &F32Panels(weight), Store { factor: 1.0, update }, rows * n * k >= PARALLEL);
    }
}

/// The product of activations and weights rounded to bf16.
///
/// # Panics
///
/// Panics if the processor lacks the instructions.
pub fn multiply_bf16(out: &mut [f32], x: &[f32], weight: PackedView<'_>, update: Update) {
    assert!(has_bf16(), "the processor lacks the instructions");
    let (k, n) = (weight.rows(), weight.columns());
    let (rows, pairs) = (x.len() / k, k.div_ceil(2));
    let units = paired_rows(x, k);
    let x = Left { units: &units, rows, row_stride: pairs, unit_stride: 1 };
    // SAFETY: `has_bf16` says that the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        multiply_panels(out, x, &Bf16Panels(weight), Store { factor: 1.0, update }, rows * n * k >= PARALLEL);
    }
}

/// A unit is a number.
struct F32Panels<'a>(PackedView<'a>);

/// A unit is two numbers that are neighbours along `k`.
struct Bf16Panels<'a>(PackedView<'a>);

impl Right for F32Panels<'_> {
    type Unit = f32;

    fn shape(&self) -> [usize; 2] {
        [self.0.rows(), self.0.columns()]
    }

    fn step(&self) -> usize {
        step(self.0, 1)
    }

    #[allow(unsafe_code, reason = "calls functions compiled for instructions, for which the caller vouches")]
    unsafe fn pack(&self, part: &mut [f32], units: Range<usize>, columns: Range<usize>) {
        let mut buffer = [0.0; TILE * WIDTH];
        let width = part.len() / units.len();
        for (part, start) in part.chunks_mut(TILE * width).zip(units.clone().step_by(TILE)) {
            let k = start..units.end.min(start + TILE);
            let tile = &mut buffer[..k.len() * columns.len()];
            self.0.widen_f32(k.clone(), columns.clone(), tile);
            let (units, tile_columns) = (0..k.len(), 0..columns.len());
            let tile = match self.0.orientation() {
                Orientation::Stored => Matrix::new(tile, units.len(), tile_columns.len()),
                Orientation::Transposed => Matrix::new(tile, tile_columns.len(), units.len()).transposed(),
            };
            // SAFETY: the caller's.
            unsafe { tile.pack(part, units, tile_columns) }
        }
    }

    fn prefetch(&self, units: Range<usize>, columns: Range<usize>) {
        prefetch_stored(self.0, units, columns);
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile<const ROWS: usize, const VECTORS: usize>(at: Tile<f32>, part: &[f32]) {
        // SAFETY: the caller's.
        unsafe { Matrix::tile::<ROWS, VECTORS>(at, part) }
    }
}

impl Right for Bf16Panels<'_> {
    type Unit = u32;

    fn shape(&self) -> [usize; 2] {
        [self.0.rows().div_ceil(2), self.0.columns()]
    }

    fn step(&self) -> usize {
        step(self.0, 2)
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
        prefetch_stored(self.0, rows.min(2 * units.start)..rows.min(2 * units.end), columns);
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile<const ROWS: usize, const VECTORS: usize>(at: Tile<u32>, part: &[u32]) {
        // SAFETY: the caller's.
        unsafe { Bf16Matrix::tile::<ROWS, VECTORS>(at, part) }
    }
}

/// Units after which a part may end: if stored rows run along `k`, they are widened in whole pieces.
fn step(weight: PackedView<'_>, unit: usize) -> usize {
    match weight.orientation() {
        Orientation::Stored => 1,
        Orientation::Transposed => PIECE / unit,
    }
}

/// Prefetches the first byte of each stored row.
fn prefetch_stored(weight: PackedView<'_>, k: Range<usize>, columns: Range<usize>) {
    if k.is_empty() || columns.is_empty() {
        return;
    }
    match weight.orientation() {
        Orientation::Stored => k.for_each(|row| prefetch(weight.address(row, columns.start))),
        Orientation::Transposed => columns.for_each(|column| prefetch(weight.address(k.start, column))),
    }
}
