//! Stochastic gradient descent with momentum, exactly like PyTorch's `SGD`, whose weight decay is part of the gradient:
//!
//! ```text
//! v <- b1 v + (g + wd p)
//! p <- p - lr v
//! ```
//!
//! It keeps one buffer of each parameter. A step is as long as the gradient, so that the rate is far above AdamW's.

use burn::prelude::*;

use super::{OptimizerKind, StepRates, UpdateRule};
use crate::config::OptimizerConfig;

/// The rule, by its settings.
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    momentum: f64,
}

impl Sgd {
    /// On the embedded task, with clipping at 1, SORSA and LoRA learn at it like with AdamW; no other model was tried.
    pub(super) const RELATIVE_RATE: f64 = 30.0;

    pub(super) fn new(config: &OptimizerConfig) -> Self {
        Self { momentum: config.beta1 }
    }

    pub(super) fn defaults() -> OptimizerConfig {
        OptimizerConfig { kind: OptimizerKind::Sgd, learning_rate: 3e-2.into(), ..OptimizerConfig::default() }
    }

    pub(super) fn checks(config: &OptimizerConfig) -> Vec<(bool, &'static str)> {
        vec![((0.0..1.0).contains(&config.beta1), "train.optimizer.beta1 must be in [0, 1)")]
    }
}

impl UpdateRule for Sgd {
    fn buffers(&self) -> &'static [&'static str] {
        &["v"]
    }

    fn directions(&self) -> &'static [&'static str] {
        &["v"]
    }

    fn update(
        &self,
        parameter: Tensor<1>,
        gradient: Tensor<1>,
        buffers: &mut [Tensor<1>],
        step: &StepRates,
    ) -> Tensor<1> {
        let [velocity] = buffers else { unreachable!("SGD keeps one buffer") };
        let gradient = gradient + parameter.clone() * step.weight_decay;
        *velocity = velocity.clone() * self.momentum + gradient;
        parameter - velocity.clone() * step.learning_rate
    }
}

#[cfg(test)]
mod tests {
    use sorsa_adapter::{Attached, export_trainable};

    use super::*;
    use crate::optimizer::testing::{attached, gradients};
    use crate::optimizer::{Decoupled, Optimizer};

    #[test]
    fn three_steps_are_those_of_pytorch() {
        let Attached { mut model, trainable, .. } = attached();
        let (rate, decay) = (0.1, 0.2);
        let config = OptimizerConfig { learning_rate: rate.into(), weight_decay: decay, ..Sgd::defaults() };
        let start = export_trainable(&model, &trainable);
        let mut optimizer = Optimizer::new(config, &trainable);
        let steps = [0.5, -0.2, 0.03];
        for gradient in steps {
            model = optimizer.step(model, gradients(&trainable, gradient), 1.0, Decoupled::default());
        }
        let end = export_trainable(&model, &trainable);
        for (name, start) in start {
            for (start, end) in start.values.iter().zip(&end[&name].values) {
                let (mut p, mut v) = (f64::from(*start), 0.0f64);
                for gradient in steps {
                    v = 0.9 * v + gradient + decay * p;
                    p -= rate * v;
                }
                assert!((f64::from(*end) - p).abs() < 1e-6, "{name}: {end}, expected {p}");
            }
        }
    }
}
