//! Why a model cannot be read.

use std::path::PathBuf;

use sorsa_kernels::packed::PackedFormat;

use crate::ConfigError;
use crate::gguf::GgufError;
use crate::message::listed;
use crate::weights::WeightsError;

/// Why the files of a model cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights of a folder.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file that cannot be written.
    #[error(transparent)]
    File(#[from] sorsa_files::FileError),
    /// A GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Packed weights whose parts do not belong together, or are not supported.
    #[error("the packed weights in {} cannot be read: {}", folder.display(), listed(faults))]
    Packed {
        /// The model's folder.
        folder: PathBuf,
        /// Everything that was found.
        faults: Vec<String>,
    },
    /// A format that dense weights cannot be packed in.
    #[error(
        "weights cannot be packed as {format}, expected one of {}",
        PackedFormat::packable().map(PackedFormat::name).collect::<Vec<_>>().join(", ")
    )]
    NotPackable {
        /// The format.
        format: PackedFormat,
    },
}
