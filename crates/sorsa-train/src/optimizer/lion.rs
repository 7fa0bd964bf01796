//! Lion (Chen et al., arXiv 2302.06675, algorithm 2), with decoupled weight decay:
//!
//! ```text
//! c <- b1 m + (1 - b1) g
//! p <- p (1 - lr wd) - lr sign(c)
//! m <- b2 m + (1 - b2) g
//! ```
//!
//! It keeps one buffer of each parameter, half of AdamW's. Every number moves by the whole learning rate in each step, so
//! that the rate is lower than AdamW's.

use burn::prelude::*;

use super::{OptimizerKind, StepRates, UpdateRule};
use crate::config::OptimizerConfig;

/// The rule, by its settings.
#[derive(Debug, Clone, Copy)]
pub struct Lion {
    beta1: f64,
    beta2: f64,
}

impl Lion {
    /// The authors advise a third to a tenth; on the embedded task a tenth is too slow.
    pub(super) const RELATIVE_RATE: f64 = 0.3;

    pub(super) fn new(config: &OptimizerConfig) -> Self {
        Self { beta1: config.beta1, beta2: config.beta2 }
    }

    pub(super) fn checks(config: &OptimizerConfig) -> Vec<(bool, &'static str)> {
        vec![
            ((0.0..1.0).contains(&config.beta1), "train.optimizer.beta1 must be in [0, 1)"),
            ((0.0..1.0).contains(&config.beta2), "train.optimizer.beta2 must be in [0, 1)"),
        ]
    }

    pub(super) fn defaults() -> OptimizerConfig {
        OptimizerConfig {
            kind: OptimizerKind::Lion,
            learning_rate: 3e-4.into(),
            beta2: 0.99,
            ..OptimizerConfig::default()
        }
    }
}

impl UpdateRule for Lion {
    fn buffers(&self) -> &'static [&'static str] {
        &["m"]
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
        let [mean] = buffers else { unreachable!("Lion keeps one buffer") };
        let direction = (mean.clone() * self.beta1 + gradient.clone() * (1.0 - self.beta1)).sign();
        *mean = mean.clone() * self.beta2 + gradient * (1.0 - self.beta2);
        parameter * (1.0 - step.learning_rate * step.weight_decay) - direction * step.learning_rate
    }
}

#[cfg(test)]
mod tests {
    use sorsa_adapter::{Attached, export_trainable};

    use super::*;
    use crate::optimizer::testing::{attached, gradients};
    use crate::optimizer::{Decoupled, Optimizer};

    #[test]
    fn three_steps_are_those_of_the_published_algorithm() {
        let Attached { mut model, trainable, .. } = attached();
        let (rate, decay) = (0.01, 0.1);
        let config = OptimizerConfig { learning_rate: rate.into(), weight_decay: decay, ..Lion::defaults() };
        let start = export_trainable(&model, &trainable);
        let mut optimizer = Optimizer::new(config, &trainable);
        // The last gradient is against the mean and too small to turn it, so that the sign is the mean's.
        let steps = [0.5, -0.2, -0.003];
        for gradient in steps {
            model = optimizer.step(model, gradients(&trainable, gradient), 1.0, Decoupled::default());
        }
        let end = export_trainable(&model, &trainable);
        for (name, start) in start {
            for (start, end) in start.values.iter().zip(&end[&name].values) {
                let (mut p, mut m) = (f64::from(*start), 0.0f64);
                for gradient in steps {
                    let c = 0.9 * m + 0.1 * gradient;
                    p = p * (1.0 - rate * decay) - rate * c.signum();
                    m = 0.99 * m + 0.01 * gradient;
                }
                assert!((f64::from(*end) - p).abs() < 1e-6, "{name}: {end}, expected {p}");
            }
        }
    }
}
