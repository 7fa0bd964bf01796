//! `results.json`: the results of a comparison, from the results of its runs.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::Value;

use super::arm::compared_with;
use super::difference::{Difference, correct};
use super::fields::listed_sweeps;
use super::measurement::Measurements;
use super::plan::ComparisonPlan;
use super::question::Answered;
use super::row_result::RowResult;
use super::run_result::{BaseResult, RunResult};
use super::run_spec::{ComparisonRuns, RunSpec};
use super::second_task::SecondTask;
use super::sweep::Sweep;
use crate::ExperimentError;

/// The results of a comparison.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Version of this program.
    pub version: &'static str,
    /// The machine that made the runs.
    pub machine: String,
    /// Name of the backend.
    pub backend: String,
    /// The model before training.
    pub model: String,
    /// The training data.
    pub data: String,
    /// Parameters of the model.
    pub model_parameters: u64,
    /// Rows of the training data.
    pub train_examples: usize,
    /// Optimizer steps of each run.
    pub steps: u64,
    /// Tokens of one step, on average.
    pub tokens_per_step: f64,
    /// The seeds; the first one searched the learning rates.
    pub seeds: Vec<u64>,
    /// Test problems; 0 if no accuracy was measured.
    pub problems: usize,
    /// The validation loss for the times to a loss.
    pub target_loss: Option<f64>,
    /// The data of the second task.
    pub then: Option<String>,
    /// Names of the forgetting texts.
    pub texts: Vec<String>,
    /// The results of the model before training.
    pub base: BaseResult,
    /// The results of each row.
    #[serde(rename = "arms")]
    pub rows: Vec<RowResult>,
    /// The results of each sweep at the best rates.
    pub sweeps: Vec<SweepResult>,
    /// The runs of each sweep by the name of its table: `gammas`.
    #[serde(flatten)]
    pub sweep_runs: BTreeMap<String, Vec<RunResult>>,
    /// Every run once.
    pub runs: Vec<RunResult>,
    /// Fields that the arms and sweeps set, except those with a column of their own.
    pub compared_fields: Vec<String>,
    /// Sentences about what the numbers show.
    pub findings: Vec<String>,
    /// The questions of the suite, with their answers.
    pub questions: Vec<Answered>,
    /// Sentences about how the numbers were made.
    pub notes: Vec<String>,
}

/// One field at several values, each with the first seed at the best rate of its row.
#[derive(Debug, Serialize)]
pub struct SweepResult {
    /// The swept field.
    pub field: String,
    /// Heading of the field's column.
    pub label: String,
    /// Name of the sweep's table.
    pub name: String,
    /// The swept rows.
    pub rows: Vec<SweptRow>,
}

/// The part of a sweep in one row.
#[derive(Debug, Serialize)]
pub struct SweptRow {
    /// Name of the row.
    pub row: String,
    /// Label of the row, for tables.
    pub method: String,
    /// The values, each with its run.
    pub values: Vec<SweptValue>,
}

/// One value of a sweep.
#[derive(Debug, Serialize)]
pub struct SweptValue {
    /// The value of the field.
    pub value: Value,
    /// Name of the run.
    pub run: String,
}

impl Comparison {
    /// Reads the finished runs of a plan. `target` is the validation loss for the times to a loss.
    ///
    /// # Errors
    ///
    /// The errors of reading the results of the runs.
    pub fn new(
        plan: &ComparisonPlan,
        runs: &ComparisonRuns,
        measurements: &Measurements,
        target: Option<f64>,
    ) -> Result<Self, ExperimentError> {
        let mut results: Vec<RunResult> = Vec::new();
        let of_rows = runs.rows.iter().flat_map(|row| row.tried.iter().chain(&row.chosen));
        for run in of_rows.chain(runs.swept()) {
            if results.iter().all(|known| known.name != run.name) {
                results.push(RunResult::read(run, &plan.compared_fields, measurements)?);
            }
        }
        let target_loss = match target {
            Some(target) => Some(target),
            None => loss_that_all_reach(&results, &runs.chosen()),
        };
        if let Some(target) = target_loss {
            for result in &mut results {
                result.seconds_to_target = result.seconds_to(target);
            }
        }
        let base = BaseResult::read(measurements)?;
        let (sweeps, sweep_runs) = sweep_results(plan, runs, &results);
        let mut comparison = Self {
            version: env!("CARGO_PKG_VERSION"),
            machine: plan.machine.clone(),
            backend: plan.backend.clone(),
            model: plan.common.model.path.clone(),
            data: plan.common.data.train.clone(),
            model_parameters: plan.parameters,
            train_examples: plan.train_examples,
            steps: plan.steps,
            tokens_per_step: plan.tokens_per_step(),
            seeds: plan.seeds.clone(),
            problems: if plan.test.is_some() { plan.problems } else { 0 },
            target_loss,
            rows: row_results(plan, runs, &results, &base, measurements)?,
            then: plan.then.clone(),
            texts: measurements.text_names(),
            base: BaseResult { loss: results.iter().find_map(|run| run.loss_before), ..base },
            sweeps,
            sweep_runs,
            runs: results,
            compared_fields: plan.compared_fields.clone(),
            findings: Vec::new(),
            questions: Vec::new(),
            notes: Vec::new(),
        };
        comparison.findings = super::findings::findings(&comparison);
        comparison.questions = plan.questions.iter().map(|question| question.answered(&comparison)).collect();
        comparison.notes = super::notes::notes(&comparison, plan);
        Ok(comparison)
    }

    /// Heading of the reports.
    pub fn title(&self) -> String {
        format!("Fine-tuning {} on {}", self.model, self.data)
    }

    /// The run with this name.
    pub fn run(&self, name: &str) -> Option<&RunResult> {
        self.runs.iter().find(|run| run.name == name)
    }
}

fn find(results: &[RunResult], runs: &[RunSpec]) -> Vec<RunResult> {
    runs.iter().filter_map(|run| results.iter().find(|result| result.name == run.name)).cloned().collect()
}

/// The lowest loss that all chosen runs reach: the maximum of their minima.
fn loss_that_all_reach(results: &[RunResult], chosen: &[&RunSpec]) -> Option<f64> {
    let mut target: Option<f64> = None;
    for result in results.iter().filter(|result| !result.diverged) {
        if chosen.iter().any(|run| run.name == result.name) {
            let lowest = result.lowest_loss()?;
            target = Some(target.map_or(lowest, |target| target.max(lowest)));
        }
    }
    target
}

fn row_results(
    plan: &ComparisonPlan,
    runs: &ComparisonRuns,
    results: &[RunResult],
    base: &BaseResult,
    measurements: &Measurements,
) -> Result<Vec<RowResult>, ExperimentError> {
    let chosen: Vec<Vec<RunResult>> = runs.rows.iter().map(|row| find(results, &row.chosen)).collect();
    let mut rows = Vec::new();
    for (index, row) in runs.rows.iter().enumerate() {
        let tried = find(results, &row.tried);
        let losses: Vec<Option<f64>> = tried.iter().map(|run| run.loss_after).collect();
        let every = [tried, find(results, &row.chosen)].concat();
        let mut result = RowResult::new(&row.row, &chosen[index], &every, base)?.with_search(row, &losses);
        result.second_task = SecondTask::read(&row.then, measurements)?;
        if let Some(other) = compared_with(&plan.rows, &plan.reference, index) {
            let to = plan.rows[other].name.clone();
            result.difference = Some(Difference::new(to, &chosen[other], &chosen[index])?);
        }
        rows.push(result);
    }
    correct(rows.iter_mut().filter_map(|row| row.difference.as_mut()));
    Ok(rows)
}

/// The sweeps, and their runs by the names of their tables.
fn sweep_results(
    plan: &ComparisonPlan,
    runs: &ComparisonRuns,
    results: &[RunResult],
) -> (Vec<SweepResult>, BTreeMap<String, Vec<RunResult>>) {
    let mut sweeps = Vec::new();
    let mut by_name: BTreeMap<_, _> = listed_sweeps().into_iter().map(|name| (name, Vec::new())).collect();
    for (index, planned) in plan.sweeps.iter().enumerate() {
        let mut rows = Vec::new();
        for swept in runs.sweeps.iter().filter(|swept| swept.sweep == index) {
            let specs: Vec<RunSpec> = swept.runs.iter().map(|(_, run)| run.clone()).collect();
            let name = planned.sweep.plural();
            by_name.entry(name).or_insert_with(Vec::new).extend(find(results, &specs));
            let value = |(value, run): &(Value, RunSpec)| SweptValue { value: value.clone(), run: run.name.clone() };
            rows.push(SweptRow {
                row: swept.row.clone(),
                method: specs.first().map_or_else(String::new, |run| run.row.label.clone()),
                values: swept.runs.iter().map(value).collect(),
            });
        }
        if !rows.is_empty() {
            let Sweep { field, .. } = &planned.sweep;
            let (label, name) = (planned.sweep.label().to_owned(), planned.sweep.plural());
            sweeps.push(SweepResult { field: field.clone(), label, name, rows });
        }
    }
    (sweeps, by_name)
}
