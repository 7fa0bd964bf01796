//! The formats that weights are stored in.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::weights::{Checkpoint, Expected};

/// Numbers that one task encodes.
const CHUNK: usize = 1 << 16;

/// A format that weights are stored in; f32 values are rounded to nearest even.
///
/// ```
/// use sorsa_checkpoint::WeightFormat;
///
/// let format: WeightFormat = "bf16".parse().unwrap();
/// let mut bytes = Vec::new();
/// format.encode(&[1.0, -2.5], &mut bytes);
/// assert_eq!(bytes.len(), format.bytes(2));
/// assert_eq!(format.decode(&bytes), [1.0, -2.5]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// 32 bits, as they are.
    F32,
    /// IEEE half precision: 11 bits of precision, up to 65504.
    F16,
    /// The upper half of an f32: 8 bits of precision, the range of f32.
    Bf16,
}

/// A name that is no weight format's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype `{name}`, expected f32, f16 or bf16")]
pub struct UnknownFormat {
    /// The name.
    pub name: String,
}

impl WeightFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The name in recipes and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// PyTorch's name, as `config.json` has it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The format of this dtype, or f32 if there is none.
    fn nearest(dtype: Dtype) -> Self {
        match dtype {
            Dtype::BF16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            _ => Self::F32,
        }
    }

    /// Bytes of `count` numbers.
    pub fn bytes(self, count: usize) -> usize {
        match self {
            Self::F32 => 4 * count,
            Self::F16 | Self::Bf16 => 2 * count,
        }
    }

    /// The smallest f32 that rounds to infinity: half a unit above the largest finite value.
    pub fn overflow(self) -> f32 {
        match self {
            Self::F32 => f32::INFINITY,
            Self::F16 => 65520.0,
            Self::Bf16 => f32::from_bits(0x7F7F_8000),
        }
    }

    /// Fills `bytes` with `values`, little-endian.
    pub fn encode(self, values: &[f32], bytes: &mut Vec<u8>) {
        bytes.resize(self.bytes(values.len()), 0);
        let chunks = bytes.par_chunks_mut(self.bytes(CHUNK)).zip(values.par_chunks(CHUNK));
        chunks.for_each(|(bytes, values)| match self {
            Self::F32 => encode_each(values, bytes, f32::to_le_bytes),
            Self::F16 => encode_each(values, bytes, |value| f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => encode_each(values, bytes, |value| bf16::from_f32(value).to_le_bytes()),
        });
    }

    /// The numbers as this format holds them.
    pub fn rounded(self, values: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        self.encode(values, &mut bytes);
        self.decode(&bytes)
    }

    /// The numbers in `bytes`; what is left over at the end of `bytes` is not read.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        }
    }
}

/// The format of each tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorFormats {
    /// The format of most numbers, which `config.json` names.
    pub usual: WeightFormat,
    /// Tensors with another format, by name.
    pub others: BTreeMap<String, WeightFormat>,
}

impl TensorFormats {
    /// The formats of the tensors as a checkpoint stores them; f32 for those that are stored in any other.
    pub fn stored_in(checkpoint: &Checkpoint) -> Self {
        let infos = checkpoint.names().filter_map(|name| {
            let info = checkpoint.info(name)?;
            Some((Expected::new(name, info.shape.clone()), info.dtype))
        });
        Self::of_dense(infos)
    }

    /// The formats of dense tensors; f32 for those that are stored in any other.
    pub(crate) fn of_dense(tensors: impl Iterator<Item = (Expected, Dtype)>) -> Self {
        let mut formats = BTreeMap::new();
        let mut counts = [0usize; WeightFormat::ALL.len()];
        for (tensor, dtype) in tensors {
            let format = WeightFormat::nearest(dtype);
            counts[format as usize] += tensor.shape.iter().product::<usize>();
            formats.insert(tensor.name, format);
        }
        let usual = WeightFormat::ALL.into_iter().max_by_key(|format| counts[*format as usize]);
        let usual = usual.unwrap_or(WeightFormat::F32);
        formats.retain(|_, format| *format != usual);
        Self { usual, others: formats }
    }

    /// The format of the tensor `name`.
    pub fn of(&self, name: &str) -> WeightFormat {
        self.others.get(name).copied().unwrap_or(self.usual)
    }
}

impl From<WeightFormat> for TensorFormats {
    fn from(usual: WeightFormat) -> Self {
        Self { usual, others: BTreeMap::new() }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| UnknownFormat { name: name.to_owned() })
    }
}

impl From<WeightFormat> for Dtype {
    fn from(format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 => Self::F32,
            WeightFormat::F16 => Self::F16,
            WeightFormat::Bf16 => Self::BF16,
        }
    }
}

fn encode_each<const N: usize>(values: &[f32], bytes: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = encode(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_written_and_read_by_its_name() {
        for format in WeightFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            let json = serde_json::to_string(&format).unwrap();
            assert_eq!(json, format!("\"{format}\""));
            assert_eq!(serde_json::from_str::<WeightFormat>(&json).unwrap(), format);
        }
        let error = "q4".parse::<WeightFormat>().unwrap_err();
        assert_eq!(error.to_string(), "unknown dtype `q4`, expected f32, f16 or bf16");
    }

    #[test]
    fn numbers_below_the_limit_stay_finite_and_the_limit_does_not() {
        for format in [WeightFormat::F16, WeightFormat::Bf16] {
            let limit = format.overflow();
            let mut bytes = Vec::new();
            format.encode(&[limit, f32::from_bits(limit.to_bits() - 1), 1.0], &mut bytes);
            let decoded = format.decode(&bytes);
            assert!(decoded[0].is_infinite() && decoded[1].is_finite() && decoded[2] == 1.0, "{format}: {decoded:?}");
        }
    }
}
