//! Output head and cross-entropy in burn's operations, in chunks of rows.

use burn::prelude::*;

use super::cross_entropy_sum;
use crate::linear::plain as linear;
use crate::packed::WeightOperand;

/// Rows of one chunk of [`sum_over_chunks`].
pub(crate) const CHUNK_ROWS: usize = 2048;

pub(super) fn head_loss_sum(hidden: Tensor<2>, weight: WeightOperand, targets: Tensor<1, Int>) -> Tensor<1> {
    sum_over_chunks(hidden, targets, |hidden| linear(hidden, weight.clone(), None))
}

/// [`cross_entropy_sum`] of the logits that `logits` makes of each chunk of rows. Without gradients, the logits of one chunk exist
/// at a time; with gradients, the graph keeps those of all chunks.
pub(crate) fn sum_over_chunks(
    hidden: Tensor<2>,
    targets: Tensor<1, Int>,
    logits: impl Fn(Tensor<2>) -> Tensor<2>,
) -> Tensor<1> {
    let rows = hidden.dims()[0];
    (0..rows)
        .step_by(CHUNK_ROWS)
        .map(|start| {
            let length = CHUNK_ROWS.min(rows - start);
            let logits = logits(hidden.clone().narrow(0, start, length));
            cross_entropy_sum(logits, targets.clone().narrow(0, start, length))
        })
        .reduce(|sum, loss| sum + loss)
        .unwrap_or_else(|| Tensor::zeros([1], &hidden.device()))
}
