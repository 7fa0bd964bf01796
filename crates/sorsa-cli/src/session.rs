//! Fills in a [`Host`] from the arguments and the environment: device, hub, caches.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sorsa_checkpoint::hub::{HubOptions, HubProgress};
use sorsa_experiment::embedded::EmbeddedFiles;
use sorsa_experiment::sandbox::CodeExecution;
use sorsa_experiment::{Host, Sources};

use crate::args::DeviceArgs;
use crate::device;
use crate::exit::OrBadInput;
use crate::progress::{Progress, Style};

pub use sorsa_experiment::create_folder;
pub use sorsa_experiment::model::{
    attach_adapter as attach_saved, check_tied, load_adapter as load_saved, model_of_run,
};

/// The embedded files of this process, once somebody asked for them.
static EMBEDDED_FILES: Mutex<Option<Arc<EmbeddedFiles>>> = Mutex::new(None);

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
        machine: format!("{} {}, {cores} cores", std::env::consts::OS, std::env::consts::ARCH),
        device,
    })
}

/// Where models and data come from, by the environment.
pub fn sources(style: Style) -> anyhow::Result<Sources> {
    let home = std::env::home_dir();
    let mut hub = HubOptions::from_environment(|name| std::env::var(name).ok(), home.as_deref()).or_bad_input()?;
    hub.progress = (style != Style::Quiet).then(|| Arc::new(download_progress(style)) as _);
    Ok(Sources { embedded: embedded_files(), hub })
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

/// Removes the temporary folder of the embedded files, if there is one. To be called before the process ends.
pub fn remove_temporary() {
    EMBEDDED_FILES.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// The folder of a model: the embedded one, a folder, or a repository that is fetched from the hub.
pub fn model_folder(name: &str, style: Style) -> anyhow::Result<PathBuf> {
    Ok(sorsa_experiment::model::model_folder(name, &sources(style)?)?)
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

/// A bar for each file that is fetched.
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
