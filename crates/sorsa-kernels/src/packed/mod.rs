//! Packed weights: matrices that stay in the format of their file, and are widened in parts where a product needs them.
//!
//! A [`PackedMatrix`] has rows and columns like PyTorch's weight of a linear layer, `[d_out, d_in]`. A [`PackedView`] is its transpose
//! `[d_in, d_out]`, like every other [`Weight`](crate::Weight), or a part of it.

mod error;
mod format;
mod four_bit_parts;
mod grouped;
mod product;
#[cfg(test)]
mod tests;
mod view;
mod words;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use half::f16;

pub use error::PackedError;
pub use format::{PackedFormat, UnknownPackedFormat};
pub use four_bit_parts::{BlockScales, FourBitParts, RoundedTo};
pub use grouped::{AwqParts, GptqBits, GptqParts, ZeroPoints};
pub(crate) use product::multiply;
pub use view::{PackedView, Precision};

use self::error::check_size;
use self::grouped::Grouped;
use crate::blocks::BlockFormat;

#[derive(Debug, PartialEq)]
enum Storage {
    Blocks {
        format: BlockFormat,
        bytes: Bytes,
    },
    FourBit(FourBitParts),
    /// Little-endian.
    F16(Bytes),
    Grouped(Grouped),
}

/// A matrix `[rows, columns]` in a packed format. A clone shares the bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    shape: [usize; 2],
    precision: Precision,
    storage: Arc<Storage>,
}

impl PackedMatrix {
    fn new(shape: [usize; 2], storage: Storage) -> Self {
        Self { shape, precision: Precision::F32, storage: Arc::new(storage) }
    }

    /// A matrix of whole blocks, row by row.
    ///
    /// # Errors
    ///
    /// [`PackedError`].
    pub fn from_blocks(format: BlockFormat, shape: [usize; 2], bytes: impl Into<Bytes>) -> Result<Self, PackedError> {
        let bytes = bytes.into();
        let packed = PackedFormat::Blocks(format);
        check_size(packed, "the bytes", shape, packed.bytes(shape)?, bytes.len())?;
        Ok(Self::new(shape, Storage::Blocks { format, bytes }))
    }

    /// A matrix of bitsandbytes.
    ///
    /// # Errors
    ///
    /// [`PackedError`].
    pub fn from_four_bit(shape: [usize; 2], parts: FourBitParts) -> Result<Self, PackedError> {
        parts.check(shape)?;
        Ok(Self::new(shape, Storage::FourBit(parts)))
    }

    /// A matrix of f16 numbers, row-major.
    ///
    /// # Errors
    ///
    /// [`PackedError`].
    pub fn from_f16(shape: [usize; 2], values: Vec<f16>) -> Result<Self, PackedError> {
        let format = PackedFormat::F16;
        check_size(format, "the values", shape, format.values(shape)?, values.len())?;
        Ok(Self::new(shape, Storage::F16(values.iter().flat_map(|value| value.to_le_bytes()).collect())))
    }

    /// A matrix of GPTQ.
    ///
    /// # Errors
    ///
    /// [`PackedError`].
    pub fn from_gptq(shape: [usize; 2], parts: GptqParts) -> Result<Self, PackedError> {
        Ok(Self::new(shape, Storage::Grouped(Grouped::from_gptq(shape, parts)?)))
    }

    /// A matrix of AWQ.
    ///
    /// # Errors
    ///
    /// [`PackedError`].
    pub fn from_awq(shape: [usize; 2], parts: AwqParts) -> Result<Self, PackedError> {
        Ok(Self::new(shape, Storage::Grouped(Grouped::from_awq(shape, parts)?)))
    }

    /// Packs finite values `[rows, columns]`, row-major.
    ///
    /// # Errors
    ///
    /// [`PackedError`]; [`PackedError::NotPackable`] of GPTQ and AWQ.
    pub fn pack(format: PackedFormat, shape: [usize; 2], values: &[f32]) -> Result<Self, PackedError> {
        check_size(format, "the values", shape, format.values(shape)?, values.len())?;
        match format {
            PackedFormat::Blocks(blocks) => {
                let mut bytes = vec![0; format.bytes(shape)?];
                blocks.encode(values, &mut bytes);
                Self::from_blocks(blocks, shape, bytes)
            }
            PackedFormat::FourBit { book, double_quantization } => {
                Self::from_four_bit(shape, FourBitParts::pack(book, double_quantization, values))
            }
            PackedFormat::F16 => Self::from_f16(shape, values.iter().map(|value| f16::from_f32(*value)).collect()),
            PackedFormat::Gptq4 | PackedFormat::Gptq8 | PackedFormat::Awq => Err(PackedError::NotPackable { format }),
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
            Storage::F16(_) => PackedFormat::F16,
            Storage::Grouped(grouped) => grouped.format,
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
            Storage::FourBit(parts) => parts.byte_count(),
            Storage::F16(bytes) => bytes.len(),
            Storage::Grouped(grouped) => grouped.byte_count(),
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
                Storage::F16(bytes) => {
                    let stored = bytes[2 * (row * all_columns + columns.start)..].as_chunks().0;
                    values
                        .iter_mut()
                        .zip(stored)
                        .for_each(|(value, bytes)| *value = f16::from_le_bytes(*bytes).to_f32());
                }
                Storage::Grouped(grouped) => grouped.widen(row, all_rows, columns.start, values),
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
            Storage::Blocks { .. } | Storage::F16(_) | Storage::Grouped(_) => None,
        }
    }

    /// The blocks row by row, if the matrix is in one of ggml's formats.
    pub fn blocks(&self) -> Option<(BlockFormat, &[u8])> {
        match &*self.storage {
            Storage::Blocks { format, bytes } => Some((*format, bytes)),
            Storage::FourBit(_) | Storage::F16(_) | Storage::Grouped(_) => None,
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
