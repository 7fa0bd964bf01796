//! A folder with the configuration and the tokenizer of a model, whatever layout its files have.

use std::path::{Path, PathBuf};

use sorsa_checkpoint::{ModelSource, Stored, gguf_file_of};
use sorsa_files::{AtomicDir, write_atomic};

use crate::exit::OrBadInput;

/// A folder with `config.json` and the files of the tokenizer.
pub enum DescribedFolder {
    /// The model's own.
    Own(PathBuf),
    /// Another, which is removed when this is dropped.
    Temporary(AtomicDir),
}

impl DescribedFolder {
    /// The folder of the model, if its weights are dense; otherwise a temporary one beside `out`.
    pub fn of(source: &ModelSource, out: &Path) -> anyhow::Result<Self> {
        if is_dense_folder(source) {
            return Ok(Self::Own(source.path().to_owned()));
        }
        let folder = AtomicDir::create(out)?;
        source.copy_side_files(folder.path()).or_bad_input()?;
        write_atomic(folder.path().join("config.json"), format!("{:#}\n", source.config().to_json()))?;
        Ok(Self::Temporary(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

/// Whether the model is a folder in Hugging Face's layout without packed weights.
pub fn is_dense_folder(source: &ModelSource) -> bool {
    let is_packed = |name: &str| matches!(source.stored(name), Some(Stored::Packed(_)));
    let is_folder = gguf_file_of(source.path()).is_ok_and(|file| file.is_none());
    is_folder && !source.tensors().iter().any(|tensor| is_packed(&tensor.name))
}
