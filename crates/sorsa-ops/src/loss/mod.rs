//! Cross-entropy summed over target tokens; the caller divides by the targets of the whole optimizer step.

use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::{fused, linear};

/// Rows of one chunk of [`in_chunks`].
pub(crate) const CHUNK_ROWS: usize = 2048;

/// `sum_i -log softmax(logits_i)[target_i]` of `logits` `[rows, vocabulary]` and `targets` `[rows]`, in f32, as a
/// tensor of one element. Rows whose target is negative count for nothing.
pub fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let logits = logits.cast(FloatDType::F32);
    let largest = logits.clone().detach().max_dim(1);
    let shifted = logits - largest;
    let log_normaliser = shifted.clone().exp().sum_dim(1).log();
    let targets = targets.unsqueeze_dim::<2>(1);
    let picked = shifted.gather(1, targets.clone().clamp_min(0));
    (log_normaliser - picked).mask_fill(targets.lower_elem(0), 0.0).sum()
}

/// The loss of `hidden` `[rows, d_model]` under the output head `weight` `[d_model, vocabulary]`: [`cross_entropy_sum`]
/// of their product, in chunks of rows, so that the largest temporary has a bounded number of rows where no gradient is
/// wanted. The fused form keeps no logits for the backward pass either; the plain one does.
pub fn head_loss_sum(hidden: Tensor<2>, weight: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    if fused::applies([fused::kind(&hidden)]) && fused::takes_weight(&weight) {
        fused::head_loss_sum(hidden, weight, targets)
    } else {
        plain(hidden, weight, targets)
    }
}

pub(crate) fn plain(hidden: Tensor<2>, weight: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    in_chunks(hidden, targets, |hidden| linear::plain(hidden, weight.clone(), None))
}

/// [`cross_entropy_sum`] of the logits that `logits` makes of chunks of rows. Without gradients those of one chunk exist at
/// a time; a tape keeps what it needs of all of them.
pub(crate) fn in_chunks(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    #[test]
    fn large_logits_do_not_overflow() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[1e4, 0.0], [0.0, 1e4]], &device);
        let loss = cross_entropy_sum(logits, Tensor::from_ints([0, 0], &device)).into_scalar::<f32>();
        assert!((loss - 1e4).abs() < 1e-2, "{loss}");
    }

    #[test]
    fn the_gradient_is_softmax_minus_one_hot() {
        let device = Device::flex().autodiff();
        let logits = Tensor::<2>::from_floats([[0.5, -1.0, 2.0]], &device).require_grad();
        let loss = cross_entropy_sum(logits.clone(), Tensor::from_ints([1], &device));
        let gradient = logits.grad(&loss.backward()).unwrap().into_data().try_into_vec::<f32>().unwrap();
        let exp: Vec<f32> = [0.5f32, -1.0, 2.0].map(f32::exp).to_vec();
        let sum: f32 = exp.iter().sum();
        for (i, value) in gradient.iter().enumerate() {
            let expected = exp[i] / sum - f32::from(i == 1);
            assert!((value - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn chunks_sum_to_the_whole() {
        let device = Device::flex();
        let rows = CHUNK_ROWS + 7;
        let hidden = normal([rows, 3], 1.0, 1, &device);
        let weight = normal([3, 5], 1.0, 2, &device);
        let targets = Tensor::<1, Int>::zeros([rows], &device);
        let whole = cross_entropy_sum(hidden.clone().matmul(weight.clone()), targets.clone()).into_scalar::<f32>();
        let chunked = head_loss_sum(hidden, weight, targets).into_scalar::<f32>();
        assert!((whole - chunked).abs() < 1e-3 * whole, "{whole} {chunked}");
    }
}
