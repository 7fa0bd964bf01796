//! What a second task leaves of the first: every chosen run is trained further on other data, and measured on the first task again.

use serde::Serialize;
use sorsa_grading::comparison::CrossedMean;
use sorsa_grading::stats::Mean;

use super::measurement::Measurements;
use super::row_result::{AccuracyMean, answers};
use super::run_result::RunResult;
use super::run_spec::RunSpec;
use crate::ExperimentError;

/// The second task of one row, over seeds. A run that diverged leaves no mean.
#[derive(Debug, Serialize)]
pub struct SecondTask {
    /// Names of the runs.
    pub runs: Vec<String>,
    /// Validation loss of the second task before it is trained.
    pub loss_before: Option<Mean>,
    /// Validation loss of the second task.
    pub loss: Option<Mean>,
    /// Validation loss of the first task after the second one.
    pub first_loss: Option<Mean>,
    /// The same minus the loss before the second task, seed by seed.
    pub first_loss_change: Option<Mean>,
    /// Share of right answers to the first task's problems after the second task.
    pub first_accuracy: Option<AccuracyMean>,
}

impl SecondTask {
    /// Reads the finished runs of a row, each beside its first run; absent if there are none.
    ///
    /// # Errors
    ///
    /// The errors of reading the results.
    pub fn read(runs: &[(RunSpec, RunSpec)], measurements: &Measurements) -> Result<Option<Self>, ExperimentError> {
        if runs.is_empty() {
            return Ok(None);
        }
        let (mut first, mut then, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for (one, two) in runs {
            first.push(RunResult::read(one, &[], measurements)?);
            then.push(RunResult::read(two, &[], measurements)?);
            left.push(Measurements::first_task_loss(two)?);
        }
        let of = |values: Option<Vec<f64>>| values.and_then(|values| Mean::of(&values));
        let left: Option<Vec<f64>> = left.into_iter().collect();
        let before: Option<Vec<f64>> = first.iter().map(|run| run.loss_after).collect();
        Ok(Some(Self {
            runs: runs.iter().map(|(_, then)| then.name.clone()).collect(),
            loss_before: of(then.iter().map(|run| run.loss_before).collect()),
            loss: of(then.iter().map(|run| run.loss_after).collect()),
            first_loss_change: match (&before, &left) {
                (Some(before), Some(left)) => Mean::of_differences(before, left)?,
                _ => None,
            },
            first_loss: of(left),
            first_accuracy: AccuracyMean::of(CrossedMean::of(&answers(&then))?, CrossedMean::rate_interval),
        }))
    }
}
