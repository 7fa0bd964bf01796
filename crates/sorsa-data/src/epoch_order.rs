//! The order of one epoch: the examples of each row, and the rows of each batch.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::BatchOptions;
use crate::shuffle::{generator, shuffle};

/// Minimum number of examples that packing sorts at a time: enough to fill rows, few enough that epochs differ.
const PACKING_WINDOW: usize = 1024;

/// The order of one epoch. The lists are nested but stored flat: a batch is a range of `rows`, a row a range of `order`.
#[derive(Debug)]
pub(crate) struct EpochOrder {
    order: Vec<usize>,
    rows: Vec<Range<usize>>,
    batches: Vec<Range<usize>>,
}

impl EpochOrder {
    /// The order of `epoch` for examples of `lengths` positions. Equal arguments always give equal orders.
    pub(crate) fn new(lengths: &[usize], options: &BatchOptions, epoch: u64) -> Self {
        let mut random = generator(options.seed, epoch);
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        if options.shuffle {
            shuffle(&mut order, &mut random);
        }

        let bucket = options.bucket * options.batch_size;
        let window = if options.packing { bucket.max(PACKING_WINDOW) } else { bucket };
        if window > 0 {
            for window in order.chunks_mut(window) {
                window.sort_by_key(|&example| std::cmp::Reverse(lengths[example]));
            }
        }
        let (order, rows) = if options.packing {
            pack(&order, lengths, window, options.max_length)
        } else {
            let rows = (0..order.len()).map(|at| at..at + 1).collect();
            (order, rows)
        };

        let starts = (0..rows.len()).step_by(options.batch_size);
        let mut batches: Vec<Range<usize>> =
            starts.map(|start| start..rows.len().min(start + options.batch_size)).collect();
        let full = rows.len() / options.batch_size;
        if options.drop_last && full > 0 {
            batches.truncate(full);
        }
        if options.shuffle && window > 0 {
            shuffle(&mut batches[..full], &mut random);
        }
        Self { order, rows, batches }
    }

    /// Number of batches.
    pub(crate) fn batches(&self) -> usize {
        self.batches.len()
    }

    /// The rows of a batch, each a list of examples.
    pub(crate) fn batch(&self, index: usize) -> impl ExactSizeIterator<Item = &[usize]> + Clone {
        self.rows[self.batches[index].clone()].iter().map(|row| &self.order[row.clone()])
    }
}

/// Packs the examples of each window, longest first. Each goes into the fullest row of its window that has room for it.
fn pack(order: &[usize], lengths: &[usize], window: usize, capacity: usize) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut packed = Vec::with_capacity(order.len());
    let mut ranges = Vec::new();
    for window in order.chunks(window) {
        let mut rows: Vec<Vec<usize>> = Vec::new();
        let mut open: BTreeSet<(usize, usize)> = BTreeSet::new(); // (room left, row)
        for &example in window {
            let length = lengths[example];
            let fullest = open.range((length, 0)..).next().copied();
            let (room, row) = fullest.unwrap_or((capacity, rows.len()));
            if !open.remove(&(room, row)) {
                rows.push(Vec::new());
            }
            rows[row].push(example);
            open.insert((room - length, row));
        }
        for row in rows {
            ranges.push(packed.len()..packed.len() + row.len());
            packed.extend(row);
        }
    }
    (packed, ranges)
}
