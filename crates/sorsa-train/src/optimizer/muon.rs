//! Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") for matrices, with AdamW for vectors:
//!
//! ```text
//! m <- b1 m + (1 - b1) g                                        b1 = 0.95
//! o <- orthogonalized((1 - b1) g + b1 m)                        Nesterov's momentum
//! p <- p (1 - lr wd) - 0.2 sqrt(max(rows, columns)) lr o
//! ```
//!
//! This is PyTorch's `torch.optim.Muon` with `adjust_lr_fn = "match_rms_adamw"`: the scale (Liu et al., arXiv 2502.16982) gives a step
//! the root mean square of AdamW's, so that one rate and one weight decay suit both halves. [`orthogonalized`] is a Newton-Schulz iteration.
//! Here it runs in f32, in PyTorch in bf16. burn's own Muon keeps its momentum in records of its own, which checkpoints of this crate
//! cannot hold, and has no other rule for vectors.
//!
//! Vectors are singular values, magnitudes and norms. They have AdamW's betas, 0.9 and `beta2`. A matrix keeps one buffer, half of AdamW's.
//! In full fine-tuning, embedding and output head count as matrices.

use burn::prelude::*;

use super::adamw::AdamW;
use super::{OptimizerKind, StepRates, UpdateRule};
use crate::config::OptimizerConfig;

/// The rule, by its settings.
#[derive(Debug, Clone, Copy)]
pub struct Muon {
    momentum: f64,
    vectors: AdamW,
}

/// Coefficients of the quintic iteration.
const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
/// Number of iterations.
const ITERATIONS: usize = 5;
/// The smallest norm that a matrix is divided by.
const SMALLEST_NORM: f64 = 1e-7;

impl Muon {
    /// The scale of a step makes AdamW's rate a start.
    pub(super) const RELATIVE_RATE: f64 = 1.0;

    pub(super) fn new(config: &OptimizerConfig) -> Self {
        let vectors = OptimizerConfig { beta1: AdamW::defaults().beta1, ..config.clone() };
        Self { momentum: config.beta1, vectors: AdamW::new(&vectors) }
    }

    pub(super) fn checks(config: &OptimizerConfig) -> Vec<(bool, &'static str)> {
        AdamW::checks(config)
    }

    pub(super) fn defaults() -> OptimizerConfig {
        OptimizerConfig { kind: OptimizerKind::Muon, beta1: 0.95, ..OptimizerConfig::default() }
    }
}

impl UpdateRule for Muon {
    fn buffers(&self) -> &'static [&'static str] {
        &["m", "v"]
    }

    fn buffers_of(&self, shape: &[usize]) -> &'static [&'static str] {
        if shape.len() == 2 { &["m"] } else { self.buffers() }
    }

    fn directions(&self) -> &'static [&'static str] {
        &["m"]
    }

    fn update(
        &self,
        parameter: Tensor<1>,
        gradient: Tensor<1>,
        buffers: &mut [Tensor<1>],
        step: &StepRates,
    ) -> Tensor<1> {
        let [rows, columns] = *step.shape else {
            return self.vectors.update(parameter, gradient, buffers, step);
        };
        let (keep, take) = (self.momentum, 1.0 - self.momentum);
        buffers[0] = buffers[0].clone() * keep + gradient.clone() * take;
        let ahead = gradient * take + buffers[0].clone() * keep;
        let direction = orthogonalized(ahead.reshape([rows, columns])).reshape([rows * columns]);
        let rate = 0.2 * (rows.max(columns) as f64).sqrt() * step.learning_rate;
        parameter * (1.0 - step.learning_rate * step.weight_decay) - direction * rate
    }
}

/// A matrix near the `U V^T` of `G = U S V^T`, whose singular values are between 0.7 and 1.2 if those of `G` are not far apart:
///
/// ```text
/// X = G / ||G||_F      X <- a X + (b X X^T + c (X X^T)^2) X, five times
/// ```
fn orthogonalized(matrix: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = matrix.dims();
    let norm = matrix.clone().square().sum().sqrt().clamp_min(SMALLEST_NORM);
    let mut x = matrix / norm.unsqueeze();
    // The products with the shorter side are smaller.
    let turned = rows > columns;
    if turned {
        x = x.transpose();
    }
    let (a, b, c) = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let gram = x.clone().matmul(x.clone().transpose());
        let polynomial = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + polynomial.matmul(x);
    }
    if turned { x.transpose() } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_columns_of_any_length_become_those_of_about_length_one_and_zeros_stay() {
        let device = Device::flex();
        for shape in [[6, 3], [3, 6]] {
            let lengths = Tensor::<2>::from_data([[5.0], [2.0], [1.0]], &device);
            let wide = Tensor::<2>::eye(6, &device).narrow(0, 0, 3) * lengths;
            let matrix = if shape[0] > shape[1] { wide.transpose() } else { wide };
            let found = orthogonalized(matrix);
            assert_eq!(found.dims(), shape);
            let wide = if shape[0] > shape[1] { found.transpose() } else { found };
            let gram = wide.clone().matmul(wide.transpose());
            let identity = Tensor::<2>::eye(3, &device);
            let beside = (gram.clone() * (identity.ones_like() - identity.clone())).abs().max().into_scalar::<f32>();
            let squares = (gram * identity).sum_dim(0).into_data().try_into_vec::<f32>().unwrap();
            assert!(beside < 1e-5 && squares.iter().all(|square| (0.4..1.5).contains(square)), "{beside} {squares:?}");
        }
        let zeros = orthogonalized(Tensor::<2>::zeros([4, 2], &device));
        assert_eq!(zeros.abs().max().into_scalar::<f32>(), 0.0);
    }
}
