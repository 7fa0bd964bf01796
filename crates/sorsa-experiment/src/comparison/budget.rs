//! A comparison that fits into a given time: what its parts cost, and what is left out.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fields::FieldValue;
use super::plan::{ComparisonPlan, EVALUATIONS};
use super::rate_grid::RateGrid;
use super::run_spec::RunSpec;
use crate::{ExperimentError, RunDir};

/// Optimizer steps of the run that is measured.
const PROBE_STEPS: i64 = 8;
/// Evaluations of the run that is measured: before the first step, in the middle and at the end.
const PROBE_EVALUATIONS: f64 = 3.0;
/// Steps that a search for a learning rate takes about as long as.
const SEARCH_STEPS: f64 = 25.0;

/// What the parts of a comparison take on this machine, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// The start of a run: loading and decompositions.
    pub start: f64,
    /// An optimizer step.
    pub step: f64,
    /// An evaluation of the validation loss.
    pub evaluation: f64,
    /// All measurements of one trained model: test problems and texts.
    pub test: f64,
}

impl Costs {
    /// The costs from the probe of a plan, which took `probe_seconds` as a whole, and from the measurements of one model.
    ///
    /// # Errors
    ///
    /// The errors of reading the summary of the probe.
    pub fn of_probe(probe: &Path, probe_seconds: f64, test: f64) -> Result<Self, ExperimentError> {
        let summary = RunDir::new(probe).summary()?;
        let start = summary.svd_seconds;
        Ok(Self {
            start,
            step: summary.seconds / summary.steps.max(1) as f64,
            evaluation: (probe_seconds - summary.seconds - start).max(0.0) / PROBE_EVALUATIONS,
            test,
        })
    }
}

impl ComparisonPlan {
    /// The run that is measured: the first row for a few steps.
    ///
    /// # Errors
    ///
    /// The errors of the recipe.
    pub fn probe(&self) -> Result<RunSpec, ExperimentError> {
        let fields =
            [("train.max_steps", PROBE_STEPS), ("train.eval_every", PROBE_STEPS / 2), ("train.checkpoint_every", 0)]
                .map(|(field, value)| FieldValue::new(field, value));
        let mut run = self.run(&self.rows[0], &fields, 1e-5, self.seeds[0])?;
        run.name = format!("probe-{}", run.name);
        run.folder = self.folder.join("probes").join(&run.name);
        Ok(run)
    }

    /// The time of the comparison, in seconds, one run at a time and without extensions of grids.
    pub fn seconds(&self, costs: &Costs) -> f64 {
        let steps = self.steps as f64;
        let run = costs.start + steps * costs.step + (EVALUATIONS + 1) as f64 * costs.evaluation;
        let searches = self.grids.iter().filter(|grid| grid.waits_for_rate()).count() as f64;
        let search = costs.start + SEARCH_STEPS * costs.step + 2.0 * costs.evaluation;
        let tasks = if self.then.is_some() { 2 } else { 1 };
        let tested = tasks * self.rows.len() * self.seeds.len() + self.swept_count();
        searches * search + self.run_count() as f64 * run + (tested + 1) as f64 * costs.test
    }

    /// Leaves out as little as possible, so that the comparison takes at most `budget` seconds: seeds down to two, then sweeps, then all rates of
    /// a grid but its middle, then the second seed. Returns what was left out.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Comparison`] with the time that the smallest comparison of these arms takes, if it is longer.
    pub fn fit(&mut self, budget: f64, costs: &Costs) -> Result<Vec<String>, ExperimentError> {
        let mut left_out = Vec::new();
        let seeds = self.seeds.len();
        while self.seconds(costs) > budget && self.seeds.len() > 2 {
            self.seeds.pop();
        }
        if self.seeds.len() < seeds {
            left_out.push(format!("{} of {seeds} seeds", seeds - self.seeds.len()));
        }
        if self.seconds(costs) > budget && !self.sweeps.is_empty() {
            let fields: Vec<String> = self.sweeps.drain(..).map(|planned| planned.sweep.field).collect();
            for question in &mut self.questions {
                question.sweeps.retain(|field| !fields.contains(field));
            }
            left_out.push(format!("the sweeps of {}", fields.join(" and ")));
        }
        if self.seconds(costs) > budget && self.grids.iter().any(|grid| grid.size() > 1) {
            self.grids = self.grids.iter().map(RateGrid::middle).collect();
            left_out.push("all learning rates but the middle of each grid".to_owned());
        }
        if self.seconds(costs) > budget && self.seeds.len() == 2 {
            self.seeds.pop();
            left_out.push("the second seed, and with it every interval of a loss".to_owned());
        }
        let least = self.seconds(costs);
        if least > budget {
            return Err(ExperimentError::Comparison(format!(
                "the budget of {} is too short: one seed of {} arms at one learning rate each takes {}",
                duration(budget),
                self.rows.len(),
                duration(least)
            )));
        }
        Ok(left_out)
    }
}

/// `2 h 05 min`, `12 min`, or below two minutes `40 s`.
pub fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        0..60 => format!("{minutes} min"),
        _ => format!("{} h {:02} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        assert_eq!([40.4, 119.0, 720.0, 7500.0].map(duration), ["40 s", "119 s", "12 min", "2 h 05 min"]);
    }
}
