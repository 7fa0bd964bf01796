//! Events of a running experiment.

use std::path::Path;

use sorsa_adapter::ModuleReport;
use sorsa_data::BadRows;
use sorsa_grading::grade::Score;
use sorsa_train::metrics::Metric;
use sorsa_train::{Best, Divergence, RateSearch};

use crate::doubt::Doubt;
use crate::inputs::DataReport;
use crate::recipe::Recipe;
use crate::run_dir::RunDir;
use crate::training_shape::TrainingShape;

/// Watches an experiment: prints, draws a bar, asks it to stop. `()` does nothing.
pub trait Observer: Send {
    /// Something happened.
    fn on_event(&mut self, _event: Event<'_>) {}

    /// Whether training should end with a checkpoint; asked after every step.
    fn should_stop(&mut self) -> bool {
        false
    }
}

impl Observer for () {}

/// Something that happened.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Rows of a data file were left out: malformed, refused by the template, or too long.
    RowsSkipped {
        /// The file.
        path: &'a Path,
        /// How many, and the first of them with their reasons.
        rows: &'a BadRows,
    },
    /// Something is odd and no fault: whoever started the experiment should know, and it goes on.
    Note {
        /// A sentence without a full stop.
        text: &'a str,
    },
    /// Something is odd about an adapter that is loaded.
    AdapterDoubted {
        /// Folder of the adapter.
        folder: &'a Path,
        /// What is odd.
        doubt: &'a Doubt,
    },
    /// Everything is read, nothing is trained.
    Planned {
        /// The recipe in full.
        recipe: &'a Recipe,
        /// What the data files hold.
        data: &'a DataReport,
        /// What is trained.
        shape: &'a TrainingShape,
        /// Where results go.
        run: &'a RunDir,
    },
    /// Weights are decomposed one after another; the first event has `done` 0.
    Decomposing {
        /// Weights that are decomposed.
        done: usize,
        /// All weights to decompose.
        total: usize,
    },
    /// The adapter is attached.
    Attached {
        /// What was done to each module.
        modules: &'a [ModuleReport],
    },
    /// A model answers problems; the first event has `tokens` 0.
    Answering {
        /// Answers so far.
        done: usize,
        /// All answers.
        total: usize,
        /// Tokens generated since the first event.
        tokens: usize,
        /// Seconds since the first event.
        seconds: f64,
    },
    /// The last answer is there.
    Answered,
    /// What the model scores before training.
    AccuracyBefore {
        /// By the grader that counts.
        score: &'a Score,
    },
    /// The learning rate is searched; the first event has `steps` 0.
    FindingLearningRate {
        /// Steps of trials so far.
        steps: u64,
    },
    /// The learning rate is found.
    LearningRateFound {
        /// The rate, and from what it was found.
        search: &'a RateSearch,
    },
    /// The first step comes next.
    TrainingStarts {
        /// Steps of the whole run.
        total_steps: u64,
        /// The best evaluation so far, of a run that is resumed.
        best: Option<Best>,
    },
    /// A step or an evaluation was made.
    Trained {
        /// What was measured.
        metric: &'a Metric,
    },
    /// The metric before shows for the first time that training makes the model worse.
    Diverged {
        /// What it shows.
        divergence: &'a Divergence,
        /// The peak learning rate.
        learning_rate: f64,
    },
    /// Training ended: all steps made, early, interrupted or failed.
    TrainingEnded,
    /// Weights of a run are measured one after another; the first event has `done` 0.
    Measuring {
        /// Name of the run.
        run: &'a str,
        /// Weights measured.
        done: usize,
        /// All weights, at every checkpoint.
        total: usize,
    },
    /// Every weight of a run is measured.
    Measured,
}
