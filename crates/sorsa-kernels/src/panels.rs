//! Products by panels: `out [rows, n] (+)= factor x [rows, k] W [k, n]`, with a kernel of the processor's instructions.
//!
//! A thread takes panels of columns of the weight, two registers wide, and packs a part of a panel, about two hundred units of `k` high.
//! Then all rows of `x` pass over the part, some at a time, read in place. Their tile of the result stays in registers for the
//! height of the part. A unit fills one lane: one f32 number, or two bf16 numbers that are neighbours along `k`.
//!
//! A row of `out` depends on the same row of `x` alone, and not on the number of threads.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

use rayon::prelude::*;

use crate::product::Update;

/// Units of `k` of a packed part; it leaves room for rows of `x` in a core's first-level cache.
const DEPTH: usize = 192;
/// The most rows of `x` of one task, so that they stay in a core's second-level cache from panel to panel.
const ROWS: usize = 512;
/// The least tasks for each thread, if there are enough rows.
const TASKS: usize = 4;
/// Multiplications from which waking threads saves more than it costs.
pub(crate) const PARALLEL: usize = 128 * 128 * 128;

/// The left operand: unit `u` of row `r` is element `r * row_stride + u * unit_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, U> {
    pub units: &'a [U],
    pub rows: usize,
    pub row_stride: usize,
    pub unit_stride: usize,
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
pub(crate) struct Tile<U> {
    /// The first element; rows are `stride` apart.
    pub out: *mut f32,
    pub stride: usize,
    pub columns: usize,
    /// The first unit of the first row.
    pub x: *const U,
    pub row_stride: usize,
    pub unit_stride: usize,
    pub store: Store,
}

/// How a tile is stored: `out = factor sum`, or `out += factor sum`.
#[derive(Clone, Copy)]
pub(crate) struct Store {
    pub factor: f32,
    pub update: Update,
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
pub(crate) trait Right: Sync {
    /// The content of one lane, 32 bits.
    type Unit: Copy + Default + Send + Sync;
    /// Lanes of a register; a panel is twice as wide.
    const LANES: usize;
    /// The most rows of a tile.
    const HEIGHT: usize;

    /// Units of `k`, and columns.
    fn shape(&self) -> [usize; 2];

    /// A part of a panel is a multiple of so many units high, unless it is the last.
    fn step(&self) -> usize {
        1
    }

    /// Packs units of at most one panel's columns unit by unit, and pads each with zeros to the width of `part`.
    ///
    /// # Safety
    ///
    /// The processor must have the kernel's instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions")]
    unsafe fn pack(&self, part: &mut [Self::Unit], units: Range<usize>, columns: Range<usize>);

    /// Prefetches the units and columns that the task packs next. If columns are contiguous, it prefetches the cache line with
    /// the first unit of each; that line holds several of the units that follow.
    fn prefetch(&self, units: Range<usize>, columns: Range<usize>);

    /// Computes a tile of `rows` rows, of as many columns as `vectors` registers have lanes at most, from a packed part.
    ///
    /// # Safety
    ///
    /// The processor must have the kernel's instructions. The tile's elements must be valid for reads and writes, and nobody
    /// else may access them; `x` must have the tile's rows, with all units of the part.
    ///
    /// # Panics
    ///
    /// Panics if there are more than [`HEIGHT`](Self::HEIGHT) rows or two registers.
    #[allow(unsafe_code, reason = "a function compiled for instructions, which works on pointers")]
    unsafe fn tile(rows: usize, vectors: usize, tile: Tile<Self::Unit>, part: &[Self::Unit]);
}

/// Computes the product, on all threads if `parallel`.
///
/// # Safety
///
/// The processor must have the instructions of the kernel of `R`.
#[allow(unsafe_code, reason = "calls functions compiled for instructions; the bounds they rely on are asserted")]
pub(crate) unsafe fn multiply<R: Right>(
    out: &mut [f32],
    x: Left<'_, R::Unit>,
    right: &R,
    store: Store,
    parallel: bool,
) {
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
    let width_of_a_panel = 2 * R::LANES;
    let panels = columns.div_ceil(width_of_a_panel);
    let tasks = if parallel { TASKS * rayon::current_num_threads() } else { 1 };
    let chunks = x.rows.div_ceil(ROWS).max(tasks.div_ceil(panels).min(x.rows.div_ceil(4 * R::HEIGHT)));
    let chunk = x.rows.div_ceil(chunks);
    // Parts have about the same height: a low part at the end would load and store tiles for little work.
    let height = depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(right.step());
    let task = |part: &mut Vec<R::Unit>, index: usize| {
        let (row, column) = (index / panels * chunk, index % panels * width_of_a_panel);
        let (rows, columns) = (row..x.rows.min(row + chunk), column..columns.min(column + width_of_a_panel));
        let width = if columns.len() > R::LANES { width_of_a_panel } else { R::LANES };
        part.resize(height * width, R::Unit::default());
        for start in (0..depth).step_by(height) {
            let units = start..depth.min(start + height);
            let part = &mut part[..units.len() * width];
            let update = if start > 0 { Update::Add } else { store.update };
            let store = Store { update, ..store };
            // The task packs next the part below, or the top of the panel to the right.
            let (units_next, columns_next) = match units.end < depth {
                true => (units.end..depth.min(units.end + height), columns.clone()),
                false => (0..depth.min(height), columns.end..right.shape()[1].min(columns.end + width_of_a_panel)),
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
    let vectors = columns.len().div_ceil(R::LANES);
    let height = rows.len().div_ceil(rows.len().div_ceil(R::HEIGHT));
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
            R::tile(height.min(rows.end - row), vectors, tile, packed);
        }
    }
}

/// Defines the body of [`Right::tile`]: calls a function with the number of rows and of registers as constants.
macro_rules! by_size {
    ($function:ident($rows:expr, $vectors:expr, $tile:expr, $part:expr), $($height:literal)*) => {
        match ($rows, $vectors) {
            $(($height, 2) => $function::<$height, 2>($tile, $part),
            ($height, 1) => $function::<$height, 1>($tile, $part),)*
            (rows, vectors) => panic!("a tile of {rows} rows and {vectors} registers"),
        }
    };
}
pub(crate) use by_size;

/// Prefetches the cache line of an address into the second-level cache.
pub(crate) fn prefetch<T>(address: *const T) {
    // SAFETY: a hint, which reads nothing.
    #[allow(unsafe_code, reason = "a hint to the processor")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
}
