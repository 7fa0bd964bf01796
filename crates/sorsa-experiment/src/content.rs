//! Fingerprints of models and adapters by the content of their files: the name of a folder says little once it is rewritten.

use std::path::{Path, PathBuf};

use blake3::Hasher;
use sorsa_checkpoint::weights::Checkpoint;

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
    let mut hasher = Hasher::new();
    for name in ["config.json", "tokenizer.json"] {
        let path = folder.join(name);
        if path.is_file() {
            file(&mut hasher, &path)?;
        }
    }
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_unstable();
    for name in names {
        let (info, bytes) = (checkpoint.info(name), checkpoint.raw(name)?);
        let kind = info.map(|info| format!("{name} {:?} {:?}\n", info.dtype, info.shape));
        hasher.update(kind.unwrap_or_default().as_bytes());
        if bytes.len() <= 3 * SAMPLE {
            hasher.update(bytes);
        } else {
            for start in [0, (bytes.len() - SAMPLE) / 2, bytes.len() - SAMPLE] {
                hasher.update(&bytes[start..start + SAMPLE]);
            }
        }
    }
    Ok(short(&hasher))
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
    let mut hasher = Hasher::new();
    for path in &paths {
        file(&mut hasher, path)?;
    }
    Ok(short(&hasher))
}

/// Adds the name, the length and the content of a file.
fn file(hasher: &mut Hasher, path: &Path) -> Result<(), ExperimentError> {
    let unreadable = |source| ExperimentError::Read { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let length = file.metadata().map_err(unreadable)?.len();
    hasher.update(format!("{name} {length}\n").as_bytes());
    std::io::copy(&mut file, hasher).map_err(unreadable)?;
    Ok(())
}

/// The first sixteen digits: enough for no two models to share them.
fn short(hasher: &Hasher) -> String {
    hasher.finalize().to_hex()[..16].to_owned()
}
