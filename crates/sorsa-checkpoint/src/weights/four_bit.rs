//! A matrix in the 4 bits of bitsandbytes as the tensors of a file: codes, scales, code books, and a description in JSON.

use safetensors::Dtype;
use serde_json::json;
use sorsa_kernels::four_bit::NESTED_BLOCK;
use sorsa_kernels::packed::{BlockScales, PackedMatrix, RoundedTo};

use super::Expected;
use crate::weight_format::{FourBitFormat, WeightFormat};

/// Bytes of a description; shorter ones end in spaces, because the header of a file says how long its tensors are before they are
/// known.
const STATE_BYTES: usize = 256;

/// One tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Codes,
    Scales,
    Book,
    NestedScales,
    NestedBook,
    State,
}

/// The tensors of the matrix `tensor`.
pub(super) fn parts(tensor: &Expected, format: FourBitFormat) -> Vec<Part> {
    let values: usize = tensor.shape.iter().product();
    let scales = values.div_ceil(format.block);
    let part = |suffix: &str, dtype, shape: Vec<usize>, kind| Part {
        name: format!("{}{suffix}", tensor.name),
        dtype,
        shape,
        kind,
    };
    let state = format!(".quant_state.bitsandbytes__{}", format.book.name());
    let scale_dtype = if format.double_quantization { Dtype::U8 } else { Dtype::F32 };
    let mut parts = vec![
        part("", Dtype::U8, vec![values.div_ceil(2), 1], Kind::Codes),
        part(".absmax", scale_dtype, vec![scales], Kind::Scales),
        part(".quant_map", Dtype::F32, vec![16], Kind::Book),
    ];
    if format.double_quantization {
        parts.push(part(".nested_absmax", Dtype::F32, vec![scales.div_ceil(NESTED_BLOCK)], Kind::NestedScales));
        parts.push(part(".nested_quant_map", Dtype::F32, vec![256], Kind::NestedBook));
    }
    parts.push(part(&state, Dtype::U8, vec![STATE_BYTES], Kind::State));
    parts
}

impl Part {
    /// Its bytes, for a matrix in 4 bits.
    pub fn bytes(&self, matrix: &PackedMatrix) -> Vec<u8> {
        let packed = matrix.four_bit().expect("a matrix in 4 bits");
        match (self.kind, &packed.scales) {
            (Kind::Codes, _) => packed.codes.to_vec(),
            (Kind::Book, _) => floats(&packed.values),
            (Kind::Scales, BlockScales::Single(scales)) => floats(scales),
            (Kind::Scales, BlockScales::Nested(nested)) => nested.codes.clone(),
            (Kind::NestedScales, BlockScales::Nested(nested)) => floats(&nested.scales),
            (Kind::NestedBook, BlockScales::Nested(nested)) => floats(&nested.book),
            (Kind::NestedScales | Kind::NestedBook, BlockScales::Single(_)) => Vec::new(),
            (Kind::State, scales) => {
                let dtype = match packed.rounded_to {
                    RoundedTo::F32 => WeightFormat::F32,
                    RoundedTo::F16 => WeightFormat::F16,
                    RoundedTo::Bf16 => WeightFormat::Bf16,
                };
                let mut state = json!({
                    "quant_type": packed.book.name(), "blocksize": packed.block, "dtype": dtype.torch_name(),
                    "shape": matrix.shape(),
                });
                if let BlockScales::Nested(nested) = scales {
                    state["nested_blocksize"] = NESTED_BLOCK.into();
                    state["nested_dtype"] = "float32".into();
                    state["nested_offset"] = f64::from(nested.offset).into();
                }
                let mut bytes = state.to_string().into_bytes();
                bytes.resize(STATE_BYTES, b' ');
                bytes
            }
        }
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
