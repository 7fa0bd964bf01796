//! The runs of a comparison, their folders, and the runs that the search for learning rates needs next.

use std::path::PathBuf;

use sorsa_train::RateSearch;
use toml::Value;

use super::arm::ComparisonRow;
use super::plan::ComparisonPlan;
use super::rate_grid::{RateGrid, best};
use super::run_result::validation_loss;
use crate::{ExperimentError, Recipe, RunDir};

/// A run of the comparison.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// The row that the run belongs to.
    pub row: ComparisonRow,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The seed of the data's order and of the random start.
    pub seed: u64,
    /// The recipe in full.
    pub recipe: Recipe,
    /// Name of its folder.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
}

/// The search for the learning rate of a row.
#[derive(Debug, Clone)]
pub struct RateSearchSpec {
    /// The recipe in full.
    pub recipe: Recipe,
    /// Its name.
    pub name: String,
    /// The folder of its result.
    pub folder: PathBuf,
}

impl RateSearchSpec {
    /// The file of the [`RateSearch`] in the folder.
    pub const RESULT: &str = RunDir::LEARNING_RATE;

    /// The learning rate that was found.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Read`], [`ExperimentError::MalformedResult`].
    pub fn found(&self) -> Result<f64, ExperimentError> {
        let search: Option<RateSearch> = RunDir::new(&self.folder).learning_rate_search()?;
        search.map(|search| search.learning_rate).ok_or_else(|| ExperimentError::Read {
            path: self.folder.join(Self::RESULT),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }
}

/// The runs of one row.
#[derive(Debug)]
pub struct RowRuns {
    /// The row.
    pub row: ComparisonRow,
    /// The learning rates.
    pub grid: RateGrid,
    /// The first seed at each rate of the grid.
    pub tried: Vec<RunSpec>,
    /// Index of the best rate; none if every rate diverged.
    pub best: Option<usize>,
    /// Every seed at the best rate.
    pub chosen: Vec<RunSpec>,
    /// The chosen runs trained on a second task, each beside its first run; empty if there is no second task.
    pub then: Vec<(RunSpec, RunSpec)>,
}

/// The runs of one sweep in one row.
#[derive(Debug)]
pub struct SweepRuns {
    /// Index of the sweep in the plan.
    pub sweep: usize,
    /// Name of the row.
    pub row: String,
    /// The values, each with its run.
    pub runs: Vec<(Value, RunSpec)>,
}

/// Every run of a comparison.
#[derive(Debug)]
pub struct ComparisonRuns {
    /// The runs of each row.
    pub rows: Vec<RowRuns>,
    /// The runs of each sweep in each of its rows.
    pub sweeps: Vec<SweepRuns>,
}

impl ComparisonRuns {
    /// The first runs: the first seed at each rate.
    ///
    /// # Errors
    ///
    /// The errors of the recipes.
    pub fn new(plan: &ComparisonPlan) -> Result<Self, ExperimentError> {
        let mut rows = Vec::new();
        for (row, grid) in plan.rows.iter().zip(&plan.grids) {
            let tried = tried(plan, row, grid)?;
            rows.push(RowRuns {
                row: row.clone(),
                grid: grid.clone(),
                tried,
                best: None,
                chosen: Vec::new(),
                then: Vec::new(),
            });
        }
        Ok(Self { rows, sweeps: Vec::new() })
    }

    /// The searches of the rows whose rate is still to be found.
    ///
    /// # Errors
    ///
    /// The errors of the recipes.
    pub fn rate_searches(&self, plan: &ComparisonPlan) -> Result<Vec<RateSearchSpec>, ExperimentError> {
        self.rows.iter().filter(|row| row.grid.waits_for_rate()).map(|row| plan.rate_search(&row.row)).collect()
    }

    /// Puts the rates that were found into the middle of their grids.
    ///
    /// # Errors
    ///
    /// The errors of the recipes; results that cannot be read.
    pub fn centre_grids(&mut self, plan: &ComparisonPlan) -> Result<(), ExperimentError> {
        for row in self.rows.iter_mut().filter(|row| row.grid.waits_for_rate()) {
            row.grid.centre(plan.rate_search(&row.row)?.found()?);
            row.tried = tried(plan, &row.row, &row.grid)?;
        }
        Ok(())
    }

    /// The runs at each rate of each grid.
    pub fn tried(&self) -> Vec<&RunSpec> {
        self.rows.iter().flat_map(|row| &row.tried).collect()
    }

    /// Reads the losses of the tried runs, which must be finished. Returns whether it extended a grid, so that a new rate is to be tried.
    ///
    /// # Errors
    ///
    /// The errors of the recipes.
    pub fn extend_grids(&mut self, plan: &ComparisonPlan) -> Result<bool, ExperimentError> {
        let mut extended = false;
        for row in &mut self.rows {
            let losses: Vec<Option<f64>> = row.tried.iter().map(|run| validation_loss(&run.folder)).collect();
            row.best = best(&losses);
            if row.grid.extend(&losses) {
                row.tried = tried(plan, &row.row, &row.grid)?;
                extended = true;
            }
        }
        Ok(extended)
    }

    /// Adds the runs of every seed at the best rates.
    ///
    /// # Errors
    ///
    /// The errors of the recipes.
    pub fn choose(&mut self, plan: &ComparisonPlan) -> Result<(), ExperimentError> {
        for row in &mut self.rows {
            let Some(best) = row.best else { continue };
            let rate = row.tried[best].learning_rate;
            for &seed in &plan.seeds {
                row.chosen.push(plan.run(&row.row, &[], rate, seed)?);
            }
        }
        Ok(())
    }

    /// Adds the runs of the second task: each chosen run that is trained further. The chosen runs must be finished.
    ///
    /// # Errors
    ///
    /// The errors of the recipes.
    pub fn go_on(&mut self, plan: &ComparisonPlan) -> Result<(), ExperimentError> {
        for row in &mut self.rows {
            for first in row.chosen.iter().filter(|run| !run.folder.join(RunDir::DIVERGED).exists()) {
                row.then.extend(plan.run_then(first)?.map(|then| (first.clone(), then)));
            }
        }
        Ok(())
    }

    /// The runs of the second task, each beside its first run.
    pub fn then(&self) -> impl Iterator<Item = &(RunSpec, RunSpec)> {
        self.rows.iter().flat_map(|row| &row.then)
    }

    /// The runs of every seed at the best rates.
    pub fn chosen(&self) -> Vec<&RunSpec> {
        self.rows.iter().flat_map(|row| &row.chosen).collect()
    }

    /// Adds the runs of the sweeps: the first seed at the best rate of each swept row.
    ///
    /// # Errors
    ///
    /// The errors of the recipes.
    pub fn sweep(&mut self, plan: &ComparisonPlan) -> Result<(), ExperimentError> {
        for (index, planned) in plan.sweeps.iter().enumerate() {
            for &row in &planned.rows {
                // If every rate diverged, there is no best rate.
                let Some(first) = self.rows[row].chosen.first() else { continue };
                let mut runs = Vec::new();
                for field in planned.fields() {
                    let run = plan.run(&first.row, std::slice::from_ref(&field), first.learning_rate, first.seed)?;
                    runs.push((field.value, run));
                }
                self.sweeps.push(SweepRuns { sweep: index, row: first.row.name.clone(), runs });
            }
        }
        Ok(())
    }

    /// The runs of the sweeps.
    pub fn swept(&self) -> Vec<&RunSpec> {
        self.sweeps.iter().flat_map(|sweep| &sweep.runs).map(|(_, run)| run).collect()
    }
}

fn tried(plan: &ComparisonPlan, row: &ComparisonRow, grid: &RateGrid) -> Result<Vec<RunSpec>, ExperimentError> {
    grid.rates().iter().map(|&rate| plan.run(row, &[], rate, plan.seeds[0])).collect()
}
