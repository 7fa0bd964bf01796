//! Checkpoints: trained parameters, buffers of the optimizer, and the rest of what the next loss depends on.
//!
//! `state.json` holds a hash of the whole content, which is compared when a run is resumed. Checkpoints of earlier builds have
//! none; of those the files are read.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sorsa_adapter::{AdapterError, NamedTensors, Trainable};
use sorsa_data::DataPosition;

use crate::optimizer::Optimizer;
use crate::run_length::LastStep;
use sorsa_files::{
    AtomicDir, ContentHash, FileError, TensorError, not_finite, read_tensors, recover, remove_folder, write_atomic,
    write_tensors,
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
    /// The sum of the errors of the controller of gamma, if gamma adapts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gamma_integral: f32,
    /// Tokens seen.
    pub tokens: u64,
    /// What the last step of an epoch does.
    #[serde(default = "LastStep::of_earlier_builds")]
    pub last_step: LastStep,
}

/// Checkpoints of earlier builds have no such field, and a hash of the fields that they have.
fn is_zero(value: &f32) -> bool {
    *value == 0.0
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
/// The field of `state.json` that holds the hash of the checkpoint's content.
const CONTENT: &str = "content";

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

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn at(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Checks that a checkpoint is what was written, and that the one of its best step is.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Damaged`]; [`CheckpointError::File`] if the system refuses to read a file.
    pub(crate) fn verify(&self, step: u64) -> Result<(), CheckpointError> {
        let state = self.verify_alone(step)?;
        match state.best {
            // Somebody may have removed it: then the last parameters take its place.
            Some(best) if best.step != step && self.at(best.step).exists() => self.verify_alone(best.step).map(drop),
            _ => Ok(()),
        }
    }

    fn verify_alone(&self, step: u64) -> Result<RunState, CheckpointError> {
        let folder = self.at(step);
        let damaged = |reason: String| CheckpointError::Damaged { folder: folder.clone(), reason };
        let read = self.read_state(step)?;
        if read.state.step != step {
            return Err(damaged(format!("{STATE} is of step {}", read.state.step)));
        }
        let files = [PARAMETERS, OPTIMIZER].map(|name| folder.join(name));
        match read.content {
            Some(expected) => {
                if content_hash(&read.state, &files).map_err(|error| or_damaged(error, &folder))? != expected {
                    return Err(damaged("its content is not what was written".to_owned()));
                }
            }
            None => {
                for file in &files {
                    match read_tensors(file) {
                        Err(TensorError::Io { path, source }) => {
                            return Err(or_damaged(FileError::Io { action: "read", path, source }, &folder));
                        }
                        Err(error) => return Err(damaged(error.to_string())),
                        Ok(_) => {}
                    }
                }
            }
        }
        Ok(read.state)
    }

    /// Takes a damaged checkpoint out of the list: it gets another name, and is left to whoever wants to look at it.
    pub(crate) fn set_aside(&self, step: u64) -> Result<PathBuf, FileError> {
        let (folder, aside) = (self.at(step), self.folder.join(format!("damaged-step-{step}")));
        if aside.exists() {
            remove_folder(&aside)?;
        }
        std::fs::rename(&folder, &aside).map_err(sorsa_files::at("rename", &folder))?;
        Ok(aside)
    }

    pub(crate) fn save(
        &self,
        state: &RunState,
        parameters: NamedTensors,
        optimizer: &Optimizer,
        trainable: &[Trainable],
    ) -> Result<(), CheckpointError> {
        check_finite(state.step, &parameters)?;
        let folder = AtomicDir::create(self.at(state.step))?;
        write_tensors(&folder.path().join(PARAMETERS), &parameters)?;
        // One copy at a time: of the parameters, then of the buffers.
        drop(parameters);
        let buffers = optimizer.tensors(trainable);
        check_finite(state.step, &buffers)?;
        write_tensors(&folder.path().join(OPTIMIZER), &buffers)?;
        let content = content_hash(state, &[PARAMETERS, OPTIMIZER].map(|name| folder.path().join(name)))?;
        let json = serde_json::to_vec_pretty(&StoredState { state, content: &content });
        write_atomic(folder.path().join(STATE), json.map_err(|error| malformed(&folder.path().join(STATE), &error))?)?;
        folder.commit()?;
        Ok(())
    }

    pub(crate) fn load(&self, step: u64) -> Result<LoadedCheckpoint, CheckpointError> {
        let folder = self.at(step);
        let state = self.read_state(step)?.state;
        let parameters = read_tensors(&folder.join(PARAMETERS))?;
        check_finite(step, &parameters)?;
        Ok(LoadedCheckpoint { state, parameters, folder })
    }

    fn read_state(&self, step: u64) -> Result<ReadState, CheckpointError> {
        let folder = self.at(step);
        let path = folder.join(STATE);
        let damaged = |reason: String| CheckpointError::Damaged { folder: folder.clone(), reason };
        let json =
            std::fs::read(&path).map_err(sorsa_files::at("read", &path)).map_err(|error| or_damaged(error, &folder))?;
        let mut fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&json).map_err(|error| damaged(format!("{STATE}: {error}")))?;
        let content = fields.remove(CONTENT).and_then(|content| content.as_str().map(str::to_owned));
        let state = serde_json::from_value(fields.into()).map_err(|error| damaged(format!("{STATE}: {error}")))?;
        Ok(ReadState { state, content })
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

fn check_finite(step: u64, tensors: &NamedTensors) -> Result<(), CheckpointError> {
    let tensors = not_finite(tensors);
    if tensors.is_empty() { Ok(()) } else { Err(CheckpointError::NotFinite { step, tensors }) }
}

/// `state.json` as it is written.
#[derive(Serialize)]
struct StoredState<'a> {
    #[serde(flatten)]
    state: &'a RunState,
    /// [`CONTENT`].
    content: &'a str,
}

/// `state.json` as it is read.
struct ReadState {
    state: RunState,
    content: Option<String>,
}

/// The hash of a state and of the files beside it.
fn content_hash(state: &RunState, files: &[PathBuf]) -> Result<String, FileError> {
    let mut hash = ContentHash::new();
    hash.update(serde_json::to_string(state).map_err(|error| malformed(Path::new(STATE), &error))?.as_bytes());
    for file in files {
        hash.update_file(file)?;
    }
    Ok(hash.hex())
}

fn malformed(path: &Path, error: &serde_json::Error) -> FileError {
    FileError::Malformed {
        path: path.to_owned(),
        expected: "the state of a checkpoint",
        found: vec![error.to_string()],
    }
}

/// A file that is missing or ends early is a damage of the checkpoint in `folder`; a file that the system refuses to read is not.
fn or_damaged(error: FileError, folder: &Path) -> CheckpointError {
    use std::io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    match &error {
        FileError::Io { source, .. }
            if !matches!(source.kind(), NotFound | UnexpectedEof | InvalidData | IsADirectory | NotADirectory) =>
        {
            error.into()
        }
        _ => CheckpointError::Damaged { folder: folder.to_owned(), reason: error.to_string() },
    }
}

/// A checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A checkpoint is not what was written.
    #[error("the checkpoint {} is damaged: {reason}", folder.display())]
    Damaged {
        /// The checkpoint.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No checkpoint of a run is what was written.
    #[error(
        "every checkpoint in {} is damaged ({reason}); to train the run again from its start, remove that folder and metrics.jsonl",
        folder.display()
    )]
    AllDamaged {
        /// The folder of the checkpoints.
        folder: PathBuf,
        /// What is wrong with the newest.
        reason: String,
    },
    /// A file of tensors.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// Tensors that do not fit the parameters.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Numbers that no run can go on from.
    #[error("no good checkpoint at step {step}: numbers are not finite: {}", first_five(tensors))]
    NotFinite {
        /// The step.
        step: u64,
        /// A line for each tensor with such numbers.
        tensors: Vec<String>,
    },
}

/// The first five lines, and how many there are besides.
pub(crate) fn first_five(lines: &[String]) -> String {
    let shown = lines[..lines.len().min(5)].join(", ");
    match lines.len().saturating_sub(5) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
