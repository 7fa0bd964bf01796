//! Errors, each with all faults that were found.

use std::path::PathBuf;

use sorsa_files::{FileError, FolderError, TensorError};

/// Why an adapter could not be attached, saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The configuration contradicts itself.
    #[error("adapter configuration: {}", faults.join("; "))]
    Config {
        /// Everything found wrong.
        faults: Vec<String>,
    },
    /// Targets match nothing, or ranks do not fit.
    #[error("adapter targets: {}", shorten(faults, 5))]
    Targets {
        /// Everything found wrong.
        faults: Vec<String>,
    },
    /// Weights that cannot be decomposed.
    #[error("decomposition of the weights: {}", shorten(faults, 20))]
    Decomposition {
        /// One line for each matrix.
        faults: Vec<String>,
    },
    /// Adapter tensors and model do not fit each other.
    #[error("{}: the adapter does not fit the model: {}", path.display(), shorten(faults, 20))]
    Mismatch {
        /// The adapter's folder or file.
        path: PathBuf,
        /// Every missing, extra, misshapen or foreign tensor.
        faults: Vec<String>,
    },
    /// Values that are not written, because they are no use to anybody.
    #[error("{}: not written, numbers are not finite: {}", path.display(), shorten(tensors, 5))]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// A line for each tensor with such numbers.
        tensors: Vec<String>,
    },
    /// A file with wrong content.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The expected and the found content.
        reason: String,
    },
    /// A weight that was packed while the model was read, and cannot be read again as it was before.
    #[error("the weight of `{module}` before it was packed: {source}")]
    Original {
        /// Path of the linear layer.
        module: String,
        /// Why it cannot be read.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A folder that an adapter may not replace.
    #[error(transparent)]
    Folder(FolderError),
    /// An error of the operating system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl From<FolderError> for AdapterError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::File(error) => error.into(),
            other => Self::Folder(other),
        }
    }
}

impl From<TensorError> for AdapterError {
    fn from(error: TensorError) -> Self {
        match error {
            TensorError::Io { path, source } => Self::Io { path, source },
            TensorError::Malformed { path, reason } => Self::Malformed { path, reason },
        }
    }
}

impl From<FileError> for AdapterError {
    fn from(error: FileError) -> Self {
        TensorError::from(error).into()
    }
}

/// Joins the first faults and counts the rest.
fn shorten(faults: &[String], limit: usize) -> String {
    let shown = faults.iter().take(limit).map(String::as_str).collect::<Vec<_>>().join("; ");
    match faults.len().saturating_sub(limit) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
