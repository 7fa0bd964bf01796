//! The folder of a run and the files in it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sorsa_files::{recover, write_atomic};
use sorsa_train::metrics::{self, Metric};

use crate::answer::Answer;
use crate::error::ExperimentError;
use crate::recipe::Recipe;
use crate::summary::{Baseline, Divergence, Summary};

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
    /// The [`Divergence`] of a run whose loss was no number any more.
    pub const DIVERGED: &str = "diverged.json";
    /// Every [`Metric`], one a line.
    pub const METRICS: &str = "metrics.jsonl";
    /// Every [`Answer`] of the trained model, one a line.
    pub const GENERATIONS: &str = "generations.jsonl";
    /// The [`Baseline`].
    pub const BASELINE: &str = "baseline.json";
    /// Folder of the trained adapter.
    pub const ADAPTER: &str = "adapter";
    /// Folder of the adapter as training found it.
    pub const START: &str = "start";

    /// The folder at `path`, which need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The first `parent/name-N` that is not there.
    pub fn unused(parent: &Path, name: &str) -> Self {
        let mut number = 1;
        loop {
            let path = parent.join(format!("{name}-{number}"));
            if !path.exists() {
                return Self { path };
            }
            number += 1;
        }
    }

    /// The folder of an earlier run, without what it was writing when it was killed.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::File`].
    pub fn open(path: &Path) -> Result<Self, ExperimentError> {
        recover(path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Creates the folder for a new run.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::RunExists`], [`ExperimentError::CreateFolder`].
    pub fn create(&self) -> Result<(), ExperimentError> {
        if self.file(Self::RECIPE).exists() {
            return Err(ExperimentError::RunExists { path: self.path.clone() });
        }
        create_folder(&self.path)
    }

    /// Removes the files that were written before a run failed to start, and the folder if it holds nothing else.
    pub fn abandon(&self) {
        // The error that ended the run is the one to report.
        let _ = std::fs::remove_file(self.file(Self::BASELINE));
        let _ = std::fs::remove_dir(&self.path);
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
    pub fn divergence(&self) -> Result<Option<Divergence>, ExperimentError> {
        if self.file(Self::DIVERGED).exists() { self.read_json(Self::DIVERGED).map(Some) } else { Ok(None) }
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
