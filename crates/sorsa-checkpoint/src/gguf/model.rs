//! A model's folder as one GGUF file.

use std::path::{Path, PathBuf};

use sorsa_kernels::BlockFormat;
use sorsa_kernels::packed::PackedMatrix;

use super::packing_error::relative;
use super::tensors::{Change, Planned, plan};
use super::translation::Translation;
use super::writer::wrong_matrix;
use super::{FileType, GgufError, GgufTensor, GgufType, GgufWriter, PackingError, tokenizer};
use crate::TensorContent;
use crate::weights::{Checkpoint, Expected, ignorable};

/// How a model is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    file_type: FileType,
    name: Option<String>,
    tokenizer: bool,
}

impl ExportOptions {
    /// Matrices as `file_type` says, the folder's tokenizer, the folder's name.
    pub fn new(file_type: impl Into<FileType>) -> Self {
        Self { file_type: file_type.into(), name: None, tokenizer: true }
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

impl<T: Into<FileType>> From<T> for ExportOptions {
    fn from(file_type: T) -> Self {
        Self::new(file_type)
    }
}

/// The tensors of a model, by their names in Hugging Face's layout.
pub trait ModelTensors {
    /// Whether the head is the embedding, which says then whether there is a tensor of the head.
    fn ties_embeddings(&self) -> bool;

    /// The blocks of a matrix that is packed already and is to be kept as it is, in a file that would have it as `asked`.
    fn packed_format(&self, name: &str, asked: GgufType) -> Option<BlockFormat>;

    /// The content of a tensor: a packed matrix if [`packed_format`](Self::packed_format) has a format; another is widened.
    ///
    /// # Errors
    ///
    /// [`GgufError`] of a file that cannot be read.
    fn content(&mut self, tensor: &Expected) -> Result<TensorContent, GgufError>;
}

/// A matrix of another type than asked for, because its rows are not whole blocks of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// Name in the GGUF file.
    pub tensor: String,
    /// The type asked for.
    pub asked: GgufType,
    /// The type in the file.
    pub stored: GgufType,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// llama.cpp's name of the architecture.
    pub architecture: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Size of the file.
    pub bytes: u64,
    /// Matrices of another type than asked for.
    pub fallbacks: Vec<Fallback>,
    /// The error of each matrix that is neither f32 nor kept as it was packed.
    pub errors: Vec<PackingError>,
    /// What llama.cpp computes in another way than Transformers, a sentence each.
    pub notes: Vec<String>,
}

impl Report {
    /// The Frobenius norm of the error of all matrices over that of their numbers.
    pub fn relative_error(&self) -> f64 {
        relative(&self.errors)
    }

    /// The matrix with the largest error of one number.
    pub fn largest_error(&self) -> Option<&PackingError> {
        self.errors.iter().max_by(|a, b| a.largest.total_cmp(&b.largest))
    }
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
    let mut translation = Translation::read(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    translation.config = translation.config.with_head_of(&checkpoint)?;
    let ties_embeddings = translation.config.tie_word_embeddings;
    let plan = plan(&translation);
    let of_files = |planned: &&Planned| !matches!(planned.change, Change::Values(_) | Change::Llama3Divisors);
    let expected: Vec<Expected> = plan.iter().filter(of_files).map(|planned| planned.source.clone()).collect();
    checkpoint.check(&expected, ignorable(ties_embeddings))?;
    export_tensors(folder, &mut OfFiles { checkpoint, ties_embeddings }, out, options)
}

/// The tensors of a folder.
struct OfFiles {
    checkpoint: Checkpoint,
    ties_embeddings: bool,
}

impl ModelTensors for OfFiles {
    fn ties_embeddings(&self) -> bool {
        self.ties_embeddings
    }

    fn packed_format(&self, _name: &str, _asked: GgufType) -> Option<BlockFormat> {
        None
    }

    fn content(&mut self, tensor: &Expected) -> Result<TensorContent, GgufError> {
        Ok(self.checkpoint.to_f32(&tensor.name)?.into())
    }
}

/// [`export_model`] with tensors from elsewhere: `folder` gives the configuration and the tokenizer alone. Each tensor is asked for
/// once.
///
/// # Errors
///
/// Those of [`export_model`], and those of `source`.
pub fn export_tensors(
    folder: &Path,
    source: &mut dyn ModelTensors,
    out: &Path,
    options: impl Into<ExportOptions>,
) -> Result<Report, GgufError> {
    let options = options.into();
    let mut translation = Translation::read(folder)?;
    translation.config.tie_word_embeddings = source.ties_embeddings();
    let tokenizer = match options.tokenizer {
        true => tokenizer::read(folder, translation.config.vocab_size)?,
        false => tokenizer::without_tokenizer(),
    };
    let plan = plan(&translation);
    let (mut tensors, mut fallbacks, mut kept) = (Vec::new(), Vec::new(), 0);
    for Planned { name, source: Expected { name: source_name, shape }, .. } in &plan {
        let mut asked = options.file_type.asked(name, &translation);
        if let Some(format) = source.packed_format(source_name, asked) {
            kept += 1;
            asked = GgufType::Blocks(format);
        }
        let dtype = asked.for_shape(shape);
        if shape.len() > 1 && dtype != asked {
            fallbacks.push(Fallback { tensor: name.clone(), asked, stored: dtype });
        }
        tensors.push(GgufTensor::new(name.clone(), shape.clone(), dtype));
    }

    // The writer asks for the tensors, and shows them, in the order of the list, which is that of the plan.
    let (mut planned, mut sources) = (plan.iter(), plan.iter());
    let produce = |tensor: &GgufTensor| -> Result<TensorContent, GgufError> {
        let Some(Planned { source: expected, change, .. }) = planned.next() else { return Ok(Vec::new().into()) };
        let rows = expected.shape[0];
        let content = match change {
            Change::Values(values) => return Ok(values.clone().into()),
            Change::Llama3Divisors => return Ok(translation.llama3_divisors().unwrap_or_default().into()),
            _ => source.content(expected)?,
        };
        Ok(match content {
            TensorContent::Values(values) => change.apply(values, rows).into(),
            TensorContent::Packed(matrix) if !is_stored_as_it_is(&matrix, tensor) => {
                change.apply(matrix.to_f32(), rows).into()
            }
            TensorContent::Packed(matrix) => match change.apply_to_rows(&matrix) {
                Some(matrix) => TensorContent::Packed(matrix),
                None => return Err(wrong_matrix(tensor, &matrix)),
            },
        })
    };
    let number = match usual_blocks(&tensors) {
        Some(format) if kept > 0 => FileType::Uniform(GgufType::Blocks(format)).number(),
        _ => options.file_type.number(),
    };
    let mut errors = Vec::new();
    let watch = |tensor: &GgufTensor, values: &[f32], bytes: &[u8]| {
        let source = sources.by_ref().find(|planned| planned.name == tensor.name).map(|planned| &planned.source.name);
        if let Some(source) = source.filter(|_| tensor.shape.len() > 1 && tensor.dtype != GgufType::F32) {
            errors.push(PackingError::of(&tensor.name, source, tensor.dtype, values, bytes));
        }
    };
    let name = options.name.or_else(|| Some(folder.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned()));
    let bytes = GgufWriter::new()
        .with("general.architecture", translation.name)
        .with("general.type", "model")
        .with("general.name", name.unwrap_or_else(|| "model".to_owned()))
        .with("general.file_type", number)
        .with("general.quantization_version", 2u32)
        .with_all(translation.metadata())
        .with_all(tokenizer.metadata)
        .write_watched(out, &tensors, produce, watch)?;
    Ok(Report {
        file: out.to_owned(),
        architecture: translation.name,
        tensors: tensors.len(),
        bytes,
        fallbacks,
        errors,
        notes: [translation.notes.clone(), tokenizer.notes].concat(),
    })
}

/// The format of the blocks that hold most numbers.
fn usual_blocks(tensors: &[GgufTensor]) -> Option<BlockFormat> {
    let count = |format: &BlockFormat| -> usize {
        let of_format = tensors.iter().filter(|tensor| tensor.dtype == GgufType::Blocks(*format));
        of_format.map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    };
    BlockFormat::ALL.into_iter().max_by_key(count)
}

/// Whether the matrix is in the type of the file.
fn is_stored_as_it_is(matrix: &PackedMatrix, tensor: &GgufTensor) -> bool {
    matrix.blocks().is_some_and(|(format, _)| tensor.dtype == GgufType::Blocks(format))
}
