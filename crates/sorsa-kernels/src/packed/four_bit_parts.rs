//! A matrix in the 4 bits of bitsandbytes, as its parts.

use bytes::Bytes;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::check_size;
use super::nibbles::{FirstCode, look_up};
use super::{PackedError, PackedFormat};
use crate::four_bit::{self, CodeBook, NestedScales};
use crate::rounding::round;

/// The parts of a matrix in the 4 bits of bitsandbytes. A value is `values[code] * scale` in f32, rounded to `rounded_to`.
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
    /// The dtype of the matrix before it was packed, to which bitsandbytes rounds the values again.
    pub rounded_to: RoundedTo,
}

/// The scales of blocks.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one a matrix: a box would save nothing")]
pub enum BlockScales {
    /// f32.
    Single(Vec<f32>),
    /// Packed to 8 bits.
    Nested(NestedScales),
}

/// A dtype to which values are rounded; ties go to even.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoundedTo {
    /// f32: values stay what they are.
    F32,
    /// f16.
    F16,
    /// bf16.
    Bf16,
}

impl FourBitParts {
    /// Packs finite values, in blocks of [`four_bit::BLOCK`].
    pub(super) fn pack(book: CodeBook, double_quantization: bool, values: &[f32]) -> Self {
        let (codes, scales) = four_bit::encode(values, book, four_bit::BLOCK);
        let scales = match double_quantization {
            true => BlockScales::Nested(NestedScales::encode(&scales)),
            false => BlockScales::Single(scales),
        };
        let (values, codes, block, rounded_to) = (book.values(), codes.into(), four_bit::BLOCK, RoundedTo::F32);
        Self { book, values, codes, block, scales, rounded_to }
    }

    /// Whether the parts have the sizes that the shape needs.
    pub(super) fn check(&self, shape: [usize; 2]) -> Result<(), PackedError> {
        let format = self.format();
        let values = format.values(shape)?;
        if self.block == 0 {
            return Err(PackedError::NoValues { format, part: "blocks" });
        }
        check_size(format, "the codes", shape, values.div_ceil(2), self.codes.len())?;
        let scales = values.div_ceil(self.block);
        match &self.scales {
            BlockScales::Single(found) => check_size(format, "the scales", shape, scales, found.len()),
            BlockScales::Nested(nested) => {
                check_size(format, "the scales", shape, scales, nested.codes.len())?;
                let nested_scales = scales.div_ceil(four_bit::NESTED_BLOCK);
                check_size(format, "the scales of scales", shape, nested_scales, nested.scales.len())
            }
        }
    }

    pub(super) fn format(&self) -> PackedFormat {
        let double_quantization = matches!(self.scales, BlockScales::Nested(_));
        PackedFormat::FourBit { book: self.book, double_quantization }
    }

    pub(super) fn byte_count(&self) -> usize {
        let scales = match &self.scales {
            BlockScales::Single(scales) => 4 * scales.len(),
            BlockScales::Nested(nested) => nested.codes.len() + 4 * (nested.scales.len() + 256 + 1),
        };
        self.codes.len() + scales
    }

    /// Widens the values from number `first` on.
    pub(super) fn widen(&self, first: usize, values: &mut [f32]) {
        let mut next = first;
        let mut rest = values;
        while !rest.is_empty() {
            let block = next / self.block;
            let count = rest.len().min((block + 1) * self.block - next);
            let (values, later) = rest.split_at_mut(count);
            let scaled = self.scaled_book(block);
            look_up(&scaled, &self.codes, FirstCode::Upper, next, values);
            (next, rest) = (next + count, later);
        }
    }

    /// The values of all codes in a block.
    fn scaled_book(&self, block: usize) -> [f32; 16] {
        let scale = self.scales.scale(block);
        let mut scaled = self.values.map(|value| value * scale);
        match self.rounded_to {
            RoundedTo::F32 => {}
            RoundedTo::F16 => {
                let mut halves = [f16::ZERO; 16];
                halves.convert_from_f32_slice(&scaled);
                halves.convert_to_f32_slice(&mut scaled);
            }
            RoundedTo::Bf16 => {
                scaled.iter_mut().for_each(|value| *value = f32::from_bits(u32::from(round(*value)) << 16))
            }
        }
        scaled
    }
}

impl BlockScales {
    /// The scale of a block.
    pub(crate) fn scale(&self, block: usize) -> f32 {
        match self {
            Self::Single(scales) => scales[block],
            Self::Nested(nested) => {
                let scale = nested.scales[block / four_bit::NESTED_BLOCK];
                nested.book[usize::from(nested.codes[block])] * scale + nested.offset
            }
        }
    }
}
