//! The files of a model, whatever their layout: a folder of safetensors, dense or packed, or a GGUF file.

mod error;
mod folder;
mod four_bit;
mod grouped;
mod packing;
mod place;
mod quantization;

use std::path::{Path, PathBuf};

use sorsa_kernels::packed::{PackedFormat, PackedMatrix};

pub use self::error::SourceError;
use self::folder::Folder;
pub use self::packing::{DenseMatrix, PackingFormats};
pub use self::place::GGUF_FILE;
pub(crate) use self::place::ModelPlace;
pub(crate) use self::quantization::Quantization;
use crate::config::{CONFIG_FILE, read_folder};
use crate::gguf::{GgufModel, GgufType};
use crate::weights::{
    CHAT_TEMPLATES, Checkpoint, Differences, Dtype, Expected, GENERATION_CONFIG, HEADS, Number, Numbers,
    TOKENIZER_FILES, widened, widened_transposed,
};
use crate::{ConfigError, ModelConfig, TensorFormats, WeightFormat};

/// The files of a model: a folder in Hugging Face's layout, whose weights are dense or packed (the 4 bits of bitsandbytes, GPTQ, AWQ), a GGUF file,
/// or a folder whose only model is one GGUF file.
///
/// Opening reads headers only. Tensors have Hugging Face's names, shapes and order of rows, and are read one at a time: packed ones as they
/// are, or widened.
///
/// ```
/// use sorsa_checkpoint::weights::{CheckpointWriter, Expected, WeightsError, ignorable};
/// use sorsa_checkpoint::{ModelSource, SourceError, WeightFormat};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let dir = folder.path();
/// # std::fs::write(dir.join("config.json"), r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
/// #     "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 3, "tie_word_embeddings": true}"#).unwrap();
/// let embedding = [Expected::new("model.embed_tokens.weight", [3, 8])];
/// CheckpointWriter::new(dir, WeightFormat::Bf16).write(&embedding, |_| Ok::<_, WeightsError>(vec![1.0; 24]))?;
///
/// let source = ModelSource::open(dir)?;
/// assert_eq!(source.config().vocab_size, 3);
/// source.check(&embedding, ignorable(source.config().tie_word_embeddings))?;
/// assert!(source.packed("model.embed_tokens.weight")?.is_none());
/// assert_eq!(source.numbers::<f32>("model.embed_tokens.weight", true)?.values, [1.0; 24]);
/// # Ok::<_, SourceError>(())
/// ```
#[derive(Debug)]
pub struct ModelSource {
    path: PathBuf,
    config: ModelConfig,
    files: Files,
    /// The format that dense linear layers are packed in.
    packing: Option<PackingFormats>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one a model: a box would save nothing")]
enum Files {
    Folder(Folder),
    Gguf(GgufModel),
}

/// The name of a file, and its content.
pub type NamedFile = (&'static str, Vec<u8>);

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Numbers of one dtype.
    Dense(Dtype),
    /// A packed matrix.
    Packed(PackedFormat),
}

impl ModelSource {
    /// Opens the model at `path`. If its embeddings should be tied and the weights have a head with other numbers, they are not:
    /// see [`ModelConfig::with_head_of`].
    ///
    /// # Errors
    ///
    /// [`SourceError`]: unsupported fields of the configuration, damaged files, and packed tensors whose parts contradict each other are
    /// each listed in one error.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let (config, files) = match ModelPlace::find(path)? {
            ModelPlace::Gguf { file, fields } => {
                let model = GgufModel::open_with(&file, &fields)?;
                (model.config().clone(), Files::Gguf(model))
            }
            ModelPlace::Folder(folder) => {
                let (config, quantization) = read_folder(&folder)?;
                (config, Files::Folder(Folder::open(&folder, quantization.as_ref())?))
            }
        };
        let mut source = Self { path: path.to_owned(), config, files, packing: None };
        source.config.tie_word_embeddings &= source.head_is_embedding()?;
        Ok(source)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names and shapes of all tensors.
    pub fn tensors(&self) -> Vec<Expected> {
        match &self.files {
            Files::Folder(folder) => folder.tensors().map(|(name, shape)| Expected::new(name, shape)).collect(),
            Files::Gguf(model) => model.tensors().cloned().collect(),
        }
    }

    /// How a tensor is stored, or packed while it is read; nothing if there is no such tensor.
    pub fn stored(&self, name: &str) -> Option<Stored> {
        let packing = self.packing.and_then(|_| self.packing_of(&self.tensor(name)?));
        packing.map(Stored::Packed).or_else(|| self.stored_in_files(name))
    }

    /// Name and shape of a tensor, if it is there.
    fn tensor(&self, name: &str) -> Option<Expected> {
        let shape = match &self.files {
            Files::Folder(folder) => folder.shape(name)?,
            Files::Gguf(model) => model.shape(name)?,
        };
        Some(Expected::new(name, shape))
    }

    fn stored_in_files(&self, name: &str) -> Option<Stored> {
        match &self.files {
            Files::Folder(folder) => folder.stored(name),
            Files::Gguf(model) => match (model.dtype(name)?, model.shape(name)?.len() == 2) {
                (GgufType::Plain(WeightFormat::F16), true) => Some(Stored::Packed(PackedFormat::F16)),
                (GgufType::Plain(format), _) => Some(Stored::Dense(format.into())),
                (GgufType::Blocks(format), true) => Some(Stored::Packed(PackedFormat::Blocks(format))),
                (GgufType::Blocks(_), false) => Some(Stored::Dense(Dtype::F32)),
            },
        }
    }

    /// Checks that the files hold the `expected` tensors and no others, except those that `ignorable` accepts.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Mismatch`](crate::weights::WeightsError::Mismatch) with every missing, extra and misshapen tensor;
    /// [`SourceError::Packed`] with every tensor that is neither dense nor in a format that is read here.
    pub fn check(&self, expected: &[Expected], ignorable: impl Fn(&str) -> bool) -> Result<(), SourceError> {
        match &self.files {
            Files::Folder(folder) => folder.check(expected, ignorable),
            Files::Gguf(model) => {
                let found = model.tensors().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()));
                Ok(Differences::find(expected, found, ignorable).into_result(model.file().path())?)
            }
        }
    }

    /// The matrix `[d_out, d_in]` as it is packed in the files, or by [`with_packing`](Self::with_packing); nothing if the tensor is dense.
    ///
    /// # Errors
    ///
    /// [`SourceError`] of a tensor that is not there or cannot be read, or whose scales are not finite.
    pub fn packed(&self, name: &str) -> Result<Option<PackedMatrix>, SourceError> {
        if let Some(tensor) = self.packing.and_then(|_| self.tensor(name))
            && let Some(format) = self.packing_of(&tensor)
        {
            return self.pack(&tensor, format).map(Some);
        }
        match &self.files {
            Files::Folder(folder) => folder.packed(name),
            Files::Gguf(model) => Ok(model.packed(name)?),
        }
    }

    /// The tensor in the order stored, or as the transposed matrix, and whether all of it is finite. A packed matrix is widened.
    ///
    /// # Errors
    ///
    /// [`SourceError`] of a tensor that is not there or cannot be read, or that is to be transposed and no matrix.
    pub fn numbers<T: Number>(&self, name: &str, transposed: bool) -> Result<Numbers<T>, SourceError> {
        if let Some(tensor) = self.packing.and_then(|_| self.tensor(name))
            && let Some(format) = self.packing_of(&tensor)
        {
            let matrix = self.pack(&tensor, format)?;
            return Ok(if transposed { widened_transposed(&matrix) } else { widened(&matrix) });
        }
        self.numbers_in_files(name, transposed)
    }

    fn numbers_in_files<T: Number>(&self, name: &str, transposed: bool) -> Result<Numbers<T>, SourceError> {
        match &self.files {
            Files::Folder(folder) => folder.numbers(name, transposed),
            Files::Gguf(model) => Ok(model.numbers(name, transposed)?),
        }
    }

    /// The tokenizer's files of a GGUF model by their names in a folder, and its `config.json`; nothing for a folder, which has them
    /// itself.
    ///
    /// # Errors
    ///
    /// [`GgufError::NotImported`](crate::gguf::GgufError::NotImported) of a tokenizer that is not known here.
    pub fn tokenizer_files(&self) -> Result<Option<Vec<NamedFile>>, SourceError> {
        let Files::Gguf(model) = &self.files else { return Ok(None) };
        let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
        for (name, json) in model.tokenizer_files()? {
            files.push((name, json.to_string().into_bytes()));
        }
        files.push((CONFIG_FILE, self.config.to_json().to_string().into_bytes()));
        Ok(Some(files))
    }

    /// Writes into `folder` what a model has beside its weights and `config.json`: the tokenizer, the chat template, the settings for
    /// generating text.
    ///
    /// # Errors
    ///
    /// [`SourceError::File`], and those of [`tokenizer_files`](Self::tokenizer_files).
    pub fn copy_side_files(&self, folder: &Path) -> Result<(), SourceError> {
        if let Files::Gguf(model) = &self.files {
            for (name, json) in model.tokenizer_files()? {
                sorsa_files::write_atomic(folder.join(name), format!("{json:#}\n"))?;
            }
            return Ok(());
        }
        for name in [GENERATION_CONFIG].into_iter().chain(TOKENIZER_FILES) {
            let from = self.path.join(name);
            if from.exists() {
                std::fs::copy(&from, folder.join(name)).map_err(sorsa_files::at("copy", &from))?;
            }
        }
        self.copy_chat_templates(&folder.join(CHAT_TEMPLATES))
    }

    /// Copies the templates of a model that has more than one.
    fn copy_chat_templates(&self, to: &Path) -> Result<(), SourceError> {
        let from = self.path.join(CHAT_TEMPLATES);
        let Ok(entries) = std::fs::read_dir(&from) else { return Ok(()) };
        std::fs::create_dir(to).map_err(sorsa_files::at("create", to))?;
        for entry in entries {
            let path = entry.map_err(sorsa_files::at("list", &from))?.path();
            if let Some(name) = path.file_name()
                && path.extension().is_some_and(|extension| extension == "jinja")
                && path.is_file()
            {
                std::fs::copy(&path, to.join(name)).map_err(sorsa_files::at("copy", &path))?;
            }
        }
        Ok(())
    }

    /// The formats in which a dense copy of the model is stored if nobody names one: each dense tensor's own, and for packed ones that of
    /// most dense numbers.
    pub fn dense_formats(&self) -> TensorFormats {
        let dense = self.tensors().into_iter().filter_map(|tensor| match self.stored_in_files(&tensor.name)? {
            Stored::Dense(dtype) => Some((tensor, dtype)),
            Stored::Packed(_) => None,
        });
        TensorFormats::of_dense(dense)
    }

    /// Bytes of all weights in memory if packed ones stay packed, dense matrices are kept in `format`, and vectors in f32; nothing if
    /// nothing is packed. What GPTQ and AWQ take is known to a few parts in a hundred.
    pub fn packed_bytes(&self, format: WeightFormat) -> Option<u64> {
        let mut any_packed = false;
        let mut bytes = 0;
        for tensor in self.tensors() {
            let values = tensor.shape.iter().product::<usize>();
            let is_unused_head = self.config.tie_word_embeddings && HEADS.iter().any(|(head, _)| *head == tensor.name);
            bytes += match (self.stored(&tensor.name), tensor.shape.as_slice()) {
                _ if is_unused_head => 0,
                (Some(Stored::Packed(packed)), &[rows, columns]) => {
                    any_packed = true;
                    let of_group = |bits: usize| values * bits / 8 + values / 128 * 5;
                    packed.bytes([rows, columns]).unwrap_or_else(|_| match packed {
                        PackedFormat::Gptq8 => of_group(8),
                        _ => of_group(4),
                    })
                }
                (_, [_, _]) => format.bytes(values),
                _ => 4 * values,
            } as u64;
        }
        any_packed.then_some(bytes)
    }

    /// Whether the files have no head, or one with the numbers of the embedding.
    fn head_is_embedding(&self) -> Result<bool, SourceError> {
        let Files::Folder(folder) = &self.files else { return Ok(true) };
        for (head, embedding) in HEADS {
            match (folder.stored(head), folder.stored(embedding)) {
                (Some(Stored::Dense(_)), Some(Stored::Dense(_))) => {}
                (Some(_), Some(_)) => return Ok(false),
                _ => {}
            }
        }
        let config = self.config.clone().with_head_of(&folder.checkpoint)?;
        Ok(config.tie_word_embeddings || !self.config.tie_word_embeddings)
    }
}

/// The GGUF file of the model at `path`; nothing if it is a folder in Hugging Face's layout, or none at all.
///
/// # Errors
///
/// [`ConfigError::SeveralGgufFiles`]; [`ConfigError::Io`] of a folder that cannot be listed.
pub fn gguf_file_of(path: &Path) -> Result<Option<PathBuf>, ConfigError> {
    match ModelPlace::find(path)? {
        ModelPlace::Gguf { file, .. } => Ok(Some(file)),
        ModelPlace::Folder(_) => Ok(None),
    }
}

/// A fault of a packed tensor of a folder.
fn packed_fault(checkpoint: &Checkpoint, fault: String) -> SourceError {
    SourceError::Packed { folder: checkpoint.dir().to_owned(), faults: vec![fault] }
}
