//! The types tensors are stored in, and f32 values encoded in them.
//!
//! Q8_0 is ggml's: blocks of 32 values of one row, `d = max |x| / 127` as f16, then 32 bytes `q = round(x / d)`, halves
//! away from zero; the value is `d q`. As in ggml, the quotient is the product with `1 / d` in f32, and `d` is rounded to
//! f16 only after that.

use std::fmt;
use std::str::FromStr;

use half::f16;
use rayon::prelude::*;

use crate::WeightFormat;

/// Values that share a scale in Q8_0.
pub const QK8_0: usize = 32;
/// Numbers that one task encodes; a multiple of the block.
const CHUNK: usize = 1 << 16;

/// A type that tensors are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// 32 bits, as they are.
    F32,
    /// IEEE half precision, rounded to nearest even.
    F16,
    /// The upper half of an f32, rounded to nearest even.
    Bf16,
    /// 8 bits a value and an f16 scale for each 32 values.
    Q8_0,
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.plain() {
            Some(format) => format.fmt(f),
            None => f.write_str("q8_0"),
        }
    }
}

impl FromStr for GgufType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];
        let found = all.into_iter().find(|dtype| dtype.to_string() == text);
        found.ok_or_else(|| format!("unknown type `{text}`, expected f32, f16, bf16 or q8_0"))
    }
}

impl GgufType {
    /// ggml's number of the type.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// The type with ggml's number `id`.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16, Self::Q8_0].into_iter().find(|dtype| dtype.id() == id)
    }

    /// llama.cpp's number of a file whose matrices are of this type: `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    /// The format of single numbers; nothing for one of blocks that share a scale.
    fn plain(self) -> Option<WeightFormat> {
        match self {
            Self::F32 => Some(WeightFormat::F32),
            Self::F16 => Some(WeightFormat::F16),
            Self::Bf16 => Some(WeightFormat::Bf16),
            Self::Q8_0 => None,
        }
    }

    /// Values and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self.plain() {
            Some(format) => (1, format.bytes(1)),
            None => (QK8_0, 2 + QK8_0),
        }
    }

    /// Bytes of a tensor of this row-major shape; nothing if its rows are not whole blocks, or if the size overflows.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (values, bytes) = self.block();
        let row = *shape.last()?;
        let count = shape.iter().try_fold(1usize, |product, axis| product.checked_mul(*axis))?;
        if row.is_multiple_of(values) { (count / values).checked_mul(bytes) } else { None }
    }

    /// The type a tensor is stored in when a model is written as `self`: vectors stay f32, as llama.cpp's operations on
    /// them expect, and rows that are not whole blocks fall back to f16.
    pub(super) fn for_shape(self, shape: &[usize]) -> Self {
        match self {
            _ if shape.len() < 2 => Self::F32,
            Self::Q8_0 if self.bytes(shape).is_none() => Self::F16,
            other => other,
        }
    }

    /// Fills `bytes` with `values`, which are finite and whole blocks.
    ///
    /// # Errors
    ///
    /// The position of the first value that would become infinite.
    pub(super) fn encode(self, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), usize> {
        let limit = self.overflow();
        if let Some(index) = values.par_iter().position_first(|value| value.abs() >= limit) {
            return Err(index);
        }
        if let Some(format) = self.plain() {
            format.encode(values, bytes);
            return Ok(());
        }
        let (block, size) = self.block();
        bytes.clear();
        bytes.resize(values.len() / block * size, 0);
        let chunks = bytes.par_chunks_mut(CHUNK / block * size).zip(values.par_chunks(CHUNK));
        chunks.for_each(|(bytes, values)| {
            for (bytes, values) in bytes.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
                *bytes = quantize(values);
            }
        });
        Ok(())
    }

    /// The smallest f32 that becomes infinite.
    fn overflow(self) -> f32 {
        match self.plain() {
            Some(format) => format.overflow(),
            // The scale becomes infinite.
            None => WeightFormat::F16.overflow() * 127.0,
        }
    }

    /// The numbers of a tensor of this shape as this type holds them; nothing if the type cannot hold them.
    pub fn rounded(self, values: &[f32], shape: &[usize]) -> Option<Vec<f32>> {
        let dtype = self.for_shape(shape);
        let mut bytes = Vec::new();
        dtype.encode(values, &mut bytes).ok()?;
        Some(dtype.decode(&bytes))
    }

    /// The values in `bytes`, which are whole blocks.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        if let Some(format) = self.plain() {
            return format.decode(bytes);
        }
        let blocks = bytes.chunks_exact(2 + QK8_0);
        let values = blocks.flat_map(|block| {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            block[2..].iter().map(move |q| scale * f32::from(*q as i8))
        });
        values.collect()
    }
}

/// One block of Q8_0.
fn quantize(values: &[f32; QK8_0]) -> [u8; 2 + QK8_0] {
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = [0; 2 + QK8_0];
    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (byte, value) in block[2..].iter_mut().zip(values) {
        // `as` saturates, so a scale so small that its inverse is infinite is still harmless: it is stored as zero.
        *byte = (value * inverse).round() as i8 as u8;
    }
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(dtype: GgufType, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        dtype.encode(values, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_block_is_the_one_that_ggml_writes() {
        // `gguf.quants.quantize(x, Q8_0)` of gguf 0.19.0 for x[i] = (i - 11) * (i % 5 + 1) * 0.37
        let values: Vec<f32> = (0..32).map(|i| ((i - 11) as f32 * (i % 5 + 1) as f32) * 0.37).collect();
        let expected: [u8; 34] = [
            50, 52, 240, 228, 218, 211, 207, 248, 242, 239, 239, 242, 255, 0, 4, 11, 21, 6, 14, 25, 40, 56, 13, 28, 47,
            68, 92, 20, 42, 68, 96, 127, 27, 56,
        ];
        assert_eq!(encoded(GgufType::Q8_0, &values), expected);
    }

    #[test]
    fn halves_are_rounded_away_from_zero() {
        // The scale is 1, so that the halves are exact.
        let mut values = [0.0f32; 32];
        values[..5].copy_from_slice(&[127.0, 0.5, -0.5, 2.5, -2.5]);
        let bytes = encoded(GgufType::Q8_0, &values);
        assert_eq!(bytes[..7], [0x00, 0x3C, 127, 1, 255, 3, 253]);
        assert_eq!(encoded(GgufType::Q8_0, &[0.0; 32]), [0; 34]);
    }

    #[test]
    fn a_value_that_would_become_infinite_is_found() {
        let mut bytes = Vec::new();
        assert_eq!(GgufType::F16.encode(&[0.0, 65_520.0], &mut bytes), Err(1));
        assert_eq!(GgufType::F16.encode(&[65_519.0], &mut bytes), Ok(()));
        assert_eq!(GgufType::Bf16.encode(&[3.38e38, -f32::MAX], &mut bytes), Err(1));
        assert_eq!(GgufType::Q8_0.encode(&[8.4e6; 32], &mut bytes), Err(0));
        assert_eq!(GgufType::Q8_0.encode(&[8.3e6; 32], &mut bytes), Ok(()));
    }

    #[test]
    fn vectors_stay_f32_and_broken_rows_become_f16() {
        assert_eq!(GgufType::Q8_0.for_shape(&[64]), GgufType::F32);
        assert_eq!(GgufType::Q8_0.for_shape(&[3, 64]), GgufType::Q8_0);
        assert_eq!(GgufType::Q8_0.for_shape(&[32, 48]), GgufType::F16);
        assert_eq!(GgufType::Bf16.for_shape(&[32, 48]), GgufType::Bf16);
    }

    #[test]
    fn a_type_is_read_by_its_name() {
        for dtype in [GgufType::F32, GgufType::F16, GgufType::Bf16, GgufType::Q8_0] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            assert_eq!(GgufType::from_id(dtype.id()), Some(dtype));
        }
        assert!("q4_k".parse::<GgufType>().unwrap_err().contains("q4_k"));
    }

    proptest! {
        #[test]
        fn q8_0_is_off_by_half_a_step_and_the_rounding_of_the_scale(values in prop::collection::vec(-1e3f32..1e3, 64)) {
            let decoded = GgufType::Q8_0.decode(&encoded(GgufType::Q8_0, &values));
            for (block, found) in values.chunks(32).zip(decoded.chunks(32)) {
                let step = block.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
                for (value, found) in block.iter().zip(found) {
                    prop_assert!((value - found).abs() <= step * 0.5 + 127.0 * step / 2048.0 + 1e-5);
                }
            }
        }

        #[test]
        fn values_that_fit_are_kept(values in prop::collection::vec(any::<i8>(), 1..100)) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            for dtype in [GgufType::F32, GgufType::F16, GgufType::Bf16] {
                prop_assert_eq!(&dtype.decode(&encoded(dtype, &values)), &values);
            }
        }
    }
}
