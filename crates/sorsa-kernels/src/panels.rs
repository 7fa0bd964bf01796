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

/// A matrix, or some of its columns, into which tasks store a result. Each task writes its own rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    /// The first element; rows are `stride` apart.
    pub data: *mut f32,
    /// The distance of neighbouring rows.
    pub stride: usize,
}

#[allow(unsafe_code, reason = "tasks write disjoint elements, and nobody reads before all are done")]
// SAFETY: see the reason; the pointer is to f32, which may be sent.
unsafe impl Sync for Output {}

/// Buffers for packed parts, of units of each type.
#[derive(Default)]
pub(crate) struct Buffers {
    floats: Vec<f32>,
    pairs: Vec<u32>,
}

/// The content of one lane, 32 bits.
pub(crate) trait Unit: Copy + Default + Send + Sync {
    /// The buffer for packed parts.
    fn buffer(buffers: &mut Buffers) -> &mut Vec<Self>;
}

impl Unit for f32 {
    fn buffer(buffers: &mut Buffers) -> &mut Vec<Self> {
        &mut buffers.floats
    }
}

impl Unit for u32 {
    fn buffer(buffers: &mut Buffers) -> &mut Vec<Self> {
        &mut buffers.pairs
    }
}

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
    /// The content of one lane.
    type Unit: Unit;
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

/// One product of a sum: `factor x right`.
pub(crate) struct Panels<'a, R: Right> {
    x: Left<'a, R::Unit>,
    right: R,
    factor: f32,
}

impl<'a, R: Right> Panels<'a, R> {
    /// # Panics
    ///
    /// Panics if a row of `x` reaches beyond its units.
    pub fn new(x: Left<'a, R::Unit>, right: R, factor: f32) -> Self {
        let [depth, _] = right.shape();
        if x.rows > 0 && depth > 0 {
            let last = (x.rows - 1) * x.row_stride + (depth - 1) * x.unit_stride;
            assert!(last < x.units.len(), "rows of {depth} units reach beyond {}", x.units.len());
        }
        Self { x, right, factor }
    }
}

/// A product of a sum whose kernel is known while running.
pub(crate) trait Term: Sync {
    /// Rows, units of `k`, and columns.
    fn shape(&self) -> [usize; 3];

    /// Columns of a panel, and the most rows of a tile.
    fn tile_shape(&self) -> [usize; 2];

    /// Stores the product of some rows with at most one panel's columns, or adds it.
    ///
    /// # Safety
    ///
    /// The processor must have the kernel's instructions. `out` must have these rows and columns, and nobody else may access them; if the
    /// product is added, they must be initialized.
    #[allow(unsafe_code, reason = "writes through the pointer that tasks share")]
    unsafe fn compute(
        &self,
        out: Output,
        rows: Range<usize>,
        columns: Range<usize>,
        update: Update,
        buffers: &mut Buffers,
    );
}

impl<R: Right> Term for Panels<'_, R> {
    fn shape(&self) -> [usize; 3] {
        let [depth, columns] = self.right.shape();
        [self.x.rows, depth, columns]
    }

    fn tile_shape(&self) -> [usize; 2] {
        [2 * R::LANES, R::HEIGHT]
    }

    #[allow(unsafe_code, reason = "calls functions compiled for instructions, on memory for which the caller vouches")]
    unsafe fn compute(
        &self,
        out: Output,
        rows: Range<usize>,
        columns: Range<usize>,
        update: Update,
        buffers: &mut Buffers,
    ) {
        let Self { x, ref right, factor } = *self;
        let [depth, end] = right.shape();
        let width_of_a_panel = 2 * R::LANES;
        // Parts have about the same height: a low part at the end would load and store tiles for little work.
        let height = depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(right.step());
        let width = if columns.len() > R::LANES { width_of_a_panel } else { R::LANES };
        let part = R::Unit::buffer(buffers);
        part.resize(height * width, R::Unit::default());
        for start in (0..depth).step_by(height) {
            let units = start..depth.min(start + height);
            let part = &mut part[..units.len() * width];
            let update = if start > 0 { Update::Add } else { update };
            let store = Store { update, factor };
            // The task packs next the part below, or the top of the panel to the right.
            let (units_next, columns_next) = match units.end < depth {
                true => (units.end..depth.min(units.end + height), columns.clone()),
                false => (0..depth.min(height), columns.end..end.min(columns.end + width_of_a_panel)),
            };
            let prefetch = |share: usize, shares: usize| {
                let at = |share: usize| units_next.start + units_next.len() * share / shares;
                right.prefetch(at(share)..at(share + 1), columns_next.clone());
            };
            // SAFETY: the caller's; `x` has those rows and units.
            unsafe {
                right.pack(part, units, columns.clone());
                let (rows, columns) = (rows.clone(), columns.clone());
                let part = Part { packed: part, first_unit: start, rows, columns, store };
                tiles::<R>(out, x, &part, prefetch);
            }
        }
    }
}

/// A matrix `[rows, columns]` that becomes, or grows by, a sum of products.
pub(crate) struct Sum<'a> {
    /// Where it is stored.
    pub out: Output,
    /// Its columns.
    pub columns: usize,
    /// Whether the sum is added to what is there.
    pub update: Update,
    /// The products, of kernels of one set of instructions.
    pub terms: Vec<Box<dyn Term + 'a>>,
}

/// Computes sums of the same number of rows, on all threads if `parallel`. A tile of a result stays in a core's cache from product to
/// product.
///
/// # Safety
///
/// The processor must have the instructions of the kernels of all terms. Each `out` must have `rows` rows of its columns, and nobody else
/// may access them; if a sum is added, they must be initialized. Outputs must not overlap.
///
/// # Panics
///
/// Panics if a term has another shape than its sum.
#[allow(unsafe_code, reason = "calls functions compiled for instructions, on memory for which the caller vouches")]
pub(crate) unsafe fn compute_sums(rows: usize, sums: &[Sum<'_>], parallel: bool) {
    for sum in sums {
        for term in &sum.terms {
            let [term_rows, _, columns] = term.shape();
            assert_eq!([term_rows, columns], [rows, sum.columns], "a term of a sum");
        }
    }
    let [width, height] = sums.iter().flat_map(|sum| &sum.terms).map(|term| term.tile_shape()).next().unwrap_or([1, 1]);
    let panels: Vec<(&Sum<'_>, usize)> =
        sums.iter().flat_map(|sum| (0..sum.columns).step_by(width).map(move |column| (sum, column))).collect();
    if rows == 0 || panels.is_empty() {
        return;
    }
    let tasks = if parallel { TASKS * rayon::current_num_threads() } else { 1 };
    let chunks = rows.div_ceil(ROWS).max(tasks.div_ceil(panels.len()).min(rows.div_ceil(4 * height)));
    let chunk = rows.div_ceil(chunks);
    let task = |buffers: &mut Buffers, index: usize| {
        let (row, (sum, column)) = (index / panels.len() * chunk, panels[index % panels.len()]);
        let (task_rows, columns) = (row..rows.min(row + chunk), column..sum.columns.min(column + width));
        let mut update = sum.update;
        for term in sum.terms.iter().filter(|term| term.shape()[1] > 0) {
            // SAFETY: the caller's; rows and columns are within `out`, and no other task has them.
            unsafe { term.compute(sum.out, task_rows.clone(), columns.clone(), update, buffers) };
            update = Update::Add;
        }
        if update == Update::Overwrite {
            for row in task_rows {
                let first = sum.out.data.wrapping_add(row * sum.out.stride + column);
                // SAFETY: the caller's; zero is the sum of no products.
                unsafe { first.write_bytes(0, columns.len()) };
            }
        }
    };
    if parallel {
        (0..panels.len() * chunks).into_par_iter().for_each_init(Buffers::default, task);
    } else {
        let mut buffers = Buffers::default();
        (0..panels.len() * chunks).for_each(|index| task(&mut buffers, index));
    }
}

/// Computes the product `x right`, on all threads if `parallel`.
///
/// # Safety
///
/// The processor must have the instructions of the kernel of `R`.
#[allow(unsafe_code, reason = "calls functions compiled for instructions; the bounds they rely on are asserted")]
pub(crate) unsafe fn multiply<R: Right>(out: &mut [f32], x: Left<'_, R::Unit>, right: R, store: Store, parallel: bool) {
    let [_, columns] = right.shape();
    assert_eq!(Some(out.len()), x.rows.checked_mul(columns), "a product of [{}, {columns}]", x.rows);
    if out.is_empty() {
        return;
    }
    let rows = x.rows;
    let output = Output { data: out.as_mut_ptr(), stride: columns };
    let terms: Vec<Box<dyn Term + '_>> = vec![Box::new(Panels::new(x, right, store.factor))];
    // SAFETY: the caller vouches for the instructions; `out` has these rows and columns and is borrowed.
    unsafe { compute_sums(rows, &[Sum { out: output, columns, update: store.update, terms }], parallel) };
}

/// Computes the tiles of one packed part. Calls `before_tile` with the index of each tile and the number of tiles.
///
/// # Safety
///
/// The conditions of [`Right::tile`] must hold for all rows and columns of the part.
#[allow(unsafe_code, reason = "writes tiles through the pointer that tasks share")]
unsafe fn tiles<R: Right>(
    out: Output,
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
                out: out.data.add(row * out.stride + columns.start),
                stride: out.stride,
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
