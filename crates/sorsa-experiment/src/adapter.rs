//! Adapters for a model, and what their users should know about them.

use std::path::{Path, PathBuf};

use sorsa_adapter::peft::{CONFIG_FILE, PeftAdapter};
use sorsa_adapter::{AdapterError, AdapterState, AttachOptions, Attached, HostTensorExt, SavedAdapter};
use sorsa_checkpoint::PackingFormats;
use sorsa_files::{HostTensor, NamedTensors};
use sorsa_models::CausalLm;

use crate::doubt::Doubt;
use crate::error::ExperimentError;
use crate::observer::{Event, Observer};
use crate::packed_on_read::PackedOnRead;
use crate::recipe::Recipe;
use crate::run_dir::RunDir;

/// PEFT's name of a tensor starts with this.
const PEFT_PREFIX: &str = "base_model.model.";

/// The model that an adapter is loaded for.
#[derive(Debug, Clone, Copy)]
pub struct BaseModel<'a> {
    /// The name that its user gave.
    pub name: &'a str,
    /// Its files.
    pub folder: &'a Path,
    /// Format that its linear layers were packed in while it was read, if any.
    pub quantize: Option<PackingFormats>,
}

/// An adapter and the model that it fits. If the adapter trains the head of a model whose head is the embedding, the
/// model has a head of its own now.
#[derive(Debug)]
pub struct LoadedAdapter {
    /// The plain model.
    pub model: CausalLm,
    /// The adapter.
    pub saved: SavedAdapter,
}

impl LoadedAdapter {
    /// Reads the adapter in `folder`, or in the run at `folder`, for `model`, which was loaded from `base`. Whatever is odd
    /// about it is told to the observer.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NoAdapter`], [`ExperimentError::Adapter`], [`ExperimentError::AdapterNotFinite`].
    pub fn read(
        model: CausalLm,
        base: BaseModel<'_>,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self, ExperimentError> {
        let folder = adapter_folder(folder)?;
        if PeftAdapter::is_in(&folder) {
            let attachable = |peft: &PeftAdapter, model: &CausalLm| peft.attachable(model, &AttachOptions::default());
            return of_peft(model, base, &folder, observer, attachable);
        }
        let saved = SavedAdapter::load(&folder)?;
        let model = match trains_own_head(&model, &saved.state) {
            true => untied(model, &folder, observer),
            false => model,
        };
        let named = recipe_of_run(&folder).and_then(|path| Some(Recipe::read(&path).ok()?.model.path));
        finish(Self { model, saved }, base, &folder, named.as_deref(), observer)
    }

    /// [`read`](Self::read) for an adapter of PEFT whose state before training is in the folder `start`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), for both folders.
    pub fn read_with_start(
        model: CausalLm,
        base: BaseModel<'_>,
        folder: &Path,
        start: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self, ExperimentError> {
        let start = PeftAdapter::load(start)?;
        let attachable = |peft: &PeftAdapter, model: &CausalLm| {
            if !peft.config.method().splits_weight() {
                tell(&Doubt::StartNotUsed { method: peft.config.method() }, folder, &mut *observer);
            }
            peft.attachable_from(&start, model, &AttachOptions::default())
        };
        // The observer is borrowed by the closure until the adapter is read.
        let mut silent = Vec::new();
        let loaded = of_peft(model, base, folder, &mut Collected(&mut silent), attachable);
        silent.iter().for_each(|doubt| tell(doubt, folder, observer));
        loaded
    }

    /// [`read`](Self::read), and attaches the adapter. What is odd about an adapter that does not fit is not told: the error
    /// is enough.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_and_attach(
        model: CausalLm,
        base: BaseModel<'_>,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Attached<CausalLm>, ExperimentError> {
        let mut doubts = Vec::new();
        let Self { model, saved } = Self::read(model, base, folder, &mut Collected(&mut doubts))?;
        let attached = saved.attach_with(model, &PackedOnRead::open(base.folder, base.quantize)?)?;
        let folder = adapter_folder(folder)?;
        doubts.iter().for_each(|doubt| tell(doubt, &folder, observer));
        Ok(attached)
    }
}

/// Keeps doubts for later.
struct Collected<'a>(&'a mut Vec<Doubt>);

impl Observer for Collected<'_> {
    fn on_event(&mut self, event: Event<'_>) {
        if let Event::AdapterDoubted { doubt, .. } = event {
            self.0.push(doubt.clone());
        }
    }
}

fn tell(doubt: &Doubt, folder: &Path, observer: &mut dyn Observer) {
    observer.on_event(Event::AdapterDoubted { folder, doubt });
}

fn untied(model: CausalLm, folder: &Path, observer: &mut dyn Observer) -> CausalLm {
    tell(&Doubt::HeadOfItsOwn { head: model.head_path() }, folder, observer);
    model.with_own_head()
}

/// Whether an adapter of this program trains the head of a model whose head is the embedding. Such an adapter came from
/// PEFT: here a tied model has no such module.
fn trains_own_head(model: &CausalLm, state: &AdapterState) -> bool {
    let head = model.head_path();
    let is_trained = state.modules.iter().any(|module| module.path == head)
        || state.config.modules_to_save.iter().any(|name| name == head);
    is_trained && model.config().tie_word_embeddings
}

/// The model with a head of its own if the adapter with this state trains it.
pub(crate) fn with_head_for(model: CausalLm, state: &AdapterState) -> CausalLm {
    if trains_own_head(&model, state) { model.with_own_head() } else { model }
}

/// The adapter in a folder of PEFT's, by `attachable`.
fn of_peft(
    model: CausalLm,
    base: BaseModel<'_>,
    folder: &Path,
    observer: &mut dyn Observer,
    attachable: impl FnOnce(&PeftAdapter, &CausalLm) -> Result<SavedAdapter, AdapterError>,
) -> Result<LoadedAdapter, ExperimentError> {
    let mut peft = PeftAdapter::load(folder)?;
    let model = match model.config().tie_word_embeddings && needs_own_head(&model, &mut peft) {
        true => untied(model, folder, observer),
        false => model,
    };
    let saved = attachable(&peft, &model)?;
    for doubt in peft.doubts(&model) {
        tell(&Doubt::Adapter(doubt), folder, observer);
    }
    let named = peft.config.base_model.clone();
    finish(LoadedAdapter { model, saved }, base, folder, named.as_deref(), observer)
}

/// Whether an adapter of PEFT needs a head apart from the embedding, in a model that has one matrix for both. PEFT adapts or
/// trains the head or the embedding alone, and the other one stays. If it saved both beside the adapter, they are the one
/// matrix, and one copy is enough.
fn needs_own_head(model: &CausalLm, peft: &mut PeftAdapter) -> bool {
    let key = |path: &str| format!("{PEFT_PREFIX}{path}.weight");
    let (head, embedding) = (key(model.head_path()), key(model.embedding_path()));
    let is_named = |path: &str| peft.config.modules_to_save.iter().any(|name| path.ends_with(name.as_str()));
    let [head_named, embedding_named] = [model.head_path(), model.embedding_path()].map(is_named);
    let head_prefix = format!("{PEFT_PREFIX}{}.", model.head_path());
    if peft.tensors.keys().any(|name| name.starts_with(&head_prefix) && *name != head) {
        return true;
    }
    if !head_named && !embedding_named {
        let is_copy = match (peft.tensors.get(&head), peft.tensors.get(&embedding)) {
            (Some(head), Some(embedding)) => head == embedding,
            (Some(head), None) => *head == embedding_of(model),
            (None, _) => return false,
        };
        if is_copy {
            peft.tensors.remove(&head);
        }
        return !is_copy;
    }
    if embedding_named && peft.tensors.contains_key(&embedding) && !peft.tensors.contains_key(&head) {
        // The head stays what the embedding was.
        peft.tensors.insert(head, embedding_of(model));
        peft.config.modules_to_save.push(model.head_path().to_owned());
        return true;
    }
    peft.tensors.contains_key(&head)
}

/// The embedding `[vocab_size, hidden_size]` on the host.
fn embedding_of(model: &CausalLm) -> HostTensor {
    HostTensor::from_tensor(model.embedding_weight())
}

/// Checks the numbers, and tells what is odd.
fn finish(
    loaded: LoadedAdapter,
    base: BaseModel<'_>,
    folder: &Path,
    named: Option<&str>,
    observer: &mut dyn Observer,
) -> Result<LoadedAdapter, ExperimentError> {
    let LoadedAdapter { model, saved } = &loaded;
    if let Some(name) = first_not_finite(&saved.trained).or_else(|| first_not_finite(&saved.state.initial)) {
        return Err(ExperimentError::AdapterNotFinite { folder: folder.to_owned(), name: name.to_owned() });
    }
    saved.check(model)?;
    for doubt in saved.doubts(model) {
        tell(&Doubt::Adapter(doubt), folder, observer);
    }
    for doubt in Doubt::of_files(folder, base, named) {
        tell(&doubt, folder, observer);
    }
    Ok(loaded)
}

fn first_not_finite(tensors: &NamedTensors) -> Option<&str> {
    let finite = |tensor: &HostTensor| tensor.values.iter().all(|value| value.is_finite());
    tensors.iter().find(|(_, tensor)| !finite(tensor)).map(|(name, _)| name.as_str())
}

/// Whether `folder` itself holds an adapter, this program's or PEFT's.
pub fn holds_adapter(folder: &Path) -> bool {
    folder.join("adapter.json").is_file() || PeftAdapter::is_in(folder)
}

/// The folder of an adapter, this program's or PEFT's: `folder` itself, or `folder/adapter` of a run.
///
/// # Errors
///
/// [`ExperimentError::NoAdapter`], with the folders inside that hold one.
pub fn adapter_folder(folder: &Path) -> Result<PathBuf, ExperimentError> {
    let inside = folder.join(RunDir::ADAPTER);
    if let Some(found) = [folder.to_owned(), inside].into_iter().find(|folder| holds_adapter(folder)) {
        return Ok(found);
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut inside: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| holds_adapter(path)).collect();
    inside.sort();
    Err(ExperimentError::NoAdapter { folder: folder.to_owned(), config: CONFIG_FILE, inside })
}

/// Refuses an adapter of this program that trains a tied embedding whole. PEFT would train a copy of it that is read at the
/// input alone; this program trains the one matrix.
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

/// The recipe of the run that the adapter is in.
pub(crate) fn recipe_of_run(adapter: &Path) -> Option<PathBuf> {
    [adapter.join(RunDir::RECIPE), adapter.join("..").join(RunDir::RECIPE)].into_iter().find(|path| path.exists())
}
