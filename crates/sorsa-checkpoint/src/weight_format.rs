//! The formats that weights are stored in.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use sorsa_kernels::four_bit::{self, CodeBook};
use sorsa_kernels::packed::{PackedFormat, PackedMatrix};

use crate::weights::Expected;

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

/// The 4 bits of bitsandbytes that a matrix is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FourBitFormat {
    /// The values of the codes.
    pub book: CodeBook,
    /// Whether the scales are packed to 8 bits.
    pub double_quantization: bool,
    /// Values that share a scale.
    pub block: usize,
}

impl FourBitFormat {
    /// `format` with bitsandbytes' usual blocks; nothing if it is not one of bitsandbytes.
    pub fn of(format: PackedFormat) -> Option<Self> {
        match format {
            PackedFormat::FourBit { book, double_quantization } => {
                Some(Self { book, double_quantization, block: four_bit::BLOCK })
            }
            _ => None,
        }
    }

    /// Whether a matrix is in this format.
    pub fn is_of(self, matrix: &PackedMatrix) -> bool {
        matrix.four_bit().is_some_and(|parts| parts.block == self.block) && matrix.format() == self.into()
    }
}

impl From<FourBitFormat> for PackedFormat {
    fn from(format: FourBitFormat) -> Self {
        Self::FourBit { book: format.book, double_quantization: format.double_quantization }
    }
}

/// The format of each tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorFormats {
    /// The format of most numbers, which `config.json` names.
    pub usual: WeightFormat,
    /// Tensors with another format, by name.
    pub others: BTreeMap<String, WeightFormat>,
    /// Matrices in the 4 bits of bitsandbytes, by name.
    pub four_bit: BTreeMap<String, FourBitFormat>,
}

impl TensorFormats {
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
        Self { usual, others: formats, four_bit: BTreeMap::new() }
    }

    /// Stores the weights of linear layers in 4 bits, but for the head, like bitsandbytes.
    pub fn with_linear_layers_in_four_bit(
        mut self,
        tensors: impl IntoIterator<Item = Expected>,
        format: FourBitFormat,
    ) -> Self {
        let linear = tensors.into_iter().filter(is_weight_of_layer);
        self.four_bit.extend(linear.map(|tensor| (tensor.name, format)));
        self
    }

    /// `quantization_config` of `config.json` for a folder with these `tensors`; nothing if no matrix has 4 bits.
    pub fn quantization_config(&self, tensors: &[Expected]) -> Option<Json> {
        let format = self.four_bit.values().next()?;
        let is_dense_matrix = |tensor: &&Expected| tensor.shape.len() == 2 && !self.four_bit.contains_key(&tensor.name);
        let modules = tensors.iter().filter(is_dense_matrix).filter_map(|tensor| tensor.name.strip_suffix(".weight"));
        // Transformers makes a linear layer of 4 bits of each that is not named here. A tied head has no tensor.
        let mut dense: Vec<&str> = modules.filter(|module| !module.contains("embed")).collect();
        if !dense.contains(&"lm_head") {
            dense.push("lm_head");
        }
        Some(json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_compute_dtype": self.usual.torch_name(),
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": format.book.name(),
            "bnb_4bit_use_double_quant": format.double_quantization,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": dense,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": "bitsandbytes",
        }))
    }

    /// The finite numbers of a tensor of shape `shape` as its format holds them; nothing if that is f32.
    pub fn rounded(&self, name: &str, values: &[f32], shape: &[usize]) -> Option<Vec<f32>> {
        match (self.four_bit.get(name), shape) {
            (Some(format), [rows, columns]) => {
                let packed = PackedMatrix::pack(PackedFormat::from(*format), [*rows, *columns], values);
                Some(packed.ok()?.to_f32())
            }
            _ if self.of(name) == WeightFormat::F32 => None,
            _ => Some(self.of(name).rounded(values)),
        }
    }

    /// The format of the numbers of the tensor `name`, which are not packed.
    pub fn of(&self, name: &str) -> WeightFormat {
        self.others.get(name).copied().unwrap_or(self.usual)
    }
}

impl From<WeightFormat> for TensorFormats {
    fn from(usual: WeightFormat) -> Self {
        Self { usual, others: BTreeMap::new(), four_bit: BTreeMap::new() }
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

/// Whether a tensor is the weight of a linear layer, and not the head.
fn is_weight_of_layer(tensor: &Expected) -> bool {
    let Some(module) = tensor.name.strip_suffix(".weight") else { return false };
    tensor.shape.len() == 2 && !module.contains("embed") && module != "lm_head" && module != "head"
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
