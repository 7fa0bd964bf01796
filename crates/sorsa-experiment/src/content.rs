//! Fingerprints of models and adapters by the content of their files: the name of a folder says little once it is rewritten.

use std::path::{Path, PathBuf};

use sorsa_checkpoint::weights::Checkpoint;
use sorsa_files::ContentHash;

use crate::error::ExperimentError;

/// Bytes that are read in each of three places of a tensor. Training or merging changes a matrix everywhere, so that these
/// bytes tell models apart.
const SAMPLE: usize = 4096;

/// Fingerprint of the model in `folder`: its configuration, its tokenizer, and of each tensor the name, dtype, shape and
/// the values at the beginning, in the middle and at the end.
///
/// # Errors
///
/// [`ExperimentError::Weights`], [`ExperimentError::Read`].
pub fn of_model(folder: &Path) -> Result<String, ExperimentError> {
    let checkpoint = Checkpoint::open(folder)?;
    let mut hash = ContentHash::new();
    for name in ["config.json", "tokenizer.json"] {
        let path = folder.join(name);
        if path.is_file() {
            hash.update_file(&path)?;
        }
    }
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_unstable();
    for name in names {
        let (info, size) = (checkpoint.info(name), checkpoint.size_in_bytes(name)?);
        let kind = info.map(|info| format!("{name} {:?} {:?}\n", info.dtype, info.shape));
        hash.update(kind.unwrap_or_default().as_bytes());
        if size <= 3 * SAMPLE {
            hash.update(&checkpoint.raw(name)?);
        } else {
            for start in [0, (size - SAMPLE) / 2, size - SAMPLE] {
                hash.update(&checkpoint.raw_part(name, start..start + SAMPLE)?);
            }
        }
    }
    Ok(hash.short())
}

/// Fingerprint of the adapter in `folder`: the whole content of its files, which is small.
///
/// # Errors
///
/// [`ExperimentError::Read`].
pub fn of_adapter(folder: &Path) -> Result<String, ExperimentError> {
    let unreadable = |source| ExperimentError::Read { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(unreadable)?;
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "json" || kind == "safetensors"));
    paths.sort();
    let mut hash = ContentHash::new();
    for path in &paths {
        hash.update_file(path)?;
    }
    Ok(hash.short())
}
