//! The comparison of methods, or of any other settings, under equal conditions.
//!
//! A [`ComparisonRequest`] says what to compare: [`Arm`]s, [`Sweep`]s, or a [`Suite`] of both. A [`ComparisonPlan`] checks it
//! and knows the recipe and the folder of each run. [`ComparisonRuns`] says which runs are to be made next, [`Measurements`]
//! what to measure of the trained models, and whoever calls makes them. A [`Comparison`] reads the finished runs, and a
//! [`Report`] writes it in every format.

mod arm;
mod base_recipe;
pub mod budget;
mod csv;
pub mod defaults;
mod difference;
mod estimate;
pub mod fields;
mod figures;
mod findings;
mod identity;
mod measurement;
mod notes;
mod page;
mod plan;
mod question;
mod rate_grid;
mod report;
mod request;
mod results;
mod row_result;
mod run_conditions;
mod run_result;
mod run_spec;
mod second_task;
mod suite;
mod sweep;
mod tables;
mod texts;

pub use arm::{Arm, ComparisonRow};
pub use base_recipe::BaseRecipe;
pub use difference::{Difference, DifferenceTest, Tested};
pub use measurement::{Evaluation, MeasuredModel, Measurement, Measurements, ResultFiles, Subject};
pub use plan::{ComparisonPlan, PlannedSweep};
pub use question::{Answered, Question};
pub use rate_grid::RateGrid;
pub use report::Report;
pub use request::{ComparisonRequest, RequestedRates};
pub use results::{Comparison, SweepResult, SweptRow, SweptValue};
pub use row_result::{AccuracyMean, RowResult, Spread, TriedRate};
pub use run_conditions::RunConditions;
pub use run_result::{BaseResult, LossPoint, RunResult, WatchPoint, validation_loss};
pub use run_spec::{ComparisonRuns, RateSearchSpec, RowRuns, RunSpec, SweepRuns};
pub use second_task::SecondTask;
pub use suite::Suite;
pub use sweep::{Sweep, SweepMode};
