//! Where the parts of a packed matrix are among its words: for a program that widens it on another device than the CPU.

use std::ops::Range;

use super::words::MAGIC;
use super::{PackedError, PackedFormat, RoundedTo};
use crate::four_bit;

/// Words that are read at a time.
const WINDOW: usize = 64;

/// The places of the parts of a [`PackedMatrix`](super::PackedMatrix) among the words of
/// [`to_words`](super::PackedMatrix::to_words).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordLayout {
    /// The format.
    pub format: PackedFormat,
    /// `[rows, columns]`.
    pub shape: [usize; 2],
    /// The parts.
    pub parts: WordParts,
}

/// The parts of a packed matrix. A range counts words; bytes start at its first word and may end within its last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WordParts {
    /// The bytes of blocks or of f16 numbers, row by row.
    Rows(Range<usize>),
    /// The 4 bits of bitsandbytes.
    FourBit {
        /// What values are rounded to.
        rounded_to: RoundedTo,
        /// Values that share a scale.
        block: usize,
        /// The value of each code, f32.
        book: Range<usize>,
        /// The bytes of the codes, of which each holds two, the first in its upper half.
        codes: Range<usize>,
        /// The scales of the blocks.
        scales: ScaleWords,
    },
    /// GPTQ or AWQ.
    Grouped {
        /// The bytes of the codes, row by row.
        codes: Range<usize>,
        /// `[rows, groups]`, f32.
        scales: Range<usize>,
        /// The bytes of the zero points `[rows, groups]`.
        zeros: Range<usize>,
        /// The groups of a row.
        groups: usize,
        /// The group of each column.
        columns: GroupWords,
    },
}

/// The scales of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScaleWords {
    /// f32.
    Single(Range<usize>),
    /// The value of a scale is `book[code] * scale + offset`.
    Nested {
        /// The byte of each scale.
        codes: Range<usize>,
        /// The scale of each [`four_bit::NESTED_BLOCK`] codes, f32.
        scales: Range<usize>,
        /// The values of the codes, f32.
        book: Range<usize>,
        /// One f32.
        offset: Range<usize>,
    },
}

/// The group of each column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupWords {
    /// So many neighbours share a group.
    Neighbours(usize),
    /// One number for each column.
    Each(Range<usize>),
}

impl WordLayout {
    /// Reads the layout of a matrix of `count` words. `read` gives the words of a range; it is asked for a few of them.
    ///
    /// # Errors
    ///
    /// [`PackedError::Words`] if the words are no packed matrix.
    pub fn read(count: usize, read: impl Fn(Range<usize>) -> Vec<i32>) -> Result<Self, PackedError> {
        let mut words = Cursor { read, count, position: 0, window: 0..0, found: Vec::new() };
        if words.number()? != MAGIC {
            return Err(PackedError::Words);
        }
        words.number()?;
        let shape = [words.length()?, words.length()?];
        let name = words.name()?;
        let format: PackedFormat = name.parse().map_err(|_| PackedError::Words)?;
        let parts = match format {
            PackedFormat::Blocks(_) | PackedFormat::F16 => WordParts::Rows(words.bytes(format.bytes(shape)?)?),
            PackedFormat::FourBit { double_quantization, .. } => {
                words.four_bit(format.values(shape)?, double_quantization)?
            }
            PackedFormat::Gptq4 | PackedFormat::Gptq8 | PackedFormat::Awq => words.grouped(format, shape)?,
        };
        if words.position != count {
            return Err(PackedError::Words);
        }
        Ok(Self { format, shape, parts })
    }
}

/// Reads words from the first to the last, and skips parts whose size is known.
struct Cursor<R> {
    read: R,
    count: usize,
    position: usize,
    window: Range<usize>,
    found: Vec<i32>,
}

impl<R: Fn(Range<usize>) -> Vec<i32>> Cursor<R> {
    fn number(&mut self) -> Result<u32, PackedError> {
        if self.position >= self.count {
            return Err(PackedError::Words);
        }
        if !self.window.contains(&self.position) {
            self.window = self.position..self.count.min(self.position + WINDOW);
            self.found = (self.read)(self.window.clone());
        }
        let word = self.found[self.position - self.window.start];
        self.position += 1;
        Ok(word.cast_unsigned())
    }

    fn length(&mut self) -> Result<usize, PackedError> {
        let (low, high) = (self.number()?, self.number()?);
        usize::try_from(u64::from(low) | u64::from(high) << 32).map_err(|_| PackedError::Words)
    }

    fn name(&mut self) -> Result<String, PackedError> {
        let length = self.length()?;
        if length > WINDOW {
            return Err(PackedError::Words);
        }
        let mut bytes = Vec::new();
        for _ in 0..length.div_ceil(4) {
            bytes.extend(self.number()?.to_le_bytes());
        }
        bytes.truncate(length);
        String::from_utf8(bytes).map_err(|_| PackedError::Words)
    }

    /// Skips a part of so many bytes, whose length is a word of its own before it.
    fn bytes(&mut self, bytes: usize) -> Result<Range<usize>, PackedError> {
        let start = self.position + 2;
        let end = start.checked_add(bytes.div_ceil(4)).filter(|end| *end <= self.count).ok_or(PackedError::Words)?;
        self.position = end;
        Ok(start..end)
    }

    fn floats(&mut self, floats: usize) -> Result<Range<usize>, PackedError> {
        self.bytes(floats.checked_mul(4).ok_or(PackedError::Words)?)
    }

    fn four_bit(&mut self, values: usize, double_quantization: bool) -> Result<WordParts, PackedError> {
        let rounded_to = match self.number()? {
            0 => RoundedTo::F32,
            1 => RoundedTo::F16,
            2 => RoundedTo::Bf16,
            _ => return Err(PackedError::Words),
        };
        let block = self.length()?;
        if block == 0 {
            return Err(PackedError::Words);
        }
        let (book, codes, blocks) = (self.floats(16)?, self.bytes(values.div_ceil(2))?, values.div_ceil(block));
        let scales = match double_quantization {
            false => ScaleWords::Single(self.floats(blocks)?),
            true => ScaleWords::Nested {
                codes: self.bytes(blocks)?,
                scales: self.floats(blocks.div_ceil(four_bit::NESTED_BLOCK))?,
                book: self.floats(256)?,
                offset: self.floats(1)?,
            },
        };
        Ok(WordParts::FourBit { rounded_to, block, book, codes, scales })
    }

    fn grouped(&mut self, format: PackedFormat, [rows, columns]: [usize; 2]) -> Result<WordParts, PackedError> {
        let row_bytes = if format == PackedFormat::Gptq8 { columns } else { columns.div_ceil(2) };
        let codes = self.bytes(row_bytes.checked_mul(rows).ok_or(PackedError::Words)?)?;
        let scale_bytes = self.length()?;
        let start = self.position;
        let end = start.checked_add(scale_bytes / 4).filter(|end| *end <= self.count).ok_or(PackedError::Words)?;
        self.position = end;
        let scales = start..end;
        let zeros = self.bytes(scales.len())?;
        let columns = match (self.length()?, self.length()?) {
            (0, 0) => return Err(PackedError::Words),
            (neighbours, 0) => GroupWords::Neighbours(neighbours),
            (_, each) => {
                let start = self.position;
                let end = start.checked_add(each).filter(|end| *end <= self.count).ok_or(PackedError::Words)?;
                self.position = end;
                GroupWords::Each(start..end)
            }
        };
        Ok(WordParts::Grouped { codes, groups: scales.len() / rows.max(1), scales, zeros, columns })
    }
}
