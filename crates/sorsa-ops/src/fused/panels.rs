//! Products of packed left operands, by the tiles of [`tile`](super::tile), on all threads.
//!
//! The output is split into groups of rows and of columns, one task each. A task packs its columns of the right operands
//! for some hundred steps of the depth, and passes over its rows with them; a term of little depth joins the pass of its
//! neighbour, so that it does not cost the output another trip through memory.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::product::Matrix;
use super::tile::{COLUMNS, ROWS, SPILL, Source, pack_columns, pack_rows, tile};

/// Depth of one pass.
const DEPTH: usize = 384;
/// What a pass may be deeper, to take in a term of little depth.
const MARGIN: usize = 64;
/// Columns of one pass: with [`DEPTH`], half a megabyte of right operands, which stays in a core's second cache.
const WIDTH: usize = 384;
/// Columns of a task are no fewer than these, where there are several tasks.
const LEAST_WIDTH: usize = 96;
/// Rows of a task, about: few enough to share the work evenly, many enough to pay for packing the columns.
const TASK_ROWS: usize = 512;
/// Multiply-adds below which waking threads costs more than they save.
const SMALL: usize = 1 << 20;
/// Buffers of left operands that a thread keeps.
const SPARES: usize = 3;

thread_local! {
    /// Right operands of the pass that this thread is in.
    static RIGHT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Buffers of left operands that are gone, to be taken again: fresh pages would be cleared each time.
    static SPARE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A left operand: panels of [`ROWS`] rows, one after the other, each by depth. The elements are in the capacity of the
/// vector, whose length stays 0.
pub(super) struct Panels {
    elements: Vec<f32>,
    depth: usize,
}

/// Room for one panel.
fn room(depth: usize) -> usize {
    depth * ROWS + SPILL
}

/// An empty vector with room for so many elements: a spare one where one is large enough.
fn buffer(size: usize) -> Vec<f32> {
    SPARE.with_borrow_mut(|spare| {
        let enough = (0..spare.len()).filter(|index| spare[*index].capacity() >= size);
        match enough.min_by_key(|index| spare[*index].capacity()) {
            Some(index) => spare.swap_remove(index),
            // To let one grow would copy what is of no use.
            None => Vec::with_capacity(size),
        }
    })
}

/// A pointer that tasks share; each writes elements of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

#[allow(unsafe_code, reason = "tasks read and write disjoint elements, as each use of it says")]
// SAFETY: see the reason.
unsafe impl Send for Shared {}
#[allow(unsafe_code, reason = "tasks read and write disjoint elements, as each use of it says")]
// SAFETY: see the reason.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(&self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

impl Panels {
    /// Packs a matrix. The processor must have what [`tile::available`](super::tile::available) asks for.
    pub fn new(matrix: Matrix<'_>) -> Self {
        assert!(super::tile::available(), "tiles for this processor");
        let matrix = matrix.checked();
        let (rows, depth) = (matrix.rows, matrix.columns);
        let count = rows.div_ceil(ROWS);
        let mut elements = buffer(count * room(depth));
        let to = Shared(elements.as_mut_ptr());
        let pack = |panel: usize| {
            let first = panel * ROWS;
            let from = Source {
                data: matrix.data.as_ptr().wrapping_add(first * matrix.row_stride),
                stride: matrix.row_stride,
                depth_stride: matrix.column_stride,
            };
            #[allow(unsafe_code, reason = "packing writes through pointers")]
            // SAFETY: `available` was asked; `checked` bounds the elements of the rows from `first`; each panel has room
            // of its own.
            unsafe {
                pack_rows(from, ROWS.min(rows - first), depth, to.at(panel * room(depth)));
            }
        };
        if rows * depth < SMALL / 4 {
            (0..count).for_each(pack);
        } else {
            (0..count).into_par_iter().with_min_len(4).for_each(pack);
        }
        Self { elements, depth }
    }

    /// A panel's elements from a depth on.
    fn at(&self, panel: usize, depth: usize) -> *const f32 {
        self.elements.as_ptr().wrapping_add(panel * room(self.depth) + depth * ROWS)
    }
}

impl Drop for Panels {
    fn drop(&mut self) {
        let elements = std::mem::take(&mut self.elements);
        // While a thread ends its buffers are gone already.
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut() {
                spare.push(elements);
                // The smallest serve least.
                if spare.len() > SPARES
                    && let Some(index) = (0..spare.len()).min_by_key(|index| spare[*index].capacity())
                {
                    spare.swap_remove(index);
                }
            }
        });
    }
}

/// A term of a sum.
pub(super) type Term<'a> = (&'a Panels, Matrix<'a>);

/// The sum of the products, row-major.
pub(super) fn sum(terms: &[Term<'_>], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * columns);
    #[allow(unsafe_code, reason = "the output is written before it is read, and not cleared for nothing")]
    // SAFETY: there is room for all elements, and without `accumulate` each is written and none is read.
    unsafe {
        compute(Shared(out.as_mut_ptr()), terms, [rows, columns], false);
        out.set_len(rows * columns);
    }
    out
}

/// Puts the sum of the products into `out`, or adds it.
pub(super) fn put(out: &mut [f32], terms: &[Term<'_>], [rows, columns]: [usize; 2], accumulate: bool) {
    assert_eq!(out.len(), rows * columns, "a sum of [{rows}, {columns}]");
    #[allow(unsafe_code, reason = "tasks share the output")]
    // SAFETY: `out` has all elements.
    unsafe {
        compute(Shared(out.as_mut_ptr()), terms, [rows, columns], accumulate);
    }
}

/// A part of a term's depth.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    term: usize,
    depth: Range<usize>,
}

/// Parts of all terms by pass, each pass at most `DEPTH + MARGIN` deep.
fn passes(depths: &[usize]) -> Vec<Vec<Part>> {
    let mut passes: Vec<(usize, Vec<Part>)> = Vec::new();
    for (term, depth) in depths.iter().enumerate() {
        let count = depth.div_ceil(DEPTH + MARGIN).max(1);
        let step = depth.div_ceil(count).max(1);
        for start in (0..*depth).step_by(step) {
            let part = Part { term, depth: start..(start + step).min(*depth) };
            match passes.last_mut() {
                Some((deep, parts)) if *deep + part.depth.len() <= DEPTH + MARGIN => {
                    *deep += part.depth.len();
                    parts.push(part);
                }
                _ => passes.push((part.depth.len(), vec![part])),
            }
        }
    }
    passes.into_iter().map(|(_, parts)| parts).collect()
}

/// How many groups of rows and of columns make the tasks.
fn groups(panels: usize, columns: usize, work: usize, threads: usize) -> [usize; 2] {
    if work < SMALL || threads == 1 {
        return [1, 1];
    }
    let by_rows = (panels * ROWS / TASK_ROWS).max(1);
    let tiles = columns.div_ceil(COLUMNS);
    let most = (columns / LEAST_WIDTH).max(1);
    // Twice as many tasks as threads, so that one that is held up does not hold up all, and a multiple of the threads.
    let enough = |by_columns: usize| by_rows * by_columns >= 2 * threads && (by_rows * by_columns) % threads == 0;
    let by_columns = (tiles.div_ceil(WIDTH / COLUMNS)..=most).find(|count| enough(*count)).unwrap_or(most);
    if by_rows * by_columns >= threads { [by_rows, by_columns] } else { [threads.min(panels), by_columns] }
}

/// Part `index` of `count` of a whole, as even as can be.
fn share(whole: usize, index: usize, count: usize) -> Range<usize> {
    whole * index / count..whole * (index + 1) / count
}

/// # Safety
///
/// `out` has `rows * columns` elements, initialised where `accumulate`, which nobody else sees.
#[allow(unsafe_code, reason = "tasks share the output")]
unsafe fn compute(out: Shared, terms: &[Term<'_>], [rows, columns]: [usize; 2], accumulate: bool) {
    let terms: Vec<Term<'_>> = terms.iter().map(|(left, right)| (*left, right.checked())).collect();
    let depths: Vec<usize> = terms.iter().map(|(left, _)| left.depth).collect();
    let passes = passes(&depths);
    if passes.is_empty() && !accumulate {
        // SAFETY: as promised to this function.
        (0..rows * columns).for_each(|index| unsafe { out.at(index).write(0.0) });
    }
    let (panels, tiles) = (rows.div_ceil(ROWS), columns.div_ceil(COLUMNS));
    let work = rows * columns * depths.iter().sum::<usize>();
    let [by_rows, by_columns] = groups(panels, columns, work, rayon::current_num_threads());
    let task = |index: usize| {
        let panels = share(panels, index / by_columns, by_rows);
        let tiles = share(tiles, index % by_columns, by_columns);
        RIGHT.with_borrow_mut(|right| {
            for start in tiles.clone().step_by(WIDTH / COLUMNS) {
                let tiles = start..(start + WIDTH / COLUMNS).min(tiles.end);
                for (pass, parts) in passes.iter().enumerate() {
                    let add = accumulate || pass > 0;
                    // SAFETY: no two tasks have the same panel of rows and the same tile of columns.
                    unsafe {
                        one_pass(out, &terms, parts, [rows, columns], (panels.clone(), tiles.clone()), add, right);
                    }
                }
            }
        });
    };
    match by_rows * by_columns {
        1 => task(0),
        count => (0..count).into_par_iter().for_each(task),
    }
}

/// One pass of a task: columns of the right operands are packed, or read where they are if few rows would use them.
///
/// # Safety
///
/// `out` as in [`compute`]; nobody else writes the rows of `panels` in the columns of `tiles`.
#[allow(unsafe_code, reason = "tasks share the output")]
unsafe fn one_pass(
    out: Shared,
    terms: &[Term<'_>],
    parts: &[Part],
    [rows, columns]: [usize; 2],
    (panels, tiles): (Range<usize>, Range<usize>),
    accumulate: bool,
    right: &mut Vec<f32>,
) {
    let deep: usize = parts.iter().map(|part| part.depth.len()).sum();
    right.resize((deep * tiles.len() * COLUMNS).max(right.len()), 0.0);
    // Of each part and tile, where its columns are and how far apart its depths.
    let mut operands: Vec<(*const f32, usize)> = Vec::with_capacity(parts.len() * tiles.len());
    let mut packed = right.as_mut_ptr();
    for part in parts {
        let matrix = &terms[part.term].1;
        for tile in tiles.clone() {
            let first = tile * COLUMNS;
            let count = COLUMNS.min(columns - first);
            let offset = first * matrix.column_stride + part.depth.start * matrix.row_stride;
            let data = matrix.data.as_ptr().wrapping_add(offset);
            if panels.len() <= 2 && matrix.column_stride == 1 && count == COLUMNS {
                operands.push((data, matrix.row_stride));
                continue;
            }
            let from = Source { data, stride: matrix.column_stride, depth_stride: matrix.row_stride };
            // SAFETY: the matrix was checked; `right` has room for all parts and tiles.
            unsafe { pack_columns(from, count, part.depth.len(), packed) };
            operands.push((packed.cast_const(), COLUMNS));
            packed = packed.wrapping_add(part.depth.len() * COLUMNS);
        }
    }
    for panel in panels {
        let first_row = panel * ROWS;
        let some_rows = ROWS.min(rows - first_row);
        for (index, tile_index) in tiles.clone().enumerate() {
            let first = tile_index * COLUMNS;
            let to = out.at(first_row * columns + first);
            for (order, part) in parts.iter().enumerate() {
                let (b, b_stride) = operands[order * tiles.len() + index];
                let a = terms[part.term].0.at(panel, part.depth.start);
                let size = (some_rows, COLUMNS.min(columns - first));
                // SAFETY: the panel holds the part's depth; the right operand was packed above, or is whole in its
                // matrix; the output has these rows and columns.
                unsafe { tile(part.depth.len(), a, b, b_stride, to, columns, size, accumulate || order > 0) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_cover_the_depth_of_every_term_once_and_little_terms_join_their_neighbours() {
        for depths in [vec![1], vec![768, 16], vec![0, 5], vec![288, 16, 288, 16], vec![10_000, 448, 449]] {
            let passes = passes(&depths);
            for (term, depth) in depths.iter().enumerate() {
                let parts: Vec<&Part> = passes.iter().flatten().filter(|part| part.term == term).collect();
                let ends = parts.iter().fold(0, |end, part| {
                    assert_eq!(part.depth.start, end);
                    part.depth.end
                });
                assert_eq!(ends, *depth);
            }
            let deep = |parts: &Vec<Part>| parts.iter().map(|part| part.depth.len()).sum::<usize>();
            assert!(passes.iter().all(|parts| deep(parts) <= DEPTH + MARGIN));
        }
        assert_eq!(passes(&[768, 16]).len(), 2);
        assert_eq!(passes(&[288, 16]).len(), 1);
    }

    #[test]
    fn tasks_divide_the_output_and_keep_all_threads_busy() {
        for threads in [1, 2, 3, 8, 64] {
            for (rows, columns) in [(1024, 288), (1024, 32), (256, 768), (16, 2048), (12, 10_000), (5000, 16)] {
                let panels = rows / ROWS + 1;
                let [by_rows, by_columns] = groups(panels, columns, SMALL, threads);
                assert!(by_rows <= panels && by_columns <= columns.div_ceil(COLUMNS));
                let covered: usize = (0..by_rows).map(|index| share(panels, index, by_rows).len()).sum();
                assert_eq!(covered, panels);
                let possible = panels.max(columns / LEAST_WIDTH);
                assert!(by_rows * by_columns >= threads.min(possible), "{threads}: {rows} x {columns}");
            }
        }
    }
}
