//! The conditions of a run. They decide whether its times can be compared.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sorsa_files::write_atomic;

use crate::ExperimentError;

/// `bench.json` in the folder of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RunConditions {
    /// The most jobs that were seen at work at the same time, this run included.
    pub concurrent: usize,
    /// Whether the run was interrupted and resumed. The time of its start is then unknown.
    pub resumed: bool,
}

const FILE: &str = "bench.json";

impl RunConditions {
    /// Reads the conditions of the run in `folder`. A run that has not begun has the default.
    pub fn read(folder: &Path) -> Self {
        let Ok(text) = std::fs::read(folder.join(FILE)) else { return Self::default() };
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Writes the conditions of the run in `folder`.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::File`].
    pub fn write(self, folder: &Path) -> Result<(), ExperimentError> {
        Ok(write_atomic(folder.join(FILE), serde_json::to_vec(&self)?)?)
    }
}
