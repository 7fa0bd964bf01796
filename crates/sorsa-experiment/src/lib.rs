//! The experiment as a library: a recipe becomes a run directory, and what is in it can be read back.
//!
//! ```no_run
//! use sorsa_experiment::{Host, Recipe, RunDir, finetune};
//!
//! # fn main() -> Result<(), sorsa_experiment::ExperimentError> {
//! let host = Host::cpu(burn::prelude::Device::flex());
//! let summary = finetune(&Recipe::default(), &host, &RunDir::new("runs/first"), &mut ())?;
//! assert!(summary.accuracy_after > summary.accuracy_before);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here prints, reads the environment or picks a device. [`Host`] says where an experiment runs, an [`Observer`] is told
//! what happens, and [`ExperimentError`] tells bad input from failures.

pub mod adapter;
pub mod analysis;
pub mod answer;
pub mod answer_log;
pub mod comparison;
mod config_overrides;
pub mod content;
pub mod continuation;
pub mod conversion;
mod curves;
mod doubt;
pub mod embedded;
mod error;
pub mod estimate;
mod finetune;
mod host;
mod inputs;
mod learning_rate;
pub mod model;
mod observer;
mod packed_format;
mod packed_on_read;
mod private_folder;
pub mod quantization_error;
pub mod recipe;
mod run_dir;
mod run_facts;
mod run_inputs;
pub mod sandbox;
pub mod scoreboard;
mod summary;
pub mod tasks;
mod training_shape;

pub use answer::Answer;
pub use config_overrides::ConfigOverrides;
pub use doubt::Doubt;
pub use error::{ExperimentError, MeasureError};
pub use finetune::{PreparedRun, finetune, resume};
pub use host::{Host, Sources};
pub use inputs::{DataReport, Inputs, Test, data_file, load_records};
pub use observer::{Event, Observer};
pub use packed_on_read::PackedOnRead;
pub use private_folder::private_folder;
pub use recipe::Recipe;
pub use run_dir::{NewRun, RunDir, create_folder, json_lines};
pub use run_facts::RunFacts;
pub use run_inputs::{DataFingerprint, RunInputs};
pub use summary::{Baseline, NotFinite, RunEnd, Summary};
pub use training_shape::{ModuleShape, TrainingShape};
