//! A GGUF file as the model folder that it was made of: fields of `config.json`, tensors by Hugging Face's names, tokenizer files.
//!
//! The plan by which a folder becomes a GGUF file is read the other way: names are exchanged and the changes of the values undone.

mod config;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

use half::f16;
use serde_json::{Map, Value as Json};
use sorsa_kernels::BlockFormat;
use sorsa_kernels::packed::PackedMatrix;

use super::dtype;
use super::tensors::{Change, Planned, plan, separate};
use super::translation::Translation;
use super::{GgufError, GgufFile, GgufType};
use crate::WeightFormat;
use crate::config::ModelConfig;
use crate::weights::{
    Bytes, CheckpointWriter, Expected, ModelFolder, Number, Numbers, Section, decode, decode_transposed, widened,
    widened_transposed,
};

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
        Self::open_with(path, &Map::new())
    }

    /// The same with other values of fields of `config.json`. An object replaces fields of the object of its name.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(path: &Path, overrides: &Map<String, Json>) -> Result<Self, GgufError> {
        let file = GgufFile::open(path)?;
        let not_imported = |faults| GgufError::NotImported { path: path.to_owned(), faults };
        let mut config = config::fields(&file).map_err(not_imported)?;
        replace(&mut config, overrides);
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

    /// The type of a tensor of the model's folder in the file, if there is such a tensor.
    pub fn dtype(&self, name: &str) -> Option<GgufType> {
        self.file.info(&self.tensors.get(name)?.name)?.dtype()
    }

    /// The shape of a tensor of the model's folder, if there is such a tensor.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.source.shape)
    }

    /// The values of a tensor of the model's folder, row-major.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`].
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let planned = self.planned(name)?;
        let values = self.file.to_f32(&planned.name)?;
        Ok(planned.change.undo(values, planned.source.shape[0]))
    }

    /// The packed matrix of this name in the model's folder, its rows in the folder's order; nothing if the tensor is a vector, or is
    /// not packed.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`], [`GgufError::Io`]; [`GgufError::Malformed`] of scales that are not finite.
    pub fn packed(&self, name: &str) -> Result<Option<PackedMatrix>, GgufError> {
        let planned = self.planned(name)?;
        let &[rows, columns] = planned.source.shape.as_slice() else { return Ok(None) };
        let shape = [rows, columns];
        let matrix = match self.dtype(name) {
            Some(GgufType::Blocks(format)) => {
                let bytes = self.rows(planned)?;
                if let Some((block, scale)) = first_non_finite_scale(format, &bytes) {
                    return Err(self.malformed(planned, &format!("block {block} has the scale {scale}")));
                }
                PackedMatrix::from_blocks(format, shape, bytes)
            }
            Some(GgufType::Plain(WeightFormat::F16)) => {
                let bytes = self.rows(planned)?;
                let values: Vec<f16> = bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
                if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                    return Err(self.malformed(planned, &format!("element {index} is {}", values[index])));
                }
                PackedMatrix::from_f16(shape, values)
            }
            Some(GgufType::Plain(_)) | None => return Ok(None),
        };
        // The size was compared with the shape while the file was opened.
        Ok(Some(matrix.map_err(|error| self.malformed(planned, &error))?))
    }

    /// The tensor of this name in the model's folder, in the order stored or as the transposed matrix, and whether all of it is finite.
    ///
    /// # Errors
    ///
    /// [`GgufError::NoTensor`], [`GgufError::Io`]; [`GgufError::Malformed`] of a vector that is to be transposed.
    pub fn numbers<T: Number>(&self, name: &str, transposed: bool) -> Result<Numbers<T>, GgufError> {
        let planned = self.planned(name)?;
        if let Some(matrix) = self.packed(name)? {
            return Ok(if transposed { widened_transposed(&matrix) } else { widened(&matrix) });
        }
        let Some(GgufType::Plain(format)) = self.dtype(name).filter(|_| planned.change != Change::PlusOne) else {
            // A vector: a norm, mostly.
            let values: Vec<T> = self.to_f32(name)?.into_iter().map(T::from_f32).collect();
            let all_finite = values.iter().all(|value| value.is_finite());
            return Ok(Numbers { values, all_finite });
        };
        let (Some(read), Some(info)) = (T::decoder(format.into()), self.file.info(&planned.name)) else {
            return Err(self.missing(name));
        };
        let reordered = match planned.change {
            Change::Heads(_) => self.rows(planned)?,
            _ => Vec::new(),
        };
        let bytes = match planned.change {
            Change::Heads(_) => Bytes::Memory(&reordered),
            _ => Bytes::File { file: self.file.handle(info), start: info.offset as u64 },
        };
        let section = Section { bytes, size: format.bytes(1) };
        let numbers = match (transposed, planned.source.shape.as_slice()) {
            (false, shape) => decode(&section, shape.iter().product(), read),
            (true, &[rows, columns]) => decode_transposed(&section, [rows, columns], read),
            (true, shape) => return Err(self.malformed(planned, &format!("expected a matrix, found {shape:?}"))),
        };
        numbers.map_err(GgufError::io(self.file.path()))
    }

    /// The bytes of a tensor, its rows in the order of the model's folder.
    fn rows(&self, planned: &Planned) -> Result<Vec<u8>, GgufError> {
        let bytes = self.file.raw(&planned.name)?;
        Ok(match planned.change {
            Change::Heads(heads) => separate(&bytes, planned.source.shape[0], heads),
            _ => bytes,
        })
    }

    fn planned(&self, name: &str) -> Result<&Planned, GgufError> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> GgufError {
        GgufError::NoTensor { path: self.file.path().to_owned(), name: name.to_owned() }
    }

    fn malformed(&self, planned: &Planned, reason: &dyn Display) -> GgufError {
        let offset = self.file.info(&planned.name).map_or(0, |info| info.offset);
        let reason = format!("tensor `{}`: {reason}", planned.name);
        GgufError::Malformed { path: self.file.path().to_owned(), offset, reason }
    }

    /// The files of the tokenizer by their names in the model's folder; none if the file has no tokenizer.
    ///
    /// # Errors
    ///
    /// [`GgufError::NotImported`] if the file has a tokenizer that is not known here.
    pub fn tokenizer_files(&self) -> Result<Vec<(&'static str, Json)>, GgufError> {
        let not_imported = |faults| GgufError::NotImported { path: self.file.path().to_owned(), faults };
        super::tokenizer::files(&self.file).map_err(not_imported)
    }

    /// Writes the model's folder, with weights as `format`: `config.json`, weights, and the files of the tokenizer. One tensor at a
    /// time is in memory.
    ///
    /// # Errors
    ///
    /// [`GgufError::NotImported`] if the file has a tokenizer that is not known here; [`GgufError`] of files that cannot be written.
    pub fn unpack(&self, folder: &ModelFolder, format: WeightFormat) -> Result<(), GgufError> {
        for (name, json) in self.tokenizer_files()? {
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

fn replace(object: &mut Map<String, Json>, fields: &Map<String, Json>) {
    for (name, value) in fields {
        match (object.get_mut(name), value) {
            (Some(Json::Object(inner)), Json::Object(fields)) => replace(inner, fields),
            _ => drop(object.insert(name.clone(), value.clone())),
        }
    }
}

/// The number of the first block with a scale that is not finite, and the scale. If there is none, all values are finite.
fn first_non_finite_scale(format: BlockFormat, bytes: &[u8]) -> Option<(usize, f16)> {
    let places: &[usize] = match format {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
        BlockFormat::Q6K => &[208],
    };
    for (number, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
        for place in places {
            let scale = f16::from_le_bytes([block[*place], block[place + 1]]);
            if !scale.is_finite() {
                return Some((number, scale));
            }
        }
    }
    None
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
                let dtype = dtype::name(found.type_id);
                faults.push(format!("tensor `{}` is {dtype}, which is not supported", planned.name));
            }
            Some(_) => {}
        }
    }
    let known: BTreeSet<&str> = planned.iter().map(|planned| planned.name.as_str()).collect();
    let extra = file.tensors().iter().filter(|tensor| !known.contains(tensor.name.as_str()));
    faults.extend(extra.map(|tensor| format!("tensor `{}` is not part of this architecture", tensor.name)));
    faults
}
