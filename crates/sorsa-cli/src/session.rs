//! What several commands need: the model, its tokenizer, data.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use burn::prelude::Device;
use burn::tensor::FloatDType;
use sorsa_adapter::peft::{CONFIG_FILE, PeftAdapter};
use sorsa_adapter::{Attached, SavedAdapter};
use sorsa_checkpoint::hub::{self, HubOptions};
use sorsa_data::{EncodeOptions, Encoder, LoadOptions, Loaded, PromptTemplate, TextTokenizer};
use sorsa_models::{CausalLm, ModelConfig};

use crate::embedded::{self, EMBEDDED};
use crate::exit::{OrBadInput, bad_input};
use crate::progress::Style;
use crate::recipe::Recipe;

/// The folder of a model: as given, embedded, or fetched from the hub.
pub fn model_folder(model: &str, style: Style) -> anyhow::Result<PathBuf> {
    if model == EMBEDDED {
        return embedded::model();
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let options = HubOptions {
        endpoint: variable("HF_ENDPOINT"),
        cache_dir: variable("HF_HUB_CACHE")
            .map(PathBuf::from)
            .or_else(|| variable("HF_HOME").map(|home| Path::new(&home).join("hub")))
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache/huggingface/hub"))),
        token: variable("HF_TOKEN"),
        offline: variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
        progress: (style != Style::Quiet).then(|| Arc::new(download_progress(style)) as _),
        ..HubOptions::default()
    };
    hub::resolve(model, &options).or_bad_input()
}

/// A bar for each file that is fetched.
fn download_progress(style: Style) -> impl Fn(hub::HubProgress<'_>) + Send + Sync {
    let current = std::sync::Mutex::new(None::<(String, crate::progress::Progress)>);
    move |progress| {
        let mut current = current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if current.as_ref().is_none_or(|(file, _)| file != progress.file) {
            let bar = crate::progress::Progress::new("download", progress.total, style);
            *current = Some((progress.file.to_owned(), bar));
        }
        if let Some((file, bar)) = current.as_ref() {
            bar.set(progress.received.min(progress.total), file);
            if progress.received >= progress.total {
                bar.finish();
            }
        }
    }
}

/// A model and its tokenizer.
pub struct Session {
    /// Where both came from.
    pub folder: PathBuf,
    pub model: CausalLm,
    pub tokenizer: Arc<TextTokenizer>,
}

impl Session {
    /// Loads a model, on a device without autodiff.
    pub fn load(model: &str, dtype: FloatDType, device: &Device, style: Style) -> anyhow::Result<Self> {
        let folder = model_folder(model, style)?;
        let tokenizer = Arc::new(TextTokenizer::from_dir(&folder).or_bad_input()?);
        let model = CausalLm::load(&folder, dtype, device).or_bad_input()?;
        Ok(Self { folder, model, tokenizer })
    }

    /// The model with the adapter in `adapter` (or in the run at that folder), or as it is without one.
    pub fn with_adapter(self, adapter: Option<&Path>) -> anyhow::Result<Self> {
        let Some(folder) = adapter else { return Ok(self) };
        let attached = attach_saved(self.model, folder)?;
        Ok(Self { model: attached.model, ..self })
    }

    /// Tokens that end an answer.
    pub fn stops(&self) -> Vec<u32> {
        stops(&self.tokenizer, self.model.config())
    }

    /// An encoder for this tokenizer and model.
    pub fn encoder(&self, template: &str, options: EncodeOptions) -> anyhow::Result<Encoder> {
        encoder(&self.tokenizer, template, options, self.model.config().vocab_size)
    }
}

/// Tokens that end an answer of a model.
pub fn stops(tokenizer: &TextTokenizer, config: &ModelConfig) -> Vec<u32> {
    let mut stops = tokenizer.stops().to_vec();
    stops.extend(&config.eos_token_ids);
    stops.sort_unstable();
    stops.dedup();
    stops
}

/// An encoder for a tokenizer and a model of `vocabulary` tokens.
pub fn encoder(
    tokenizer: &Arc<TextTokenizer>,
    template: &str,
    options: EncodeOptions,
    vocabulary: usize,
) -> anyhow::Result<Encoder> {
    let template = PromptTemplate::new(template.parse().or_bad_input()?, tokenizer).or_bad_input()?;
    Ok(Encoder::new(Arc::clone(tokenizer), template, options).or_bad_input()?.for_vocabulary(vocabulary))
}

/// The folder of an adapter, of this program's form or of PEFT's: `folder` itself, or `folder/adapter` of a run.
pub fn adapter_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    let holds_one = |folder: &Path| folder.join("adapter.json").is_file() || PeftAdapter::is_in(folder);
    let inside = folder.join("adapter");
    match [folder.to_owned(), inside].into_iter().find(|folder| holds_one(folder)) {
        Some(found) => Ok(found),
        None => Err(bad_input(format!(
            "{} holds no adapter: adapter.json or {CONFIG_FILE} should be there, or in adapter/",
            folder.display()
        ))),
    }
}

/// Reads an adapter for `model`.
pub fn load_saved(model: &CausalLm, folder: &Path) -> anyhow::Result<SavedAdapter> {
    let folder = adapter_folder(folder)?;
    let saved = SavedAdapter::load_any(&folder, model).or_bad_input()?;
    let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    let mut tensors = saved.trained.iter().chain(&saved.state.initial);
    if let Some((name, _)) = tensors.find(|(_, tensor)| !finite(&tensor.values)) {
        return Err(bad_input(format!("{}: `{name}` holds numbers that are not finite", folder.display())));
    }
    if PeftAdapter::is_in(&folder) {
        check_tied(model, &saved)?;
    }
    Ok(saved)
}

/// Refuses an adapter that trains the embedding of a model whose head is the same matrix: there PEFT trains a copy that is
/// read at the input alone, and this program the one matrix, so that neither can take over what the other trained.
pub fn check_tied(model: &CausalLm, saved: &SavedAdapter) -> anyhow::Result<()> {
    let embedding = saved.trained.keys().find(|name| name.ends_with("embed_tokens.weight"));
    match embedding.filter(|_| model.config().tie_word_embeddings) {
        Some(name) => Err(bad_input(format!(
            "`{name}` is trained whole in a model with tied embeddings, which means another model in PEFT than here: \
             there the head keeps the original"
        ))),
        None => Ok(()),
    }
}

/// Attaches a saved adapter.
pub fn attach_saved(model: CausalLm, folder: &Path) -> anyhow::Result<Attached<CausalLm>> {
    load_saved(&model, folder)?.attach(model).or_bad_input()
}

/// The model named by the recipe of the run that the adapter is in.
pub fn model_of_run(adapter: &Path) -> anyhow::Result<String> {
    match recipe_of_run(adapter) {
        Some(path) => Ok(Recipe::read(&path)?.model.path),
        None => Err(bad_input(format!("{} is not in a run's folder: name its model with --model", adapter.display()))),
    }
}

/// The model that was named, or that of the adapter's run, or the embedded one.
pub fn model_or_of_run(model: Option<&str>, adapter: Option<&Path>) -> anyhow::Result<String> {
    match (model, adapter.and_then(recipe_of_run)) {
        (Some(model), _) => Ok(model.to_owned()),
        (None, Some(recipe)) => Ok(Recipe::read(&recipe)?.model.path),
        (None, None) => Ok(EMBEDDED.to_owned()),
    }
}

/// The recipe of the run that the adapter is in.
fn recipe_of_run(adapter: &Path) -> Option<PathBuf> {
    [adapter.join("recipe.toml"), adapter.join("../recipe.toml")].into_iter().find(|path| path.exists())
}

/// Reads a file of records and says what was left out.
pub fn load_records(path: &Path, options: &LoadOptions, style: Style) -> anyhow::Result<Loaded> {
    let loaded = sorsa_data::load(path, options).or_bad_input()?;
    if loaded.skipped.count > 0 && style != Style::Quiet {
        eprintln!("{}: {} malformed rows left out", path.display(), loaded.skipped.count);
    }
    Ok(loaded)
}

/// A dtype by its name.
pub fn dtype(name: &str) -> anyhow::Result<FloatDType> {
    match name {
        "f32" => Ok(FloatDType::F32),
        "bf16" => Ok(FloatDType::BF16),
        other => Err(bad_input(format!("unknown dtype `{other}`, expected f32 or bf16"))),
    }
}

/// Where the caches of this program are.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("sorsa"))
}

/// Creates a folder, with its name in the error.
pub fn create_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))
}
