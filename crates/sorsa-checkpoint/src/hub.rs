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

mod cache;
mod client;
mod download;
mod environment;
mod error;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::gguf::parts::PartName;
use crate::weights::{GENERATION_CONFIG, INDEX_FILE, Index, SINGLE_FILE, TOKENIZER_FILES};
use cache::ModelCache;
use client::{Client, FileList, without_credentials};
use download::{Commit, ask};

pub use client::{HubTimeouts, TransferError};
pub use environment::HubEnvironmentError;
pub use error::HubError;

const PUBLIC_HUB: &str = "https://huggingface.co";
const CONFIG: &str = "config.json";
/// A tokenizer is one of these.
const TOKENIZERS: [&str; 3] = ["tokenizer.json", "tokenizer.model", "vocab.json"];

/// Everything but the weights. A model need not have all of them.
fn small_files() -> impl Iterator<Item = &'static str> {
    [CONFIG, GENERATION_CONFIG].into_iter().chain(TOKENIZER_FILES)
}

/// How to reach a hub, and where to keep what comes from it.
///
/// Nothing is read from the environment: a program fills in what `HF_ENDPOINT`, `HF_HOME` and the others say, by
/// [`from_environment`](Self::from_environment).
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Address of the hub; `https://huggingface.co` if absent.
    pub endpoint: Option<String>,
    /// The cache: the folder `hub` in `HF_HOME`, by custom `~/.cache/huggingface/hub`. Needed unless the model is a folder.
    pub cache_dir: Option<PathBuf>,
    /// The access token. It is sent to the hub, and to no other host that the hub redirects to.
    pub token: TokenSource,
    /// How long the hub is waited for.
    pub timeouts: HubTimeouts,
    /// Branch, tag or commit of a model whose name has none; if absent, `main`.
    pub revision: Option<String>,
    /// Whether to take models from the cache only.
    pub offline: bool,
    /// Told how far each download has come.
    pub progress: Option<ProgressCallback>,
}

/// Where an access token comes from.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// There is none.
    #[default]
    None,
    /// The token itself.
    Given(String),
    /// The file that `hf auth login` writes, read if the hub is asked. It need not be there.
    File(PathBuf),
}

impl TokenSource {
    fn read(&self) -> Option<String> {
        let text = match self {
            Self::None => return None,
            Self::Given(token) => token.clone(),
            Self::File(path) => std::fs::read_to_string(path).ok()?,
        };
        clean_token(&text)
    }
}

/// A token without line ends, and without blanks around it; nothing if nothing is left.
fn clean_token(text: &str) -> Option<String> {
    let text = text.replace(['\r', '\n'], "");
    let token = text.trim();
    (!token.is_empty()).then(|| token.to_owned())
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

/// The folder with the files of `model`: `model` itself if it is a folder or a GGUF file, otherwise a snapshot in the cache of the
/// model `owner/name` or `owner/name@revision`, fetched unless it is there already. Of `owner/name:FILE.gguf` and
/// `owner/name@revision:FILE.gguf`, it is that file, fetched with the other parts of a model in several files.
///
/// # Errors
/// Every way in which this can fail is a variant of [`HubError`] that says what to do about it.
pub fn resolve(model: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    if Path::new(model).is_dir() {
        for file in small_files() {
            let path = Path::new(model).join(file);
            if path.exists() && !path.is_file() {
                return Err(HubError::NotAFile { path });
            }
        }
        return Ok(model.into());
    }
    if is_gguf(Path::new(model)) {
        return Ok(model.into());
    }
    let (name, file) = model.split_once(':').map_or((model, None), |(name, file)| (name, Some(file)));
    let (id, revision) = name.split_once('@').map_or((name, None), |(id, revision)| (id, Some(revision)));
    let revision = revision.or(options.revision.as_deref()).unwrap_or("main");
    if Path::new(model).exists() || !is_model_id(id) || !is_revision(revision) || !file.is_none_or(is_gguf_name) {
        return Err(HubError::NotAModel { model: model.to_owned() });
    }
    let cache = match &options.cache_dir {
        Some(dir) => ModelCache::new(&std::path::absolute(dir).unwrap_or_else(|_| dir.clone()), id),
        None => return Err(HubError::NoHome),
    };
    let wanted = Wanted { model, id, revision, cache, options };
    if let Some(file) = file {
        return wanted.gguf(file);
    }

    let snapshot = wanted.cached();
    match snapshot {
        // If there is no tokenizer, another program may have fetched the weights alone.
        Some(folder) if has_tokenizer(&folder) => Ok(folder),
        Some(folder) if options.offline => Ok(folder),
        None if options.offline => {
            Err(HubError::Offline { model: model.to_owned(), cache: wanted.cache.path().to_owned() })
        }
        snapshot => match (wanted.fetch(), snapshot) {
            (Err(HubError::Unreachable { .. }), Some(folder)) => Ok(folder),
            (fetched, _) => fetched,
        },
    }
}

/// Whether [`resolve`] finds `model` without a request to the hub.
pub fn is_local(model: &str, options: &HubOptions) -> bool {
    let offline = HubOptions { offline: true, ..options.clone() };
    resolve(model, &offline).is_ok_and(|found| Path::new(model).exists() || found.is_file() || has_tokenizer(&found))
}

/// Whether this is a file that is called or begins like a GGUF file. Ollama's have no name.
fn is_gguf(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return true;
    }
    let mut begin = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == *b"GGUF"
}

/// Whether this can be the name of a model on a hub, and is no folder.
pub fn is_name(model: &str) -> bool {
    let name = model.split_once(':').map_or(model, |(name, _)| name);
    !Path::new(model).exists() && is_model_id(name.split_once('@').map_or(name, |(id, _)| id))
}

/// Whether this can be a GGUF file of a model, perhaps in a folder.
fn is_gguf_name(file: &str) -> bool {
    file.ends_with(".gguf") && is_revision(file)
}

fn has_tokenizer(folder: &Path) -> bool {
    TOKENIZERS.iter().any(|file| folder.join(file).exists())
}

/// One model in one revision, and where to look for it.
struct Wanted<'a> {
    model: &'a str,
    id: &'a str,
    revision: &'a str,
    cache: ModelCache,
    options: &'a HubOptions,
}

impl Wanted<'_> {
    /// The folder in the cache that holds configuration and weights in full.
    fn cached(&self) -> Option<PathBuf> {
        let folder = self.cache.snapshot(&self.cache.commit(self.revision)?);
        let complete = folder.join(CONFIG).exists()
            && (folder.join(SINGLE_FILE).exists()
                || Index::read(&folder).is_ok_and(|index| index.shards().iter().all(|f| folder.join(f).exists())));
        complete.then_some(folder)
    }

    /// A GGUF file in the cache, with the other parts of its model, fetched unless they are there.
    fn gguf(&self, file: &str) -> Result<PathBuf, HubError> {
        const ASKED: &str = "the list of files";
        let (folder, name) = file.rsplit_once('/').map_or(("", file), |(folder, name)| (folder, name));
        let beside = |name: String| if folder.is_empty() { name } else { format!("{folder}/{name}") };
        let files: Vec<String> = match PartName::parse(name) {
            Some(part) => (1..=part.count).map(|number| beside(part.of_part(number))).collect(),
            None => vec![file.to_owned()],
        };
        let cached = self.cache.commit(self.revision).map(|commit| self.cache.snapshot(&commit));
        let cached = cached.filter(|folder| files.iter().all(|file| folder.join(file).exists()));
        if let Some(folder) = cached {
            return Ok(folder.join(&files[0]));
        }
        if self.options.offline {
            return Err(HubError::Offline { model: self.model.to_owned(), cache: self.cache.path().to_owned() });
        }
        let client = Client::new(self.endpoint(), self.options.token.read(), self.options.timeouts);
        let client = client.map_err(|error| self.unreachable(ASKED, error))?;
        let list = ask(|| client.list(self.id, self.revision)).map_err(|error| self.explain(&client, ASKED, error))?;
        let commit = Commit { wanted: self, client: &client, sha: &list.sha };
        for file in &files {
            if !list.has(file) {
                return Err(self.explain(&client, file, TransferError::Status(404)));
            }
            commit.get(file)?;
        }
        self.cache.set_commit(self.revision, &list.sha).map_err(|source| self.disk(source))?;
        Ok(self.cache.snapshot(&list.sha).join(&files[0]))
    }

    fn fetch(&self) -> Result<PathBuf, HubError> {
        const ASKED: &str = "the list of files";
        let client = Client::new(self.endpoint(), self.options.token.read(), self.options.timeouts);
        let client = client.map_err(|error| self.unreachable(ASKED, error))?;
        let list = ask(|| client.list(self.id, self.revision)).map_err(|error| self.explain(&client, ASKED, error))?;

        // From here on by commit, so that a push in between does not mix two versions.
        let commit = Commit { wanted: self, client: &client, sha: &list.sha };
        for file in small_files() {
            if list.has(file) {
                commit.get(file)?;
            }
        }
        let folder = self.cache.snapshot(&list.sha);
        if list.has(SINGLE_FILE) {
            commit.get(SINGLE_FILE)?;
        } else if list.has(INDEX_FILE) {
            commit.get(INDEX_FILE)?;
            for shard in Index::read(&folder)?.shards() {
                commit.get(shard)?;
            }
        } else {
            return Err(HubError::NoSafetensors { model: self.model.to_owned() });
        }
        self.note(&list).map_err(|source| self.disk(source))?;
        Ok(folder)
    }

    /// Notes in the cache which commit the revision is at, and which files the commit lacks.
    fn note(&self, list: &FileList) -> std::io::Result<()> {
        for file in small_files() {
            if !list.has(file) {
                self.cache.set_absent(&list.sha, file)?;
            }
        }
        self.cache.set_commit(self.revision, &list.sha)
    }

    fn endpoint(&self) -> &str {
        self.options.endpoint.as_deref().unwrap_or(PUBLIC_HUB).trim_end_matches('/')
    }

    fn disk(&self, source: std::io::Error) -> HubError {
        HubError::Cache { path: self.cache.path().to_owned(), source }
    }

    fn unreachable(&self, asked: &str, error: TransferError) -> HubError {
        let (model, asked, endpoint) = (self.model.to_owned(), asked.to_owned(), without_credentials(self.endpoint()));
        HubError::Unreachable { model, asked, endpoint, source: Box::new(error) }
    }

    fn explain(&self, client: &Client, what: &str, error: TransferError) -> HubError {
        let (model, asked, endpoint) = (self.model.to_owned(), what.to_owned(), without_credentials(self.endpoint()));
        match error {
            TransferError::Disk(source) => self.disk(source),
            TransferError::BadAnswer(reason) => HubError::BadAnswer { model, asked, endpoint, reason },
            TransferError::Status(404) => {
                HubError::NotFound { model, asked, revision: self.revision.to_owned(), endpoint }
            }
            TransferError::Status(status @ (401 | 403)) => {
                HubError::Refused { model, asked, endpoint, status, with_token: client.has_token() }
            }
            error => self.unreachable(what, error),
        }
    }
}

/// `owner/name`, of the characters that the hub allows.
fn is_model_id(id: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && !part.contains("..")
            && !part.contains("--")
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
