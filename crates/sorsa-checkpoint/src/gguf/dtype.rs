//! The types that tensors of a GGUF file are stored in, and f32 values encoded in them.

use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;
use sorsa_kernels::BlockFormat;

use crate::WeightFormat;

/// Numbers that one task encodes or decodes; a multiple of every block.
const CHUNK: usize = 1 << 16;

/// A type that tensors are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// Single numbers.
    Plain(WeightFormat),
    /// Blocks of numbers that share a scale.
    Blocks(BlockFormat),
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(format) => format.fmt(f),
            Self::Blocks(format) => format.fmt(f),
        }
    }
}

impl FromStr for GgufType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().find(|dtype| dtype.to_string() == text).ok_or_else(|| {
            let names: Vec<String> = Self::all().map(|dtype| dtype.to_string()).collect();
            format!("unknown type `{text}`, expected one of {}", names.join(", "))
        })
    }
}

impl GgufType {
    /// 32 bits, as they are.
    pub const F32: Self = Self::Plain(WeightFormat::F32);
    /// IEEE half precision, rounded to nearest even.
    pub const F16: Self = Self::Plain(WeightFormat::F16);
    /// The upper half of an f32, rounded to nearest even.
    pub const BF16: Self = Self::Plain(WeightFormat::Bf16);
    /// 8 bits a value and an f16 scale for each 32 values.
    pub const Q8_0: Self = Self::Blocks(BlockFormat::Q8_0);

    /// All types that are read and written here.
    pub fn all() -> impl Iterator<Item = Self> {
        let plain = WeightFormat::ALL.into_iter().map(Self::Plain);
        plain.chain(BlockFormat::ALL.into_iter().map(Self::Blocks))
    }

    /// ggml's number of the type.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::Plain(WeightFormat::F32) => 0,
            Self::Plain(WeightFormat::F16) => 1,
            Self::Plain(WeightFormat::Bf16) => 30,
            Self::Blocks(BlockFormat::Q4_0) => 2,
            Self::Blocks(BlockFormat::Q4_1) => 3,
            Self::Blocks(BlockFormat::Q5_0) => 6,
            Self::Blocks(BlockFormat::Q5_1) => 7,
            Self::Blocks(BlockFormat::Q8_0) => 8,
            Self::Blocks(BlockFormat::Q4K) => 12,
            Self::Blocks(BlockFormat::Q5K) => 13,
            Self::Blocks(BlockFormat::Q6K) => 14,
        }
    }

    /// The type with ggml's number `id`.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::all().find(|dtype| dtype.id() == id)
    }

    /// llama.cpp's number of a file whose matrices are of this type: `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::Plain(WeightFormat::F32) => 0,
            Self::Plain(WeightFormat::F16) => 1,
            Self::Plain(WeightFormat::Bf16) => 32,
            Self::Blocks(BlockFormat::Q4_0) => 2,
            Self::Blocks(BlockFormat::Q4_1) => 3,
            Self::Blocks(BlockFormat::Q8_0) => 7,
            Self::Blocks(BlockFormat::Q5_0) => 8,
            Self::Blocks(BlockFormat::Q5_1) => 9,
            // "S" of llama.cpp's files: all matrices are of one type.
            Self::Blocks(BlockFormat::Q4K) => 14,
            Self::Blocks(BlockFormat::Q5K) => 16,
            Self::Blocks(BlockFormat::Q6K) => 18,
        }
    }

    /// Bytes of a tensor of this row-major shape; nothing if its rows are not whole blocks, or if the size overflows.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let row = *shape.last()?;
        let count = shape.iter().try_fold(1usize, |product, axis| product.checked_mul(*axis))?;
        match self {
            Self::Plain(format) => count.checked_mul(format.bytes(1)),
            Self::Blocks(format) if row.is_multiple_of(format.block_values()) => format.bytes(count),
            Self::Blocks(_) => None,
        }
    }

    /// The type a tensor is stored in when a model is written as `self`: vectors stay f32, as llama.cpp's operations on
    /// them expect. Rows that are not whole blocks take the type that llama.cpp falls back to, or f16.
    pub(super) fn for_shape(self, shape: &[usize]) -> Self {
        if shape.len() < 2 {
            return Self::F32;
        }
        let smaller_blocks = match self {
            Self::Blocks(BlockFormat::Q4K) => Self::Blocks(BlockFormat::Q5_0),
            Self::Blocks(BlockFormat::Q5K) => Self::Blocks(BlockFormat::Q5_1),
            Self::Blocks(BlockFormat::Q6K) => Self::Q8_0,
            _ => self,
        };
        [self, smaller_blocks].into_iter().find(|dtype| dtype.bytes(shape).is_some()).unwrap_or(Self::F16)
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
        match self {
            Self::Plain(format) => format.encode(values, bytes),
            Self::Blocks(format) => {
                bytes.clear();
                bytes.resize(format.bytes(values.len()).expect("whole blocks"), 0);
                let size = CHUNK / format.block_values() * format.block_bytes();
                let chunks = bytes.par_chunks_mut(size).zip(values.par_chunks(CHUNK));
                chunks.for_each(|(bytes, values)| format.encode(values, bytes));
            }
        }
        Ok(())
    }

    /// The smallest f32 that becomes infinite: for blocks, one whose scale does.
    fn overflow(self) -> f32 {
        let half = WeightFormat::F16.overflow();
        match self {
            Self::Plain(format) => format.overflow(),
            Self::Blocks(BlockFormat::Q8_0) => half * 127.0,
            Self::Blocks(BlockFormat::Q4_0) => half * 8.0,
            Self::Blocks(BlockFormat::Q5_0) => half * 16.0,
            // The minimum is an f16 itself.
            Self::Blocks(BlockFormat::Q4_1 | BlockFormat::Q5_1) => half,
            Self::Blocks(BlockFormat::Q4K | BlockFormat::Q5K) => half * 63.0,
            Self::Blocks(BlockFormat::Q6K) => half * 128.0 * 31.0,
        }
    }

    /// The values in `bytes`, which are whole blocks.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::Plain(format) => format.decode(bytes),
            Self::Blocks(format) => {
                let mut values = vec![0.0; bytes.len() / format.block_bytes() * format.block_values()];
                let size = CHUNK / format.block_values() * format.block_bytes();
                let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(size));
                chunks.for_each(|(values, bytes)| format.decode(bytes, values));
                values
            }
        }
    }
}

/// ggml's name of the type with its number, for messages.
pub(super) fn name(id: u32) -> String {
    const OTHERS: [(u32, &str); 22] = [
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
    ];
    match (GgufType::from_id(id), OTHERS.iter().find(|(other, _)| *other == id)) {
        (Some(dtype), _) => dtype.to_string().to_uppercase(),
        (None, Some((_, name))) => (*name).to_owned(),
        (None, None) => format!("of ggml's type {id}"),
    }
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
        assert_eq!(GgufType::BF16.encode(&[3.38e38, -f32::MAX], &mut bytes), Err(1));
        assert_eq!(GgufType::Q8_0.encode(&[8.4e6; 32], &mut bytes), Err(0));
        assert_eq!(GgufType::Q8_0.encode(&[8.3e6; 32], &mut bytes), Ok(()));
        for format in BlockFormat::ALL {
            // Just below the limit, everything that was packed is finite.
            let dtype = GgufType::Blocks(format);
            let values = vec![dtype.overflow() * 0.99; format.block_values()];
            assert_eq!(dtype.encode(&values, &mut bytes), Ok(()));
            assert!(dtype.decode(&bytes).iter().all(|value| value.is_finite()), "{format}");
        }
    }

    #[test]
    fn vectors_stay_f32_and_broken_rows_become_f16() {
        assert_eq!(GgufType::Q8_0.for_shape(&[64]), GgufType::F32);
        assert_eq!(GgufType::Q8_0.for_shape(&[3, 64]), GgufType::Q8_0);
        assert_eq!(GgufType::Q8_0.for_shape(&[32, 48]), GgufType::F16);
        assert_eq!(GgufType::BF16.for_shape(&[32, 48]), GgufType::BF16);
        assert_eq!(GgufType::Blocks(BlockFormat::Q4K).for_shape(&[4, 512]), GgufType::Blocks(BlockFormat::Q4K));
        assert_eq!(GgufType::Blocks(BlockFormat::Q4K).for_shape(&[4, 64]), GgufType::Blocks(BlockFormat::Q5_0));
        assert_eq!(GgufType::Blocks(BlockFormat::Q6K).for_shape(&[4, 40]), GgufType::F16);
    }

    #[test]
    fn a_type_is_read_by_its_name() {
        for dtype in GgufType::all() {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            assert_eq!(GgufType::from_id(dtype.id()), Some(dtype));
        }
        assert!("q3_k".parse::<GgufType>().unwrap_err().contains("q6_k"));
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
            for dtype in [GgufType::F32, GgufType::F16, GgufType::BF16] {
                prop_assert_eq!(&dtype.decode(&encoded(dtype, &values)), &values);
            }
        }
    }
}
