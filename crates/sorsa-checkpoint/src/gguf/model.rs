//! A model's folder as one GGUF file.

use std::path::{Path, PathBuf};

use super::tensors::{Change, Planned, plan};
use super::translation::Translation;
use super::{GgufError, GgufTensor, GgufType, GgufWriter, tokenizer};
use crate::weights::{Checkpoint, Expected, ignorable};

/// How a model is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    dtype: GgufType,
    name: Option<String>,
    tokenizer: bool,
}

impl ExportOptions {
    /// Matrices as `dtype`, the folder's tokenizer, the folder's name.
    pub fn new(dtype: GgufType) -> Self {
        Self { dtype, name: None, tokenizer: true }
    }

    /// The name that tools show.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Leaves the tokenizer out: llama.cpp then takes and gives token ids only.
    pub fn without_tokenizer(mut self) -> Self {
        self.tokenizer = false;
        self
    }
}

impl From<GgufType> for ExportOptions {
    fn from(dtype: GgufType) -> Self {
        Self::new(dtype)
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// llama.cpp's name of the architecture.
    pub architecture: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Size of the file.
    pub bytes: u64,
    /// Matrices of another type than asked for, because their rows are not whole blocks of it.
    pub fallbacks: Vec<(String, GgufType)>,
    /// What llama.cpp computes in another way than Transformers, a sentence each.
    pub notes: Vec<String>,
}

/// Writes the model of `folder` (`config.json`, safetensors, `tokenizer.json`) as the GGUF file `out`. One tensor at a time
/// is in memory. Matrices are stored as the type asked for, all other tensors as f32.
///
/// ```no_run
/// use std::path::Path;
///
/// use sorsa_checkpoint::gguf::{GgufType, export_model};
///
/// let report = export_model(Path::new("merged"), Path::new("merged-q8_0.gguf"), GgufType::Q8_0)?;
/// assert!(report.fallbacks.is_empty());
/// # Ok::<_, sorsa_checkpoint::gguf::GgufError>(())
/// ```
///
/// # Errors
///
/// [`GgufError::Unsupported`] with everything that llama.cpp has no counterpart of, [`GgufError::Weights`] with every
/// missing, extra and misshapen tensor, and what [`GgufWriter::write`] returns.
pub fn export_model(folder: &Path, out: &Path, options: impl Into<ExportOptions>) -> Result<Report, GgufError> {
    let options = options.into();
    let mut translation = Translation::read(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    translation.config = translation.config.with_head_of(&checkpoint)?;
    let tokenizer = match options.tokenizer {
        true => tokenizer::read(folder, translation.config.vocab_size)?,
        false => tokenizer::without_tokenizer(),
    };
    let plan = plan(&translation);
    let of_files = |planned: &&Planned| !matches!(planned.change, Change::Values(_) | Change::Llama3Divisors);
    let expected: Vec<Expected> = plan.iter().filter(of_files).map(|planned| planned.source.clone()).collect();
    checkpoint.check(&expected, ignorable(translation.config.tie_word_embeddings))?;

    let stored = |planned: &Planned| {
        let shape = planned.source.shape.clone();
        let dtype = options.dtype.for_shape(&shape);
        GgufTensor::new(planned.name.clone(), shape, dtype)
    };
    let tensors: Vec<GgufTensor> = plan.iter().map(stored).collect();
    let fell_back = |tensor: &&GgufTensor| tensor.shape.len() > 1 && tensor.dtype != options.dtype;
    let fallback = |tensor: &GgufTensor| (tensor.name.clone(), tensor.dtype);
    let fallbacks = tensors.iter().filter(fell_back).map(fallback).collect();

    let mut planned = plan.iter();
    let produce = |_: &GgufTensor| -> Result<Vec<f32>, GgufError> {
        // The writer asks for the tensors in the order of the list, which is that of the plan.
        let Some(Planned { source, change, .. }) = planned.next() else { return Ok(Vec::new()) };
        Ok(match change {
            Change::Values(values) => values.clone(),
            Change::Llama3Divisors => translation.llama3_divisors().unwrap_or_default(),
            change => change.apply(checkpoint.to_f32(&source.name)?, source.shape[0]),
        })
    };
    let name = options.name.or_else(|| Some(folder.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned()));
    let bytes = GgufWriter::new()
        .with("general.architecture", translation.name)
        .with("general.type", "model")
        .with("general.name", name.unwrap_or_else(|| "model".to_owned()))
        .with("general.file_type", options.dtype.file_type())
        .with("general.quantization_version", 2u32)
        .with_all(translation.metadata())
        .with_all(tokenizer.metadata)
        .write(out, &tensors, produce)?;
    Ok(Report {
        file: out.to_owned(),
        architecture: translation.name,
        tensors: tensors.len(),
        bytes,
        fallbacks,
        notes: [translation.notes, tokenizer.notes].concat(),
    })
}
