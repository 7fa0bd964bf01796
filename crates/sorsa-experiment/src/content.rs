//! Fingerprints of models and adapters by the content of their files: the name of a folder says little once it is rewritten.

use std::ops::Range;
use std::path::{Path, PathBuf};

use sorsa_checkpoint::gguf::GgufFile;
use sorsa_checkpoint::gguf_file_of;
use sorsa_checkpoint::weights::{Checkpoint, TOKENIZER_FILES};
use sorsa_files::ContentHash;

use crate::error::ExperimentError;

/// Bytes that are read in each of three places of a tensor. Training or merging changes a matrix everywhere, so that these
/// bytes tell models apart.
const SAMPLE: usize = 4096;

/// Fingerprint of the model in `folder`, or of a GGUF file: its configuration, its tokenizer, and of each tensor the name, dtype, shape and
/// the values at the beginning, in the middle and at the end. Files of `eval --out` of earlier builds hold it.
///
/// # Errors
///
/// [`ExperimentError::Weights`], [`ExperimentError::Read`].
pub fn of_model(folder: &Path) -> Result<String, ExperimentError> {
    let mut hash = ContentHash::new();
    if let Some(file) = gguf_file_of(folder)? {
        let file = GgufFile::open(&file)?;
        add_gguf_config(&mut hash, folder, &file)?;
        hash.update(&file.metadata_bytes(is_of_tokenizer));
        add_gguf_weights(&mut hash, &file)?;
        return Ok(hash.short());
    }
    let checkpoint = Checkpoint::open(folder)?;
    let vocabulary =
        ["tokenizer.json", "tokenizer.model", "vocab.json"].into_iter().find(|name| folder.join(name).is_file());
    let names: Vec<&str> = ["config.json"].into_iter().chain(vocabulary).collect();
    add_files(&mut hash, folder, &names)?;
    add_weights(&mut hash, &checkpoint)?;
    Ok(hash.short())
}

/// Fingerprint of the weights of the model in `folder`, sampled like in [`of_model`].
///
/// # Errors
///
/// [`ExperimentError::Weights`].
pub fn of_weights(folder: &Path) -> Result<String, ExperimentError> {
    let mut hash = ContentHash::new();
    match gguf_file_of(folder)? {
        Some(file) => add_gguf_weights(&mut hash, &GgufFile::open(&file)?)?,
        None => add_weights(&mut hash, &Checkpoint::open(folder)?)?,
    }
    Ok(hash.short())
}

/// Fingerprint of the tokenizer and the chat template in a model's folder.
///
/// # Errors
///
/// [`ExperimentError::File`].
pub fn of_tokenizer(folder: &Path) -> Result<String, ExperimentError> {
    let mut hash = ContentHash::new();
    match gguf_file_of(folder)? {
        Some(file) => hash.update(&GgufFile::open(&file)?.metadata_bytes(is_of_tokenizer)),
        None => add_files(&mut hash, folder, &TOKENIZER_FILES)?,
    }
    Ok(hash.short())
}

/// Fingerprint of the configuration of the model in `folder`, or of a GGUF file.
///
/// # Errors
///
/// [`ExperimentError::File`], [`ExperimentError::Source`].
pub fn of_config(folder: &Path) -> Result<String, ExperimentError> {
    match gguf_file_of(folder)? {
        None => of_file(&folder.join("config.json")),
        Some(file) => {
            let mut hash = ContentHash::new();
            add_gguf_config(&mut hash, folder, &GgufFile::open(&file)?)?;
            Ok(hash.short())
        }
    }
}

/// Fingerprint of a file by its whole content, whatever its name.
///
/// # Errors
///
/// [`ExperimentError::File`].
pub fn of_file(path: &Path) -> Result<String, ExperimentError> {
    let mut hash = ContentHash::new();
    hash.update_content(path)?;
    Ok(hash.short())
}

/// Takes in those of some files that are there.
fn add_files(hash: &mut ContentHash, folder: &Path, names: &[&str]) -> Result<(), ExperimentError> {
    for name in names {
        let path = folder.join(name);
        if path.is_file() {
            hash.update_file(&path)?;
        }
    }
    Ok(())
}

fn add_weights(hash: &mut ContentHash, checkpoint: &Checkpoint) -> Result<(), ExperimentError> {
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_unstable();
    for name in names {
        let (info, size) = (checkpoint.info(name), checkpoint.size_in_bytes(name)?);
        let kind = info.map(|info| format!("{name} {:?} {:?}\n", info.dtype, info.shape));
        hash.update(kind.unwrap_or_default().as_bytes());
        if size <= 3 * SAMPLE {
            hash.update(&checkpoint.raw(name)?);
        } else {
            for place in sampled(size) {
                hash.update(&checkpoint.raw_part(name, place)?);
            }
        }
    }
    Ok(())
}

/// Takes in the configuration in a GGUF file, and the fields that a `config.json` beside it replaces.
fn add_gguf_config(hash: &mut ContentHash, path: &Path, file: &GgufFile) -> Result<(), ExperimentError> {
    hash.update(&file.metadata_bytes(|key| !is_of_tokenizer(key)));
    add_files(hash, path, &["config.json"])
}

/// Whether a key of a GGUF file's metadata belongs to the tokenizer.
fn is_of_tokenizer(key: &str) -> bool {
    key.starts_with("tokenizer.")
}

fn add_gguf_weights(hash: &mut ContentHash, file: &GgufFile) -> Result<(), ExperimentError> {
    for tensor in file.tensors() {
        hash.update(format!("{} {} {:?}\n", tensor.name, tensor.type_id, tensor.shape).as_bytes());
        let Some(size) = tensor.dtype().and_then(|dtype| dtype.bytes(&tensor.shape)) else { continue };
        let places: Vec<Range<usize>> = match size <= 3 * SAMPLE {
            true => std::iter::once(0..size).collect(),
            false => sampled(size).to_vec(),
        };
        for place in places {
            hash.update(&file.raw_part(&tensor.name, place)?);
        }
    }
    Ok(())
}

/// The three places of a tensor that are read.
fn sampled(size: usize) -> [Range<usize>; 3] {
    [0, (size - SAMPLE) / 2, size - SAMPLE].map(|start| start..start + SAMPLE)
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
