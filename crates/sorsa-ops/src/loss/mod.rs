//! Cross-entropy summed over target tokens. The caller divides by the number of targets of the whole optimizer step.

mod flex;
mod plain;
#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_kernels::head_loss::{logits_of_a_frozen_head, logits_of_a_trained_head};

#[cfg(test)]
pub(crate) use plain::CHUNK_ROWS;
pub(crate) use plain::sum_over_chunks;

use crate::form::{Form, fused_form_applies, operand};
use crate::memory::OperationMemory;
use crate::packed::WeightOperand;
use crate::weight::fused_form_takes_weight;

/// `sum_i -log softmax(logits_i)[target_i]`, in f32. Rows with a negative target do not count.
///
/// # Shapes
///
/// - `logits`: `[rows, vocabulary]`
/// - `targets`: `[rows]`
/// - output: `[1]`
pub fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let logits = logits.cast(FloatDType::F32);
    let largest = logits.clone().detach().max_dim(1);
    let shifted = logits - largest;
    let log_normalizer = shifted.clone().exp().sum_dim(1).log();
    let targets = targets.unsqueeze_dim::<2>(1);
    let picked = shifted.gather(1, targets.clone().clamp_min(0));
    (log_normalizer - picked).mask_fill(targets.lower_elem(0), 0.0).sum()
}

/// The loss of `hidden` under the output head `weight`: [`cross_entropy_sum`] of their product, in blocks of bounded size. For
/// the backward pass, the fused form keeps no logits; the plain form keeps them.
///
/// # Shapes
///
/// - `hidden`: `[rows, d_model]`
/// - `weight`: `[d_model, vocabulary]`
/// - `targets`: `[rows]`
/// - output: `[1]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other, or if a target is outside the vocabulary.
pub fn head_loss_sum(hidden: Tensor<2>, weight: impl Into<WeightOperand>, targets: Tensor<1, Int>) -> Tensor<1> {
    let weight = weight.into();
    if fused_form_applies([operand(&hidden)]) && fused_form_takes_weight(&weight) {
        flex::head_loss_sum(hidden, weight, targets)
    } else {
        plain::head_loss_sum(hidden, weight, targets)
    }
}

/// The sizes of a [`head_loss_sum`].
#[derive(Debug, Clone, Copy)]
pub struct HeadLossShape {
    /// Rows of the hidden states.
    pub rows: usize,
    /// `d_model`.
    pub width: usize,
    /// Columns of the head.
    pub vocabulary: usize,
    /// Whether the head is trained.
    pub trained: bool,
}

/// The memory of [`head_loss_sum`]. The fused form keeps the gradient of the hidden states, and one block of logits exists while
/// it runs; the gradient of a trained head counts as a gradient. The plain form keeps the logits, their softmax and its
/// logarithm, and its workspace is their gradient.
pub fn head_loss_memory(form: Form, shape: HeadLossShape) -> OperationMemory {
    let HeadLossShape { rows, width, vocabulary, trained } = shape;
    match form {
        Form::Fused => {
            let logits = match trained {
                true => logits_of_a_trained_head(rows, vocabulary),
                false => logits_of_a_frozen_head(rows, vocabulary),
            };
            OperationMemory { kept: 4 * (rows * width) as u64, workspace: 4 * logits as u64 }
        }
        Form::Plain => {
            let logits = 4 * (rows * vocabulary) as u64;
            OperationMemory { kept: 3 * logits, workspace: logits }
        }
    }
}
