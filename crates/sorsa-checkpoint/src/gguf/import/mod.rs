//! A GGUF file as the model folder that it was made of: fields of `config.json`, tensors by Hugging Face's names, tokenizer files.
//!
//! The plan by which a folder becomes a GGUF file is read the other way: names are exchanged and the changes of the values undone.

mod config;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tensors::{Change, Planned, plan};
use super::translation::Translation;
use super::{GgufError, GgufFile};
use crate::WeightFormat;
use crate::config::ModelConfig;
use crate::weights::{CheckpointWriter, Expected, ModelFolder};

pub(crate) use config::Import;
pub(super) use config::whole;

/// A model in a GGUF file.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: ModelConfig,
    /// The tensors of the model's folder, by their names there.
    tensors: BTreeMap<String, Planned>,
}

impl GgufModel {
    /// Reads the metadata and the list of tensors of a file, and checks that both are a model that is known here.
    ///
    /// # Errors
    ///
    /// [`GgufError::Io`], [`GgufError::Malformed`]; [`GgufError::NotImported`] with everything that is missing or not supported.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = GgufFile::open(path)?;
        let not_imported = |faults| GgufError::NotImported { path: path.to_owned(), faults };
        let config = config::fields(&file).map_err(not_imported)?;
        let translation = Translation::parse(config).map_err(not_imported)?;
        let config = translation.config.clone();
        let planned = plan(&translation);
        let faults = tensor_faults(&file, &planned);
        if !faults.is_empty() {
            return Err(not_imported(faults));
        }
        let of_folder =
            planned.into_iter().filter(|planned| !matches!(planned.change, Change::Values(_) | Change::Llama3Divisors));
        let tensors = of_folder.map(|planned| (planned.source.name.clone(), planned)).collect();
        Ok(Self { file, config, tensors })
    }

    /// The file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names and shapes of the tensors of the model's folder, in order of name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Expected> {
        self.tensors.values().map(|planned| &planned.source)
    }

    /// The values of a tensor of the model's folder, row-major.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`].
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let missing = || GgufError::NoTensor { path: self.file.path().to_owned(), name: name.to_owned() };
        let planned = self.tensors.get(name).ok_or_else(missing)?;
        let values = self.file.to_f32(&planned.name)?;
        Ok(planned.change.undo(values, planned.source.shape[0]))
    }

    /// Writes the model's folder, with weights as `format`: `config.json`, weights, and the files of the tokenizer. One tensor at a
    /// time is in memory.
    ///
    /// # Errors
    ///
    /// [`GgufError::NotImported`] if the file has a tokenizer that is not known here; [`GgufError`] of files that cannot be written.
    pub fn unpack(&self, folder: &ModelFolder, format: WeightFormat) -> Result<(), GgufError> {
        let not_imported = |faults| GgufError::NotImported { path: self.file.path().to_owned(), faults };
        let files = super::tokenizer::files(&self.file).map_err(not_imported)?;
        for (name, json) in files {
            sorsa_files::write_atomic(folder.path().join(name), format!("{json:#}\n"))?;
        }
        let expected: Vec<Expected> = self.tensors().cloned().collect();
        CheckpointWriter::new(folder.path(), format).write(&expected, |tensor| self.to_f32(&tensor.name))?;
        let mut config = self.config.to_json();
        config["torch_dtype"] = format.torch_name().into();
        sorsa_files::write_atomic(folder.path().join("config.json"), format!("{config:#}\n"))?;
        Ok(())
    }
}

/// What is wrong with the list of tensors.
fn tensor_faults(file: &GgufFile, planned: &[Planned]) -> Vec<String> {
    let mut faults = Vec::new();
    for planned in planned {
        match file.info(&planned.name) {
            None => faults.push(format!("tensor `{}` is missing", planned.name)),
            Some(found) if found.shape != planned.source.shape => {
                faults.push(format!(
                    "tensor `{}` should be {:?}, found {:?}",
                    planned.name, planned.source.shape, found.shape
                ));
            }
            Some(found) if found.dtype().is_none() => {
                faults.push(format!(
                    "tensor `{}` is of ggml's type {}, which is not supported",
                    planned.name, found.type_id
                ));
            }
            Some(_) => {}
        }
    }
    let known: BTreeSet<&str> = planned.iter().map(|planned| planned.name.as_str()).collect();
    let extra = file.tensors().iter().filter(|tensor| !known.contains(tensor.name.as_str()));
    faults.extend(extra.map(|tensor| format!("tensor `{}` is not part of this architecture", tensor.name)));
    faults
}
