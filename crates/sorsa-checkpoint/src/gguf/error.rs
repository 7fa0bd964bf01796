//! What can be wrong while a GGUF file is written or read.

use crate::message::listed;
use std::path::PathBuf;

use sorsa_kernels::packed::PackedFormat;

use super::GgufType;
use crate::weights::WeightsError;

/// Why a GGUF file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] sorsa_files::FileError),
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The checkpoint, or the file to write.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file beside the weights is not JSON.
    #[error("{}: should be JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        source: serde_json::Error,
    },
    /// The model is of a kind that llama.cpp, or this exporter, does not know.
    #[error("{} cannot be written as GGUF: {}", folder.display(), listed(faults))]
    Unsupported {
        /// The model's folder.
        folder: PathBuf,
        /// Everything that stands against it.
        faults: Vec<String>,
    },
    /// The file is of a kind that is not known here.
    #[error("{}: this model cannot be read: {}", path.display(), shorten(faults))]
    NotImported {
        /// The file.
        path: PathBuf,
        /// Everything that stands against it.
        faults: Vec<String>,
    },
    /// Low-rank modules that do not fit the model.
    #[error("the adapter cannot be written as GGUF: {}", listed(faults))]
    Adapter {
        /// Everything found wrong.
        faults: Vec<String>,
    },
    /// A weight that is no number.
    #[error("`{name}` element {index} is {value}")]
    NotFinite {
        /// The tensor, by its name in the GGUF file.
        name: String,
        /// Position in it, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A finite value would become infinite in the type it is to be written in.
    #[error("value {value} at index {index} of tensor `{name}` is too large for {dtype}")]
    TooLarge {
        /// The tensor.
        name: String,
        /// Position in it, row-major.
        index: usize,
        /// The value.
        value: f32,
        /// The type to be written.
        dtype: GgufType,
    },
    /// A tensor came with another number of values than its shape says.
    #[error("tensor `{name}` of shape {shape:?} came with {found} values")]
    WrongLength {
        /// The tensor.
        name: String,
        /// Its shape, row-major.
        shape: Vec<usize>,
        /// Number of values given.
        found: usize,
    },
    /// A tensor came as a packed matrix of another format or shape.
    #[error("tensor `{name}` should be {dtype} of shape {shape:?}, found {found} of shape {found_shape:?}")]
    WrongMatrix {
        /// The tensor.
        name: String,
        /// Its type in the file.
        dtype: GgufType,
        /// Its shape, row-major.
        shape: Vec<usize>,
        /// The format of the matrix.
        found: PackedFormat,
        /// The shape of the matrix.
        found_shape: [usize; 2],
    },
    /// A tensor that the format cannot hold: other than one to four axes, or rows that are not whole blocks.
    #[error("tensor `{name}` of shape {shape:?} cannot be stored as {dtype}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape, row-major.
        shape: Vec<usize>,
        /// The type to be written.
        dtype: GgufType,
    },
    /// Keys or tensors given twice to a writer.
    #[error("named twice: {}", names.join(", "))]
    NamedTwice {
        /// The names.
        names: Vec<String>,
    },
    /// A file that is truncated, corrupt or no GGUF file at all.
    #[error("{}: at byte {offset}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where the reader stood.
        offset: usize,
        /// What it expected and found.
        reason: String,
    },
    /// A tensor was asked for that the file does not hold, or not in a type that can be decoded.
    #[error("{}: no tensor `{name}` of a type that can be read", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
}

impl GgufError {
    /// For `map_err` at a call that touches `path`.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// The first five faults and the number of the others.
fn shorten(faults: &[String]) -> String {
    let shown = faults.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("; ");
    match faults.len().saturating_sub(5) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
