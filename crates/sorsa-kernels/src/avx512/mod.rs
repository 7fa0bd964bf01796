//! Products by AVX-512: `out [rows, n] (+)= factor x [rows, k] W [k, n]`, of f32 numbers, and of bf16 numbers with sums in f32.
//!
//! A thread takes panels of 32 columns of the weight and packs a part of a panel, about two hundred units of `k` high. Then
//! all rows of `x` pass over the part, twelve at a time, read in place. Their tile of the result stays in 24 registers for the
//! height of the part. A unit fills one lane: one f32 number, or two bf16 numbers that are neighbours along `k`.
//!
//! A row of `out` depends on the same row of `x` alone, and not on the number of threads.

mod bf16_few_rows;
mod bf16_product;
mod f32_product;
mod packed_product;
mod widen;

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use crate::product::Update;

pub(crate) use self::bf16_few_rows::{add_product, left_operand, multiply as multiply_bf16_few_rows};
pub(crate) use self::bf16_product::{available as has_bf16, multiply as multiply_bf16};
pub(crate) use self::f32_product::{available as has_f32, multiply as multiply_f32};
pub(crate) use self::packed_product::{multiply_bf16 as multiply_packed_bf16, multiply_f32 as multiply_packed_f32};
pub(crate) use self::widen::{widen_bf16, widen_f32};

/// Rows of a tile.
const HEIGHT: usize = 12;
/// Columns of a panel: two registers.
const WIDTH: usize = 32;
/// Units of `k` of a packed part; it leaves room for rows of `x` in a core's first-level cache.
const DEPTH: usize = 192;
/// The most rows of `x` of one task, so that they stay in a core's second-level cache from panel to panel.
const ROWS: usize = 512;
/// The least tasks for each thread, if there are enough rows.
const TASKS: usize = 4;
/// Multiplications from which waking threads saves more than it costs.
const PARALLEL: usize = 128 * 128 * 128;

/// The left operand: unit `u` of row `r` is element `r * row_stride + u * unit_stride`.
#[derive(Clone, Copy)]
struct Left<'a, U> {
    units: &'a [U],
    rows: usize,
    row_stride: usize,
    unit_stride: usize,
}

/// The result. Each task writes its own rows and columns.
struct Output {
    data: *mut f32,
    columns: usize,
}

#[allow(unsafe_code, reason = "tasks write disjoint elements, and nobody reads before all are done")]
// SAFETY: see the reason; the pointer is to f32, which may be sent.
unsafe impl Sync for Output {}

/// One tile: its rows and columns of the result, and its rows of `x`.
#[derive(Clone, Copy)]
struct Tile<U> {
    /// The first element; rows are `stride` apart.
    out: *mut f32,
    stride: usize,
    columns: usize,
    /// The first unit of the first row.
    x: *const U,
    row_stride: usize,
    unit_stride: usize,
    store: Store,
}

/// How a tile is stored: `out = factor sum`, or `out += factor sum`.
#[derive(Clone, Copy)]
struct Store {
    factor: f32,
    update: Update,
}

/// A packed part of a panel, and the block of the result to which it contributes.
struct Part<'a, U> {
    /// The packed units.
    packed: &'a [U],
    /// The first unit of `k` of the part.
    first_unit: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    store: Store,
}

/// A right operand and the kernel for its units.
trait Right: Sync {
    /// The content of one lane, 32 bits.
    type Unit: Copy + Default + Send + Sync;

    /// Units of `k`, and columns.
    fn shape(&self) -> [usize; 2];

    /// A part of a panel is a multiple of so many units high, unless it is the last.
    fn step(&self) -> usize {
        1
    }

    /// Packs units of at most [`WIDTH`] columns unit by unit, and pads each with zeros to the width of `part`.
    ///
    /// # Safety
    ///
    /// The processor must have the kernel's instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions")]
    unsafe fn pack(&self, part: &mut [Self::Unit], units: Range<usize>, columns: Range<usize>);

    /// Prefetches the units and columns that the task packs next. If columns are contiguous, it prefetches the cache line with
    /// the first unit of each; that line holds several of the units that follow.
    fn prefetch(&self, units: Range<usize>, columns: Range<usize>);

    /// Computes a tile of `ROWS` rows and at most 16 `VECTORS` columns from a packed part.
    ///
    /// # Safety
    ///
    /// The processor must have the kernel's instructions. The tile's elements must be valid for reads and writes, and nobody
    /// else may access them; `x` must have the tile's rows, with all units of the part.
    #[allow(unsafe_code, reason = "a function compiled for instructions, which works on pointers")]
    unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile<Self::Unit>, part: &[Self::Unit]);
}

/// Computes the product, on all threads if `parallel`.
///
/// # Safety
///
/// The processor must have the instructions of the kernel of `R`.
#[allow(unsafe_code, reason = "calls functions compiled for instructions; the bounds they rely on are asserted")]
unsafe fn multiply<R: Right>(out: &mut [f32], x: Left<'_, R::Unit>, right: &R, store: Store, parallel: bool) {
    let [depth, columns] = right.shape();
    assert_eq!(Some(out.len()), x.rows.checked_mul(columns), "a product of [{}, {columns}]", x.rows);
    if out.is_empty() {
        return;
    }
    if depth == 0 {
        if store.update == Update::Overwrite {
            out.fill(0.0);
        }
        return;
    }
    let last = (x.rows - 1) * x.row_stride + (depth - 1) * x.unit_stride;
    assert!(last < x.units.len(), "rows of {depth} units reach beyond {}", x.units.len());
    let output = Output { data: out.as_mut_ptr(), columns };
    let panels = columns.div_ceil(WIDTH);
    let tasks = if parallel { TASKS * rayon::current_num_threads() } else { 1 };
    let chunks = x.rows.div_ceil(ROWS).max(tasks.div_ceil(panels).min(x.rows.div_ceil(4 * HEIGHT)));
    let chunk = x.rows.div_ceil(chunks);
    // Parts have about the same height: a low part at the end would load and store tiles for little work.
    let height = depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(right.step());
    let task = |part: &mut Vec<R::Unit>, index: usize| {
        let (row, column) = (index / panels * chunk, index % panels * WIDTH);
        let (rows, columns) = (row..x.rows.min(row + chunk), column..columns.min(column + WIDTH));
        let width = if columns.len() > WIDTH / 2 { WIDTH } else { WIDTH / 2 };
        part.resize(height * width, R::Unit::default());
        for start in (0..depth).step_by(height) {
            let units = start..depth.min(start + height);
            let part = &mut part[..units.len() * width];
            let update = if start > 0 { Update::Add } else { store.update };
            let store = Store { update, ..store };
            // The task packs next the part below, or the top of the panel to the right.
            let (units_next, columns_next) = match units.end < depth {
                true => (units.end..depth.min(units.end + height), columns.clone()),
                false => (0..depth.min(height), columns.end..right.shape()[1].min(columns.end + WIDTH)),
            };
            let prefetch = |share: usize, shares: usize| {
                let at = |share: usize| units_next.start + units_next.len() * share / shares;
                right.prefetch(at(share)..at(share + 1), columns_next.clone());
            };
            // SAFETY: the caller vouches for the instructions; rows and columns are within `out` and no other task has them;
            // `x` has those rows and units.
            unsafe {
                right.pack(part, units, columns.clone());
                let (rows, columns) = (rows.clone(), columns.clone());
                let part = Part { packed: part, first_unit: start, rows, columns, store };
                tiles::<R>(&output, x, &part, prefetch);
            }
        }
    };
    if parallel {
        (0..panels * chunks).into_par_iter().for_each_init(Vec::new, task);
    } else {
        let mut part = Vec::new();
        (0..panels * chunks).for_each(|index| task(&mut part, index));
    }
}

/// Computes the tiles of one packed part. Calls `before_tile` with the index of each tile and the number of tiles.
///
/// # Safety
///
/// The conditions of [`Right::tile`] must hold for all rows and columns of the part.
#[allow(unsafe_code, reason = "writes tiles through the pointer that tasks share")]
unsafe fn tiles<R: Right>(
    out: &Output,
    x: Left<'_, R::Unit>,
    part: &Part<'_, R::Unit>,
    before_tile: impl Fn(usize, usize),
) {
    let Part { packed, first_unit, ref rows, ref columns, store } = *part;
    if rows.is_empty() {
        return;
    }
    let narrow = columns.len() <= WIDTH / 2;
    let height = rows.len().div_ceil(rows.len().div_ceil(HEIGHT));
    let tiles = rows.len().div_ceil(height);
    for (index, row) in rows.clone().step_by(height).enumerate() {
        before_tile(index, tiles);
        let Left { units, row_stride, unit_stride, .. } = x;
        // SAFETY: the caller vouches for the rows and columns; the tile and the part of `x` that it reads lie within them.
        unsafe {
            let tile = Tile {
                out: out.data.add(row * out.columns + columns.start),
                stride: out.columns,
                columns: columns.len(),
                x: units.as_ptr().add(row * row_stride + first_unit * unit_stride),
                row_stride,
                unit_stride,
                store,
            };
            macro_rules! by_height {
                ($($height:literal)*) => {
                    match (height.min(rows.end - row), narrow) {
                        $(($height, false) => R::tile::<$height, 2>(tile, packed),
                        ($height, true) => R::tile::<$height, 1>(tile, packed),)*
                        _ => unreachable!("a tile has 1 to {HEIGHT} rows"),
                    }
                };
            }
            by_height!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }
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

/// Prefetches the cache line of an address into the second-level cache.
fn prefetch<T>(address: *const T) {
    // SAFETY: a hint, which reads nothing.
    #[allow(unsafe_code, reason = "a hint to the processor")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
}

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
