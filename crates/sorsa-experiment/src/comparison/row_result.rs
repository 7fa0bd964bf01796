//! The results of one row: means, intervals, and differences to another row.

use std::collections::BTreeMap;

use serde::Serialize;
use sorsa_grading::comparison::CrossedMean;
use sorsa_grading::stats::{Interval, Mean};

use super::arm::ComparisonRow;
use super::difference::Difference;
use super::rate_grid::best;
use super::run_result::{BaseResult, RunResult};
use super::run_spec::RowRuns;
use super::second_task::SecondTask;
use crate::ExperimentError;

/// One row of the comparison.
#[derive(Debug, Serialize)]
pub struct RowResult {
    /// Name of the row.
    pub name: String,
    /// Name of its arm.
    pub arm: String,
    /// Label of the row, for tables.
    pub method: String,
    /// The rank; absent for methods without factors.
    pub rank: Option<usize>,
    /// The rates that the first seed tried.
    pub tried: Vec<TriedRate>,
    /// The best of them; none if every rate diverged. The fields below are of runs at this rate.
    pub learning_rate: Option<f64>,
    /// Whether the best rate is the smallest or largest of the tried ones.
    pub rate_at_end: bool,
    /// Names of the runs, one for each seed.
    pub runs: Vec<String>,
    /// Parameters that are trained.
    pub trainable_parameters: Option<u64>,
    /// Validation loss, over seeds.
    pub loss: Option<Mean>,
    /// Share of right answers, over seeds and problems.
    pub accuracy: Option<AccuracyMean>,
    /// Training speed of the row's runs that were alone on the machine, at any rate. If none was alone, of all its runs.
    pub tokens_per_s: Option<Spread>,
    /// Training time to the target loss, over the seeds at the best rate.
    pub seconds_to_target: Option<Spread>,
    /// Time of the start of all runs at any rate, except resumed ones.
    pub start_seconds: Option<Spread>,
    /// The largest peak memory of a run at the best rate.
    pub peak_memory_bytes: Option<u64>,
    /// Size of the saved adapter or weights.
    pub adapter_bytes: Option<u64>,
    /// Loss of each forgetting text after training, minus the loss before, over seeds, by the name of the text.
    pub forgetting: BTreeMap<String, Mean>,
    /// What a second task has left of the first, if there is one.
    pub second_task: Option<SecondTask>,
    /// The difference to the row that this one is compared with. Absent for the reference row.
    pub difference: Option<Difference>,
}

/// A learning rate and the validation loss of its run; none if it diverged.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TriedRate {
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The validation loss.
    pub loss: Option<f64>,
}

/// Measured times or speeds. Their errors are not normally distributed, so reports give the median and the extremes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest value.
    pub low: f64,
    /// The largest value.
    pub high: f64,
    /// How many values there are.
    pub count: usize,
}

/// A share of right answers, over seeds and problems.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AccuracyMean {
    /// The mean share, or difference of shares.
    pub mean: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// Problems of each seed.
    pub problems: usize,
    /// Seeds.
    pub seeds: usize,
    /// What the interval is of.
    #[serde(skip)]
    pub crossed: CrossedMean,
}

impl RowResult {
    /// Computes the results of a row. `chosen` are its runs at the best rate; `every` are all its runs, whose times are its cost.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Grading`] if the runs answered different numbers of problems.
    pub fn new(
        row: &ComparisonRow,
        chosen: &[RunResult],
        every: &[RunResult],
        base: &BaseResult,
    ) -> Result<Self, ExperimentError> {
        // If a seed diverged, there is no mean: a mean over the others would be too good.
        let mean = |of: &dyn Fn(&RunResult) -> Option<f64>| {
            let values: Option<Vec<f64>> = chosen.iter().map(of).collect();
            values.and_then(|values| Mean::of(&values))
        };
        let alone: Vec<f64> =
            every.iter().filter(|run| run.concurrent <= 1).filter_map(|run| run.tokens_per_s).collect();
        let speeds = match alone.is_empty() {
            true => every.iter().filter_map(|run| run.tokens_per_s).collect(),
            false => alone,
        };
        let seconds_to_target: Option<Vec<f64>> = chosen.iter().map(|run| run.seconds_to_target).collect();
        Ok(Self {
            name: row.name.clone(),
            arm: row.arm.clone(),
            method: row.label.clone(),
            rank: row.rank,
            tried: Vec::new(),
            learning_rate: None,
            rate_at_end: false,
            runs: chosen.iter().map(|run| run.name.clone()).collect(),
            trainable_parameters: chosen.first().and_then(|run| run.trainable_parameters),
            loss: mean(&|run| run.loss_after),
            accuracy: AccuracyMean::of(CrossedMean::of(&answers(chosen))?, CrossedMean::rate_interval),
            tokens_per_s: Spread::of(speeds),
            seconds_to_target: seconds_to_target.and_then(Spread::of),
            start_seconds: Spread::of(every.iter().filter_map(|run| run.start_seconds).collect()),
            peak_memory_bytes: chosen.iter().filter_map(|run| run.peak_memory_bytes).max(),
            adapter_bytes: chosen.first().and_then(|run| run.adapter_bytes),
            forgetting: base
                .text_losses
                .keys()
                .filter_map(|text| Some((text.clone(), mean(&|run| run.forgetting(text, base))?)))
                .collect(),
            second_task: None,
            difference: None,
        })
    }

    /// Adds the search for the learning rate. `losses` are those of the tried runs.
    pub fn with_search(mut self, runs: &RowRuns, losses: &[Option<f64>]) -> Self {
        for (run, &loss) in runs.tried.iter().zip(losses) {
            self.tried.push(TriedRate { learning_rate: run.learning_rate, loss });
        }
        if let Some(best) = best(losses) {
            self.learning_rate = Some(runs.tried[best].learning_rate);
            self.rate_at_end = runs.grid.ends_at(best);
        }
        self
    }
}

/// Answers of each seed: 1 if right, 0 if wrong. Empty if a run was not tested.
pub(super) fn answers(runs: &[RunResult]) -> Vec<Vec<f64>> {
    let row = |run: &RunResult| {
        let verdicts = run.verdicts.as_ref()?;
        Some(verdicts.iter().map(|(_, right)| f64::from(u8::from(*right))).collect())
    };
    runs.iter().map(row).collect::<Option<_>>().unwrap_or_default()
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let count = values.len();
        let median = 0.5 * (values[(count - 1) / 2] + values[count / 2]);
        Some(Self { median, low, high, count })
    }
}

impl AccuracyMean {
    pub(super) fn of(mean: Option<CrossedMean>, interval: impl Fn(&CrossedMean) -> Interval) -> Option<Self> {
        let crossed = mean?;
        let CrossedMean { mean, problems, seeds, .. } = crossed;
        Some(Self { mean, interval: interval(&crossed), problems, seeds, crossed })
    }
}

#[cfg(test)]
mod tests {
    use super::super::arm::tests::row;
    use super::super::run_result::tests::with_curve;
    use super::*;

    fn run(loss: f64, verdicts: &[u8]) -> RunResult {
        RunResult {
            loss_after: Some(loss),
            verdicts: Some(verdicts.iter().enumerate().map(|(row, right)| (row, *right == 1)).collect()),
            ..with_curve(&[])
        }
    }

    #[test]
    fn a_seed_that_diverged_leaves_no_mean() {
        let row = row("a", 4);
        let mut runs = [run(0.3, &[1]), run(0.3, &[1])];
        runs[1].loss_after = None;
        assert!(RowResult::new(&row, &runs, &runs, &BaseResult::default()).unwrap().loss.is_none());
    }

    #[test]
    fn speed_is_that_of_runs_that_were_alone() {
        let row = row("a", 4);
        let mut runs = [(); 4].map(|()| run(0.3, &[1]));
        for (run, (speed, concurrent)) in runs.iter_mut().zip([(100.0, 1), (40.0, 2), (120.0, 1), (101.0, 1)]) {
            (run.tokens_per_s, run.concurrent) = (Some(speed), concurrent);
        }
        let speed = |every: &[RunResult]| {
            RowResult::new(&row, &runs, every, &BaseResult::default()).unwrap().tokens_per_s.unwrap()
        };
        assert_eq!(speed(&runs), Spread { median: 101.0, low: 100.0, high: 120.0, count: 3 });
        assert_eq!(speed(&runs[1..2]).median, 40.0, "there is no other");
        assert_eq!(Spread::of(vec![4.0, 1.0]).unwrap().median, 2.5);
    }
}
