//! Products by panels of f32 numbers, whose kernel is that of some set of instructions.

use std::marker::PhantomData;
use std::ops::Range;

use crate::matrix::Matrix;
use crate::packed::Orientation;
use crate::panels::{self, Left, PARALLEL, Panels, Right, Store, Term, Tile, prefetch};
use crate::product::{Product, Threads, Update};
use crate::widened::WidenedWeight;

/// Units of `k` of a tile of a weight that is widened; it stays in a core's first-level cache.
const TILE: usize = 64;
/// The most columns of a panel.
const WIDEST: usize = 32;

/// A kernel of f32 numbers, like [`Right`] describes it.
pub(crate) trait F32Kernel: Send + Sync {
    /// Lanes of a register.
    const LANES: usize;
    /// The most rows of a tile.
    const HEIGHT: usize;

    /// Whether this processor has the instructions.
    fn is_available() -> bool;

    /// Packs a matrix that is contiguous along one axis.
    ///
    /// # Safety
    ///
    /// The processor must have the kernel's instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions")]
    unsafe fn pack(matrix: Matrix<'_>, part: &mut [f32], units: Range<usize>, columns: Range<usize>);

    /// Computes a tile.
    ///
    /// # Safety
    ///
    /// That of [`Right::tile`].
    #[allow(unsafe_code, reason = "a function compiled for instructions, which works on pointers")]
    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<f32>, part: &[f32]);
}

/// The product of f32 matrices.
///
/// # Panics
///
/// Panics if the shapes do not fit each other, if the right operand is contiguous along neither axis, or if the processor lacks
/// the instructions.
pub(crate) fn multiply<K: F32Kernel>(out: &mut [f32], product: &Product<'_>, update: Update) {
    let Product { lhs: x, rhs: weight, factor, threads, .. } = *product;
    assert!(K::is_available(), "the processor lacks the instructions");
    assert!(weight.has_contiguous_axis() && x.columns() == weight.rows(), "operands of a product");
    let parallel = threads == Threads::All && x.rows() * x.columns() * weight.columns() >= PARALLEL;
    let x = left(x);
    let right = MatrixPanels::<K> { weight, kernel: PhantomData };
    // SAFETY: the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        panels::multiply(out, x, right, Store { factor, update }, parallel);
    }
}

/// The product of `x` with a weight that is widened while it is packed, so that nothing of its size exists.
///
/// # Panics
///
/// Panics if the processor lacks the instructions.
pub(crate) fn multiply_widened<K: F32Kernel>(out: &mut [f32], x: &[f32], weight: impl WidenedWeight, update: Update) {
    assert!(K::is_available(), "the processor lacks the instructions");
    let [k, n] = weight.shape();
    let rows = x.len() / k;
    let x = Left { units: x, rows, row_stride: k, unit_stride: 1 };
    let right = WidenedPanels::<_, K> { weight, kernel: PhantomData };
    // SAFETY: the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        panels::multiply(out, x, right, Store { factor: 1.0, update }, rows * n * k >= PARALLEL);
    }
}

/// The product of f32 matrices as a term of a sum; see [`multiply`].
pub(crate) fn term<'a, K: F32Kernel + 'a>(x: Matrix<'a>, weight: Matrix<'a>, factor: f32) -> Box<dyn Term + 'a> {
    assert!(K::is_available(), "the processor lacks the instructions");
    assert!(weight.has_contiguous_axis() && x.columns() == weight.rows(), "operands of a product");
    Box::new(Panels::new(left(x), MatrixPanels::<K> { weight, kernel: PhantomData }, factor))
}

/// The product with a widened weight as a term of a sum; see [`multiply_widened`].
pub(crate) fn widened_term<'a, K: F32Kernel + 'a>(
    x: Matrix<'a>,
    weight: impl WidenedWeight + 'a,
) -> Box<dyn Term + 'a> {
    assert!(K::is_available(), "the processor lacks the instructions");
    assert_eq!(x.columns(), weight.shape()[0], "operands of a product");
    Box::new(Panels::new(left(x), WidenedPanels::<_, K> { weight, kernel: PhantomData }, 1.0))
}

fn left(x: Matrix<'_>) -> Left<'_, f32> {
    let [row_stride, unit_stride] = x.strides();
    Left { units: x.data(), rows: x.rows(), row_stride, unit_stride }
}

struct MatrixPanels<'a, K> {
    weight: Matrix<'a>,
    kernel: PhantomData<K>,
}

struct WidenedPanels<W, K> {
    weight: W,
    kernel: PhantomData<K>,
}

impl<K: F32Kernel> Right for MatrixPanels<'_, K> {
    type Unit = f32;
    const LANES: usize = K::LANES;
    const HEIGHT: usize = K::HEIGHT;

    fn shape(&self) -> [usize; 2] {
        [self.weight.rows(), self.weight.columns()]
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn pack(&self, part: &mut [f32], units: Range<usize>, columns: Range<usize>) {
        // SAFETY: the caller's.
        unsafe { K::pack(self.weight, part, units, columns) }
    }

    fn prefetch(&self, units: Range<usize>, columns: Range<usize>) {
        if self.weight.has_contiguous_rows() {
            let line = |unit: usize| &self.weight.row(unit)[columns.clone()];
            units.for_each(|unit| line(unit).iter().step_by(16).for_each(|value| prefetch(value)));
        } else if !units.is_empty() {
            columns.for_each(|column| prefetch(&self.weight.transposed().row(column)[units.start]));
        }
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<f32>, part: &[f32]) {
        // SAFETY: the caller's.
        unsafe { K::tile(rows, vectors, tile, part) }
    }
}

impl<W: WidenedWeight, K: F32Kernel> Right for WidenedPanels<W, K> {
    type Unit = f32;
    const LANES: usize = K::LANES;
    const HEIGHT: usize = K::HEIGHT;

    fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    fn step(&self) -> usize {
        step(&self.weight, 1)
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn pack(&self, part: &mut [f32], units: Range<usize>, columns: Range<usize>) {
        let mut buffer = [0.0; TILE * WIDEST];
        let width = part.len() / units.len();
        for (part, start) in part.chunks_mut(TILE * width).zip(units.clone().step_by(TILE)) {
            let k = start..units.end.min(start + TILE);
            let tile = &mut buffer[..k.len() * columns.len()];
            self.weight.widen_f32(k.clone(), columns.clone(), tile);
            let (units, tile_columns) = (0..k.len(), 0..columns.len());
            let tile = match self.weight.orientation() {
                Orientation::Stored => Matrix::new(tile, units.len(), tile_columns.len()),
                Orientation::Transposed => Matrix::new(tile, tile_columns.len(), units.len()).transposed(),
            };
            // SAFETY: the caller's.
            unsafe { K::pack(tile, part, units, tile_columns) }
        }
    }

    fn prefetch(&self, units: Range<usize>, columns: Range<usize>) {
        prefetch_stored(&self.weight, units, columns);
    }

    #[allow(unsafe_code, reason = "calls a function compiled for instructions, for which the caller vouches")]
    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<f32>, part: &[f32]) {
        // SAFETY: the caller's.
        unsafe { K::tile(rows, vectors, tile, part) }
    }
}

/// Units after which a part may end, if a unit is so many elements: if stored lines run along `k`, they are widened in whole pieces.
pub(crate) fn step(weight: &impl WidenedWeight, unit: usize) -> usize {
    match weight.orientation() {
        Orientation::Stored => 1,
        Orientation::Transposed => (weight.piece() / unit).max(1),
    }
}

/// Prefetches the first byte of each stored line.
pub(crate) fn prefetch_stored(weight: &impl WidenedWeight, k: Range<usize>, columns: Range<usize>) {
    if k.is_empty() || columns.is_empty() {
        return;
    }
    match weight.orientation() {
        Orientation::Stored => k.for_each(|row| prefetch(weight.address(row, columns.start))),
        Orientation::Transposed => columns.for_each(|column| prefetch(weight.address(k.start, column))),
    }
}
