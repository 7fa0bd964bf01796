//! The results of a run, read from its folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use sorsa_train::metrics::{Metric, WatchedModules};
use toml::{Table, Value};

use super::fields::{NAMED_FIELDS, RANK, number_of, takes_effect, value_of};
use super::measurement::{MeasuredModel, Measurements, ResultFiles, loss_in};
use super::run_conditions::RunConditions;
use super::run_spec::RunSpec;
use crate::{Answer, ExperimentError, RunDir};

/// The results of a run. A field is absent if it was not measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RunResult {
    /// Name of its folder.
    pub name: String,
    /// Label of its row.
    pub method: String,
    /// The rank; absent for methods without factors.
    pub rank: Option<usize>,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// Values of the named fields except the rank; `None` if a field has no effect.
    #[serde(flatten)]
    pub named: BTreeMap<&'static str, Option<f64>>,
    /// Values of the other fields that the arms and sweeps set.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, Value>,
    /// The seed of the data's order and of the random start.
    pub seed: u64,
    /// Whether the run diverged: its loss became infinite or not a number.
    pub diverged: bool,
    /// Optimizer steps done.
    pub steps: u64,
    /// The step with the lowest validation loss. Its weights are tested.
    pub best_step: Option<u64>,
    /// Validation loss before training.
    pub loss_before: Option<f64>,
    /// Validation loss of the weights that are tested.
    pub loss_after: Option<f64>,
    /// Share of right answers.
    pub accuracy: Option<f64>,
    /// Test problems.
    pub problems: Option<usize>,
    /// Loss of the forgetting texts, by their names.
    pub text_losses: BTreeMap<String, f64>,
    /// Mean over the factors of `||U^T U - I||_F / sqrt(rank)` after the last step.
    pub defect: Option<f64>,
    /// Parameters that are trained.
    pub trainable_parameters: Option<u64>,
    /// Training speed.
    pub tokens_per_s: Option<f64>,
    /// Training time, without evaluations.
    pub seconds: Option<f64>,
    /// Training time until the comparison's target loss.
    pub seconds_to_target: Option<f64>,
    /// Time from the loaded model to the first step.
    pub start_seconds: Option<f64>,
    /// Peak memory of the training process.
    pub peak_memory_bytes: Option<u64>,
    /// Size of the saved adapter or weights.
    pub adapter_bytes: Option<u64>,
    /// The largest number of jobs that ran at the same time, including this run.
    pub concurrent: usize,
    /// Whether the run was interrupted and resumed.
    pub resumed: bool,
    /// Evaluations during training.
    pub curve: Vec<LossPoint>,
    /// What `train.watch_every` measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watched: Vec<WatchPoint>,
    /// The row of each test problem, and whether the answer is right.
    #[serde(skip)]
    pub verdicts: Option<Vec<(usize, bool)>>,
}

/// An evaluation during training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LossPoint {
    /// Optimizer steps before it.
    pub step: u64,
    /// Training time before it, without evaluations.
    pub seconds: f64,
    /// The validation loss.
    pub loss: f64,
}

/// Averages over the trained modules at one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WatchPoint {
    /// Optimizer steps before it.
    pub step: u64,
    /// Condition number of the trained part.
    pub kappa_part: Option<f64>,
    /// Condition number of the whole weight.
    pub kappa: Option<f64>,
    /// Defect of the regularized factors.
    pub defect: Option<f64>,
}

/// The results of the model before training.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BaseResult {
    /// Validation loss.
    pub loss: Option<f64>,
    /// Share of right answers.
    pub accuracy: Option<f64>,
    /// Loss of the forgetting texts, by their names.
    pub text_losses: BTreeMap<String, f64>,
}

/// The validation loss of a finished run; `None` if it diverged.
pub fn validation_loss(folder: &Path) -> Option<f64> {
    RunDir::new(folder).summary().ok()?.loss_after
}

impl RunResult {
    /// Reads a finished run. `compared_fields` are the fields that reports name by their paths.
    ///
    /// # Errors
    ///
    /// The errors of reading the files of the run and of its measurements.
    pub fn read(
        run: &RunSpec,
        compared_fields: &[String],
        measurements: &Measurements,
    ) -> Result<Self, ExperimentError> {
        let folder = &run.folder;
        let conditions = RunConditions::read(folder);
        let table = Table::try_from(&run.recipe)?;
        let mut result = Self {
            name: run.name.clone(),
            method: run.row.label.clone(),
            rank: run.row.rank,
            learning_rate: run.learning_rate,
            seed: run.seed,
            diverged: folder.join(RunDir::DIVERGED).exists(),
            concurrent: conditions.concurrent,
            resumed: conditions.resumed,
            ..Self::default()
        };
        for named in NAMED_FIELDS.iter().filter(|named| named.field != RANK) {
            let value = match takes_effect(named.field, &run.recipe) {
                true => value_of(&table, named.field).and_then(|value| number_of(&value)),
                false => None,
            };
            result.named.insert(named.label, value);
        }
        for field in compared_fields.iter().filter(|field| takes_effect(field, &run.recipe)) {
            if let Some(value) = value_of(&table, field) {
                result.fields.insert(field.clone(), value);
            }
        }
        result.read_log(&RunDir::new(folder).metrics()?);
        if result.diverged {
            return Ok(result);
        }
        let summary = RunDir::new(folder).summary()?;
        result.steps = summary.steps;
        result.best_step = summary.best_step;
        result.loss_before = summary.loss_before;
        result.loss_after = summary.loss_after;
        result.trainable_parameters = Some(summary.trainable_parameters);
        result.tokens_per_s = Some(summary.tokens_per_s);
        result.seconds = Some(summary.seconds);
        result.start_seconds = if result.resumed { None } else { Some(summary.svd_seconds) };
        result.peak_memory_bytes = summary.peak_memory_bytes;
        result.adapter_bytes = folder_bytes(&folder.join(RunDir::ADAPTER));
        let files = measurements.files(MeasuredModel::Trained(run));
        result.verdicts = verdicts(&files)?;
        result.problems = result.verdicts.as_ref().map(Vec::len);
        result.accuracy = result.verdicts.as_deref().and_then(accuracy);
        result.text_losses = text_losses(&files)?;
        Ok(result)
    }

    fn read_log(&mut self, logged: &[Metric]) {
        let mut seconds = 0.0;
        for metric in logged {
            match metric {
                Metric::Step(step) => {
                    seconds = step.seconds;
                    self.steps = step.step;
                    // Not every step measures it.
                    self.defect = step.defect.or(self.defect);
                }
                Metric::Eval(eval) => self.curve.push(LossPoint { step: eval.step, seconds, loss: eval.loss }),
                Metric::Watch(watch) => {
                    let WatchedModules { kappa_part, kappa, defect, .. } = watch.all;
                    self.watched.push(WatchPoint { step: watch.step, kappa_part, kappa, defect });
                }
            }
        }
    }

    /// The loss of a forgetting text minus that of the model before training.
    pub fn forgetting(&self, text: &str, base: &BaseResult) -> Option<f64> {
        Some(self.text_losses.get(text)? - base.text_losses.get(text)?)
    }

    /// The lowest loss of any evaluation.
    pub fn lowest_loss(&self) -> Option<f64> {
        self.curve.iter().map(|point| point.loss).filter(|loss| loss.is_finite()).reduce(f64::min)
    }

    /// Training seconds until the loss is `target`, interpolated between the first evaluation at or below it and the one before.
    pub fn seconds_to(&self, target: f64) -> Option<f64> {
        let at = self.curve.iter().position(|point| point.loss <= target)?;
        let reached = self.curve[at];
        let Some(before) = at.checked_sub(1).map(|index| self.curve[index]).filter(|point| point.loss.is_finite())
        else {
            return Some(reached.seconds);
        };
        let share = (before.loss - target) / (before.loss - reached.loss);
        Some(before.seconds + share * (reached.seconds - before.seconds))
    }
}

impl BaseResult {
    /// Reads the results of the model before training.
    ///
    /// # Errors
    ///
    /// The errors of reading the result files.
    pub fn read(measurements: &Measurements) -> Result<Self, ExperimentError> {
        let files = measurements.files(MeasuredModel::Base);
        let accuracy = verdicts(&files)?.as_deref().and_then(accuracy);
        Ok(Self { loss: None, accuracy, text_losses: text_losses(&files)? })
    }
}

fn accuracy(verdicts: &[(usize, bool)]) -> Option<f64> {
    let right = verdicts.iter().filter(|(_, right)| *right).count();
    (!verdicts.is_empty()).then(|| right as f64 / verdicts.len() as f64)
}

/// Whether each answer is right, in the order of the problems. None if the model was not tested.
fn verdicts(files: &ResultFiles) -> Result<Option<Vec<(usize, bool)>>, ExperimentError> {
    let Some([result, answers]) = &files.test else { return Ok(None) };
    if !result.exists() {
        return Ok(None);
    }
    let answers = Answer::read_all(answers)?;
    let mut rows: Vec<_> = answers.iter().map(|answer| (answer.row, answer.is_correct())).collect();
    rows.sort_unstable();
    Ok(Some(rows))
}

fn text_losses(files: &ResultFiles) -> Result<BTreeMap<String, f64>, ExperimentError> {
    let mut losses = BTreeMap::new();
    for (name, path) in &files.forgetting {
        losses.extend(loss_in(path)?.map(|loss| (name.clone(), loss)));
    }
    Ok(losses)
}

/// Bytes of the files in a folder.
fn folder_bytes(folder: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(folder).ok()?;
    Some(entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A run with a curve of seconds and losses, and without other results.
    pub fn with_curve(curve: &[(f64, f64)]) -> RunResult {
        let points = curve.iter().enumerate();
        let curve = points.map(|(i, &(seconds, loss))| LossPoint { step: i as u64, seconds, loss }).collect();
        RunResult {
            name: "run".into(),
            method: "lora".into(),
            rank: Some(4),
            learning_rate: 1e-3,
            seed: 42,
            steps: 10,
            concurrent: 1,
            curve,
            named: [("gamma", None)].into(),
            ..RunResult::default()
        }
    }

    #[test]
    fn the_time_to_a_loss_lies_between_the_evaluations_around_it() {
        let run = with_curve(&[(0.0, 4.0), (10.0, 2.0), (20.0, 1.0), (30.0, 1.5)]);
        assert_eq!(run.seconds_to(4.0), Some(0.0));
        assert_eq!(run.seconds_to(3.0), Some(5.0));
        assert_eq!(run.seconds_to(1.25), Some(17.5));
        assert_eq!(run.seconds_to(1.0), Some(20.0));
        assert_eq!(run.seconds_to(0.9), None);
        assert_eq!(run.lowest_loss(), Some(1.0));
        assert_eq!(with_curve(&[(0.0, f64::NAN), (10.0, 2.0)]).seconds_to(3.0), Some(10.0));
    }
}
