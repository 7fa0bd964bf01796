//! Products by AVX-512: `out [rows, n] (+)= factor x [rows, k] W [k, n]`, of f32 numbers and of bf16 ones with sums in f32.
//!
//! A thread takes panels of 32 columns of the weight. A part of a panel, some hundred units of `k` high, is packed, and
//! all rows of `x` pass over it, twelve at a time, read where they lie. Their tile of the result stays in 24 registers
//! for as long as that part lasts. A unit fills a lane: one f32 number, or two bf16 numbers that are neighbours in `k`.
//!
//! What a row of `out` becomes depends on that row of `x` alone, and not on the number of threads.

mod pairs;
mod pairs_narrow;
mod single;

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

pub(super) use pairs::{available as has_bf16, multiply as multiply_bf16};
pub(super) use pairs_narrow::multiply as multiply_narrow_bf16;
pub(super) use single::{available as has_f32, multiply as multiply_f32};

/// Rows of a tile.
const HEIGHT: usize = 12;
/// Columns of a panel: two registers.
const WIDTH: usize = 32;
/// Units of `k` of a packed part, which then leaves room for rows of `x` in a core's first cache.
const DEPTH: usize = 192;
/// Rows of `x` that one task takes at most, so that they stay in a core's second cache from panel to panel.
const ROWS: usize = 512;
/// Tasks for each thread, at least, where there are rows for them.
const TASKS: usize = 4;
/// Multiplications from which waking threads costs less than it saves.
const PARALLEL: usize = 128 * 128 * 128;

/// The left operand: unit `u` of row `r` is element `r * row_stride + u * unit_stride`.
#[derive(Clone, Copy)]
struct Left<'a, U> {
    units: &'a [U],
    rows: usize,
    row_stride: usize,
    unit_stride: usize,
}

/// The result, of which each task writes rows and columns that are its own.
struct Output {
    data: *mut f32,
    columns: usize,
}

#[allow(unsafe_code, reason = "what two tasks write does not overlap, and nobody reads before all are done")]
// SAFETY: see the reason; the pointer is to f32, which may be sent.
unsafe impl Sync for Output {}

/// One tile: rows and columns of the result, and the rows of `x` for it.
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
    update: Update,
}

/// What a product does to the result: `out = factor sum`, or `out += factor sum`.
#[derive(Clone, Copy)]
struct Update {
    factor: f32,
    accumulate: bool,
}

/// A right operand, and the kernel for its units.
trait Right: Sync {
    /// What fills a lane, 32 bits.
    type Unit: Copy + Default + Send + Sync;

    /// Units of `k`, and columns.
    fn shape(&self) -> [usize; 2];

    /// Packs some units of at most [`WIDTH`] columns: for each unit that of each column, and zeros up to the width that
    /// `part` has.
    ///
    /// # Safety
    ///
    /// The processor must have the kernel's instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions")]
    unsafe fn pack(&self, part: &mut [Self::Unit], units: Range<usize>, columns: Range<usize>);

    /// Asks memory for some units of some columns, which are packed next. Where the units of a column are neighbours,
    /// for the line that holds the first of them: it holds some that follow.
    fn prefetch(&self, units: Range<usize>, columns: Range<usize>);

    /// A tile of `ROWS` rows and at most 16 `VECTORS` columns over a packed part.
    ///
    /// # Safety
    ///
    /// The processor must have the kernel's instructions. The tile's elements must be valid for reads and writes, and
    /// this call's alone; `x` must have its rows, and all units of the part.
    #[allow(unsafe_code, reason = "a function compiled for instructions, which works on pointers")]
    unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile<Self::Unit>, part: &[Self::Unit]);
}

/// The product, on all threads if `parallel`.
///
/// # Safety
///
/// The processor must have the instructions of the kernel of `R`.
#[allow(unsafe_code, reason = "calls functions compiled for instructions; the bounds they rely on are asserted")]
unsafe fn multiply<R: Right>(out: &mut [f32], x: Left<'_, R::Unit>, right: &R, update: Update, parallel: bool) {
    let [depth, columns] = right.shape();
    assert_eq!(out.len(), x.rows * columns, "a product of [{}, {columns}]", x.rows);
    if out.is_empty() {
        return;
    }
    if depth == 0 {
        if !update.accumulate {
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
    // Parts of about the same height: a low one at the end would load and store tiles for little.
    let height = depth.div_ceil(depth.div_ceil(DEPTH));
    let task = |part: &mut Vec<R::Unit>, index: usize| {
        let (row, column) = (index / panels * chunk, index % panels * WIDTH);
        let (rows, columns) = (row..x.rows.min(row + chunk), column..columns.min(column + WIDTH));
        let width = if columns.len() > WIDTH / 2 { WIDTH } else { WIDTH / 2 };
        part.resize(height * width, R::Unit::default());
        for start in (0..depth).step_by(height) {
            let units = start..depth.min(start + height);
            let part = &mut part[..units.len() * width];
            let update = Update { accumulate: update.accumulate || start > 0, ..update };
            // Packed next: what lies below, or the top of the panel beside it.
            let (units_next, columns_next) = match units.end < depth {
                true => (units.end..depth.min(units.end + height), columns.clone()),
                false => (0..height, columns.end..right.shape()[1].min(columns.end + WIDTH)),
            };
            let ask = |share: usize, shares: usize| {
                let at = |share: usize| units_next.start + units_next.len() * share / shares;
                right.prefetch(at(share)..at(share + 1), columns_next.clone());
            };
            // SAFETY: of the instructions the caller made sure; rows and columns are within `out` and this task's alone;
            // `x` has those rows, and the units.
            unsafe {
                right.pack(part, units, columns.clone());
                tiles::<R>(&output, x, rows.clone(), columns.clone(), part, start, update, ask);
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

/// The tiles of some rows and columns over one packed part, which begins at unit `start`. Calls `between` before each
/// with its index and how many there are.
///
/// # Safety
///
/// As [`Right::tile`], of all rows and columns.
#[allow(unsafe_code, reason = "tiles are written through the pointer that tasks share")]
#[allow(clippy::too_many_arguments, reason = "one loop of `multiply`")]
unsafe fn tiles<R: Right>(
    out: &Output,
    x: Left<'_, R::Unit>,
    rows: Range<usize>,
    columns: Range<usize>,
    part: &[R::Unit],
    start: usize,
    update: Update,
    between: impl Fn(usize, usize),
) {
    if rows.is_empty() {
        return;
    }
    let narrow = columns.len() <= WIDTH / 2;
    let height = rows.len().div_ceil(rows.len().div_ceil(HEIGHT));
    let tiles = rows.len().div_ceil(height);
    for (index, row) in rows.clone().step_by(height).enumerate() {
        between(index, tiles);
        let Left { units, row_stride, unit_stride, .. } = x;
        // SAFETY: the tile lies within the rows and columns that the caller vouched for, as does what it reads of `x`.
        unsafe {
            let tile = Tile {
                out: out.data.add(row * out.columns + columns.start),
                stride: out.columns,
                columns: columns.len(),
                x: units.as_ptr().add(row * row_stride + start * unit_stride),
                row_stride,
                unit_stride,
                update,
            };
            macro_rules! by_height {
                ($($height:literal)*) => {
                    match (height.min(rows.end - row), narrow) {
                        $(($height, false) => R::tile::<$height, 2>(tile, part),
                        ($height, true) => R::tile::<$height, 1>(tile, part),)*
                        _ => unreachable!("a tile has 1 to {HEIGHT} rows"),
                    }
                };
            }
            by_height!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }
}

/// Makes the function `tile` of [`Right::tile`], of lanes `$unit`, compiled for `$features`; `$product` is `sum + x w`,
/// lane by lane.
macro_rules! tile {
    ($unit:ty, $features:literal, |$sum:ident, $x:ident, $w:ident| $product:expr) => {
        #[target_feature(enable = $features)]
        #[allow(unsafe_code, reason = "loads and stores of registers, where the caller vouched for memory")]
        unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile<$unit>, part: &[$unit]) {
            let Tile { out, stride, columns, x, row_stride, unit_stride, update } = tile;
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
            let factor = _mm512_set1_ps(update.factor);
            for (row, sums) in sums.into_iter().enumerate() {
                for (vector, sum) in sums.into_iter().enumerate() {
                    let mask = mask(columns - 16 * vector);
                    let out = out.wrapping_add(row * stride + 16 * vector);
                    // SAFETY: the mask keeps to the tile; what it leaves out is not touched.
                    unsafe {
                        let before = match update.accumulate {
                            true => _mm512_maskz_loadu_ps(mask, out),
                            false => _mm512_setzero_ps(),
                        };
                        _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(sum, factor, before));
                    }
                }
            }
        }
    };
}
use tile;

/// Asks memory for the line that holds `value`, for the second cache.
fn prefetch<T>(value: &T) {
    // SAFETY: a hint, which reads nothing.
    #[allow(unsafe_code, reason = "a hint to the processor about a place that is there")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast());
    }
}

/// The first `count` of 16 lanes, all of them from 16 on.
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
    // Of four rows, in each quarter of a register: the same column of all four.
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

/// Packs squares of 16 units of 16 columns whose units are neighbours in memory; `load` gives up to 16 units of a column
/// from one on, zeros beyond, and zeros for a column that is not there.
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
                #[allow(unsafe_code, reason = "a store of a register to sixteen elements that are there")]
                unsafe {
                    _mm512_storeu_si512(out.as_mut_ptr().cast(), row);
                }
            }
        }
    }
}
