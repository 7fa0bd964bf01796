//! The folder of a run and the files in it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sorsa_adapter::SavedAdapter;
use sorsa_files::{FileLock, LockError, ProvisionalFolder, recover, write_atomic};
use sorsa_train::RateSearch;
use sorsa_train::metrics::{self, Metric};

use crate::answer::Answer;
use crate::error::ExperimentError;
use crate::recipe::Recipe;
use crate::run_inputs::RunInputs;
use crate::summary::{Baseline, NotFinite, Summary};

/// A run's folder. Each file is read back as the type that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The recipe in full; a folder that has it can be resumed.
    pub const RECIPE: &str = "recipe.toml";
    /// The [`Summary`] of a run that came to its end.
    pub const SUMMARY: &str = "summary.json";
    /// The [`NotFinite`] of a run whose loss was no number any more.
    pub const DIVERGED: &str = "diverged.json";
    /// Every [`Metric`], one a line.
    pub const METRICS: &str = "metrics.jsonl";
    /// Every [`Answer`] of the trained model, one a line.
    pub const GENERATIONS: &str = "generations.jsonl";
    /// The [`Baseline`].
    pub const BASELINE: &str = "baseline.json";
    /// The [`RateSearch`] of a run whose recipe asked for one.
    pub const LEARNING_RATE: &str = "learning-rate.json";
    /// The [`RunInputs`].
    pub const INPUTS: &str = "inputs.json";
    /// The report for people, the last file of a run.
    pub const REPORT: &str = "report.html";
    /// Held by the process that trains.
    const LOCK: &str = ".lock";
    /// Folder of the trained adapter.
    pub const ADAPTER: &str = "adapter";
    /// Folder of the adapter as training found it.
    pub const START: &str = "start";

    /// The folder at `path`, which need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Creates the first `parent/name-N` that is not there. Processes that ask at the same time get different ones.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::CreateFolder`].
    pub fn create_unused(parent: &Path, name: &str) -> Result<Self, ExperimentError> {
        create_folder(parent)?;
        let mut number = 1;
        loop {
            let path = parent.join(format!("{name}-{number}"));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(source) => return Err(ExperimentError::CreateFolder { path, source }),
            }
        }
    }

    /// Creates the folder for a new run, if it is not there, and locks it.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::RunExists`], [`ExperimentError::RunInUse`], [`ExperimentError::CreateFolder`].
    pub fn begin(&self) -> Result<NewRun, ExperimentError> {
        create_folder(&self.path)?;
        // Before the look at the recipe: a run that another process still trains cannot be resumed.
        let lock = self.lock()?;
        if self.file(Self::RECIPE).exists() {
            return Err(ExperimentError::RunExists { path: self.path.clone() });
        }
        self.recover()?;
        let mut entries = std::fs::read_dir(&self.path)
            .map_err(|source| ExperimentError::ListFolder { path: self.path.clone(), source })?;
        let is_empty = entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == Self::LOCK));
        let folder = is_empty.then(|| ProvisionalFolder::adopt(&self.path));
        Ok(NewRun { folder, lock })
    }

    /// Locks the folder of a run that is resumed, and removes what it was writing when it was killed.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::RunInUse`], [`ExperimentError::File`].
    pub fn reopen(&self) -> Result<FileLock, ExperimentError> {
        let lock = self.lock()?;
        self.recover()?;
        Ok(lock)
    }

    fn lock(&self) -> Result<FileLock, ExperimentError> {
        FileLock::acquire(&self.file(Self::LOCK)).map_err(|error| match error {
            LockError::Held { process, .. } => ExperimentError::RunInUse { path: self.path.clone(), process },
            LockError::File(error) => error.into(),
        })
    }

    fn recover(&self) -> Result<(), ExperimentError> {
        for folder in [self.path.clone(), self.file(Self::ADAPTER), self.file(Self::START)] {
            recover(folder)?;
        }
        Ok(())
    }

    /// The summary of a run that came to its end and has all its results, so that nothing is left to do. `None` of every other
    /// run; of one whose recipe was changed since; and of runs of earlier builds, which do not tell.
    pub fn ended(&self) -> Option<Summary> {
        let (recipe, inputs) = (self.recipe().ok()?, self.inputs().ok()??);
        let summary = self.summary().ok()?;
        let is_same = inputs.recipe_changes(&recipe).is_empty();
        let logged = self.metrics().ok()?.iter().filter(|metric| matches!(metric, Metric::Step(_))).count();
        let is_whole = logged as u64 == summary.steps
            && self.file(Self::REPORT).exists()
            && SavedAdapter::load(&self.file(Self::ADAPTER)).is_ok();
        if !is_same || !is_whole {
            return None;
        }
        // A process that was killed after its last file left its lock file.
        drop(self.reopen());
        Some(summary)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The recipe that the run was made by.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::ReadRecipe`] and what else [`Recipe::read`] finds.
    pub fn recipe(&self) -> Result<Recipe, ExperimentError> {
        Recipe::read(&self.file(Self::RECIPE))
    }

    /// What the run was begun with; `None` of runs of earlier builds.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Read`], [`ExperimentError::MalformedResult`].
    pub fn inputs(&self) -> Result<Option<RunInputs>, ExperimentError> {
        if self.file(Self::INPUTS).exists() { self.read_json(Self::INPUTS).map(Some) } else { Ok(None) }
    }

    /// What the run came to.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Read`] of a run that is not finished, [`ExperimentError::MalformedResult`].
    pub fn summary(&self) -> Result<Summary, ExperimentError> {
        self.read_json(Self::SUMMARY)
    }

    /// Where the run diverged; `None` of a run that did not.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Read`], [`ExperimentError::MalformedResult`].
    pub fn divergence(&self) -> Result<Option<NotFinite>, ExperimentError> {
        if self.file(Self::DIVERGED).exists() { self.read_json(Self::DIVERGED).map(Some) } else { Ok(None) }
    }

    /// How the learning rate was found; `None` if the recipe named it.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Read`], [`ExperimentError::MalformedResult`].
    pub fn learning_rate_search(&self) -> Result<Option<RateSearch>, ExperimentError> {
        let path = self.file(Self::LEARNING_RATE);
        if path.exists() { self.read_json(Self::LEARNING_RATE).map(Some) } else { Ok(None) }
    }

    /// Scores before training.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Read`], [`ExperimentError::MalformedResult`].
    pub fn baseline(&self) -> Result<Baseline, ExperimentError> {
        self.read_json(Self::BASELINE)
    }

    /// Every step and evaluation.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::File`].
    pub fn metrics(&self) -> Result<Vec<Metric>, ExperimentError> {
        Ok(metrics::read(self.file(Self::METRICS))?)
    }

    /// The answers of the trained model; none if the recipe has no test.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Read`], [`ExperimentError::MalformedAnswer`].
    pub fn generations(&self) -> Result<Vec<Answer>, ExperimentError> {
        let path = self.file(Self::GENERATIONS);
        if path.exists() { Answer::read_all(&path) } else { Ok(Vec::new()) }
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::File`].
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<(), ExperimentError> {
        Ok(write_atomic(self.file(name), content)?)
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::File`].
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), ExperimentError> {
        self.write(name, serde_json::to_vec_pretty(value)?)
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ExperimentError> {
        let path = self.file(name);
        let json = std::fs::read(&path).map_err(|source| ExperimentError::Read { path: path.clone(), source })?;
        serde_json::from_slice(&json).map_err(|source| ExperimentError::MalformedResult { path, source })
    }
}

/// The folder of a run that has no recipe yet, locked. If it is dropped before [`keep`](Self::keep) and was empty at first, it is
/// removed.
#[derive(Debug)]
pub struct NewRun {
    folder: Option<ProvisionalFolder>,
    lock: FileLock,
}

impl NewRun {
    /// Keeps the folder, which can be resumed from now on. The lock goes on.
    pub fn keep(self) -> FileLock {
        if let Some(folder) = self.folder {
            folder.keep();
        }
        self.lock
    }
}

/// Creates a folder and those above it.
///
/// # Errors
///
/// [`ExperimentError::CreateFolder`].
pub fn create_folder(folder: &Path) -> Result<(), ExperimentError> {
    std::fs::create_dir_all(folder).map_err(|source| ExperimentError::CreateFolder { path: folder.to_owned(), source })
}

/// Rows as JSON lines.
///
/// # Errors
///
/// [`ExperimentError::Json`] of a row without a JSON form.
pub fn json_lines<T: Serialize>(rows: &[T]) -> Result<String, ExperimentError> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    Ok(text)
}
