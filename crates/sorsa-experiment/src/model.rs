//! Models with their tokenizers and adapters, by the names that people give them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sorsa_checkpoint::{ModelSource, PackingFormats, WeightFormat, gguf_file_of, hub};
use sorsa_data::{EncodeOptions, Encoder, PromptTemplate, TemplateName, TextTokenizer, TurnEnd};
use sorsa_models::{CausalLm, ModelConfig, float_dtype};
use toml::Table;

use crate::adapter::{BaseModel, LoadedAdapter, holds_adapter, recipe_of_run};
use crate::embedded::EMBEDDED;
use crate::error::ExperimentError;
use crate::host::{Host, Sources};
use crate::observer::Observer;
use crate::recipe::Recipe;
use crate::run_dir::RunDir;

/// A model and its tokenizer.
pub struct LoadedModel {
    /// The name that it was asked for by.
    pub name: String,
    /// Where both came from.
    pub folder: PathBuf,
    /// The model, on a device without autodiff.
    pub model: CausalLm,
    /// The tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// Format that its linear layers were packed in while it was read, if any.
    pub quantize: Option<PackingFormats>,
    /// Bytes of all its weights if some are packed.
    pub packed_bytes: Option<u64>,
    /// What its user should know about its weights, a sentence each.
    pub notes: Vec<String>,
}

/// The format of this name, if models compute with weights in it.
///
/// # Errors
///
/// [`ExperimentError::UnknownName`] with the names there are.
pub fn weight_format(name: &str) -> Result<WeightFormat, ExperimentError> {
    let format = name.parse().ok().filter(|format| float_dtype(*format).is_some());
    format.ok_or_else(|| ExperimentError::UnknownName(format!("unknown dtype `{name}`, expected f32 or bf16")))
}

impl LoadedModel {
    /// Loads a model by its name.
    ///
    /// # Errors
    ///
    /// See [`model_folder`]; whatever is wrong with the tokenizer's or the model's files.
    pub fn load(name: &str, format: WeightFormat, host: &Host) -> Result<Self, ExperimentError> {
        let folder = model_folder(name, &host.sources)?;
        let tokenizer = Arc::new(read_tokenizer(&folder)?);
        let source = host.sources.open(&folder)?;
        let model = CausalLm::load_from(&source, format, &host.device)?;
        let (quantize, notes) = (host.sources.quantize, Vec::from_iter(source.packing_note()));
        let packed_bytes = source.packed_bytes(format);
        Ok(Self { name: name.to_owned(), folder, model, tokenizer, quantize, packed_bytes, notes })
    }

    /// Attaches the adapter in `folder`, or in the run at `folder`. Whatever is odd about it is told to the observer.
    ///
    /// # Errors
    ///
    /// See [`LoadedAdapter::read`].
    pub fn with_adapter(self, folder: &Path, observer: &mut dyn Observer) -> Result<Self, ExperimentError> {
        let base = BaseModel { name: &self.name, folder: &self.folder, quantize: self.quantize };
        let attached = LoadedAdapter::read_and_attach(self.model, base, folder, observer)?;
        Ok(Self { model: attached.model, ..self })
    }

    /// An encoder for this tokenizer and model.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Data`].
    pub fn encoder(&self, template: TemplateName, options: EncodeOptions) -> Result<Encoder, ExperimentError> {
        self.encoder_of(PromptTemplate::new(template, &self.tokenizer)?, options)
    }

    /// An encoder with the chat template of this name.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Data`].
    pub fn chat_encoder(&self, chat_template: &str, options: EncodeOptions) -> Result<Encoder, ExperimentError> {
        let template = PromptTemplate::Chat(self.tokenizer.chat_template_named(chat_template)?.clone());
        self.encoder_of(template, options)
    }

    fn encoder_of(&self, template: PromptTemplate, options: EncodeOptions) -> Result<Encoder, ExperimentError> {
        let encoder = Encoder::new(Arc::clone(&self.tokenizer), template, options)?;
        Ok(encoder.for_vocabulary(self.model.config().vocab_size))
    }
}

/// The tokenizer of the model at `path`: of its folder's files, or of a GGUF file's metadata.
///
/// # Errors
///
/// [`ExperimentError::Data`], [`ExperimentError::Source`].
pub fn read_tokenizer(path: &Path) -> Result<TextTokenizer, ExperimentError> {
    if gguf_file_of(path)?.is_none() {
        return Ok(TextTokenizer::from_dir(path)?);
    }
    let files = ModelSource::open(path)?.tokenizer_files()?;
    Ok(TextTokenizer::from_contents(path, &files.unwrap_or_default())?)
}

/// The place of a model: the embedded one, a folder, a GGUF file, or a repository that is fetched from the hub.
///
/// # Errors
///
/// [`ExperimentError::Unpack`], [`ExperimentError::Hub`]; [`ExperimentError::AdapterAsModel`] for the folder of an adapter or
/// of its run.
pub fn model_folder(name: &str, sources: &Sources) -> Result<PathBuf, ExperimentError> {
    if name == EMBEDDED {
        return sources.config.apply(&sources.embedded.model()?);
    }
    let folder = hub::resolve(name, &sources.hub)?;
    let is_adapter = holds_adapter(&folder) || holds_adapter(&folder.join(RunDir::ADAPTER));
    match is_adapter && !folder.join("config.json").exists() && gguf_file_of(&folder)?.is_none() {
        true => Err(ExperimentError::AdapterAsModel { folder }),
        false => sources.config.apply(&folder),
    }
}

/// Refuses the model that an adapter's run names if it would have to be fetched: whoever gives away an adapter does not decide
/// where this program connects to.
///
/// # Errors
///
/// [`ExperimentError::NotFetched`].
pub fn check_fetched(model: &str, sources: &Sources) -> Result<(), ExperimentError> {
    if model == EMBEDDED || hub::is_local(model, &sources.hub) || !hub::is_name(model) {
        return Ok(());
    }
    Err(ExperimentError::NotFetched { model: model.to_owned() })
}

/// The fields of `config.json` that the run of the adapter changes.
///
/// # Errors
///
/// A recipe that cannot be read.
pub fn config_of_run(adapter: &Path) -> Result<Table, ExperimentError> {
    match recipe_of_run(adapter) {
        Some(recipe) => Ok(Recipe::read(&recipe)?.model.config),
        None => Ok(Table::new()),
    }
}

/// The format that the run of the adapter packs its model in.
///
/// # Errors
///
/// A recipe that cannot be read.
pub fn quantize_of_run(adapter: &Path) -> Result<Option<PackingFormats>, ExperimentError> {
    match recipe_of_run(adapter) {
        Some(recipe) => Ok(Recipe::read(&recipe)?.model.quantize),
        None => Ok(None),
    }
}

/// What ends an answer of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stops {
    /// Tokens.
    pub tokens: Vec<u32>,
    /// Texts; they are not part of the answer.
    pub texts: Vec<String>,
}

impl Stops {
    /// The end tokens of the tokenizer and the model, and what the encoder's chat template ends a turn with: a base model's end token
    /// may be another than that of the template.
    pub fn of(encoder: &Encoder, config: &ModelConfig) -> Self {
        let mut tokens = encoder.tokenizer().stops().to_vec();
        let mut texts = Vec::new();
        tokens.extend(&config.eos_token_ids);
        match encoder.template().turn_end(encoder.tokenizer()) {
            Some(TurnEnd::Token(token)) => tokens.push(token),
            Some(TurnEnd::Text(text)) => texts.push(text),
            Some(TurnEnd::Nothing) | None => {}
        }
        tokens.sort_unstable();
        tokens.dedup();
        Self { tokens, texts }
    }

    /// Whether the last of `ids` completes one of the texts.
    pub fn complete(&self, tokenizer: &TextTokenizer, ids: &[u32]) -> bool {
        let Some(longest) = self.texts.iter().map(String::len).max() else { return false };
        // A token has a byte at least; a few have none.
        let tail = &ids[ids.len().saturating_sub(longest + 8)..];
        let text = tokenizer.decode(tail).unwrap_or_default();
        self.texts.iter().any(|stop| text.contains(stop))
    }

    /// The text before the first of the texts.
    pub fn cut<'a>(&self, text: &'a str) -> &'a str {
        let end = self.texts.iter().filter_map(|stop| text.find(stop)).min();
        &text[..end.unwrap_or(text.len())]
    }
}

/// The model that the recipe of the adapter's run names.
///
/// # Errors
///
/// [`ExperimentError::UnknownModel`] of an adapter outside a run; a recipe that cannot be read.
pub fn model_of_run(adapter: &Path) -> Result<String, ExperimentError> {
    match recipe_of_run(adapter) {
        Some(path) => Ok(Recipe::read(&path)?.model.path),
        None => Err(ExperimentError::UnknownModel { adapter: adapter.to_owned() }),
    }
}

/// The model of the adapter's run, or the embedded one if the adapter is in no run.
///
/// # Errors
///
/// A recipe that cannot be read.
pub fn model_of_run_or_embedded(adapter: &Path) -> Result<String, ExperimentError> {
    match recipe_of_run(adapter) {
        Some(recipe) => Ok(Recipe::read(&recipe)?.model.path),
        None => Ok(EMBEDDED.to_owned()),
    }
}

/// The model of two options: the one that is named, or that of the adapter's run, or the embedded one.
///
/// # Errors
///
/// A recipe that cannot be read.
pub fn model_or_of_run(model: Option<&str>, adapter: Option<&Path>) -> Result<String, ExperimentError> {
    match (model, adapter) {
        (Some(model), _) => Ok(model.to_owned()),
        (None, Some(adapter)) => model_of_run_or_embedded(adapter),
        (None, None) => Ok(EMBEDDED.to_owned()),
    }
}
