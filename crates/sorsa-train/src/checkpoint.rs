//! Checkpoints: trained parameters, buffers of the optimizer, and the rest of what the next loss depends on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sorsa_adapter::{AdapterError, NamedTensors, Trainable};
use sorsa_data::DataPosition;

use crate::optimizer::Optimizer;
use sorsa_files::{
    AtomicDir, FileError, TensorError, read_tensors, recover, remove_folder, write_atomic, write_tensors,
};

/// The progress of a run. Dropout needs only `step`: the trainer seeds the device before each step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: u64,
    /// The next batch.
    pub position: DataPosition,
    /// Training seconds so far.
    pub seconds: f64,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub evaluations_without_improvement: usize,
    /// The gamma multiplier of the next step, if gamma adapts.
    pub gamma_factor: f32,
    /// Tokens seen.
    pub tokens: u64,
}

/// The evaluation with the lowest loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
}

const STATE: &str = "state.json";
const PARAMETERS: &str = "parameters.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// The folder of a run's checkpoints, `checkpoints/step-N/`.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// The content of a checkpoint.
pub(crate) struct LoadedCheckpoint {
    pub state: RunState,
    pub parameters: NamedTensors,
    pub folder: PathBuf,
}

impl Checkpoints {
    /// The checkpoints under `run`.
    ///
    /// # Errors
    ///
    /// [`FileError`] if leftovers of a killed process cannot be removed.
    pub fn open(run: &Path) -> Result<Self, FileError> {
        let folder = run.join("checkpoints");
        recover(&folder)?;
        Ok(Self { folder })
    }

    /// The checkpoints under `run`, for reading. Removes nothing, because another process may be writing.
    pub fn of(run: &Path) -> Self {
        Self { folder: run.join("checkpoints") }
    }

    /// The file of the trained parameters at a step.
    pub fn parameters(&self, step: u64) -> PathBuf {
        self.at(step).join(PARAMETERS)
    }

    /// Steps that have a complete checkpoint, in ascending order.
    pub fn steps(&self) -> Vec<u64> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let mut steps: Vec<u64> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    fn at(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    pub(crate) fn save(
        &self,
        state: &RunState,
        parameters: &NamedTensors,
        optimizer: &Optimizer,
        trainable: &[Trainable],
    ) -> Result<(), CheckpointError> {
        let folder = AtomicDir::create(self.at(state.step))?;
        write_tensors(&folder.path().join(PARAMETERS), parameters)?;
        optimizer.save(&folder.path().join(OPTIMIZER), trainable)?;
        let json = serde_json::to_vec_pretty(state).map_err(|error| FileError::Malformed {
            path: folder.path().join(STATE),
            expected: "a state",
            found: vec![error.to_string()],
        })?;
        write_atomic(folder.path().join(STATE), json)?;
        folder.commit()?;
        Ok(())
    }

    pub(crate) fn load(&self, step: u64) -> Result<LoadedCheckpoint, CheckpointError> {
        let folder = self.at(step);
        let path = folder.join(STATE);
        let json = std::fs::read(&path).map_err(sorsa_files::at("read", &path))?;
        let state = serde_json::from_slice(&json).map_err(|error| FileError::Malformed {
            path,
            expected: "the state of a checkpoint",
            found: vec![error.to_string()],
        })?;
        let parameters = read_tensors(&folder.join(PARAMETERS))?;
        Ok(LoadedCheckpoint { state, parameters, folder })
    }

    pub(crate) fn optimizer_file(folder: &Path) -> PathBuf {
        folder.join(OPTIMIZER)
    }

    /// Removes all but the newest `keep` checkpoints and the one at `best`.
    pub(crate) fn prune(&self, keep: usize, best: Option<u64>) -> Result<(), FileError> {
        let steps = self.steps();
        let old = &steps[..steps.len().saturating_sub(keep.max(1))];
        for step in old.iter().filter(|step| Some(**step) != best) {
            remove_folder(&self.at(*step))?;
        }
        Ok(())
    }
}

/// A checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of tensors.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// Tensors that do not fit the parameters.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}
