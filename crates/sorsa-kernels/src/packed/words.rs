//! A packed matrix as one buffer of 32-bit words, which a tensor of integers can hold: a header, then each part from a whole word on.

use bytes::Bytes;

use super::{BlockScales, FourBitParts, PackedError, PackedFormat, PackedMatrix, Precision, Storage};
use crate::four_bit::{CodeBook, NestedScales};

/// The first word: "spk1".
const MAGIC: u32 = u32::from_le_bytes(*b"spk1");

impl PackedMatrix {
    /// Everything about the matrix as words of 32 bits.
    pub fn to_words(&self) -> Vec<i32> {
        let mut words = Writer(Vec::new());
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
            Storage::FourBit(parts) => {
                words.length(parts.block);
                words.floats(&parts.values);
                words.bytes(&parts.codes);
                match &parts.scales {
                    BlockScales::Single(scales) => words.floats(scales),
                    BlockScales::Nested(nested) => {
                        words.bytes(&nested.codes);
                        words.floats(&nested.scales);
                        words.floats(&nested.book);
                        words.floats(&[nested.offset]);
                    }
                }
            }
        }
        words.0
    }

    /// The matrix of the little-endian bytes of [`to_words`](Self::to_words). It shares the bytes.
    ///
    /// # Errors
    ///
    /// [`PackedError::Words`] if the bytes are no packed matrix.
    pub fn from_words(bytes: Bytes) -> Result<Self, PackedError> {
        let mut words = Reader { bytes, position: 0 };
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
        };
        Ok(matrix.with_precision(precision))
    }
}

struct Writer(Vec<i32>);

impl Writer {
    fn number(&mut self, value: u32) {
        self.0.push(value.cast_signed());
    }

    fn length(&mut self, value: usize) {
        let value = value as u64;
        self.number(value as u32);
        self.number((value >> 32) as u32);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        let (whole, rest) = bytes.as_chunks::<4>();
        self.0.extend(whole.iter().map(|word| i32::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            self.0.push(i32::from_le_bytes(last));
        }
    }

    fn floats(&mut self, values: &[f32]) {
        self.length(4 * values.len());
        self.0.extend(values.iter().map(|value| value.to_bits().cast_signed()));
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
        Ok(FourBitParts { book, values, codes, block, scales })
    }
}
