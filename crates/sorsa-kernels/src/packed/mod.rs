//! Packed weights: matrices that stay in the format of their file, and are widened in parts where a product needs them.
//!
//! A [`PackedMatrix`] has rows and columns like PyTorch's weight of a linear layer, `[d_out, d_in]`. A [`PackedView`] is its transpose
//! `[d_in, d_out]`, like every other [`Weight`](crate::Weight), or a part of it.

mod error;
mod format;
mod four_bit_parts;
mod grouped;
mod layout;
mod nibbles;
mod product;
#[cfg(test)]
mod tests;
mod view;
mod words;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

pub use error::PackedError;
pub use format::{PackedFormat, UnknownPackedFormat};
pub use four_bit_parts::{BlockScales, FourBitParts, RoundedTo};
pub use grouped::{AwqParts, GptqBits, GptqParts, ZeroPoints};
pub(crate) use grouped::{ColumnGroups, Grouped};
pub use layout::{GroupWords, ScaleWords, WordLayout, WordParts};
pub(crate) use product::multiply;
pub(crate) use view::Orientation;
pub use view::{PackedView, Precision};

use self::error::check_size;
use crate::blocks::BlockFormat;
use crate::rounding::round;
use crate::simd::wide;
#[cfg(target_arch = "x86_64")]
use crate::{avx512, panels::Left};

/// Values that kernels widen at a time; they share a scale, or each half of them does.
pub(crate) const PIECE: usize = 32;
/// The least rows that are widened by one task.
const ROWS_OF_A_TASK: usize = 8;

#[derive(Debug, PartialEq)]
pub(crate) enum Storage {
    Blocks {
        format: BlockFormat,
        bytes: Bytes,
    },
    FourBit(Box<FourBitParts>),
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
        Ok(Self::new(shape, Storage::FourBit(Box::new(parts))))
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
        #[cfg(target_arch = "x86_64")]
        if avx512::has_f32()
            && let Some(pieces) = self.pieces(&columns)
        {
            return avx512::widen_f32(&self.storage, all_columns, rows, pieces, values);
        }
        self.widen_portable(rows, columns, values);
    }

    /// Widens a part and rounds it to bf16, row-major.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels of AVX-512 take bf16"))]
    pub(crate) fn widen_bf16(&self, rows: Range<usize>, columns: Range<usize>, values: &mut [bf16]) {
        #[cfg(target_arch = "x86_64")]
        if avx512::has_bf16()
            && let Some(pieces) = self.pieces(&columns)
        {
            return avx512::widen_bf16(&self.storage, self.shape[1], rows, pieces, values);
        }
        let mut widened = vec![0.0; values.len()];
        self.widen(rows, columns, &mut widened);
        wide(
            #[inline(always)]
            || values.iter_mut().zip(&widened).for_each(|(value, wide)| *value = bf16::from_bits(round(*wide))),
        );
    }

    /// Adds to `sums` `[rows of x, rows]` the inner products of `x` with some columns of some rows, without widening a tile. Returns whether it
    /// could: few rows of `x`, whole pieces, AVX-512.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn add_dots_f32(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        x: Left<'_, f32>,
        sums: &mut [f32],
    ) -> bool {
        match self.pieces(&columns) {
            Some(pieces) if avx512::has_f32() && x.rows <= avx512::MOST_DOTS => {
                avx512::add_dots_f32(&self.storage, self.shape[1], rows, pieces, x, sums);
                true
            }
            _ => false,
        }
    }

    /// Like [`add_dots_f32`](Self::add_dots_f32), of values rounded to bf16; the units of `x` are pairs of neighbours.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn add_dots_bf16(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        x: Left<'_, u32>,
        sums: &mut [f32],
    ) -> bool {
        match self.pieces(&columns) {
            Some(pieces) if avx512::has_bf16() && x.rows <= avx512::MOST_DOTS => {
                avx512::add_dots_bf16(&self.storage, self.shape[1], rows, pieces, x, sums);
                true
            }
            _ => false,
        }
    }

    /// Widens rows to f32, in the order of `rows`, on all threads: the lookup of an embedding.
    ///
    /// # Panics
    ///
    /// Panics if the matrix has no such row.
    pub fn widen_rows(&self, rows: &[usize]) -> Vec<f32> {
        let columns = self.shape[1];
        let mut values = vec![0.0; rows.len() * columns];
        let by_row = values.par_chunks_exact_mut(columns.max(1)).zip(rows).with_min_len(ROWS_OF_A_TASK);
        by_row.for_each(|(values, row)| self.widen(*row..*row + 1, 0..columns, values));
        values
    }

    /// The pieces of each row that are these columns, if the columns are whole pieces and no piece has two scales.
    #[cfg(target_arch = "x86_64")]
    fn pieces(&self, columns: &Range<usize>) -> Option<Range<usize>> {
        let one_scale = match &*self.storage {
            Storage::Blocks { .. } | Storage::F16(_) => true,
            Storage::FourBit(parts) => {
                self.shape[1].is_multiple_of(PIECE) && parts.block.is_power_of_two() && parts.block >= PIECE
            }
            Storage::Grouped(grouped) => match &grouped.columns {
                ColumnGroups::Neighbours(group) => group.is_multiple_of(PIECE),
                ColumnGroups::Each(_) => false,
            },
        };
        let whole = columns.start.is_multiple_of(PIECE) && columns.end.is_multiple_of(PIECE);
        (one_scale && whole).then_some(columns.start / PIECE..columns.end / PIECE)
    }

    /// The address of the byte that holds an element, or of the first of several.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels of AVX-512 prefetch"))]
    pub(crate) fn address(&self, row: usize, column: usize) -> *const u8 {
        let index = row * self.shape[1] + column;
        match &*self.storage {
            Storage::Blocks { format, bytes } => &bytes[index / format.block_values() * format.block_bytes()],
            Storage::FourBit(parts) => &parts.codes[index / 2],
            Storage::F16(bytes) => &bytes[2 * index],
            Storage::Grouped(grouped) => {
                let column = if grouped.has_bytes() { column } else { column / 2 };
                &grouped.codes[row * grouped.row_bytes(self.shape[1]) + column]
            }
        }
    }

    /// [`widen`](Self::widen) without AVX-512, of at least one value.
    fn widen_portable(&self, rows: Range<usize>, columns: Range<usize>, values: &mut [f32]) {
        let [all_rows, all_columns] = self.shape;
        let by_row = rows.zip(values.chunks_exact_mut(columns.len()));
        match &*self.storage {
            Storage::Blocks { format, bytes } => {
                let row_bytes = bytes.len() / all_rows;
                for (row, values) in by_row {
                    format.decode_part(&bytes[row * row_bytes..][..row_bytes], columns.start, values);
                }
            }
            Storage::FourBit(parts) => {
                for (row, values) in by_row {
                    parts.widen(row * all_columns + columns.start, values);
                }
            }
            Storage::F16(stored) => {
                for (row, values) in by_row {
                    let first = 2 * (row * all_columns + columns.start);
                    widen_f16(&stored[first..][..2 * columns.len()], values);
                }
            }
            Storage::Grouped(grouped) => {
                for (row, values) in by_row {
                    grouped.widen(row, all_columns, columns.start, values);
                }
            }
        }
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let [rows, columns] = self.shape;
        let mut values = vec![0.0; rows * columns];
        let by_rows = values.par_chunks_mut((ROWS_OF_A_TASK * columns).max(1)).enumerate();
        by_rows.for_each(|(task, values)| {
            let first = task * ROWS_OF_A_TASK;
            self.widen(first..rows.min(first + ROWS_OF_A_TASK), 0..columns, values);
        });
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

/// Widens little-endian f16 numbers.
fn widen_f16(bytes: &[u8], values: &mut [f32]) {
    let mut halves = [f16::ZERO; PIECE];
    for (bytes, values) in bytes.chunks(2 * PIECE).zip(values.chunks_mut(PIECE)) {
        let halves = &mut halves[..values.len()];
        halves.iter_mut().zip(bytes.as_chunks().0).for_each(|(half, bytes)| *half = f16::from_le_bytes(*bytes));
        halves.convert_to_f32_slice(values);
    }
}
