//! What ends a run before its end.

use sorsa_adapter::AdapterError;
use sorsa_files::FileError;

use crate::checkpoint::{CheckpointError, first_five};

/// Why a run stopped before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Files of the run.
    #[error(transparent)]
    File(#[from] FileError),
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Parameters that do not fit.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The loss or its gradient is not a number.
    #[error(
        "step {step}: the loss is {loss} and its gradient's norm {grad_norm}; batch {batch} of epoch {epoch}, rows {rows:?}; {}",
        last_good(checkpoint)
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// The loss.
        loss: f32,
        /// The norm.
        grad_norm: f32,
        /// The epoch.
        epoch: u64,
        /// The step's first batch in it.
        batch: usize,
        /// Rows of the data file in the step.
        rows: Vec<usize>,
        /// The newest checkpoint.
        checkpoint: Option<u64>,
    },
    /// An update left parameters that are not numbers.
    #[error(
        "step {step}: its update left numbers that are not finite: {}; rows {rows:?}; {}",
        first_five(tensors),
        last_good(checkpoint)
    )]
    ParametersNotFinite {
        /// The step.
        step: u64,
        /// A line for each tensor with such numbers.
        tensors: Vec<String>,
        /// Rows of the data file in the step.
        rows: Vec<usize>,
        /// The newest checkpoint.
        checkpoint: Option<u64>,
    },
    /// No batch of a step has a target token.
    #[error("step {step}: no target tokens in its batches, rows {rows:?}")]
    NoTargets {
        /// The step.
        step: u64,
        /// Rows of the data file.
        rows: Vec<usize>,
    },
}

fn last_good(checkpoint: &Option<u64>) -> String {
    match checkpoint {
        Some(step) => format!("the last good checkpoint is at step {step}"),
        None => "no checkpoint was written yet".to_owned(),
    }
}

impl TrainError {
    /// The step at which the run diverged; nothing if it failed for another reason.
    pub fn diverged_at(&self) -> Option<u64> {
        match self {
            Self::NotFinite { step, .. }
            | Self::ParametersNotFinite { step, .. }
            | Self::Checkpoint(CheckpointError::NotFinite { step, .. }) => Some(*step),
            _ => None,
        }
    }
}
