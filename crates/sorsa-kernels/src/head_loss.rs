//! Output head and cross-entropy in one. One block of logits exists at a time. If gradients are wanted, the forward pass forms
//! them while the block exists, so that the backward pass only scales them:
//!
//! ```text
//! G = softmax(X W) - onehot(targets)        dX = G W^T        dW = X^T G
//! ```
//!
//! If the head is frozen, a block is a range of the vocabulary: each row keeps its largest logit and its sum so far, and its
//! `dX` so far is rescaled when the largest logit grows (the softmax of Milakov and Gimelshein, 2018). So the product reads,
//! and packs, each part of the weight once for many rows. `dW` needs complete rows of `G`: if the head is trained, a block is a
//! range of rows.

use rayon::prelude::*;

use crate::matmul_precision::MatmulPrecision;
use crate::matrix::Matrix;
use crate::product::{Product, Update};
use crate::simd::{exp, exp_in_place, exp_sum, largest, scale};
use crate::weight::Weight;

/// Bytes of one block of logits that covers a range of the vocabulary.
const BLOCK_BYTES: usize = 4 << 20;
/// Bytes of one block of logits that covers a range of rows; the product packs the weight again for each block.
const ROW_BLOCK_BYTES: usize = 16 << 20;
/// Rows that share one pass over the weight.
const ROWS: usize = 2048;

/// The gradients that the forward pass forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WantedGradients {
    /// The gradient of the hidden states.
    pub hidden: bool,
    /// The gradient of the weight.
    pub weight: bool,
}

/// The operands.
///
/// # Shapes
///
/// - `hidden`: `[rows, width]`
/// - `weight`: `[width, vocabulary]`
/// - `targets`: `[rows]`
#[derive(Debug, Clone, Copy)]
pub struct HeadLoss<'a> {
    /// The hidden states.
    pub hidden: &'a [f32],
    /// The head.
    pub weight: Weight<'a>,
    /// The target token of each row; rows without one do not count.
    pub targets: &'a [Option<usize>],
}

/// The result.
#[derive(Debug)]
pub struct Output {
    /// The sum of the losses of all rows with a target.
    pub loss: f64,
    /// The gradient of the hidden states `[rows, width]` for a gradient of 1 on the loss; empty if not wanted.
    pub d_hidden: Vec<f32>,
    /// The gradient of the weight `[width, vocabulary]` for a gradient of 1 on the loss; empty if not wanted.
    pub d_weight: Vec<f32>,
}

impl HeadLoss<'_> {
    /// Computes the loss and the gradients.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other, if a target is outside the vocabulary, or if the gradient of a weight is wanted
    /// that is not f32.
    pub fn compute(&self, wanted: WantedGradients) -> Output {
        let (rows, width, vocabulary) = (self.targets.len(), self.weight.rows(), self.weight.columns());
        assert_eq!(self.hidden.len(), rows * width, "one target for each row");
        let outside = self.targets.iter().flatten().find(|target| **target >= vocabulary);
        assert!(outside.is_none(), "target {outside:?} of a vocabulary of {vocabulary}");
        let mut d_hidden = vec![0.0; if wanted.hidden { rows * width } else { 0 }];
        if !wanted.weight {
            let loss = self.by_vocabulary(&mut d_hidden);
            return Output { loss, d_hidden, d_weight: Vec::new() };
        }
        let Weight::F32(weight) = self.weight else { panic!("the gradient of a head needs its weight in f32") };
        let mut d_weight = vec![0.0; width * vocabulary];
        let loss = self.by_rows(weight, &mut d_hidden, &mut d_weight);
        Output { loss, d_hidden, d_weight }
    }

    /// The loss of a frozen head; fills `d_hidden` if it has elements.
    fn by_vocabulary(&self, d_hidden: &mut [f32]) -> f64 {
        #[derive(Clone, Copy)]
        struct Row {
            target: Option<usize>,
            picked: f32,
            largest: f32,
            sum: f64,
        }
        let Self { hidden: x, weight: w, targets } = *self;
        let (width, vocabulary, wanted) = (w.rows(), w.columns(), !d_hidden.is_empty());
        let block = columns_of_a_block(targets.len(), vocabulary);
        let mut buffer = vec![0.0; targets.len().min(ROWS) * block];
        let mut loss = 0.0;
        for start in (0..targets.len()).step_by(ROWS) {
            let count = ROWS.min(targets.len() - start);
            let x = &x[start * width..(start + count) * width];
            let d_hidden = if wanted { &mut d_hidden[start * width..(start + count) * width] } else { &mut [] };
            let new =
                |target: &Option<usize>| Row { target: *target, picked: 0.0, largest: f32::NEG_INFINITY, sum: 0.0 };
            let mut rows: Vec<Row> = targets[start..start + count].iter().map(new).collect();
            for first in (0..vocabulary).step_by(block) {
                let some = w.column_range(first, (first + block).min(vocabulary));
                let logits = &mut buffer[..count * some.columns()];
                some.multiply(logits, x, Update::Overwrite);
                let step = |row: &mut Row, logits: &mut [f32]| -> f32 {
                    if let Some(target) = row.target.filter(|target| (first..first + logits.len()).contains(target)) {
                        row.picked = logits[target - first];
                    }
                    let now = largest(logits).max(row.largest);
                    let sum = if wanted { exp_in_place(logits, now) } else { exp_sum(logits, now) };
                    // Before the first block a row has no sum yet.
                    let kept = if first == 0 { 0.0 } else { exp(row.largest - now) };
                    row.sum = row.sum * f64::from(kept) + f64::from(sum);
                    row.largest = now;
                    kept
                };
                let by_row = rows.par_iter_mut().zip(logits.par_chunks_exact_mut(some.columns()));
                if wanted {
                    by_row.zip(d_hidden.par_chunks_exact_mut(width)).for_each(|((row, logits), d)| {
                        let kept = step(row, logits);
                        if kept != 1.0 {
                            scale(d, kept);
                        }
                    });
                    some.transposed().multiply(d_hidden, logits, Update::Add);
                } else {
                    by_row.for_each(|(row, logits)| {
                        step(row, logits);
                    });
                }
            }
            let with_target = rows.iter().filter(|row| row.target.is_some());
            loss += with_target.map(|row| row.sum.ln() + f64::from(row.largest) - f64::from(row.picked)).sum::<f64>();
            if wanted {
                let by_row = rows.par_iter().zip(d_hidden.par_chunks_exact_mut(width));
                by_row.for_each_init(
                    || vec![0.0; width],
                    |column, (row, d)| match row.target {
                        None => d.fill(0.0),
                        Some(target) => {
                            let factor = row.sum.recip() as f32;
                            w.column(target, column);
                            d.iter_mut().zip(column).for_each(|(d, w)| *d = *d * factor - *w);
                        }
                    },
                );
            }
        }
        loss
    }

    /// The loss of a trained head; fills `d_weight`, and `d_hidden` if it has elements.
    fn by_rows(&self, w: Matrix<'_>, d_hidden: &mut [f32], d_weight: &mut [f32]) -> f64 {
        let Self { hidden: x, targets, .. } = *self;
        let (rows, width, vocabulary) = (targets.len(), w.rows(), w.columns());
        let precision = MatmulPrecision::used();
        let block = rows_of_a_block(rows, vocabulary);
        let mut logits = vec![0.0; block * vocabulary];
        let mut loss = 0.0;
        for start in (0..rows).step_by(block) {
            let count = block.min(rows - start);
            let logits = &mut logits[..count * vocabulary];
            let x = &x[start * width..(start + count) * width];
            Product::new(Matrix::new(x, count, width), w).at_precision(precision).compute(logits, Update::Overwrite);
            let by_row = logits.par_chunks_exact_mut(vocabulary).zip(&targets[start..start + count]);
            // `row` becomes G times `sum`; the factor goes to the narrow side of each product.
            let (losses, factors): (Vec<f64>, Vec<f32>) = by_row
                .map(|(row, target)| match *target {
                    None => {
                        row.fill(0.0);
                        (0.0, 0.0)
                    }
                    Some(target) => {
                        let largest = largest(row);
                        let picked = row[target];
                        let sum = exp_in_place(row, largest);
                        row[target] -= sum;
                        (f64::from(sum).ln() + f64::from(largest) - f64::from(picked), sum.recip())
                    }
                })
                .unzip();
            loss += losses.iter().sum::<f64>();
            let g = Matrix::new(logits, count, vocabulary);
            let scaled_rows = |rows: &mut [f32]| {
                rows.chunks_exact_mut(width).zip(&factors).for_each(|(row, factor)| scale(row, *factor));
            };
            if !d_hidden.is_empty() {
                let d_hidden = &mut d_hidden[start * width..(start + count) * width];
                Product::new(g, w.transposed()).at_precision(precision).compute(d_hidden, Update::Overwrite);
                scaled_rows(d_hidden);
            }
            let mut scaled = x.to_vec();
            scaled_rows(&mut scaled);
            let product = Product::new(Matrix::new(&scaled, count, width).transposed(), g);
            product.at_precision(precision).compute(d_weight, Update::Add);
        }
        loss
    }
}

/// The number of logits that exist at a time if the head is frozen.
pub fn logits_of_a_frozen_head(rows: usize, vocabulary: usize) -> usize {
    rows.min(ROWS) * columns_of_a_block(rows, vocabulary)
}

/// The number of logits that exist at a time if the head is trained.
pub fn logits_of_a_trained_head(rows: usize, vocabulary: usize) -> usize {
    rows_of_a_block(rows, vocabulary) * vocabulary
}

/// Multiplies a gradient of [`Output`] by the gradient of the loss, in place.
pub fn scale_gradient(gradient: &mut [f32], d_loss: f32) {
    gradient.par_chunks_mut(65_536).for_each(|part| scale(part, d_loss));
}

fn columns_of_a_block(rows: usize, vocabulary: usize) -> usize {
    (BLOCK_BYTES / 4 / rows.clamp(1, ROWS)).max(64).min(vocabulary)
}

fn rows_of_a_block(rows: usize, vocabulary: usize) -> usize {
    (ROW_BLOCK_BYTES / 4 / vocabulary.max(1)).max(32).min(rows.max(1))
}
