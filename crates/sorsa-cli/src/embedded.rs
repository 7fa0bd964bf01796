//! The base model and the arithmetic task that are part of the binary, so that it runs its main job anywhere.
//!
//! They are unpacked once, under a name that holds their hash, into the cache of this program. If there is no folder
//! for a cache, or it cannot be written, a temporary folder of the process takes its place.

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::Context;
use sorsa_files::AtomicDir;
use tempfile::TempDir;

use crate::session::cache_folder;

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

/// The folder of this process, once it has been looked for, and what removes it if it is temporary.
static FOLDER: Mutex<Option<Unpacked>> = Mutex::new(None);

struct Unpacked {
    folder: PathBuf,
    _temporary: Option<TempDir>,
}

/// The folder of the model, in the layout of Hugging Face.
pub fn model() -> anyhow::Result<PathBuf> {
    Ok(folder()?.join("base"))
}

/// The file of a split of the task: `train`, `validation` or `test`.
pub fn task(split: &str) -> anyhow::Result<PathBuf> {
    Ok(folder()?.join("arithmetic").join(format!("{split}.jsonl")))
}

/// Removes the temporary folder, if there is one. To be called before the process ends.
pub fn remove_temporary() {
    FOLDER.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn folder() -> anyhow::Result<PathBuf> {
    let mut unpacked = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(unpacked) = &*unpacked {
        return Ok(unpacked.folder.clone());
    }
    let found = unpack(cache_folder().as_deref())?;
    Ok(unpacked.insert(found).folder.clone())
}

fn unpack(cache: Option<&Path>) -> anyhow::Result<Unpacked> {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let mut hash = blake3::Hasher::new();
        for (name, content) in FILES {
            hash.update(name.as_bytes()).update(&(content.len() as u64).to_le_bytes()).update(content);
        }
        format!("embedded-{}", &hash.finalize().to_hex()[..12])
    });
    if let Some(cache) = cache {
        let folder = cache.join(&*NAME);
        // Another process may give the folder its name meanwhile.
        if is_whole(&folder) || (write(&folder).is_ok() || is_whole(&folder)) {
            return Ok(Unpacked { folder, _temporary: None });
        }
    }
    let temporary = tempfile::Builder::new().prefix("sorsa-").tempdir();
    let temporary = temporary.context("cannot create a temporary folder for the embedded model")?;
    let folder = temporary.path().join(&*NAME);
    write(&folder)?;
    Ok(Unpacked { folder, _temporary: Some(temporary) })
}

/// Whether a folder holds every file to the byte. A cache is a place that people clean and disks fill.
fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|(name, content)| std::fs::read(folder.join(name)).is_ok_and(|found| found == *content))
}

fn write(folder: &Path) -> anyhow::Result<()> {
    let new = AtomicDir::create(folder)?;
    for (name, content) in FILES {
        let path = new.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
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
