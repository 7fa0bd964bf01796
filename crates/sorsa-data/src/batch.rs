//! Turns examples into batches: order, padding, packing, and targets shifted by one.
//!
//! An example of n ids occupies n - 1 positions: at position i the model reads `ids[i]` and predicts `ids[i + 1]`.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::epoch_order::EpochOrder;
use crate::{DataError, Example};

/// Target of a position that the loss ignores.
pub const IGNORED: i32 = -100;

/// Input of one training step. Every list is `[rows, len]`, row by row, padded on the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Number of positions in a row.
    pub len: usize,
    /// The token at each position; `pad_id` at padding.
    pub input_ids: Vec<i32>,
    /// The next token at each position; [`IGNORED`] if the loss ignores the position.
    pub targets: Vec<i32>,
    /// Index of the position in its example, from 0; 0 at padding.
    pub positions: Vec<i32>,
    /// Number of the example in its row, from 1; 0 at padding. A position attends only to its own segment.
    pub segments: Vec<i32>,
    /// Indices of the examples, row by row, in the list given to [`Batcher::new`].
    pub examples: Vec<usize>,
}

impl Batch {
    /// Number of positions that the loss counts.
    pub fn target_tokens(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORED).count()
    }

    /// Number of positions that are not padding.
    pub fn tokens(&self) -> usize {
        self.segments.iter().filter(|&&segment| segment != 0).count()
    }

    /// Whether a row holds several examples, so that attention needs [`Batch::segments`].
    pub fn is_packed(&self) -> bool {
        self.segments.iter().any(|&segment| segment > 1)
    }
}

/// Options of a [`Batcher`].
#[derive(Debug, Clone)]
pub struct BatchOptions {
    /// Number of rows in a batch.
    pub batch_size: usize,
    /// Shuffle the examples anew in each epoch.
    pub shuffle: bool,
    /// Seed of the shuffling.
    pub seed: u64,
    /// Sort the examples of this many batches at a time by length, which saves padding; 0 does not sort. With `shuffle`,
    /// the batches are shuffled afterwards.
    pub bucket: usize,
    /// Pack several examples into a row of `max_length` positions, longest first, in windows of at least 1024 examples.
    pub packing: bool,
    /// Number of positions in a packed row. Ignored without `packing`.
    pub max_length: usize,
    /// Token at padding.
    pub pad_id: u32,
    /// Round the length of rows up to a multiple of this.
    pub pad_multiple: usize,
    /// Drop the last batch of an epoch if it is not full, unless it is the only batch.
    pub drop_last: bool,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            batch_size: 8,
            shuffle: true,
            seed: 42,
            bucket: 0,
            packing: false,
            max_length: 1024,
            pad_id: 0,
            pad_multiple: 1,
            drop_last: false,
        }
    }
}

/// Position in the sequence of all batches: it points to the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DataPosition {
    /// Number of completed epochs.
    pub epoch: u64,
    /// Number of completed batches in this epoch.
    pub batch: usize,
}

/// Gives batches by epoch and index. Equal options, epoch and index always give equal batches, so a run that resumes
/// needs only its [`DataPosition`].
#[derive(Debug)]
pub struct Batcher {
    examples: Arc<Vec<Example>>,
    lengths: Vec<usize>,
    options: BatchOptions,
    /// Number and order of the last requested epoch.
    cached: Mutex<Option<(u64, Arc<EpochOrder>)>>,
}

impl Batcher {
    /// A batcher over `examples`.
    ///
    /// # Errors
    ///
    /// [`DataError::Options`] with every problem: no examples, an example of fewer than 2 ids, a mask whose length differs
    /// from the ids, a batch size or a padding multiple of 0, an example that is longer than a packed row.
    pub fn new(examples: Arc<Vec<Example>>, options: BatchOptions) -> Result<Self, DataError> {
        let mut problems = Vec::new();
        for (name, value) in [("batch_size", options.batch_size), ("pad_multiple", options.pad_multiple)] {
            if value == 0 {
                problems.push(format!("{name} is 0"));
            }
        }
        if examples.is_empty() {
            problems.push("there are no examples".to_owned());
        }
        let mut check = |what: &str, wrong: &dyn Fn(&Example) -> bool| {
            let rows: Vec<usize> =
                examples.iter().filter(|example| wrong(example)).map(|example| example.row).collect();
            if let Some(first) = rows.first() {
                problems.push(format!(
                    "{} of {} examples {what} (the first from row {first})",
                    rows.len(),
                    examples.len()
                ));
            }
        };
        check("have fewer than 2 tokens", &|example| example.ids.len() < 2);
        check("have a mask of another length than their ids", &|example| {
            example.ids.len() != example.target_mask.len()
        });
        if options.packing {
            let what = format!("do not fit a packed row of {} positions", options.max_length);
            check(&what, &|example| example.ids.len() > options.max_length + 1);
        }
        if !problems.is_empty() {
            return Err(DataError::Options { problems });
        }
        let lengths = examples.iter().map(|example| example.ids.len() - 1).collect();
        Ok(Self { examples, lengths, options, cached: Mutex::new(None) })
    }

    /// The examples.
    pub fn examples(&self) -> &Arc<Vec<Example>> {
        &self.examples
    }

    /// Number of batches in an epoch, at least 1. It differs between epochs only with packing.
    pub fn batches_per_epoch(&self, epoch: u64) -> usize {
        self.order(epoch).batches()
    }

    /// The batch `index` of `epoch`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Batcher::batches_per_epoch`].
    pub fn batch(&self, epoch: u64, index: usize) -> Batch {
        let order = self.order(epoch);
        let rows = order.batch(index);
        let positions_of = |row: &[usize]| row.iter().map(|&example| self.lengths[example]).sum::<usize>();
        let longest = rows.clone().map(positions_of).max().unwrap_or(0);
        let len = longest.next_multiple_of(self.options.pad_multiple);
        let cells = rows.len() * len;
        let mut batch = Batch {
            rows: rows.len(),
            len,
            input_ids: vec![self.options.pad_id as i32; cells],
            targets: vec![IGNORED; cells],
            positions: vec![0; cells],
            segments: vec![0; cells],
            examples: Vec::with_capacity(rows.len()),
        };
        for (row, examples) in rows.enumerate() {
            let mut start = row * len;
            for (segment, &index) in (1..).zip(examples) {
                batch.place(start, segment, &self.examples[index]);
                batch.examples.push(index);
                start += self.lengths[index];
            }
        }
        batch
    }

    /// Returns the batch at `position`, and moves `position` to the next batch. After the last batch of an epoch it starts
    /// the next epoch.
    pub fn next(&self, position: &mut DataPosition) -> Batch {
        if position.batch >= self.batches_per_epoch(position.epoch) {
            *position = DataPosition { epoch: position.epoch + 1, batch: 0 };
        }
        let batch = self.batch(position.epoch, position.batch);
        position.batch += 1;
        batch
    }

    fn order(&self, epoch: u64) -> Arc<EpochOrder> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((number, order)) if *number == epoch => Arc::clone(order),
            _ => {
                let order = Arc::new(EpochOrder::new(&self.lengths, &self.options, epoch));
                *cached = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }
}

impl Batch {
    /// Writes an example into the cells from `start` on.
    fn place(&mut self, start: usize, segment: i32, example: &Example) {
        let ids = example.ids.windows(2).zip(&example.target_mask[1..]);
        for (position, (pair, &target)) in ids.enumerate() {
            let cell = start + position;
            self.input_ids[cell] = pair[0] as i32;
            self.targets[cell] = if target { pair[1] as i32 } else { IGNORED };
            self.positions[cell] = position as i32;
            self.segments[cell] = segment;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An example with ids that tell their row and position.
    fn example(row: usize, length: usize) -> Example {
        let ids = (0..length).map(|at| (1 + row * 100 + at) as u32).collect();
        let target_mask = (0..length).map(|at| at % 3 != 1).collect();
        Example { ids, target_mask, row, truncated: false }
    }

    fn batcher(lengths: &[usize], options: BatchOptions) -> Batcher {
        let examples = lengths.iter().enumerate().map(|(row, &length)| example(row, length)).collect();
        Batcher::new(Arc::new(examples), options).unwrap()
    }

    fn epoch(batcher: &Batcher, epoch: u64) -> Vec<Batch> {
        (0..batcher.batches_per_epoch(epoch)).map(|index| batcher.batch(epoch, index)).collect()
    }

    prop_compose! {
        fn any_options()(
            batch_size in 1usize..6, shuffle: bool, seed: u64, bucket in 0usize..4, packing: bool, max_length in 30usize..60,
            pad_multiple in 1usize..9, drop_last: bool
        ) -> BatchOptions {
            BatchOptions { batch_size, shuffle, seed, bucket, packing, max_length, pad_id: 7, pad_multiple, drop_last }
        }
    }

    proptest! {
        #[test]
        fn an_epoch_holds_every_example_exactly_once(
            lengths in prop::collection::vec(2usize..30, 1..60), options in any_options(), number in 0u64..3
        ) {
            let options = BatchOptions { drop_last: false, ..options };
            let mut seen: Vec<usize> =
                epoch(&batcher(&lengths, options), number).iter().flat_map(|batch| batch.examples.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        }

        #[test]
        fn every_cell_is_the_shifted_example_or_padding(
            lengths in prop::collection::vec(2usize..30, 1..40), options in any_options()
        ) {
            let batcher = batcher(&lengths, options.clone());
            for batch in epoch(&batcher, 1) {
                let row_of = |list: &[i32], row: usize| list[row * batch.len..(row + 1) * batch.len].to_vec();
                let mut examples = batch.examples.iter();
                for row in 0..batch.rows {
                    let segments = row_of(&batch.segments, row);
                    let used = segments.iter().take_while(|&&segment| segment > 0).count();
                    prop_assert!(segments[used..].iter().all(|&segment| segment == 0));
                    let (mut ids, mut targets, mut positions, mut expected) = (vec![], vec![], vec![], vec![]);
                    for segment in 1..=*segments.iter().max().unwrap() {
                        let example = &batcher.examples()[*examples.next().unwrap()];
                        let length = example.ids.len() - 1;
                        ids.extend(example.ids[..length].iter().map(|&id| id as i32));
                        targets.extend((1..=length).map(|at| if example.target_mask[at] { example.ids[at] as i32 } else { IGNORED }));
                        positions.extend(0..length as i32);
                        expected.extend(vec![segment; length]);
                    }
                    prop_assert_eq!(used, ids.len());
                    ids.resize(batch.len, 7);
                    targets.resize(batch.len, IGNORED);
                    positions.resize(batch.len, 0);
                    expected.resize(batch.len, 0);
                    prop_assert_eq!(row_of(&batch.input_ids, row), ids);
                    prop_assert_eq!(row_of(&batch.targets, row), targets);
                    prop_assert_eq!(row_of(&batch.positions, row), positions);
                    prop_assert_eq!(segments, expected);
                    prop_assert!(!options.packing || used <= options.max_length);
                }
                prop_assert!(examples.next().is_none());
                prop_assert!(batch.len % options.pad_multiple == 0 && batch.rows <= options.batch_size);
            }
        }

        #[test]
        fn a_resumed_run_sees_what_a_straight_run_sees(
            lengths in prop::collection::vec(2usize..30, 1..30), options in any_options(), stop in 0usize..20
        ) {
            let straight = batcher(&lengths, options.clone());
            let mut position = DataPosition::default();
            for _ in 0..stop {
                straight.next(&mut position);
            }
            let resumed = batcher(&lengths, options);
            let saved = serde_json::to_string(&position).unwrap();
            let mut at: DataPosition = serde_json::from_str(&saved).unwrap();
            for _ in 0..20 {
                prop_assert_eq!(straight.next(&mut position), resumed.next(&mut at));
            }
        }
    }

    #[test]
    fn epochs_differ_under_shuffling_and_are_alike_without() {
        let order = |shuffle| {
            let batcher = batcher(&[5; 64], BatchOptions { shuffle, ..BatchOptions::default() });
            [0, 1].map(|number| {
                epoch(&batcher, number).iter().flat_map(|batch| batch.examples.clone()).collect::<Vec<_>>()
            })
        };
        let [first, second] = order(true);
        assert_ne!(first, second);
        assert_eq!(order(false), [(0..64).collect::<Vec<_>>(), (0..64).collect()]);
    }

    #[test]
    fn buckets_save_padding_and_packing_saves_more() {
        let lengths: Vec<usize> = (0..500).map(|row| 2 + row * 37 % 61).collect();
        let cells = |bucket, packing| {
            let options = BatchOptions { bucket, packing, max_length: 128, ..BatchOptions::default() };
            epoch(&batcher(&lengths, options), 0).iter().map(|batch| batch.rows * batch.len).sum::<usize>()
        };
        let tokens: usize = lengths.iter().map(|length| length - 1).sum();
        let (plain, sorted, packed) = (cells(0, false), cells(16, false), cells(0, true));
        assert!(plain as f64 > 1.5 * tokens as f64, "{plain} cells for {tokens} tokens");
        assert!((sorted as f64) < 1.15 * tokens as f64, "{sorted} cells for {tokens} tokens");
        assert!((packed as f64) < 1.02 * tokens as f64, "{packed} cells for {tokens} tokens");
    }

    #[test]
    fn the_batches_of_a_shuffled_bucket_do_not_come_in_order_of_length() {
        let lengths: Vec<usize> = (2..130).collect();
        let options = BatchOptions { bucket: 16, ..BatchOptions::default() };
        let longest: Vec<usize> = epoch(&batcher(&lengths, options), 0).iter().map(|batch| batch.len).collect();
        assert!(!longest.is_sorted() && !longest.is_sorted_by(|a, b| a >= b), "{longest:?}");
    }

    #[test]
    fn an_incomplete_batch_is_left_out_on_demand_but_never_the_only_one() {
        let rows = |examples: usize| {
            let options = BatchOptions { drop_last: true, ..BatchOptions::default() };
            epoch(&batcher(&vec![4; examples], options), 0).iter().map(|batch| batch.rows).collect::<Vec<_>>()
        };
        assert_eq!(rows(20), [8, 8]);
        assert_eq!(rows(5), [5]);
    }

    #[test]
    fn counts_are_those_of_the_cells() {
        let batch =
            batcher(&[3, 5], BatchOptions { packing: true, max_length: 8, ..BatchOptions::default() }).batch(0, 0);
        assert_eq!((batch.rows, batch.tokens(), batch.is_packed()), (1, 6, true));
        assert_eq!(batch.target_tokens(), 3); // ids 2 of the first example, 2 and 3 of the second
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let examples = vec![example(4, 12), example(5, 1), example(6, 20)];
        let options =
            BatchOptions { batch_size: 0, pad_multiple: 0, packing: true, max_length: 8, ..BatchOptions::default() };
        let error = Batcher::new(Arc::new(examples), options).unwrap_err();
        insta::assert_snapshot!(error, @"batch_size is 0; pad_multiple is 0; 1 of 3 examples have fewer than 2 tokens (the first from row 5); 2 of 3 examples do not fit a packed row of 8 positions (the first from row 4)");
        assert!(Batcher::new(Arc::new(Vec::new()), BatchOptions::default()).is_err());
    }
}
