//! Models with their tokenizers and adapters, by the names that people give them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::FloatDType;
use sorsa_adapter::peft::{CONFIG_FILE, PeftAdapter};
use sorsa_adapter::{Attached, SavedAdapter};
use sorsa_checkpoint::{WeightFormat, hub};
use sorsa_data::{EncodeOptions, Encoder, PromptTemplate, TemplateName, TextTokenizer};
use sorsa_models::{CausalLm, ModelConfig, float_dtype};
use toml::Table;

use crate::embedded::EMBEDDED;
use crate::error::ExperimentError;
use crate::host::{Host, Sources};
use crate::recipe::Recipe;
use crate::run_dir::RunDir;

/// A model and its tokenizer.
pub struct LoadedModel {
    /// Where both came from.
    pub folder: PathBuf,
    /// The model, on a device without autodiff.
    pub model: CausalLm,
    /// The tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
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

/// The dtype of weights in memory that are kept in `format`.
///
/// # Errors
///
/// [`ExperimentError::UnknownName`] if models do not compute with weights in this format.
pub fn computed_dtype(format: WeightFormat) -> Result<FloatDType, ExperimentError> {
    let fault = || ExperimentError::UnknownName(format!("unknown dtype `{format}`, expected f32 or bf16"));
    float_dtype(format).ok_or_else(fault)
}

impl LoadedModel {
    /// Loads a model by its name.
    ///
    /// # Errors
    ///
    /// See [`model_folder`]; whatever is wrong with the tokenizer's or the model's files.
    pub fn load(name: &str, format: WeightFormat, host: &Host) -> Result<Self, ExperimentError> {
        let folder = model_folder(name, &host.sources)?;
        let tokenizer = Arc::new(TextTokenizer::from_dir(&folder)?);
        let model = CausalLm::load(&folder, computed_dtype(format)?, &host.device)?;
        Ok(Self { folder, model, tokenizer })
    }

    /// Attaches the adapter in `folder`, or in the run at `folder`.
    ///
    /// # Errors
    ///
    /// See [`load_adapter`].
    pub fn with_adapter(self, folder: &Path) -> Result<Self, ExperimentError> {
        let attached = attach_adapter(self.model, folder)?;
        Ok(Self { model: attached.model, ..self })
    }

    /// Tokens that end an answer.
    pub fn stop_tokens(&self) -> Vec<u32> {
        stop_tokens(&self.tokenizer, self.model.config())
    }

    /// An encoder for this tokenizer and model.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Data`].
    pub fn encoder(&self, template: TemplateName, options: EncodeOptions) -> Result<Encoder, ExperimentError> {
        let encoder =
            Encoder::new(Arc::clone(&self.tokenizer), PromptTemplate::new(template, &self.tokenizer)?, options)?;
        Ok(encoder.for_vocabulary(self.model.config().vocab_size))
    }
}

/// The folder of a model: the embedded one, a folder, or a repository that is fetched from the hub.
///
/// # Errors
///
/// [`ExperimentError::Unpack`], [`ExperimentError::Hub`].
pub fn model_folder(name: &str, sources: &Sources) -> Result<PathBuf, ExperimentError> {
    let folder = if name == EMBEDDED { sources.embedded.model()? } else { hub::resolve(name, &sources.hub)? };
    sources.config.apply(&folder)
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

/// Tokens that end an answer of a model.
pub fn stop_tokens(tokenizer: &TextTokenizer, config: &ModelConfig) -> Vec<u32> {
    let mut stops = tokenizer.stops().to_vec();
    stops.extend(&config.eos_token_ids);
    stops.sort_unstable();
    stops.dedup();
    stops
}

/// The folder of an adapter, this program's or PEFT's: `folder` itself, or `folder/adapter` of a run.
///
/// # Errors
///
/// [`ExperimentError::NoAdapter`].
pub fn adapter_folder(folder: &Path) -> Result<PathBuf, ExperimentError> {
    let holds_one = |folder: &Path| folder.join("adapter.json").is_file() || PeftAdapter::is_in(folder);
    let inside = folder.join(RunDir::ADAPTER);
    match [folder.to_owned(), inside].into_iter().find(|folder| holds_one(folder)) {
        Some(found) => Ok(found),
        None => Err(ExperimentError::NoAdapter { folder: folder.to_owned(), config: CONFIG_FILE }),
    }
}

/// Reads an adapter for `model`.
///
/// # Errors
///
/// [`ExperimentError::NoAdapter`], [`ExperimentError::Adapter`], [`ExperimentError::AdapterNotFinite`],
/// [`ExperimentError::TiedEmbedding`].
pub fn load_adapter(model: &CausalLm, folder: &Path) -> Result<SavedAdapter, ExperimentError> {
    let folder = adapter_folder(folder)?;
    let saved = SavedAdapter::load_any(&folder, model)?;
    let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    let mut tensors = saved.trained.iter().chain(&saved.state.initial);
    if let Some((name, _)) = tensors.find(|(_, tensor)| !finite(&tensor.values)) {
        return Err(ExperimentError::AdapterNotFinite { folder, name: name.clone() });
    }
    if PeftAdapter::is_in(&folder) {
        check_tied(model, &saved)?;
    }
    Ok(saved)
}

/// Reads an adapter and attaches it.
///
/// # Errors
///
/// See [`load_adapter`].
pub fn attach_adapter(model: CausalLm, folder: &Path) -> Result<Attached<CausalLm>, ExperimentError> {
    Ok(load_adapter(&model, folder)?.attach(model)?)
}

/// Refuses an adapter that trains a tied embedding whole. PEFT trains a copy of it that is read at the input alone; this program
/// trains the one matrix. So neither can take over the other's.
///
/// # Errors
///
/// [`ExperimentError::TiedEmbedding`].
pub fn check_tied(model: &CausalLm, saved: &SavedAdapter) -> Result<(), ExperimentError> {
    let embedding = saved.trained.keys().find(|name| name.ends_with("embed_tokens.weight"));
    match embedding {
        Some(name) if model.config().tie_word_embeddings => Err(ExperimentError::TiedEmbedding { name: name.clone() }),
        _ => Ok(()),
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

/// The recipe of the run that the adapter is in.
fn recipe_of_run(adapter: &Path) -> Option<PathBuf> {
    [adapter.join(RunDir::RECIPE), adapter.join("..").join(RunDir::RECIPE)].into_iter().find(|path| path.exists())
}
