//! Notices a run that makes its model worse, while it happens.
//!
//! The training loss of one step is noisy. With `m` the median of the last five losses, `noise` the exponential mean of
//! `|loss - loss before|` (a single jump counts as `3 noise + start / 4` at most), `start` the mean of the first three losses, and `lowest`
//! the lowest `m` so far, the loss climbs if
//!
//! ```text
//! m > lowest + start / 4 + 2.5 noise
//! ```
//!
//! One or two bad batches do not move a median of five, and the limit keeps the noise from growing as fast as a loss that explodes.
//!
//! The validation loss only gets worse if two or more evaluations follow the one before training, each is above it, and none is below
//! the one before itself.

use serde::{Deserialize, Serialize};

use crate::metrics::Metric;

/// Losses of the median.
const WINDOW: usize = 5;
/// Weight of the past in the noise.
const DECAY: f64 = 0.95;
/// Steps whose mean is the start; no step before the last of them is judged.
const FIRST_STEPS: usize = 3;
/// How far the median may climb, as a share of the loss at the start.
const MARGIN: f64 = 0.25;
/// How far it may climb, as a multiple of the noise.
const NOISES: f64 = 2.5;
/// The most that one jump counts, as a multiple of the noise.
const JUMP: f64 = 3.0;

/// Training makes the model worse.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Divergence {
    /// The training loss climbs.
    TrainingLoss {
        /// The step at which it was noticed.
        step: u64,
        /// Mean of the first losses.
        start: f64,
        /// The lowest median of five losses on the way.
        lowest: f64,
        /// The median when it was noticed.
        median: f64,
    },
    /// No evaluation was better than the one before it.
    ValidationLoss {
        /// The step at which it was noticed.
        step: u64,
        /// The loss before training.
        start: f64,
        /// The loss when it was noticed.
        last: f64,
    },
}

/// What a run's metrics say so far.
#[derive(Debug, Clone, Default)]
pub struct DivergenceWatch {
    first: Vec<f64>,
    /// The last losses, the newest last.
    window: Vec<f64>,
    noise: Mean,
    lowest: Option<f64>,
    evaluations: Vec<f64>,
    found: Vec<Divergence>,
}

/// An exponential mean.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum = DECAY * self.sum + value;
        self.weight = DECAY * self.weight + 1.0;
    }

    fn value(&self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }
}

impl DivergenceWatch {
    /// What was found so far, each kind once.
    pub fn found(&self) -> &[Divergence] {
        &self.found
    }

    /// Takes the next metric of the run. Returns what it shows for the first time.
    pub fn add(&mut self, metric: &Metric) -> Option<Divergence> {
        let found = match metric {
            Metric::Step(step) => self.add_loss(step.step, step.loss),
            Metric::Eval(eval) => self.add_evaluation(eval.step, eval.loss),
            Metric::Watch(_) => None,
        }?;
        let is_known = self.found.iter().any(|known| std::mem::discriminant(known) == std::mem::discriminant(&found));
        if is_known {
            return None;
        }
        self.found.push(found);
        Some(found)
    }

    fn add_loss(&mut self, step: u64, loss: f64) -> Option<Divergence> {
        if self.first.len() < FIRST_STEPS {
            self.first.push(loss);
        }
        let start = self.first.iter().sum::<f64>() / self.first.len() as f64;
        if let Some(last) = self.window.last() {
            let jump = (loss - last).abs();
            let is_first = self.noise.weight == 0.0;
            let limit = if is_first { jump } else { JUMP * self.noise.value() + MARGIN * start };
            self.noise.add(jump.min(limit));
        }
        if self.window.len() == WINDOW {
            self.window.remove(0);
        }
        self.window.push(loss);
        if self.window.len() < FIRST_STEPS {
            return None;
        }
        let mut sorted = self.window.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let lowest = self.lowest.map_or(median, |lowest| lowest.min(median));
        self.lowest = Some(lowest);
        let limit = lowest + MARGIN * start + NOISES * self.noise.value();
        if median > limit { Some(Divergence::TrainingLoss { step, start, lowest, median }) } else { None }
    }

    fn add_evaluation(&mut self, step: u64, loss: f64) -> Option<Divergence> {
        self.evaluations.push(loss);
        let [start, _, .., last] = self.evaluations[..] else { return None };
        let only_rises = self.evaluations.windows(2).all(|pair| pair[1] >= pair[0]);
        if only_rises && last > start && self.evaluations[1] > start {
            Some(Divergence::ValidationLoss { step, start, last })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{EvalMetrics, StepMetrics};

    fn steps(losses: impl IntoIterator<Item = f64>) -> Vec<Divergence> {
        let mut watch = DivergenceWatch::default();
        for (index, loss) in losses.into_iter().enumerate() {
            watch.add(&Metric::Step(StepMetrics { step: index as u64 + 1, loss, ..StepMetrics::default() }));
        }
        watch.found().to_vec()
    }

    fn evaluations(losses: &[f64]) -> Vec<Divergence> {
        let mut watch = DivergenceWatch::default();
        for (index, loss) in losses.iter().enumerate() {
            let step = 10 * index as u64;
            watch.add(&Metric::Eval(EvalMetrics { step, loss: *loss, perplexity: loss.exp() }));
        }
        watch.found().to_vec()
    }

    /// Noise in [-1, 1] that is the same on every machine.
    fn noise(index: u64) -> f64 {
        let mixed = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    #[test]
    fn a_loss_that_climbs_is_noticed_within_its_run() {
        // The curve of the first real model that was tried: 0.90 to 2.2 in 12 steps.
        let ruined = (0..12).map(|step| 0.9 + 1.3 * f64::from(step) / 11.0);
        let found = steps(ruined);
        assert!(matches!(found[..], [Divergence::TrainingLoss { step: 5..=12, .. }]), "{found:?}");
        let after_falling =
            (0..60).map(|step| if step < 40 { 3.0 - 0.05 * f64::from(step) } else { 1.0 + 0.2 * f64::from(step - 40) });
        let found = steps(after_falling);
        assert!(matches!(found[..], [Divergence::TrainingLoss { step: 41..=60, .. }]), "{found:?}");
    }

    #[test]
    fn a_loss_that_explodes_is_noticed_though_its_jumps_grow() {
        let found = steps((0..12).map(|step| 4f64.powi(step)));
        assert!(matches!(found[..], [Divergence::TrainingLoss { step: 4..=9, .. }]), "{found:?}");
    }

    #[test]
    fn noise_and_a_loss_that_falls_are_no_divergence() {
        for width in [0.05, 0.3, 0.8] {
            let flat = (0..5000).map(|index| 1.0 + width * noise(index));
            assert_eq!(steps(flat), [], "{width}");
            let falling =
                (0..2000).map(|index| 4.0 * (-(index as f64) / 300.0).exp() + 0.3 + 0.2 * width * noise(index));
            assert_eq!(steps(falling), [], "{width}");
        }
        assert_eq!(steps([0.9, 3.0, 0.9, 0.8, 0.9, 2.0, 0.9, 0.8, 0.7]), [], "single bad batches");
        let bad = (0..200).map(|index| if index % 50 == 40 { 9.0 } else { 1.0 + 0.1 * noise(index) });
        assert_eq!(steps(bad), [], "bad batches among good ones");
    }

    #[test]
    fn evaluations_that_only_rise_are_noticed_at_the_second() {
        let found = Divergence::ValidationLoss { step: 20, start: 1.0, last: 1.2 };
        assert_eq!(evaluations(&[1.0, 1.1, 1.2, 1.3]), [found]);
        assert_eq!(evaluations(&[1.0, 1.1]), []);
        assert_eq!(evaluations(&[1.0, 0.9, 1.2, 1.3]), []);
        assert_eq!(evaluations(&[1.0, 1.2, 1.1, 1.3]), [], "it went down once");
        assert_eq!(evaluations(&[1.0, 1.0, 1.0]), [], "a frozen model");
    }
}
