//! Why a model could not be had.

use std::path::PathBuf;

use super::client::TransferError;
use crate::weights::WeightsError;

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is neither a folder nor can it be a model on a hub.
    #[error("`{model}` is neither a folder nor the name of a model: expected a path or `owner/name[@revision]`")]
    NotAModel {
        /// What was asked for.
        model: String,
    },
    /// A file of a model's folder is a pipe, a device or a folder.
    #[error("{}: expected a file, found a folder, a pipe, a socket or a device", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
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
        source: Box<TransferError>,
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
    /// The hub answered with what no hub should say. Nothing of the answer was written.
    #[error("the answer of {endpoint} for {asked} of `{model}` is not that of a hub: {reason}")]
    BadAnswer {
        /// What was asked for.
        model: String,
        /// The part of it that was asked for.
        asked: String,
        /// The hub.
        endpoint: String,
        /// What is wrong with the answer.
        reason: String,
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
    /// A file arrived with another content than the hub has.
    #[error(
        "{file} of `{model}` arrived damaged: expected {kind} {expected}, found {found}; it was removed, try again"
    )]
    WrongHash {
        /// What was asked for.
        model: String,
        /// The file.
        file: String,
        /// The kind of hash.
        kind: &'static str,
        /// The hash that the hub named.
        expected: String,
        /// The hash of what arrived.
        found: String,
    },
    /// Another process is downloading the same file, and its download does not go on.
    #[error("another process holds {path} and downloads nothing: end it, or wait for it")]
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
