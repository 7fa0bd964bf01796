//! From the name of a model to a folder with its files: one that is there, or one fetched from a Hugging Face hub.
//!
//! Files land in the cache that Hugging Face's own tools use, in the same layout, so that nothing is downloaded twice.
//! Weights are fetched as safetensors only. All files of a model are of one commit, and the weights come last: where
//! they are in the cache, everything else has been fetched too, and no network is needed.
//!
//! ```no_run
//! use sorsa_checkpoint::hub::{HubOptions, resolve};
//!
//! # fn main() -> Result<(), sorsa_checkpoint::hub::HubError> {
//! let folder = resolve("HuggingFaceTB/SmolLM2-135M", &HubOptions::default())?;
//! assert!(folder.join("config.json").is_file());
//! # Ok(())
//! # }
//! ```

use std::cell::Cell;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::weights::{INDEX_FILE, Index, SINGLE_FILE, WeightsError};

#[cfg(test)]
mod tests;

const PUBLIC_HUB: &str = "https://huggingface.co";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Everything but the weights. A model need not have all of them.
const SMALL_FILES: [&str; 6] = [
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// How often a file is tried again after its download broke off; each try goes on where the last one ended.
const RETRIES: u32 = 4;

/// How to reach a hub, and where to keep what comes from it.
///
/// Nothing is read from the environment: a program fills in what `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` say.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Address of the hub; `https://huggingface.co` if absent.
    pub endpoint: Option<String>,
    /// The cache: the folder `hub` in `HF_HOME`, by custom `~/.cache/huggingface/hub`. Needed unless the model is a folder.
    pub cache_dir: Option<PathBuf>,
    /// An access token; if absent, that in the file `token` beside the cache, which `hf auth login` writes.
    pub token: Option<String>,
    /// Branch, tag or commit of a model whose name has none; if absent, `main`.
    pub revision: Option<String>,
    /// Whether to take models from the cache only.
    pub offline: bool,
    /// Told how far each download has come.
    pub progress: Option<ProgressCallback>,
}

/// Called for every few kilobytes that arrive, on the thread that called [`resolve`].
pub type ProgressCallback = Arc<dyn Fn(HubProgress<'_>) + Send + Sync>;

/// How far the download of one file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubProgress<'a> {
    /// Name of the file in the model.
    pub file: &'a str,
    /// Bytes that are on the disk, those of an earlier attempt included.
    pub received: u64,
    /// Size of the file in bytes.
    pub total: u64,
}

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is neither a folder nor can it be a model on a hub.
    #[error("`{model}` is neither a folder nor the name of a model: expected a path or `owner/name[@revision]`")]
    NotAModel {
        /// What was asked for.
        model: String,
    },
    /// The cache does not hold the model, and the network is not to be used.
    #[error("`{model}` is no folder and not in the cache {cache}, and this is offline: give a folder or go online")]
    Offline {
        /// What was asked for.
        model: String,
        /// The cache that was looked in.
        cache: PathBuf,
    },
    /// The hub could not be reached, or broke off again and again.
    #[error(
        "cannot get {asked} of `{model}` from {endpoint}: give a folder, or the address of a mirror in HF_ENDPOINT"
    )]
    Unreachable {
        /// What was asked for.
        model: String,
        /// The part of it that could not be had.
        asked: String,
        /// The hub.
        endpoint: String,
        /// What went wrong.
        source: Box<ApiError>,
    },
    /// The hub has no such model, or not in this revision.
    #[error("no {asked} of `{model}` in revision `{revision}` on {endpoint}, and no folder of that name")]
    NotFound {
        /// What was asked for.
        model: String,
        /// The part of it that is not there.
        asked: String,
        /// The revision that was asked for.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub does not give the model to everybody.
    #[error(
        "{endpoint} refuses {asked} of `{model}` (status {status}): the name is wrong, or the model is private or \
         gated; accept its terms on its page and {}",
        if *.with_token { "check that the token given may read it" } else { "give a token in HF_TOKEN" }
    )]
    Refused {
        /// What was asked for.
        model: String,
        /// The part of it that was refused.
        asked: String,
        /// The hub.
        endpoint: String,
        /// HTTP status: 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The model has no weights that are safe to read.
    #[error(
        "`{model}` has no weights as safetensors, and pickled ones can run any code when they are read: look for a \
         revision or a copy of it with model.safetensors"
    )]
    NoSafetensors {
        /// What was asked for.
        model: String,
    },
    /// A file arrived with another size than the hub said.
    #[error("{file} of `{model}` arrived with {found} bytes: expected {expected}; it was removed, try again")]
    WrongSize {
        /// What was asked for.
        model: String,
        /// The file.
        file: String,
        /// Size in bytes that the hub named.
        expected: u64,
        /// Size in bytes of what arrived.
        found: u64,
    },
    /// Another process is downloading the same file.
    #[error("another process is downloading the same file: wait for it (lock {path})")]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The cache cannot be written.
    #[error("cannot write to the cache {path}")]
    Cache {
        /// The cache.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No cache was given.
    #[error("no folder to keep a cache in: name one in HF_HOME")]
    NoHome,
    /// The list of shards that the hub sent is damaged.
    #[error(transparent)]
    Index(#[from] WeightsError),
}

/// The folder with the files of `model`: `model` itself if it is a folder, otherwise a snapshot in the cache of the
/// model `owner/name` or `owner/name@revision`, fetched unless it is there already.
///
/// # Errors
/// Every way in which this can fail is a variant of [`HubError`] that says what to do about it.
pub fn resolve(model: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    if Path::new(model).is_dir() {
        return Ok(model.into());
    }
    let (id, revision) = model.split_once('@').map_or((model, None), |(id, revision)| (id, Some(revision)));
    let revision = revision.or(options.revision.as_deref()).unwrap_or("main");
    if Path::new(model).exists() || !is_model_id(id) || !is_revision(revision) {
        return Err(HubError::NotAModel { model: model.to_owned() });
    }
    let cache = match &options.cache_dir {
        Some(dir) => Cache::new(std::path::absolute(dir).unwrap_or_else(|_| dir.clone())),
        None => return Err(HubError::NoHome),
    };
    let wanted = Wanted { model, id, revision, cache, options };

    let snapshot = wanted.cached();
    match snapshot {
        // Where there is no tokenizer, another program may have fetched the weights alone.
        Some(folder) if folder.join(TOKENIZER).exists() => Ok(folder),
        Some(folder) if options.offline => Ok(folder),
        None if options.offline => {
            Err(HubError::Offline { model: model.to_owned(), cache: wanted.cache.path().clone() })
        }
        snapshot => match (wanted.fetch(), snapshot) {
            (Err(HubError::Unreachable { .. }), Some(folder)) => Ok(folder),
            (fetched, _) => fetched,
        },
    }
}

/// One model in one revision, and where to look for it.
struct Wanted<'a> {
    model: &'a str,
    id: &'a str,
    revision: &'a str,
    cache: Cache,
    options: &'a HubOptions,
}

impl Wanted<'_> {
    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.to_owned(), RepoType::Model, revision.to_owned())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo(self.revision)).pointer_path(commit)
    }

    /// The folder in the cache that holds configuration and weights in full.
    fn cached(&self) -> Option<PathBuf> {
        let folder = match self.cache.repo(self.repo(self.revision)).get(CONFIG) {
            Some(config) => config.parent()?.to_owned(),
            // A commit is a folder of its own; only branches and tags are references.
            None => self.snapshot(self.revision),
        };
        let complete = folder.join(CONFIG).exists()
            && (folder.join(SINGLE_FILE).exists()
                || Index::read(&folder).is_ok_and(|index| index.shards().iter().all(|f| folder.join(f).exists())));
        complete.then_some(folder)
    }

    fn fetch(&self) -> Result<PathBuf, HubError> {
        let mut builder = ApiBuilder::from_cache(self.cache.clone()).with_endpoint(self.endpoint().to_owned());
        if self.options.token.is_some() {
            builder = builder.with_token(self.options.token.clone());
        }
        let api = builder.build().map_err(|error| self.explain("the list of files", error))?;
        let info = api.repo(self.repo(self.revision)).info().map_err(|e| self.explain("the list of files", e))?;
        let has = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);

        // From here on by commit, so that a push in between does not mix two versions.
        let commit = Commit { wanted: self, repo: api.repo(self.repo(&info.sha)), api, sha: &info.sha };
        for file in SMALL_FILES.into_iter().filter(|file| has(file)) {
            commit.get(file)?;
        }
        let folder = self.snapshot(&info.sha);
        if has(SINGLE_FILE) {
            commit.get(SINGLE_FILE)?;
        } else if has(INDEX_FILE) {
            commit.get(INDEX_FILE)?;
            for shard in Index::read(&folder)?.shards() {
                commit.get(shard)?;
            }
        } else {
            return Err(HubError::NoSafetensors { model: self.model.to_owned() });
        }
        self.cache.repo(self.repo(self.revision)).create_ref(&info.sha).map_err(|source| self.disk(source))?;
        Ok(folder)
    }

    fn endpoint(&self) -> &str {
        self.options.endpoint.as_deref().unwrap_or(PUBLIC_HUB).trim_end_matches('/')
    }

    fn disk(&self, source: std::io::Error) -> HubError {
        HubError::Cache { path: self.cache.path().clone(), source }
    }

    fn explain(&self, asked: &str, error: ApiError) -> HubError {
        let (model, asked, endpoint) = (self.model.to_owned(), asked.to_owned(), self.endpoint().to_owned());
        match error {
            ApiError::IoError(source) if is_disk(&source) => self.disk(source),
            ApiError::LockAcquisition(path) => HubError::Locked { path },
            error => match status(&error) {
                Some(404) => HubError::NotFound { model, asked, revision: self.revision.to_owned(), endpoint },
                Some(status @ (401 | 403)) => {
                    let with_token = self.options.token.is_some() || self.cache.token().is_some();
                    HubError::Refused { model, asked, endpoint, status, with_token }
                }
                _ => HubError::Unreachable { model, asked, endpoint, source: Box::new(error) },
            },
        }
    }
}

/// One commit of a model on a hub.
struct Commit<'a> {
    wanted: &'a Wanted<'a>,
    api: Api,
    repo: ApiRepo,
    sha: &'a str,
}

impl Commit<'_> {
    /// Fetches `file` into the cache, unless it is there.
    fn get(&self, file: &str) -> Result<(), HubError> {
        let target = self.wanted.snapshot(self.sha).join(file);
        if target.exists() {
            return Ok(());
        }
        let total = Cell::new(0);
        let mut tries = 0;
        let path = loop {
            let reporter = Reporter { file, received: 0, total: &total, options: self.wanted.options };
            match self.repo.download_with_progress(file, reporter) {
                Ok(path) => break path,
                Err(error) if tries < RETRIES && self.is_worth_another_try(file, &error) => {
                    std::thread::sleep(Duration::from_millis(250) * 2u32.pow(tries));
                    tries += 1;
                }
                Err(error) => return Err(self.wanted.explain(file, error)),
            }
        };
        self.check_size(file, &path, total.get())
    }

    /// Whether the connection broke; what cannot be resumed is removed, so that the next try starts afresh.
    fn is_worth_another_try(&self, file: &str, error: &ApiError) -> bool {
        match (error, status(error)) {
            (ApiError::InvalidResume, _) | (_, Some(416)) => {
                let Ok(metadata) = self.api.metadata(&self.repo.url(file)) else { return false };
                let blob = self.wanted.cache.repo(self.wanted.repo(self.sha)).blob_path(metadata.etag());
                std::fs::remove_file(blob.with_extension("part")).is_ok()
            }
            (ApiError::IoError(source), _) => !is_disk(source),
            (ApiError::RequestError(_), status) => status.is_none_or(|status| status >= 500),
            _ => false,
        }
    }

    fn check_size(&self, file: &str, path: &Path, expected: u64) -> Result<(), HubError> {
        let found = std::fs::metadata(path).map_err(|source| self.wanted.disk(source))?.len();
        if found == expected {
            return Ok(());
        }
        // The snapshot holds a link: what it points to has to go as well.
        for path in [std::fs::canonicalize(path).as_deref().unwrap_or(path), path] {
            let _ = std::fs::remove_file(path);
        }
        Err(HubError::WrongSize { model: self.wanted.model.to_owned(), file: file.to_owned(), expected, found })
    }
}

/// Passes on what `hf-hub` says of a download.
struct Reporter<'a> {
    file: &'a str,
    received: u64,
    total: &'a Cell<u64>,
    options: &'a HubOptions,
}

impl Reporter<'_> {
    fn report(&self) {
        if let Some(progress) = &self.options.progress {
            progress(HubProgress { file: self.file, received: self.received, total: self.total.get() });
        }
    }
}

impl Progress for Reporter<'_> {
    /// Called twice for each attempt; what an earlier attempt left follows as the first update.
    fn init(&mut self, size: usize, _file: &str) {
        self.received = 0;
        self.total.set(size as u64);
    }

    fn update(&mut self, size: usize) {
        self.received += size as u64;
        self.report();
    }

    fn finish(&mut self) {
        self.report();
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Whether an error is the disk's; those of the network look alike while a body is read.
fn is_disk(error: &std::io::Error) -> bool {
    use ErrorKind::{NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        StorageFull | QuotaExceeded | PermissionDenied | ReadOnlyFilesystem | NotADirectory | ErrorKind::NotFound
    )
}

/// `owner/name`, of the characters that the hub allows.
fn is_model_id(id: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && !part.contains("..")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    id.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// A branch may have slashes in it, as in `refs/pr/1`, but names no other folder.
fn is_revision(revision: &str) -> bool {
    revision.split('/').all(|part| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
    })
}
