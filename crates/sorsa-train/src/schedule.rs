//! Learning-rate schedules: the factor on the peak rate at each optimizer step.
//!
//! The closed forms are those of Hugging Face's `get_{cosine,linear,constant}_schedule_with_warmup`. With `w` warm-up
//! steps and `n` steps in all, step `t` (counted from 0) has the factor
//!
//! ```text
//! t < w      t / w                                   so the first step has learning rate 0; 1 if n = 1
//! cosine     (1 + cos(pi p)) / 2    p = (t - w) / (n - w), at most 1
//! linear     1 - p
//! constant   1
//! ```
//!
//! and the two decaying ones end at `min_ratio` rather than 0: `min_ratio + (1 - min_ratio) * factor`.

use serde::{Deserialize, Serialize};

/// A learning-rate schedule over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after warm-up.
    pub kind: ScheduleKind,
    /// Steps in which the rate rises from 0 to its peak.
    pub warmup_steps: u64,
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// What a decaying schedule ends at, as a fraction of the peak, in `0..=1`.
    pub min_ratio: f64,
}

/// The shape of a [`Schedule`] after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine wave down.
    Cosine,
    /// A straight line down.
    Linear,
    /// The peak rate to the end.
    Constant,
}

impl Schedule {
    /// The multiplier of the peak learning rate at `step`, counted from 0. After the last step it stays constant.
    pub fn factor(&self, step: u64) -> f64 {
        let warmup = self.warmup_steps;
        if step < warmup {
            // A run of one step would learn nothing.
            return if self.total_steps == 1 { 1.0 } else { step as f64 / warmup as f64 };
        }
        let decay_steps = self.total_steps.saturating_sub(warmup).max(1);
        let progress = ((step - warmup) as f64 / decay_steps as f64).min(1.0);
        let decayed = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.min_ratio + (1.0 - self.min_ratio) * decayed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup_steps: u64, total_steps: u64) -> Schedule {
        Schedule { kind, warmup_steps, total_steps, min_ratio: 0.0 }
    }

    #[test]
    fn a_cosine_with_warmup_is_the_one_of_transformers() {
        // The learning rates that Transformers 4.57 gives for a peak of 2e-3, 3 warm-up steps and 30 steps.
        let expected = [
            (0, 0.0),
            (1, 0.0006666666666666666),
            (2, 0.0013333333333333333),
            (3, 0.002),
            (4, 0.001993238357741943),
            (5, 0.0019730448705798237),
        ];
        let schedule = schedule(ScheduleKind::Cosine, 3, 30);
        for (step, rate) in expected {
            assert!((2e-3 * schedule.factor(step) - rate).abs() < 1e-17, "step {step}");
        }
    }

    #[test]
    fn golden_curves_have_these_learning_rates() {
        let Some(golden) = std::env::var_os("SORSA_GOLDEN") else { return };
        let mut curves = 0;
        for entry in std::fs::read_dir(std::path::Path::new(&golden).join("curves")).unwrap() {
            let path = entry.unwrap().path().join("curve.json");
            let curve: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let settings = &curve["settings"];
            let (warmup, steps) = (settings["warmup"].as_u64().unwrap(), settings["steps"].as_u64().unwrap());
            let schedule = schedule(ScheduleKind::Cosine, warmup, steps);
            for entry in curve["log"].as_array().unwrap() {
                let step = entry["step"].as_u64().unwrap();
                let rate = settings["lr"].as_f64().unwrap() * schedule.factor(step);
                assert!((rate - entry["lr"].as_f64().unwrap()).abs() < 1e-15, "{path:?} step {step}");
            }
            curves += 1;
        }
        assert!(curves > 0, "no curves in {golden:?}");
    }

    #[test]
    fn linear_and_constant_follow_their_closed_forms() {
        let linear = schedule(ScheduleKind::Linear, 10, 110);
        let constant = schedule(ScheduleKind::Constant, 10, 110);
        for step in 0..=110 {
            let warm = step as f64 / 10.0;
            assert!((linear.factor(step) - warm.min((110 - step) as f64 / 100.0)).abs() < 1e-15);
            assert_eq!(constant.factor(step), warm.min(1.0));
        }
    }

    #[test]
    fn every_run_has_a_step_with_a_rate() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant] {
            for (warmup, total) in (0..6).flat_map(|warmup| (1..6).map(move |total| (warmup, total))) {
                let schedule = schedule(kind, warmup, total);
                assert!((0..total).any(|step| schedule.factor(step) > 0.0), "{kind:?} {warmup} of {total}");
            }
            assert_eq!(schedule(kind, 1, 1).factor(0), 1.0);
        }
    }

    #[test]
    fn decay_ends_at_the_minimum_and_stays_there() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            let schedule = Schedule { min_ratio: 0.1, ..schedule(kind, 2, 10) };
            assert_eq!(schedule.factor(2), 1.0);
            assert!((schedule.factor(6) - 0.55).abs() < 1e-15);
            assert!((schedule.factor(10) - 0.1).abs() < 1e-15);
            assert_eq!(schedule.factor(1000), schedule.factor(10));
        }
    }

    #[test]
    fn runs_without_steps_or_shorter_than_their_warmup_stay_finite() {
        for (warmup, total) in [(0, 0), (5, 0), (5, 3)] {
            let schedule = schedule(ScheduleKind::Cosine, warmup, total);
            assert!((0..20).all(|step| (0.0..=1.0).contains(&schedule.factor(step))));
        }
    }
}
