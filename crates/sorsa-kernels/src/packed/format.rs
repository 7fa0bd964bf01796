//! The formats of packed weights and their names.

use std::fmt;
use std::str::FromStr;

use super::PackedError;
use crate::blocks::BlockFormat;
use crate::four_bit::{self, CodeBook};

/// A format of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedFormat {
    /// ggml's blocks. Each row is whole blocks.
    Blocks(BlockFormat),
    /// The 4 bits of bitsandbytes, in blocks of [`four_bit::BLOCK`] values that run over the ends of rows.
    FourBit {
        /// The values of the codes.
        book: CodeBook,
        /// Whether the scales are packed to 8 bits.
        double_quantization: bool,
    },
    /// f16 numbers.
    F16,
    /// GPTQ's codes of 4 bits, with a scale and a zero point for each row and group of columns.
    Gptq4,
    /// GPTQ's codes of 8 bits.
    Gptq8,
    /// AWQ's codes of 4 bits, with a scale and a zero point for each row and group of columns.
    Awq,
}

/// A name that is no packed format's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown packed format `{name}`, expected one of {}", PackedFormat::names().join(", "))]
pub struct UnknownPackedFormat {
    /// The name.
    pub name: String,
}

impl PackedFormat {
    /// NF4 with double quantization, the usual format of QLoRA (arXiv:2305.14314).
    pub const NF4: Self = Self::FourBit { book: CodeBook::Nf4, double_quantization: true };

    /// All of them, those first that [`PackedMatrix::pack`](super::PackedMatrix::pack) can make.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::packable().chain([Self::Gptq4, Self::Gptq8, Self::Awq])
    }

    /// The formats that [`PackedMatrix::pack`](super::PackedMatrix::pack) can make.
    pub fn packable() -> impl Iterator<Item = Self> {
        let four_bit = [CodeBook::Nf4, CodeBook::Fp4]
            .into_iter()
            .flat_map(|book| [true, false].map(|double_quantization| Self::FourBit { book, double_quantization }));
        four_bit.chain(BlockFormat::ALL.map(Self::Blocks)).chain([Self::F16])
    }

    /// The names of all formats.
    pub fn names() -> Vec<&'static str> {
        Self::all().map(Self::name).collect()
    }

    /// The name in recipes and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocks(format) => format.name(),
            Self::FourBit { book: CodeBook::Nf4, double_quantization: true } => "nf4",
            Self::FourBit { book: CodeBook::Nf4, double_quantization: false } => "nf4-single",
            Self::FourBit { book: CodeBook::Fp4, double_quantization: true } => "fp4",
            Self::FourBit { book: CodeBook::Fp4, double_quantization: false } => "fp4-single",
            Self::F16 => "f16",
            Self::Gptq4 => "gptq4",
            Self::Gptq8 => "gptq8",
            Self::Awq => "awq",
        }
    }

    /// Whether [`PackedMatrix::pack`](super::PackedMatrix::pack) can make matrices of this format. GPTQ and AWQ choose their codes
    /// by the activations of a model, so their matrices come from files alone.
    pub fn is_packable(self) -> bool {
        !matches!(self, Self::Gptq4 | Self::Gptq8 | Self::Awq)
    }

    /// Whether matrices with rows of `columns` values can have this format.
    pub fn takes_columns(self, columns: usize) -> bool {
        match self {
            Self::Blocks(format) => columns.is_multiple_of(format.block_values()),
            Self::Gptq4 => columns.is_multiple_of(8),
            Self::Gptq8 => columns.is_multiple_of(4),
            Self::FourBit { .. } | Self::F16 | Self::Awq => true,
        }
    }

    /// Bytes of a matrix `[rows, columns]` like [`PackedMatrix::pack`](super::PackedMatrix::pack) makes it.
    ///
    /// # Errors
    ///
    /// [`PackedError::PartialBlocks`], [`PackedError::TooLarge`], [`PackedError::NotPackable`].
    pub fn bytes(self, shape: [usize; 2]) -> Result<usize, PackedError> {
        let columns = shape[1];
        let values = self.values(shape)?;
        match self {
            Self::Blocks(format) if !columns.is_multiple_of(format.block_values()) => {
                Err(PackedError::PartialBlocks { format: self, columns, block: format.block_values() })
            }
            Self::Blocks(format) => format.bytes(values).ok_or(PackedError::TooLarge { format: self, shape }),
            Self::FourBit { double_quantization, .. } => {
                let scales = values.div_ceil(four_bit::BLOCK);
                let scale_bytes = match double_quantization {
                    true => scales + 4 * scales.div_ceil(four_bit::NESTED_BLOCK) + 4 * 256 + 4,
                    false => 4 * scales,
                };
                Ok(values.div_ceil(2) + scale_bytes)
            }
            Self::F16 => Ok(2 * values),
            Self::Gptq4 | Self::Gptq8 | Self::Awq => Err(PackedError::NotPackable { format: self }),
        }
    }

    /// The number of values of a matrix.
    ///
    /// # Errors
    ///
    /// [`PackedError::TooLarge`] if their f32 would not fit any memory.
    pub(super) fn values(self, shape: [usize; 2]) -> Result<usize, PackedError> {
        match shape[0].checked_mul(shape[1]) {
            Some(values) if values <= isize::MAX as usize / size_of::<f32>() => Ok(values),
            _ => Err(PackedError::TooLarge { format: self, shape }),
        }
    }
}

impl fmt::Display for PackedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PackedFormat {
    type Err = UnknownPackedFormat;

    fn from_str(name: &str) -> Result<Self, UnknownPackedFormat> {
        Self::all().find(|format| format.name() == name).ok_or_else(|| UnknownPackedFormat { name: name.to_owned() })
    }
}
