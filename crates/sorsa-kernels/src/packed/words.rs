//! A packed matrix as one buffer of 32-bit words, which a tensor of integers can hold: a header, then each part from a whole word on.

use bytes::Bytes;

use super::error::check_size;
use super::grouped::{ColumnGroups, Grouped};
use super::{BlockScales, FourBitParts, PackedError, PackedFormat, PackedMatrix, Precision, RoundedTo, Storage};
use crate::four_bit::{CodeBook, NestedScales};

/// The first word: "spk1".
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"spk1");

impl PackedMatrix {
    /// Everything about the matrix as words of 32 bits.
    pub fn to_words(&self) -> Vec<i32> {
        let mut words = Writer::default();
        let [rows, columns] = self.shape;
        words.number(MAGIC);
        words.number(match self.precision {
            Precision::F32 => 0,
            Precision::Bf16 => 1,
        });
        words.length(rows);
        words.length(columns);
        words.bytes(self.format().name().as_bytes());
        match &*self.storage {
            Storage::Blocks { bytes, .. } => words.bytes(bytes),
            Storage::F16(bytes) => words.bytes(bytes),
            Storage::Grouped(grouped) => {
                words.bytes(&grouped.codes);
                words.floats(&grouped.scales);
                words.bytes(&grouped.zeros);
                match &grouped.columns {
                    ColumnGroups::Neighbours(group) => {
                        words.length(*group);
                        words.length(0);
                    }
                    ColumnGroups::Each(groups) => {
                        words.length(0);
                        words.length(groups.len());
                        groups.iter().for_each(|group| words.number(*group));
                    }
                }
            }
            Storage::FourBit(parts) => {
                words.number(match parts.rounded_to {
                    RoundedTo::F32 => 0,
                    RoundedTo::F16 => 1,
                    RoundedTo::Bf16 => 2,
                });
                words.length(parts.block);
                words.floats(&parts.values);
                words.bytes(&parts.codes);
                match &parts.scales {
                    BlockScales::Single(scales) => words.floats(scales),
                    BlockScales::Nested(nested) => {
                        words.bytes(&nested.codes);
                        words.floats(&nested.scales);
                        words.floats(&nested.book);
                        words.floats(std::slice::from_ref(&nested.offset));
                    }
                }
            }
        }
        words.into_words()
    }

    /// The matrix of the little-endian bytes of [`to_words`](Self::to_words), which it shares with the `owner`.
    ///
    /// # Errors
    ///
    /// [`PackedError::Words`] if the bytes are no packed matrix.
    pub fn from_words(owner: impl AsRef<[u8]> + Send + 'static) -> Result<Self, PackedError> {
        let mut words = Reader { bytes: Bytes::from_owner(owner), position: 0 };
        if words.number()? != MAGIC {
            return Err(PackedError::Words);
        }
        let precision = match words.number()? {
            0 => Precision::F32,
            1 => Precision::Bf16,
            _ => return Err(PackedError::Words),
        };
        let shape = [words.length()?, words.length()?];
        let name = words.bytes()?;
        let name = std::str::from_utf8(&name).map_err(|_| PackedError::Words)?;
        let matrix = match name.parse().map_err(|_| PackedError::Words)? {
            PackedFormat::Blocks(format) => Self::from_blocks(format, shape, words.bytes()?)?,
            PackedFormat::FourBit { book, double_quantization } => {
                Self::from_four_bit(shape, words.four_bit(book, double_quantization)?)?
            }
            PackedFormat::F16 => {
                let (bytes, values) = (words.bytes()?, PackedFormat::F16.values(shape)?);
                check_size(PackedFormat::F16, "the bytes", shape, 2 * values, bytes.len())?;
                Self::new(shape, Storage::F16(bytes))
            }
            format @ (PackedFormat::Gptq4 | PackedFormat::Gptq8 | PackedFormat::Awq) => {
                Self::new(shape, Storage::Grouped(words.grouped(format, shape)?))
            }
        };
        Ok(matrix.with_precision(precision))
    }
}

/// What becomes words, in order.
#[derive(Default)]
struct Writer<'a>(Vec<Part<'a>>);

enum Part<'a> {
    Number(u32),
    Bytes(&'a [u8]),
    Floats(&'a [f32]),
}

impl<'a> Writer<'a> {
    fn number(&mut self, value: u32) {
        self.0.push(Part::Number(value));
    }

    fn length(&mut self, value: usize) {
        let value = value as u64;
        self.number(value as u32);
        self.number((value >> 32) as u32);
    }

    fn bytes(&mut self, bytes: &'a [u8]) {
        self.length(bytes.len());
        self.0.push(Part::Bytes(bytes));
    }

    fn floats(&mut self, values: &'a [f32]) {
        self.length(4 * values.len());
        self.0.push(Part::Floats(values));
    }

    /// The words in a buffer of their own size: one that grew would hold up to twice of that for as long as the weight lives.
    fn into_words(self) -> Vec<i32> {
        let mut words = Vec::with_capacity(self.0.iter().map(Part::words).sum());
        for part in self.0 {
            match part {
                Part::Number(value) => words.push(value.cast_signed()),
                Part::Bytes(bytes) => {
                    let (whole, rest) = bytes.as_chunks::<4>();
                    words.extend(whole.iter().map(|word| i32::from_le_bytes(*word)));
                    if !rest.is_empty() {
                        let mut last = [0; 4];
                        last[..rest.len()].copy_from_slice(rest);
                        words.push(i32::from_le_bytes(last));
                    }
                }
                Part::Floats(values) => words.extend(values.iter().map(|value| value.to_bits().cast_signed())),
            }
        }
        words
    }
}

impl Part<'_> {
    fn words(&self) -> usize {
        match self {
            Self::Number(_) => 1,
            Self::Bytes(bytes) => bytes.len().div_ceil(4),
            Self::Floats(values) => values.len(),
        }
    }
}

struct Reader {
    bytes: Bytes,
    position: usize,
}

impl Reader {
    fn take(&mut self, count: usize) -> Result<Bytes, PackedError> {
        let end = self.position.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or(PackedError::Words)?;
        let part = self.bytes.slice(self.position..end);
        self.position = end.next_multiple_of(4);
        Ok(part)
    }

    fn number(&mut self) -> Result<u32, PackedError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes[..].try_into().expect("4 bytes")))
    }

    fn length(&mut self) -> Result<usize, PackedError> {
        let (low, high) = (self.number()?, self.number()?);
        usize::try_from(u64::from(low) | u64::from(high) << 32).map_err(|_| PackedError::Words)
    }

    fn bytes(&mut self) -> Result<Bytes, PackedError> {
        let count = self.length()?;
        self.take(count)
    }

    fn floats(&mut self) -> Result<Vec<f32>, PackedError> {
        let bytes = self.bytes()?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn four_bit(&mut self, book: CodeBook, double_quantization: bool) -> Result<FourBitParts, PackedError> {
        let rounded_to = match self.number()? {
            0 => RoundedTo::F32,
            1 => RoundedTo::F16,
            2 => RoundedTo::Bf16,
            _ => return Err(PackedError::Words),
        };
        let block = self.length()?;
        let values = self.floats()?.try_into().map_err(|_| PackedError::Words)?;
        let codes = self.bytes()?;
        let scales = match double_quantization {
            false => BlockScales::Single(self.floats()?),
            true => BlockScales::Nested(NestedScales {
                codes: self.bytes()?.to_vec(),
                scales: self.floats()?,
                book: self.floats()?.try_into().map_err(|_| PackedError::Words)?,
                offset: self.floats()?.first().copied().ok_or(PackedError::Words)?,
            }),
        };
        Ok(FourBitParts { book, values, codes, block, scales, rounded_to })
    }

    fn grouped(&mut self, format: PackedFormat, [d_out, d_in]: [usize; 2]) -> Result<Grouped, PackedError> {
        let (codes, scales, zeros) = (self.bytes()?, self.floats()?, self.bytes()?);
        let (neighbours, each) = (self.length()?, self.length()?);
        let columns = match each {
            0 if neighbours > 0 => ColumnGroups::Neighbours(neighbours),
            0 => return Err(PackedError::Words),
            count => {
                let bytes = self.take(count.checked_mul(4).ok_or(PackedError::Words)?)?;
                ColumnGroups::Each(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
            }
        };
        let groups = scales.len() / d_out.max(1);
        let last_group = match &columns {
            ColumnGroups::Neighbours(group) => d_in.saturating_sub(1) / group,
            ColumnGroups::Each(groups) => groups.iter().max().map_or(0, |group| *group as usize),
        };
        let row_bytes = if format == PackedFormat::Gptq8 { d_in } else { d_in.div_ceil(2) };
        let is_whole = Some(codes.len()) == row_bytes.checked_mul(d_out)
            && scales.len() == groups * d_out
            && zeros.len() == scales.len()
            && last_group < groups
            && (each == 0 || each == d_in);
        if !is_whole {
            return Err(PackedError::Words);
        }
        Ok(Grouped { format, codes, scales, zeros: zeros.to_vec(), groups, columns })
    }
}
