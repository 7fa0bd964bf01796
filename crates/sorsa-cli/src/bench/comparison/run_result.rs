//! What a run left in its folder.

use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sorsa_train::metrics::{self, Metric};

use super::plan::Spec;
use super::stages::Tests;
use super::work::Circumstances;
use crate::commands::finetune::DIVERGED;

/// A run as the results show it. What was not measured is absent.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    /// Name of its folder.
    pub name: String,
    pub method: String,
    pub rank: Option<usize>,
    pub learning_rate: f64,
    pub gamma: Option<f64>,
    pub seed: u64,
    pub diverged: bool,
    pub steps: u64,
    /// The evaluation with the lowest loss: what is tested.
    pub best_step: Option<u64>,
    pub loss_before: Option<f64>,
    pub loss_after: Option<f64>,
    pub accuracy: Option<f64>,
    pub problems: Option<usize>,
    /// Loss of the texts that show what was forgotten.
    pub text_loss: Option<f64>,
    /// Mean over the factors of `||U^T U - I||_F / sqrt(rank)` after the last step.
    pub defect: Option<f64>,
    pub trainable_parameters: Option<u64>,
    pub tokens_per_s: Option<f64>,
    /// Training, without evaluations.
    pub seconds: Option<f64>,
    pub seconds_to_target: Option<f64>,
    /// From the loaded model to the first step.
    pub start_seconds: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    /// What is saved of it.
    pub adapter_bytes: Option<u64>,
    pub concurrent: usize,
    pub resumed: bool,
    /// Evaluations.
    pub curve: Vec<Evaluated>,
    /// Whether each test problem was answered rightly, by its row.
    #[serde(skip)]
    pub verdicts: Option<Vec<(usize, bool)>>,
}

/// An evaluation during training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluated {
    pub step: u64,
    pub seconds: f64,
    pub loss: f64,
}

/// The fields of `summary.json` that are used here.
#[derive(Debug, Deserialize)]
struct Summary {
    trainable_parameters: u64,
    loss_before: Option<f64>,
    loss_after: Option<f64>,
    steps: u64,
    best_step: Option<u64>,
    tokens_per_s: f64,
    seconds: f64,
    svd_seconds: f64,
    peak_memory_bytes: Option<u64>,
}

/// The fields of an answer that are used here.
#[derive(Debug, Deserialize)]
struct Answer {
    row: usize,
    faithful: Graded,
}

#[derive(Debug, Deserialize)]
struct Graded {
    correct: bool,
}

/// What a model that was not trained gets.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Base {
    pub loss: Option<f64>,
    pub accuracy: Option<f64>,
    pub text_loss: Option<f64>,
}

/// The validation loss of a finished run; none where it diverged.
pub fn loss(folder: &Path) -> Option<f64> {
    summary(folder).ok()?.loss_after
}

fn summary(folder: &Path) -> anyhow::Result<Summary> {
    let path = folder.join("summary.json");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no summary of a run", path.display()))
}

impl Run {
    /// Reads a finished run.
    pub fn read(spec: &Spec, tests: &Tests) -> anyhow::Result<Self> {
        let folder = &spec.folder;
        let circumstances = Circumstances::of(folder);
        let method = spec.recipe.adapter.method;
        let mut run = Self {
            name: spec.name.clone(),
            method: spec.arm.variant.to_string(),
            rank: spec.arm.rank,
            learning_rate: spec.learning_rate,
            gamma: (method == sorsa_adapter::Method::Sorsa).then_some(spec.recipe.train.regularizer.gamma),
            seed: spec.seed,
            diverged: folder.join(DIVERGED).exists(),
            concurrent: circumstances.concurrent,
            resumed: circumstances.resumed,
            ..Self::default()
        };
        let logged = metrics::read(folder.join("metrics.jsonl"))?;
        run.read_log(&logged);
        if run.diverged {
            return Ok(run);
        }
        let summary = summary(folder)?;
        run.steps = summary.steps;
        run.best_step = summary.best_step;
        run.loss_before = summary.loss_before;
        run.loss_after = summary.loss_after;
        run.trainable_parameters = Some(summary.trainable_parameters);
        run.tokens_per_s = Some(summary.tokens_per_s);
        run.seconds = Some(summary.seconds);
        run.start_seconds = (!run.resumed).then_some(summary.svd_seconds);
        run.peak_memory_bytes = summary.peak_memory_bytes;
        run.adapter_bytes = folder_bytes(&folder.join("adapter"));
        run.verdicts = verdicts(folder, tests)?;
        run.problems = run.verdicts.as_ref().map(Vec::len);
        run.accuracy = run.verdicts.as_deref().and_then(accuracy);
        run.text_loss = text_loss(folder, tests)?;
        Ok(run)
    }

    fn read_log(&mut self, logged: &[Metric]) {
        let mut seconds = 0.0;
        for metric in logged {
            match metric {
                Metric::Step(step) => {
                    seconds = step.seconds;
                    self.steps = step.step;
                    self.defect = step.defect;
                }
                Metric::Eval(eval) => self.curve.push(Evaluated { step: eval.step, seconds, loss: eval.loss }),
            }
        }
    }

    /// The lowest loss of any evaluation.
    pub fn lowest_loss(&self) -> Option<f64> {
        self.curve.iter().map(|point| point.loss).filter(|loss| loss.is_finite()).reduce(f64::min)
    }

    /// Training seconds until an evaluation's loss is at most `target`, on the line between it and the one before.
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

impl Base {
    /// Reads what was measured of the model before training; `tests` has the names of its files.
    pub fn read(folder: &Path, tests: &Tests) -> anyhow::Result<Self> {
        let verdicts = verdicts(folder, tests)?;
        let accuracy = verdicts.as_deref().and_then(accuracy);
        Ok(Self { loss: None, accuracy, text_loss: text_loss(folder, tests)? })
    }
}

fn accuracy(verdicts: &[(usize, bool)]) -> Option<f64> {
    let right = verdicts.iter().filter(|(_, right)| *right).count();
    (!verdicts.is_empty()).then(|| right as f64 / verdicts.len() as f64)
}

/// The verdicts of the grader `faithful`, in the order of the problems. None where the run was not asked.
fn verdicts(folder: &Path, tests: &Tests) -> anyhow::Result<Option<Vec<(usize, bool)>>> {
    let Some((result, answers)) = &tests.test else { return Ok(None) };
    if !folder.join(result).exists() {
        return Ok(None);
    }
    let path = folder.join(answers);
    let fault = || format!("cannot read {}", path.display());
    let file = BufReader::new(std::fs::File::open(&path).with_context(fault)?);
    let mut rows = Vec::new();
    // The first line holds the settings.
    for line in file.lines().skip(1) {
        let answer: Answer = serde_json::from_str(&line.with_context(fault)?).with_context(fault)?;
        rows.push((answer.row, answer.faithful.correct));
    }
    rows.sort_unstable();
    Ok(Some(rows))
}

fn text_loss(folder: &Path, tests: &Tests) -> anyhow::Result<Option<f64>> {
    let Some(name) = &tests.forgetting else { return Ok(None) };
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let fault = || format!("cannot read {}", path.display());
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).with_context(fault)?).with_context(fault)?;
    Ok(result["loss"].as_f64())
}

/// Bytes of the files in a folder.
fn folder_bytes(folder: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(folder).ok()?;
    Some(entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A run with this curve, without results.
    pub fn with_curve(curve: &[(f64, f64)]) -> Run {
        let points = curve.iter().enumerate();
        let curve = points.map(|(i, &(seconds, loss))| Evaluated { step: i as u64, seconds, loss }).collect();
        Run {
            name: "run".into(),
            method: "lora".into(),
            rank: Some(4),
            learning_rate: 1e-3,
            seed: 42,
            steps: 10,
            concurrent: 1,
            curve,
            ..Run::default()
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
