//! Fills in a [`Host`] from the arguments and the environment: device, hub, caches.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::prelude::Device;
use sorsa_adapter::Attached;
use sorsa_checkpoint::PackingFormats;
use sorsa_checkpoint::hub::{HubOptions, HubProgress};
use sorsa_data::TemplateName;
use sorsa_experiment::adapter::{BaseModel, LoadedAdapter};
use sorsa_experiment::embedded::EmbeddedFiles;
use sorsa_experiment::model::{check_fetched, config_of_run, quantize_of_run};
use sorsa_experiment::recipe::set_field;
use sorsa_experiment::sandbox::CodeExecution;
use sorsa_experiment::{ConfigOverrides, Event, Host, Observer, RunFacts, Sources};
use sorsa_kernels::Instructions;
use sorsa_models::{CausalLm, ModelConfig, WeightFormat};
use toml::Table;

use crate::args::{ConfigArgs, DeviceArgs};
use crate::device;
use crate::exit::{OrBadInput, bad_input};
use crate::progress::{Progress, Style};
use crate::recipe;

pub use sorsa_experiment::create_folder;
pub use sorsa_experiment::model::model_of_run;

/// The embedded files of this process, after their first use.
static EMBEDDED_FILES: Mutex<Option<Arc<EmbeddedFiles>>> = Mutex::new(None);

/// Fields of `config.json` that the command line, or the adapter's run, wants otherwise.
static CONFIG: Mutex<Option<ConfigOverrides>> = Mutex::new(None);

/// The format that models are packed in while they are read, by the command line or the adapter's run.
static QUANTIZE: Mutex<Option<PackingFormats>> = Mutex::new(None);

/// Takes the options `--set model.config.FIELD=VALUE` and `--quantize`, and before them the same fields of the run of an adapter, for
/// every model that is read from here on.
pub fn set_config(args: &ConfigArgs, adapter: Option<&Path>) -> anyhow::Result<()> {
    let mut fields = match adapter {
        // A recipe that belongs to something else stops nobody who names the model.
        Some(adapter) => config_of_run(adapter).unwrap_or_else(|error| {
            eprintln!("note: {error}; template, lengths, dtype and fields of config.json are the usual ones");
            Table::new()
        }),
        None => Table::new(),
    };
    for (field, value) in recipe::settings(&args.set)? {
        let Some(field) = field.strip_prefix("model.config.") else {
            return Err(bad_input(format!("--set {field}: expected model.config.FIELD=VALUE")));
        };
        set_field(&mut fields, field, value)?;
    }
    *CONFIG.lock().unwrap_or_else(PoisonError::into_inner) = Some(ConfigOverrides::new(fields));
    // A recipe that cannot be read has been told of.
    let of_run = adapter.map_or(Ok(None), quantize_of_run).unwrap_or_default();
    *QUANTIZE.lock().unwrap_or_else(PoisonError::into_inner) = args.quantize.or(of_run);
    Ok(())
}

/// Refuses a model that nobody asked for and that would be fetched: the one that an adapter's run names.
pub fn check_asked(given: Option<&str>, model: &str) -> anyhow::Result<()> {
    match given {
        Some(_) => Ok(()),
        None => Ok(check_fetched(model, &sources(Style::Quiet)?)?),
    }
}

/// The device of the arguments, with hub and caches of the environment.
pub fn host(args: &DeviceArgs, style: Style) -> anyhow::Result<Host> {
    let device = device::open(args.backend, args.device)?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    Ok(Host {
        backend: args.backend.to_string(),
        fused_operations: device::is_flex(&device),
        placement: args.backend.svd_placement(),
        cache: cache_folder(),
        sources: sources(style)?,
        code: None,
        machine: format!(
            "{} {}, {cores} cores, {}",
            std::env::consts::OS,
            std::env::consts::ARCH,
            Instructions::used()
        ),
        device,
    })
}

/// Where models and data come from, by the environment.
pub fn sources(style: Style) -> anyhow::Result<Sources> {
    let home = std::env::home_dir();
    let mut hub = HubOptions::from_environment(|name| std::env::var(name).ok(), home.as_deref()).or_bad_input()?;
    hub.progress = (style != Style::Quiet).then(|| Arc::new(download_progress(style)) as _);
    let config = CONFIG.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
    let quantize = *QUANTIZE.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Sources { embedded: embedded_files(), hub, config, quantize })
}

/// The embedded model and task.
pub fn embedded_files() -> Arc<EmbeddedFiles> {
    let mut files = EMBEDDED_FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let files = files.get_or_insert_with(|| {
        Arc::new(match cache_folder() {
            Some(cache) => EmbeddedFiles::in_cache(cache),
            None => EmbeddedFiles::default(),
        })
    });
    Arc::clone(files)
}

/// Removes the temporary folders of the embedded files and of models with another configuration, if there are any. To be called before the process ends.
pub fn remove_temporary() {
    if let Some(files) = EMBEDDED_FILES.lock().unwrap_or_else(PoisonError::into_inner).take() {
        files.remove_temporary();
    }
    CONFIG.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// The folder of a model: the embedded one, the user's, or one that is downloaded from the hub.
pub fn model_folder(name: &str, style: Style) -> anyhow::Result<PathBuf> {
    Ok(sorsa_experiment::model::model_folder(name, &sources(style)?)?)
}

/// Most tokens of an answer, if neither an option nor a run says otherwise.
pub const ANSWER_TOKENS: usize = 128;

/// What the run of an adapter says about the model's use; `None` without an adapter, of one outside a run, and if the recipe cannot
/// be read, which [`set_config`] has told.
pub fn run_facts(adapter: Option<&Path>) -> Option<RunFacts> {
    RunFacts::of(adapter?).unwrap_or_default()
}

/// The name of the chat template: that of the option, else that of the adapter's run, if the template is `chat`.
pub fn chat_template(
    option: Option<&str>,
    run: Option<&RunFacts>,
    template: TemplateName,
) -> anyhow::Result<Option<String>> {
    match (option, template) {
        (Some(name), TemplateName::Chat) => Ok(Some(name.to_owned())),
        (Some(name), other) => {
            Err(bad_input(format!("--chat-template {name} needs the template chat, and the template is {other}")))
        }
        (None, TemplateName::Chat) => Ok(run.and_then(|run| run.chat_template.clone())),
        (None, _) => Ok(None),
    }
}

/// A model with its name and its files.
pub struct NamedModel {
    /// Format that its linear layers were packed in while it was read, if any.
    pub quantize: Option<PackingFormats>,
    /// The name that the user gave.
    pub name: String,
    /// Its files.
    pub folder: PathBuf,
    /// The plain model, f32.
    pub model: CausalLm,
}

impl NamedModel {
    /// Loads a model by its name.
    pub fn load(name: &str, device: &Device) -> anyhow::Result<Self> {
        let sources = sources(Style::choose(false))?;
        let folder = sorsa_experiment::model::model_folder(name, &sources)?;
        let model = CausalLm::load_from(&sources.open(&folder)?, WeightFormat::F32, device).or_bad_input()?;
        warn_of_separate_head(&folder, &model)?;
        Ok(Self { name: name.to_owned(), folder, quantize: sources.quantize, model })
    }

    /// Reads an adapter for the model. Whatever is odd about it is told to the observer.
    pub fn adapter(self, adapter: &Path, observer: &mut dyn Observer) -> anyhow::Result<LoadedAdapter> {
        let base = BaseModel { name: &self.name, folder: &self.folder, quantize: self.quantize };
        Ok(LoadedAdapter::read(self.model, base, adapter, observer)?)
    }

    /// Attaches an adapter to the model, and warns of whatever is odd about it.
    pub fn with_adapter(self, adapter: &Path) -> anyhow::Result<Attached<CausalLm>> {
        let base = BaseModel { name: &self.name, folder: &self.folder, quantize: self.quantize };
        Ok(LoadedAdapter::read_and_attach(self.model, base, adapter, &mut Warnings)?)
    }
}

/// Says if a model has a head of its own although its configuration does not.
pub fn warn_of_separate_head(folder: &Path, model: &CausalLm) -> anyhow::Result<()> {
    if ModelConfig::read(folder).or_bad_input()?.tie_word_embeddings && !model.config().tie_word_embeddings {
        warn(format_args!(
            "{}: the head is not the embedding, although config.json says so (`tie_word_embeddings`): both are used as they \
             are, like in Transformers 5; Transformers 4 takes the embedding for both",
            folder.display()
        ));
    }
    Ok(())
}

/// Prints a warning on standard error.
pub fn warn(message: impl std::fmt::Display) {
    eprintln!("warning: {message}");
}

/// Prints the doubts about adapters that commands without other events load.
pub struct Warnings;

impl Observer for Warnings {
    fn on_event(&mut self, event: Event<'_>) {
        if let Event::AdapterDoubted { folder, doubt } = event {
            warn(format_args!("{}: {doubt}", folder.display()));
        }
    }
}

/// Keeps the doubts about an adapter until it is known that there is no error.
#[derive(Default)]
pub struct DelayedWarnings(Vec<String>);

impl DelayedWarnings {
    /// Prints them.
    pub fn print(self) {
        self.0.iter().for_each(warn);
    }
}

impl Observer for DelayedWarnings {
    fn on_event(&mut self, event: Event<'_>) {
        if let Event::AdapterDoubted { folder, doubt } = event {
            self.0.push(format!("{}: {doubt}", folder.display()));
        }
    }
}

/// How programs are run that a model writes, with the temporary folder and the search path of this process.
pub fn code_execution(seconds: u64, memory_bytes: u64) -> CodeExecution {
    CodeExecution {
        seconds,
        memory_bytes,
        folder: std::env::temp_dir(),
        search_path: std::env::var_os("PATH").unwrap_or_default(),
    }
}

/// Shows a bar for each file that is downloaded.
fn download_progress(style: Style) -> impl Fn(HubProgress<'_>) + Send + Sync {
    let current = Mutex::new(None::<(String, Progress)>);
    move |progress| {
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|(file, _)| file != progress.file) {
            let bar = Progress::new("download", progress.total, style);
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

/// Folder of this program's caches.
fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("sorsa"))
}
