//! AdamW with decoupled weight decay (arXiv 1711.05101), exactly like PyTorch's:
//!
//! ```text
//! p <- p (1 - lr wd)
//! m <- b1 m + (1 - b1) g         v <- b2 v + (1 - b2) g^2
//! p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```

use std::collections::BTreeMap;

use burn::prelude::*;

use super::{OptimizerKind, StepRates, UpdateRule};
use crate::config::{GroupOverride, OptimizerConfig};

/// The rule, by its settings.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
}

impl AdamW {
    pub(super) const RELATIVE_RATE: f64 = 1.0;

    pub(super) fn new(config: &OptimizerConfig) -> Self {
        Self { beta1: config.beta1, beta2: config.beta2, epsilon: config.epsilon }
    }

    pub(super) fn checks(config: &OptimizerConfig) -> Vec<(bool, &'static str)> {
        vec![
            // With 0, a gradient of 0 (LoRA's A at the start) would be divided by 0.
            (config.epsilon > 0.0 && config.epsilon.is_finite(), "train.optimizer.epsilon must be positive"),
            ((0.0..1.0).contains(&config.beta1), "train.optimizer.beta1 must be in [0, 1)"),
            ((0.0..1.0).contains(&config.beta2), "train.optimizer.beta2 must be in [0, 1)"),
        ]
    }

    pub(super) fn defaults() -> OptimizerConfig {
        OptimizerConfig {
            kind: OptimizerKind::AdamW,
            learning_rate: 1e-3.into(),
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            singular_values: GroupOverride::default(),
            magnitudes: GroupOverride::default(),
            factor_rates: BTreeMap::new(),
        }
    }
}

impl UpdateRule for AdamW {
    fn buffers(&self) -> &'static [&'static str] {
        &["m", "v"]
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
        let Self { beta1, beta2, epsilon } = *self;
        let [first, second] = buffers else { unreachable!("AdamW keeps two buffers") };
        let count = i32::try_from(step.step).unwrap_or(i32::MAX);
        let (correction1, correction2) = (1.0 - beta1.powi(count), 1.0 - beta2.powi(count));
        let decay = step.learning_rate * step.weight_decay;
        *first = first.clone() * beta1 + gradient.clone() * (1.0 - beta1);
        *second = second.clone() * beta2 + gradient.square() * (1.0 - beta2);
        let denominator = second.clone().sqrt() / correction2.sqrt() + epsilon;
        let parameter = if decay == 0.0 { parameter } else { parameter * (1.0 - decay) };
        parameter - first.clone() / denominator * (step.learning_rate / correction1)
    }
}

#[cfg(test)]
mod tests {
    use sorsa_adapter::{Attached, export_trainable};

    use super::*;
    use crate::optimizer::testing::{attached, gradients};
    use crate::optimizer::{Decoupled, Optimizer};

    /// PyTorch's AdamW in f64, one number.
    struct Reference {
        rate: f64,
        decay: f64,
        p: f64,
        m: f64,
        v: f64,
    }

    impl Reference {
        fn step(&mut self, gradient: f64, t: i32) {
            self.p *= 1.0 - self.rate * self.decay;
            self.m = 0.9 * self.m + 0.1 * gradient;
            self.v = 0.999 * self.v + 0.001 * gradient * gradient;
            let denominator = self.v.sqrt() / (1.0 - 0.999f64.powi(t)).sqrt() + 1e-8;
            self.p -= self.rate / (1.0 - 0.9f64.powi(t)) * self.m / denominator;
        }
    }

    #[test]
    fn singular_values_follow_their_own_rate_and_decay_and_factors_the_others() {
        let Attached { mut model, trainable, .. } = attached();
        let singular_values = GroupOverride { learning_rate: Some(0.05), weight_decay: Some(0.4) };
        let config = OptimizerConfig {
            learning_rate: 0.01.into(),
            weight_decay: 0.1,
            singular_values,
            ..OptimizerConfig::default()
        };
        let start = export_trainable(&model, &trainable);
        let mut optimizer = Optimizer::new(config, &trainable);
        let steps = [(0.5, 1.0), (-0.02, 0.5), (0.3, 0.25)];
        for (gradient, factor) in steps {
            model = optimizer.step(model, gradients(&trainable, gradient), factor, Decoupled::default());
        }
        let end = export_trainable(&model, &trainable);
        assert_eq!(end.len(), 3);
        for (name, start) in start {
            let (rate, decay) = if name.ends_with(".s") { (0.05, 0.4) } else { (0.01, 0.1) };
            for (start, end) in start.values.iter().zip(&end[&name].values) {
                let mut reference = Reference { rate, decay, p: f64::from(*start), m: 0.0, v: 0.0 };
                for (t, (gradient, factor)) in (1..).zip(steps) {
                    reference.rate = rate * factor;
                    reference.step(gradient, t);
                }
                assert!((f64::from(*end) - reference.p).abs() < 1e-6, "{name}: {end}, expected {}", reference.p);
            }
        }
    }
}
