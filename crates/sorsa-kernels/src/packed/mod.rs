//! Packed weights: matrices that stay in the format of their file, and are widened in parts where a product needs them.
//!
//! A [`PackedMatrix`] has rows and columns like PyTorch's weight of a linear layer, `[d_out, d_in]`. A [`PackedView`] is its transpose
//! `[d_in, d_out]`, like every other [`Weight`](crate::Weight), or a part of it.

mod product;
#[cfg(test)]
mod tests;
mod view;
mod words;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

pub(crate) use product::multiply;
pub use view::{PackedView, Precision};

use bytes::Bytes;

use crate::blocks::BlockFormat;
use crate::four_bit::{self, CodeBook, NestedScales};

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
}

/// Why a matrix cannot be packed, or its parts are no packed matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// Rows that are not whole blocks.
    #[error("rows of {columns} values are not whole blocks of {format}, which have {block}")]
    PartialBlocks {
        /// The format.
        format: PackedFormat,
        /// Values of a row.
        columns: usize,
        /// Values of a block.
        block: usize,
    },
    /// A part of another size than the shape needs.
    #[error("{part} of a matrix of {shape:?} in {format} should be {expected}, found {found}")]
    Size {
        /// The format.
        format: PackedFormat,
        /// What is counted.
        part: &'static str,
        /// `[rows, columns]`.
        shape: [usize; 2],
        /// The count that the shape needs.
        expected: usize,
        /// The count of the part.
        found: usize,
    },
    /// Words that are no packed matrix.
    #[error("these words are no packed matrix")]
    Words,
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

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let four_bit = [CodeBook::Nf4, CodeBook::Fp4]
            .into_iter()
            .flat_map(|book| [true, false].map(|double_quantization| Self::FourBit { book, double_quantization }));
        four_bit.chain(BlockFormat::ALL.map(Self::Blocks))
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
        }
    }

    /// Whether matrices with rows of `columns` values can have this format.
    pub fn takes_columns(self, columns: usize) -> bool {
        match self {
            Self::Blocks(format) => columns.is_multiple_of(format.block_values()),
            Self::FourBit { .. } => true,
        }
    }

    /// Bytes of a matrix `[rows, columns]`.
    ///
    /// # Errors
    ///
    /// [`PackedError::PartialBlocks`].
    pub fn bytes(self, shape: [usize; 2]) -> Result<usize, PackedError> {
        let [rows, columns] = shape;
        let values = rows * columns;
        match self {
            Self::Blocks(format) => match format.bytes(columns) {
                Some(bytes) => Ok(rows * bytes),
                None => Err(PackedError::PartialBlocks { format: self, columns, block: format.block_values() }),
            },
            Self::FourBit { double_quantization, .. } => {
                let scales = values.div_ceil(four_bit::BLOCK);
                let scale_bytes = match double_quantization {
                    true => scales + 4 * scales.div_ceil(four_bit::NESTED_BLOCK) + 4 * 256 + 4,
                    false => 4 * scales,
                };
                Ok(values.div_ceil(2) + scale_bytes)
            }
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

/// The parts of a matrix in the 4 bits of bitsandbytes.
#[derive(Debug, Clone, PartialEq)]
pub struct FourBitParts {
    /// Whose book it is, to name the format.
    pub book: CodeBook,
    /// The value of each code; a file may bring its own.
    pub values: [f32; 16],
    /// Two codes a byte, the first in the upper half.
    pub codes: Bytes,
    /// Values that share a scale.
    pub block: usize,
    /// The scale of each block.
    pub scales: BlockScales,
}

/// The scales of blocks.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockScales {
    /// f32.
    Single(Vec<f32>),
    /// Packed to 8 bits.
    Nested(NestedScales),
}

#[derive(Debug, PartialEq)]
enum Storage {
    Blocks { format: BlockFormat, bytes: Bytes },
    FourBit(FourBitParts),
}

/// A matrix `[rows, columns]` in a packed format. A clone shares the bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    shape: [usize; 2],
    precision: Precision,
    storage: Arc<Storage>,
}

impl PackedMatrix {
    /// A matrix of whole blocks, row by row.
    ///
    /// # Errors
    ///
    /// [`PackedError`].
    pub fn from_blocks(format: BlockFormat, shape: [usize; 2], bytes: impl Into<Bytes>) -> Result<Self, PackedError> {
        let bytes = bytes.into();
        let packed = PackedFormat::Blocks(format);
        check_size(packed, "the bytes", shape, packed.bytes(shape)?, bytes.len())?;
        Ok(Self { shape, precision: Precision::F32, storage: Arc::new(Storage::Blocks { format, bytes }) })
    }

    /// A matrix of bitsandbytes.
    ///
    /// # Errors
    ///
    /// [`PackedError`].
    pub fn from_four_bit(shape: [usize; 2], parts: FourBitParts) -> Result<Self, PackedError> {
        let format = parts.format();
        let values = shape[0] * shape[1];
        check_size(format, "the codes", shape, values.div_ceil(2), parts.codes.len())?;
        let scales = values.div_ceil(parts.block.max(1));
        match &parts.scales {
            BlockScales::Single(found) => check_size(format, "the scales", shape, scales, found.len())?,
            BlockScales::Nested(nested) => {
                check_size(format, "the scales", shape, scales, nested.codes.len())?;
                let nested_scales = scales.div_ceil(four_bit::NESTED_BLOCK);
                check_size(format, "the scales of scales", shape, nested_scales, nested.scales.len())?;
            }
        }
        Ok(Self { shape, precision: Precision::F32, storage: Arc::new(Storage::FourBit(parts)) })
    }

    /// Packs finite values `[rows, columns]`, row-major.
    ///
    /// # Errors
    ///
    /// [`PackedError`].
    pub fn pack(format: PackedFormat, shape: [usize; 2], values: &[f32]) -> Result<Self, PackedError> {
        check_size(format, "the values", shape, shape[0] * shape[1], values.len())?;
        match format {
            PackedFormat::Blocks(blocks) => {
                let mut bytes = vec![0; format.bytes(shape)?];
                blocks.encode(values, &mut bytes);
                Self::from_blocks(blocks, shape, bytes)
            }
            PackedFormat::FourBit { book, double_quantization } => {
                let (codes, scales) = four_bit::encode(values, book, four_bit::BLOCK);
                let scales = match double_quantization {
                    true => BlockScales::Nested(NestedScales::encode(&scales)),
                    false => BlockScales::Single(scales),
                };
                let parts = FourBitParts { book, values: book.values(), codes: codes.into(), block: four_bit::BLOCK, scales };
                Self::from_four_bit(shape, parts)
            }
        }
    }

    /// The same matrix, whose products widen it to `precision`. Without this, it is [`Precision::F32`].
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// What products widen it to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The format.
    pub fn format(&self) -> PackedFormat {
        match &*self.storage {
            Storage::Blocks { format, .. } => PackedFormat::Blocks(*format),
            Storage::FourBit(parts) => parts.format(),
        }
    }

    /// `[rows, columns]`, which is `[d_out, d_in]` of a linear layer and `[vocabulary, width]` of an embedding.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Bytes in memory.
    pub fn byte_count(&self) -> usize {
        match &*self.storage {
            Storage::Blocks { bytes, .. } => bytes.len(),
            Storage::FourBit(parts) => {
                let scales = match &parts.scales {
                    BlockScales::Single(scales) => 4 * scales.len(),
                    BlockScales::Nested(nested) => nested.codes.len() + 4 * (nested.scales.len() + 256 + 1),
                };
                parts.codes.len() + scales
            }
        }
    }

    /// Widens a part to f32, row-major.
    ///
    /// # Panics
    ///
    /// Panics if the part reaches beyond the matrix, or if `values` has another size than the part.
    pub fn widen(&self, rows: Range<usize>, columns: Range<usize>, values: &mut [f32]) {
        let [all_rows, all_columns] = self.shape;
        assert!(rows.end <= all_rows && columns.end <= all_columns, "a part {rows:?}, {columns:?} of {:?}", self.shape);
        assert_eq!(
            values.len(),
            rows.len() * columns.len(),
            "a part of {} rows and {} columns",
            rows.len(),
            columns.len()
        );
        if values.is_empty() {
            return;
        }
        for (row, values) in rows.zip(values.chunks_exact_mut(columns.len())) {
            match &*self.storage {
                Storage::Blocks { format, bytes } => {
                    let row_bytes = bytes.len() / all_rows;
                    widen_blocks(*format, &bytes[row * row_bytes..][..row_bytes], columns.start, values);
                }
                Storage::FourBit(parts) => parts.widen(row * all_columns + columns.start, values),
            }
        }
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let [rows, columns] = self.shape;
        let mut values = vec![0.0; rows * columns];
        self.widen(0..rows, 0..columns, &mut values);
        values
    }

    /// The parts, if the matrix is in the 4 bits of bitsandbytes.
    pub fn four_bit(&self) -> Option<&FourBitParts> {
        match &*self.storage {
            Storage::FourBit(parts) => Some(parts),
            Storage::Blocks { .. } => None,
        }
    }

    /// The blocks row by row, if the matrix is in one of ggml's formats.
    pub fn blocks(&self) -> Option<(BlockFormat, &[u8])> {
        match &*self.storage {
            Storage::Blocks { format, bytes } => Some((*format, bytes)),
            Storage::FourBit(_) => None,
        }
    }
}

impl FourBitParts {
    fn format(&self) -> PackedFormat {
        let double_quantization = matches!(self.scales, BlockScales::Nested(_));
        PackedFormat::FourBit { book: self.book, double_quantization }
    }

    fn widen(&self, first: usize, values: &mut [f32]) {
        for (index, value) in (first..).zip(values) {
            let byte = self.codes[index / 2];
            let code = if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            *value = self.values[usize::from(code)] * self.scales.scale(index / self.block);
        }
    }
}

impl BlockScales {
    fn scale(&self, block: usize) -> f32 {
        match self {
            Self::Single(scales) => scales[block],
            Self::Nested(nested) => {
                let scale = nested.scales[block / four_bit::NESTED_BLOCK];
                nested.book[usize::from(nested.codes[block])] * scale + nested.offset
            }
        }
    }
}

/// Widens the values of a row of blocks from number `first` on.
fn widen_blocks(format: BlockFormat, row: &[u8], first: usize, values: &mut [f32]) {
    let (block_values, block_bytes) = (format.block_values(), format.block_bytes());
    let mut whole = [0.0; 256];
    let (mut next, mut done) = (first, 0);
    while done < values.len() {
        let (block, skipped) = (next / block_values, next % block_values);
        let bytes = &row[block * block_bytes..][..block_bytes];
        let count = (block_values - skipped).min(values.len() - done);
        let out = &mut values[done..done + count];
        if count == block_values {
            format.decode(bytes, out);
        } else {
            format.decode(bytes, &mut whole[..block_values]);
            out.copy_from_slice(&whole[skipped..skipped + count]);
        }
        (next, done) = (next + count, done + count);
    }
}

fn check_size(
    format: PackedFormat,
    part: &'static str,
    shape: [usize; 2],
    expected: usize,
    found: usize,
) -> Result<(), PackedError> {
    if expected == found { Ok(()) } else { Err(PackedError::Size { format, part, shape, expected, found }) }
}
