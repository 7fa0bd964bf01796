//! What can be wrong with checkpoint files, each with the data that names it.

use std::fmt::Display;
use std::path::PathBuf;

use safetensors::Dtype;

use super::Expected;

/// At most so many lines of each kind are printed; the rest is counted. The error itself holds them all.
const SHOWN: usize = 20;

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file or folder could not be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] sorsa_files::FileError),
    /// The folder holds no weights at all.
    #[error(
        "no weights in {dir}: expected model.safetensors or model.safetensors.index.json, found {}",
        or_nothing(.found)
    )]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// Other safetensors files that are there.
        found: Vec<String>,
    },
    /// The only weights in the folder are pickled.
    #[error(
        "the weights in {dir} are pickled ({}), and a pickled file can run any code when it is read: convert them to \
         safetensors, for example with `model.save_pretrained(dir, safe_serialization=True)`",
        .found.join(", ")
    )]
    Pickled {
        /// The folder.
        dir: PathBuf,
        /// The pickled files.
        found: Vec<String>,
    },
    /// Files that are truncated, corrupt or contradict each other: all that is wrong with them.
    #[error("the checkpoint in {dir} is damaged:{}", lines("", .problems))]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// Everything that was found.
        problems: Vec<Problem>,
    },
    /// The tensors of the files are not those of the model: all differences.
    #[error(
        "the weights in {dir} do not fit the model:{}{}{}",
        lines("missing: ", .missing),
        lines("not part of the model: ", .extra),
        lines("wrong shape: ", .misshapen)
    )]
    Mismatch {
        /// The folder.
        dir: PathBuf,
        /// Tensors of the model that no file holds.
        missing: Vec<Expected>,
        /// Tensors in the files that the model does not have, with the shapes found.
        extra: Vec<Expected>,
        /// Tensors with another shape than the model's.
        misshapen: Vec<Misshapen>,
    },
    /// A tensor was asked for that the checkpoint does not hold.
    #[error("no tensor `{name}` in {dir}")]
    NoTensor {
        /// The tensor.
        name: String,
        /// The folder.
        dir: PathBuf,
    },
    /// A tensor is not made of floating-point numbers that can be read.
    #[error("tensor `{name}` in {file} is {found:?}: expected F32, F16, BF16 or F64")]
    NotFloat {
        /// The tensor.
        name: String,
        /// The file that holds it.
        file: PathBuf,
        /// Its type in the file.
        found: Dtype,
    },
    /// A tensor that was to be transposed has not two dimensions.
    #[error("tensor `{name}` in {file} has shape {found:?}: expected a matrix [d_out, d_in]")]
    NotMatrix {
        /// The tensor.
        name: String,
        /// The file that holds it.
        file: PathBuf,
        /// Its shape in the file.
        found: Vec<usize>,
    },
    /// The same name was given twice to a writer.
    #[error("tensors named twice: {}", .names.join(", "))]
    NamedTwice {
        /// The names.
        names: Vec<String>,
    },
    /// A tensor to write has not as many values as its shape says.
    #[error("tensor `{}` of shape {:?} came with {found} values", .tensor.name, .tensor.shape)]
    WrongLength {
        /// What was to be written.
        tensor: Expected,
        /// Number of values given.
        found: usize,
    },
    /// A number that no code stands for.
    #[error("element {index} of tensor `{name}` is {value}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Position in it, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A finite value would become infinite in the type it is to be written in.
    #[error("value {value} at index {index} of tensor `{name}` is too large for {dtype:?}")]
    TooLarge {
        /// The tensor.
        name: String,
        /// Position in it, row-major.
        index: usize,
        /// The value.
        value: f32,
        /// The type to be written.
        dtype: Dtype,
    },
    /// The caller could not produce a tensor that was to be written.
    #[error("cannot produce tensor `{name}`")]
    Produce {
        /// The tensor.
        name: String,
        /// The caller's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl WeightsError {
    /// For `map_err` at a call that touches `path`.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// One thing that is wrong with one file of a checkpoint. Files are named relative to the checkpoint's folder.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be opened or mapped.
    #[error("{file}: {source}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The index lists a shard that is not there.
    #[error("{file} is missing: the index lists {tensors} tensors in it")]
    MissingShard {
        /// The file.
        file: String,
        /// Number of tensors that the index lists there.
        tensors: usize,
    },
    /// The file is shorter or longer than its header says, or too short for a header.
    #[error("{file} has {found} bytes: expected {expected} from its header (an interrupted download or copy?)")]
    Size {
        /// The file.
        file: String,
        /// Size in bytes that it should have.
        expected: u64,
        /// Size in bytes that it has.
        found: u64,
    },
    /// The first eight bytes announce a header of an absurd length.
    #[error("{file} announces a header of {found} bytes: at most {limit} are allowed (not a safetensors file?)")]
    HeaderTooLarge {
        /// The file.
        file: String,
        /// Announced size in bytes.
        found: u64,
        /// Largest size in bytes that is accepted.
        limit: u64,
    },
    /// The header or the index is not the JSON that it should be.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: String,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// The index names a file outside the folder.
    #[error("{index} lists `{shard}`: expected the name of a .safetensors file in the same folder")]
    ShardName {
        /// The index.
        index: String,
        /// What it lists.
        shard: String,
    },
    /// The index lists a tensor in a shard that does not hold it.
    #[error("{file} does not hold `{tensor}`, which the index lists in it")]
    Absent {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// Two shards hold a tensor of the same name.
    #[error("`{tensor}` is both in {first} and in {second}")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
}

/// A tensor whose shape in the files is not the model's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: expected {expected:?}, found {found:?}")]
pub struct Misshapen {
    /// The tensor.
    pub name: String,
    /// Shape in the model.
    pub expected: Vec<usize>,
    /// Shape in the file.
    pub found: Vec<usize>,
}

/// One indented line for each item, cut after [`SHOWN`].
fn lines<T: Display>(label: &str, items: &[T]) -> String {
    let mut text: String = items.iter().take(SHOWN).map(|item| format!("\n  {label}{item}")).collect();
    if items.len() > SHOWN {
        text += &format!("\n  {label}and {} more", items.len() - SHOWN);
    }
    text
}

fn or_nothing(files: &[String]) -> String {
    if files.is_empty() { "neither".to_owned() } else { files.join(", ") }
}
