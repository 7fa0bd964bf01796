//! Output head and cross-entropy in one. Logits exist for a block of rows at a time. While they do, and where gradients
//! are wanted, the gradients of the loss are formed, so that the backward pass only scales them:
//!
//! ```text
//! G = softmax(X W) - onehot(targets)        dX = G W^T        dW = X^T G
//! ```

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::IntTensor;
use rayon::prelude::*;

use super::product::{Matrix, Threads, multiply};
use super::simd::{exp_in_place, exp_sum, largest, scale};
use super::storage::{Tracked, Values, contiguous, floats, into_vec, rows_and_width, tensor, tokens};

/// Bytes of logits that exist at one time, and bounds of the rows they are.
const BLOCK_BYTES: usize = 16 << 20;
const BLOCK_ROWS: std::ops::RangeInclusive<usize> = 32..=1024;

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
    let weight = if Matrix::of(&weight).is_some() { weight } else { weight.to_contiguous() };
    let w = Matrix::of(&weight).expect("two axes, strides of zero or more");
    let [rows, width] = rows_and_width(&hidden);
    let vocabulary = w.columns();
    assert_eq!(targets.len(), rows, "one target for each row");
    let outside = targets.iter().flatten().find(|target| **target >= vocabulary);
    assert!(outside.is_none(), "target {outside:?} of a vocabulary of {vocabulary}");

    let x = floats(&hidden);
    let block = (BLOCK_BYTES / 4 / vocabulary.max(1)).clamp(*BLOCK_ROWS.start(), *BLOCK_ROWS.end()).min(rows.max(1));
    let mut logits = vec![0.0; block * vocabulary];
    let mut d_hidden = vec![0.0; if wanted.hidden { rows * width } else { 0 }];
    let mut d_weight = vec![0.0; if wanted.weight { width * vocabulary } else { 0 }];
    let mut loss = 0.0;
    for start in (0..rows).step_by(block) {
        let count = block.min(rows - start);
        let logits = &mut logits[..count * vocabulary];
        let x = &x[start * width..(start + count) * width];
        let targets = &targets[start..start + count];
        multiply(logits, Matrix::new(x, count, width), w, 1.0, false, Threads::All);
        let by_row = logits.par_chunks_exact_mut(vocabulary).zip(targets);
        if !wanted.hidden && !wanted.weight {
            loss += in_order(by_row.map(|(row, target)| target.map_or(0.0, |target| row_loss(row, target))));
            continue;
        }
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
        if wanted.hidden {
            let d_hidden = &mut d_hidden[start * width..(start + count) * width];
            multiply(d_hidden, g, w.transposed(), 1.0, false, Threads::All);
            d_hidden.chunks_exact_mut(width).zip(&factors).for_each(|(row, factor)| scale(row, *factor));
        }
        if wanted.weight {
            let mut scaled = x.to_vec();
            scaled.chunks_exact_mut(width).zip(&factors).for_each(|(row, factor)| scale(row, *factor));
            let scaled = Matrix::new(&scaled, count, width).transposed();
            multiply(&mut d_weight, scaled, g, 1.0, true, Threads::All);
        }
    }
    Output { loss: tensor(vec![loss as f32], [1]), gradients: [d_hidden, d_weight] }
}

fn row_loss(row: &[f32], target: usize) -> f64 {
    let largest = largest(row);
    f64::from(exp_sum(row, largest)).ln() + f64::from(largest) - f64::from(row[target])
}

/// A sum that does not depend on how rayon splits the work.
fn in_order(values: impl IndexedParallelIterator<Item = f64>) -> f64 {
    let mut all = Vec::new();
    values.collect_into_vec(&mut all);
    all.iter().sum()
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
                let shape = super::storage::shape(&gradient);
                let mut gradient = into_vec(gradient);
                gradient.par_chunks_mut(65_536).for_each(|part| scale(part, d_loss));
                gradients.register::<Flex>(node.id, tensor(gradient, shape));
            }
        }
    }
}

pub(super) fn tracked<C: CheckpointStrategy>(hidden: Tracked, weight: Tracked, targets: IntTensor<Flex>) -> Tracked {
    let wanted = Wanted { hidden: hidden.is_tracked(), weight: weight.is_tracked() };
    let prepared = HeadLoss.prepare::<C>([hidden.node(), weight.node()]).compute_bound().stateful();
    let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
    let shapes = [super::storage::shape(&hidden), super::storage::shape(&weight)];
    let Output { loss, gradients: [d_hidden, d_weight] } = forward(hidden, weight, targets, wanted);
    match prepared {
        OpsKind::Tracked(prepared) => {
            let [hidden_shape, weight_shape] = shapes;
            let state = [
                wanted.hidden.then(|| tensor(d_hidden, hidden_shape)),
                wanted.weight.then(|| tensor(d_weight, weight_shape)),
            ];
            prepared.finish(state, loss)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(loss),
    }
}
