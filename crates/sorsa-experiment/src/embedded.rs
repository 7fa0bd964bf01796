//! The base model and the arithmetic task that are part of the program, so that its main job runs anywhere.
//!
//! They are unpacked once, under a name that holds their hash, into a cache. If there is no cache, or it cannot be written, a
//! temporary folder takes its place.

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use sorsa_files::{AtomicDir, ContentHash};
use tempfile::TempDir;

use crate::error::ExperimentError;
use crate::private_folder;

/// The name that stands for this model and this task in a recipe.
pub const EMBEDDED: &str = "embedded";

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../../datasets/", $name)))),+]
    };
}

/// Paths below the folder, and contents.
const FILES: &[(&str, &[u8])] = files![
    "base/config.json",
    "base/generation_config.json",
    "base/model.safetensors",
    "base/special_tokens_map.json",
    "base/tokenizer.json",
    "base/tokenizer_config.json",
    "arithmetic/train.jsonl",
    "arithmetic/validation.jsonl",
    "arithmetic/test.jsonl",
];

/// The files, unpacked when they are first asked for. A temporary folder goes with it.
#[derive(Default)]
pub struct EmbeddedFiles {
    cache: Option<PathBuf>,
    unpacked: Mutex<Option<Unpacked>>,
}

struct Unpacked {
    folder: PathBuf,
    _temporary: Option<TempDir>,
}

impl EmbeddedFiles {
    /// Files that are unpacked into `cache`.
    pub fn in_cache(cache: impl Into<PathBuf>) -> Self {
        Self { cache: Some(cache.into()), unpacked: Mutex::default() }
    }

    /// The folder of the model, in the layout of Hugging Face.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Unpack`].
    pub fn model(&self) -> Result<PathBuf, ExperimentError> {
        Ok(self.folder()?.join("base"))
    }

    /// The file of a split of the task: `train`, `validation` or `test`.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Unpack`].
    pub fn task(&self, split: &str) -> Result<PathBuf, ExperimentError> {
        Ok(self.folder()?.join("arithmetic").join(format!("{split}.jsonl")))
    }

    /// Removes the temporary folder, if there is one. To be called right before a process ends early.
    pub fn remove_temporary(&self) {
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn folder(&self) -> Result<PathBuf, ExperimentError> {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unpacked) = &*unpacked {
            return Ok(unpacked.folder.clone());
        }
        let found = unpack(self.cache.as_deref())?;
        Ok(unpacked.insert(found).folder.clone())
    }
}

fn unpack(cache: Option<&Path>) -> Result<Unpacked, ExperimentError> {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        // The order and the separators are those of earlier builds, which share the cache.
        let mut hash = ContentHash::new();
        for (name, content) in FILES {
            hash.update(name.as_bytes());
            hash.update(&(content.len() as u64).to_le_bytes());
            hash.update(content);
        }
        format!("embedded-{}", &hash.hex()[..12])
    });
    if let Some(cache) = cache {
        let folder = cache.join(&*NAME);
        // Another process may have made the folder meanwhile.
        if is_whole(&folder) || (write(&folder).is_ok() || is_whole(&folder)) {
            return Ok(Unpacked { folder, _temporary: None });
        }
    }
    let temporary = private_folder(&tempfile::env::temp_dir(), "sorsa-");
    let temporary =
        temporary.map_err(|source| ExperimentError::Unpack { path: PathBuf::from("a temporary folder"), source })?;
    let folder = temporary.path().join(&*NAME);
    write(&folder)?;
    Ok(Unpacked { folder, _temporary: Some(temporary) })
}

/// Whether a folder holds every file to the byte. A cache is a place that people clean and disks fill.
fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|(name, content)| std::fs::read(folder.join(name)).is_ok_and(|found| found == *content))
}

fn write(folder: &Path) -> Result<(), ExperimentError> {
    let new = AtomicDir::create(folder)?;
    for (name, content) in FILES {
        let path = new.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|source| ExperimentError::Unpack { path: parent.to_owned(), source })?;
        }
        std::fs::write(&path, content).map_err(|source| ExperimentError::Unpack { path, source })?;
    }
    Ok(new.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_is_written_again_and_a_whole_one_is_left_alone() {
        let cache = tempfile::tempdir().unwrap();
        let first = unpack(Some(cache.path())).unwrap().folder;
        assert!(first.starts_with(cache.path()) && is_whole(&first));
        let weights = first.join("base/model.safetensors");
        let written = std::fs::metadata(&weights).unwrap().modified().unwrap();
        assert_eq!(unpack(Some(cache.path())).unwrap().folder, first);
        assert_eq!(std::fs::metadata(&weights).unwrap().modified().unwrap(), written);
        std::fs::write(&weights, "cut").unwrap();
        assert_eq!(unpack(Some(cache.path())).unwrap().folder, first);
        assert!(is_whole(&first));
    }

    #[test]
    fn a_process_without_a_cache_has_a_temporary_folder_and_removes_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for cache in [None, Some(file.path())] {
            let unpacked = unpack(cache).unwrap();
            let folder = unpacked.folder.clone();
            assert!(is_whole(&folder), "{}", folder.display());
            drop(unpacked);
            assert!(!folder.exists());
        }
    }
}
