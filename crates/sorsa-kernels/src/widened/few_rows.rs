//! Products of a few rows with a weight that is widened, like in generation. Each thread reads its part of the stored bytes once: it widens a tile
//! that stays in the first-level cache, and multiplies all rows by it.

use std::ops::Range;

use super::WidenedWeight;
use crate::few_rows::{self, by_columns};
use crate::matrix::Matrix;
use crate::packed::Orientation;
use crate::product::Update;
#[cfg(target_arch = "x86_64")]
use crate::{
    avx512,
    bf16::{Bf16Matrix, paired_rows},
    packed::PackedView,
    panels::Left,
};

/// The largest number of rows for which no panels are packed, if there is AVX-512.
pub(crate) const MOST: usize = 32;
/// Values of a tile.
const TILE: usize = 8192;
/// Stored rows of a tile whose rows run across the columns of the result; even, so that pairs of rows are not parted.
const LINES: usize = 16;

/// How tiles are widened and multiplied.
pub(crate) trait Tiles: Sync {
    /// A number of a tile.
    type Value: Copy + Default;

    /// The number of rows.
    fn rows(&self) -> usize;

    /// Widens a part of the weight.
    fn widen(&self, k: Range<usize>, columns: Range<usize>, tile: &mut [Self::Value]);

    /// Adds to `sums` `[rows, columns]` the product of `x` with these columns, if no tile is needed for it; returns whether it did.
    fn add_without_tile(&self, sums: &mut [f32], columns: Range<usize>) -> bool;

    /// Adds to `sums` `[rows, columns]` the product of these columns of `x` with a tile.
    fn add(&self, sums: &mut [f32], k: Range<usize>, columns: usize, tile: &[Self::Value]);
}

/// The product `x W`; `tiles` holds `x`.
pub(crate) fn multiply<T: Tiles>(out: &mut [f32], weight: impl WidenedWeight, update: Update, tiles: &T) {
    let [k, n] = weight.shape();
    let (columns_of_a_tile, k_of_a_tile) = match weight.orientation() {
        // Kernels take four stored rows at a time.
        Orientation::Transposed => ((TILE / k).max(4) & !3, k),
        Orientation::Stored => (TILE / LINES, LINES),
    };
    by_columns(out, [k, n], update, |columns, part| {
        if tiles.add_without_tile(part, columns.clone()) {
            return;
        }
        let width = columns.len();
        let mut tile = Vec::new();
        let mut sums = Vec::new();
        for first in columns.clone().step_by(columns_of_a_tile) {
            let some = first..columns.end.min(first + columns_of_a_tile);
            sums.clear();
            sums.resize(tiles.rows() * some.len(), 0.0);
            for start in (0..k).step_by(k_of_a_tile) {
                let k = start..k.min(start + k_of_a_tile);
                tile.resize(k.len() * some.len(), T::Value::default());
                tiles.widen(k.clone(), some.clone(), &mut tile);
                tiles.add(&mut sums, k, some.len(), &tile);
            }
            for (part, sums) in part.chunks_exact_mut(width).zip(sums.chunks_exact(some.len())) {
                let part = &mut part[first - columns.start..];
                part.iter_mut().zip(sums).for_each(|(part, sum)| *part += sum);
            }
        }
    });
}

/// Tiles of f32.
pub(crate) struct F32Tiles<'a, W> {
    x: &'a [f32],
    weight: W,
}

impl<'a, W: WidenedWeight> F32Tiles<'a, W> {
    /// `x` is `[rows, k]`.
    pub(crate) fn new(x: &'a [f32], weight: W) -> Self {
        Self { x, weight }
    }
}

impl<W: WidenedWeight> Tiles for F32Tiles<'_, W> {
    type Value = f32;

    fn rows(&self) -> usize {
        self.x.len() / self.weight.shape()[0]
    }

    fn widen(&self, k: Range<usize>, columns: Range<usize>, tile: &mut [f32]) {
        self.weight.widen_f32(k, columns, tile);
    }

    fn add_without_tile(&self, sums: &mut [f32], columns: Range<usize>) -> bool {
        self.weight.add_dots(columns, self.x, sums)
    }

    fn add(&self, sums: &mut [f32], k: Range<usize>, columns: usize, tile: &[f32]) {
        match self.weight.orientation() {
            Orientation::Transposed => {
                let weight = Matrix::new(tile, columns, k.len()).transposed();
                few_rows::add_product(sums, self.x, weight, 0..columns);
            }
            Orientation::Stored => {
                let mut x = [0.0; MOST * LINES];
                let x = &mut x[..self.rows() * k.len()];
                for (some, all) in x.chunks_exact_mut(k.len()).zip(self.x.chunks_exact(self.weight.shape()[0])) {
                    some.copy_from_slice(&all[k.clone()]);
                }
                few_rows::add_product(sums, x, Matrix::new(tile, k.len(), columns), 0..columns);
            }
        }
    }
}

/// Tiles of bf16, for the instructions of AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Bf16Tiles<'a> {
    /// `[rows, pairs of k]`.
    x: Vec<u32>,
    rows: usize,
    weight: PackedView<'a>,
}

#[cfg(target_arch = "x86_64")]
impl<'a> Bf16Tiles<'a> {
    /// `x` is `[rows, k]`.
    pub(crate) fn new(x: &[f32], weight: PackedView<'a>) -> Self {
        let k = weight.rows();
        Self { x: paired_rows(x, k), rows: x.len() / k, weight }
    }
}

#[cfg(target_arch = "x86_64")]
impl Tiles for Bf16Tiles<'_> {
    type Value = half::bf16;

    fn rows(&self) -> usize {
        self.rows
    }

    fn widen(&self, k: Range<usize>, columns: Range<usize>, tile: &mut [half::bf16]) {
        self.weight.widen_bf16(k, columns, tile);
    }

    fn add_without_tile(&self, sums: &mut [f32], columns: Range<usize>) -> bool {
        let row_stride = self.weight.rows().div_ceil(2);
        self.weight.add_dots_bf16(columns, Left { units: &self.x, rows: self.rows, row_stride, unit_stride: 1 }, sums)
    }

    fn add(&self, sums: &mut [f32], k: Range<usize>, columns: usize, tile: &[half::bf16]) {
        let weight = match self.weight.orientation() {
            Orientation::Transposed => Bf16Matrix::new(tile, columns, k.len()).transposed(),
            Orientation::Stored => Bf16Matrix::new(tile, k.len(), columns),
        };
        // A tile begins at an even `k`.
        let units = &self.x[k.start / 2..];
        let x = Left { units, rows: self.rows, row_stride: self.weight.rows().div_ceil(2), unit_stride: 1 };
        avx512::add_product_bf16(sums, x, weight, 0..columns);
    }
}
