//! Output head and cross-entropy in one. A block of logits exists at a time. While it does, and where gradients are
//! wanted, the gradients of the loss are formed, so that the backward pass only scales them:
//!
//! ```text
//! G = softmax(X W) - onehot(targets)        dX = G W^T        dW = X^T G
//! ```
//!
//! Where the head is frozen, blocks are of the vocabulary: each row keeps its largest logit and its sum so far, and its
//! `dX` so far is rescaled when the former grows (the softmax of Milakov and Gimelshein, 2018). So each part of the weight
//! is read, and packed by the product, once for many rows. `dW` needs finished rows of `G`: then blocks are of rows.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::IntTensor;
use burn::tensor::DType;
use rayon::prelude::*;

use super::product::{Matrix, Threads, multiply};
use super::simd::{exp, exp_in_place, exp_sum, largest, scale};
use super::storage::{Tracked, Values, contiguous, floats, into_vec, of_dtype, rows_and_width, tensor, tokens};
use super::weight::{Weight, with_weight_strides};

/// Bytes of logits that exist at one time, of a part of the vocabulary.
const BLOCK_BYTES: usize = 4 << 20;
/// The same where they are of some rows and the whole vocabulary, which packs the weight anew for each block.
const ROW_BLOCK_BYTES: usize = 16 << 20;
/// Rows that share one pass over the weight.
const ROWS: usize = 2048;

/// Which gradients to form.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    hidden: bool,
    weight: bool,
}

pub(super) struct Output {
    pub loss: Values,
    /// `dX`, `dW` for a gradient of one on the loss; empty where not wanted.
    gradients: [Vec<f32>; 2],
}

pub(super) fn forward(hidden: Values, weight: Values, targets: IntTensor<Flex>, wanted: Wanted) -> Output {
    let targets = tokens(targets);
    let hidden = contiguous(hidden);
    // The gradient of a head that is trained is formed in f32, so its blocks of rows are multiplied in f32.
    let weight = if wanted.weight { of_dtype(weight, DType::F32) } else { weight };
    let weight = with_weight_strides(weight);
    let w = Weight::of(&weight);
    let [rows, width] = rows_and_width(&hidden);
    let vocabulary = w.columns();
    assert_eq!(targets.len(), rows, "one target for each row");
    let outside = targets.iter().flatten().find(|target| **target >= vocabulary);
    assert!(outside.is_none(), "target {outside:?} of a vocabulary of {vocabulary}");

    let mut d_hidden = vec![0.0; if wanted.hidden { rows * width } else { 0 }];
    let mut d_weight = vec![0.0; if wanted.weight { width * vocabulary } else { 0 }];
    let (x, d) = (floats(&hidden), (&mut d_hidden[..], &mut d_weight[..]));
    let loss = match w {
        Weight::F32(w) if wanted.weight => by_rows(x, width, w, &targets, d),
        _ => by_vocabulary(x, width, w, &targets, d.0),
    };
    Output { loss: tensor(vec![loss as f32], [1]), gradients: [d_hidden, d_weight] }
}

/// Elements of a block of so many bytes with one side given, as the other side.
fn block_of(bytes: usize, side: usize, least: usize) -> usize {
    (bytes / 4 / side.max(1)).max(least)
}

/// The loss of a frozen head; `d_hidden` is filled where it has elements.
fn by_vocabulary(x: &[f32], width: usize, w: Weight<'_>, targets: &[Option<usize>], d_hidden: &mut [f32]) -> f64 {
    #[derive(Clone, Copy)]
    struct Row {
        target: Option<usize>,
        picked: f32,
        largest: f32,
        sum: f64,
    }
    let (vocabulary, wanted) = (w.columns(), !d_hidden.is_empty());
    let block = block_of(BLOCK_BYTES, targets.len().min(ROWS), 64).min(vocabulary);
    let mut buffer = vec![0.0; targets.len().min(ROWS) * block];
    let mut loss = 0.0;
    for start in (0..targets.len()).step_by(ROWS) {
        let count = ROWS.min(targets.len() - start);
        let x = &x[start * width..(start + count) * width];
        let d_hidden = if wanted { &mut d_hidden[start * width..(start + count) * width] } else { &mut [] };
        let new = |target: &Option<usize>| Row { target: *target, picked: 0.0, largest: f32::NEG_INFINITY, sum: 0.0 };
        let mut rows: Vec<Row> = targets[start..start + count].iter().map(new).collect();
        for first in (0..vocabulary).step_by(block) {
            let some = w.column_range(first, (first + block).min(vocabulary));
            let logits = &mut buffer[..count * some.columns()];
            some.multiply(logits, x, false);
            let step = |row: &mut Row, logits: &mut [f32]| -> f32 {
                if let Some(target) = row.target.filter(|target| (first..first + logits.len()).contains(target)) {
                    row.picked = logits[target - first];
                }
                let now = largest(logits).max(row.largest);
                let sum = if wanted { exp_in_place(logits, now) } else { exp_sum(logits, now) };
                // Nothing was seen before the first block.
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
                some.transposed().multiply(d_hidden, logits, true);
            } else {
                by_row.for_each(|(row, logits)| {
                    step(row, logits);
                });
            }
        }
        let with_target = rows.iter().filter(|row| row.target.is_some());
        loss += with_target.map(|row| row.sum.ln() + f64::from(row.largest) - f64::from(row.picked)).sum::<f64>();
        if wanted {
            rows.par_iter().zip(d_hidden.par_chunks_exact_mut(width)).for_each(|(row, d)| match row.target {
                None => d.fill(0.0),
                Some(target) => {
                    let factor = row.sum.recip() as f32;
                    d.iter_mut().enumerate().for_each(|(i, d)| *d = *d * factor - w.at(i, target));
                }
            });
        }
    }
    loss
}

/// The loss of a head that is trained, and its gradients; that of `x` where it has elements.
fn by_rows(
    x: &[f32],
    width: usize,
    w: Matrix<'_>,
    targets: &[Option<usize>],
    (d_hidden, d_weight): (&mut [f32], &mut [f32]),
) -> f64 {
    let (rows, vocabulary) = (targets.len(), w.columns());
    let block = block_of(ROW_BLOCK_BYTES, vocabulary, 32).min(rows.max(1));
    let mut logits = vec![0.0; block * vocabulary];
    let mut loss = 0.0;
    for start in (0..rows).step_by(block) {
        let count = block.min(rows - start);
        let logits = &mut logits[..count * vocabulary];
        let x = &x[start * width..(start + count) * width];
        multiply(logits, Matrix::new(x, count, width), w, 1.0, false, Threads::All);
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
            multiply(d_hidden, g, w.transposed(), 1.0, false, Threads::All);
            scaled_rows(d_hidden);
        }
        let mut scaled = x.to_vec();
        scaled_rows(&mut scaled);
        multiply(d_weight, Matrix::new(&scaled, count, width).transposed(), g, 1.0, true, Threads::All);
    }
    loss
}

#[derive(Debug)]
struct HeadLoss;

impl Backward<Flex, 2> for HeadLoss {
    /// `dX` and `dW` for a gradient of one, with their shapes.
    type State = [Option<Values>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_loss = floats(&contiguous(gradients.consume::<Flex>(&ops.node)))[0];
        for (node, gradient) in ops.parents.into_iter().zip(ops.state) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                let (shape, dtype) = (super::storage::shape(&gradient), gradient.dtype());
                let mut gradient = into_vec(of_dtype(gradient, DType::F32));
                gradient.par_chunks_mut(65_536).for_each(|part| scale(part, d_loss));
                gradients.register::<Flex>(node.id, of_dtype(tensor(gradient, shape), dtype));
            }
        }
    }
}

pub(super) fn tracked<C: CheckpointStrategy>(hidden: Tracked, weight: Tracked, targets: IntTensor<Flex>) -> Tracked {
    let wanted = Wanted { hidden: hidden.is_tracked(), weight: weight.is_tracked() };
    let prepared = HeadLoss.prepare::<C>([hidden.node(), weight.node()]).compute_bound().stateful();
    let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
    let shapes = [super::storage::shape(&hidden), super::storage::shape(&weight)];
    let weight_dtype = weight.dtype();
    let Output { loss, gradients: [d_hidden, d_weight] } = forward(hidden, weight, targets, wanted);
    match prepared {
        OpsKind::Tracked(prepared) => {
            let [hidden_shape, weight_shape] = shapes;
            let state = [
                wanted.hidden.then(|| tensor(d_hidden, hidden_shape)),
                wanted.weight.then(|| of_dtype(tensor(d_weight, weight_shape), weight_dtype)),
            ];
            prepared.finish(state, loss)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(loss),
    }
}
