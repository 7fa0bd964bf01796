//! Reading and writing Hugging Face checkpoint files.
//!
//! A [`Checkpoint`] is `model.safetensors`, or the shards that `model.safetensors.index.json` lists,
//! checked before the first number is read. A [`CheckpointWriter`] makes the same files. Neither knows
//! a model: names and shapes come from the caller, as [`Expected`].
//!
//! ```
//! use sorsa_checkpoint::WeightFormat;
//! use sorsa_checkpoint::weights::{Checkpoint, CheckpointWriter, Expected, WeightsError};
//!
//! # fn main() -> Result<(), WeightsError> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let dir = folder.path();
//! let tensors = [Expected::new("proj.weight", [2, 3])];
//! CheckpointWriter::new(dir, WeightFormat::Bf16)
//!     .write(&tensors, |_| Ok::<_, WeightsError>(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))?;
//!
//! let checkpoint = Checkpoint::open(dir)?;
//! checkpoint.check(&tensors, |_| false)?;
//! // PyTorch stores `[d_out, d_in]`; burn multiplies by `[d_in, d_out]`.
//! assert_eq!(checkpoint.to_f32_transposed("proj.weight")?, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
//! # Ok(())
//! # }
//! ```

mod decode;
mod error;
mod expect;
mod folder;
mod four_bit;
mod header;
mod index;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use decode::{Decode, Number, Numbers, first_non_finite};
pub use error::{Misshapen, Problem, WeightsError};
pub use expect::{Expected, ignorable};
pub use folder::{CHAT_TEMPLATES, GENERATION_CONFIG, ModelFolder, TOKENIZER_FILES};
pub use reader::{Checkpoint, TensorInfo};
pub use safetensors::Dtype;
pub use writer::CheckpointWriter;

pub(crate) use decode::{Bytes, Section, decode, decode_transposed, read_exact_at, widened, widened_transposed};
pub(crate) use expect::{Differences, HEADS};
pub(crate) use index::Index;

/// Name of a checkpoint that is one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the list of shards of a checkpoint that is several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
