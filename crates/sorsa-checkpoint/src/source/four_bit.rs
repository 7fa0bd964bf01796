//! The 4-bit tensors of bitsandbytes in safetensors.
//!
//! A packed weight `P.weight` has beside it `P.weight.absmax` (the scales of blocks), `P.weight.quant_map` (the code book) and
//! `P.weight.quant_state.bitsandbytes__nf4` (or `__fp4`): JSON with the shape, the size of a block, and the dtype of the values. With
//! double quantization, `absmax` holds codes of 8 bits, and `nested_absmax` and `nested_quant_map` are there too. Whatever the
//! dtype of the packed tensor, its bytes are the codes.

use serde::Deserialize;
use serde_json::Value;
use sorsa_kernels::four_bit::{CodeBook, NESTED_BLOCK, NestedScales};
use sorsa_kernels::packed::{BlockScales, FourBitParts, PackedFormat, PackedMatrix, RoundedTo};

use super::{SourceError, packed_fault};
use crate::message::quoted;
use crate::weights::{Checkpoint, Dtype, WeightsError};

/// What stands before the name of the code book.
const STATE: &str = ".quant_state.bitsandbytes__";
/// Endings of the names of the other parts.
const PARTS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
/// Bytes of a `quant_state` at most.
const LARGEST_STATE: usize = 1 << 16;

/// A packed matrix in the files, its parts checked against each other.
#[derive(Debug)]
pub(super) struct FourBitTensor {
    /// `[d_out, d_in]`.
    pub shape: [usize; 2],
    book: CodeBook,
    block: usize,
    rounded_to: RoundedTo,
    /// The mean of the scales, under double quantization.
    offset: Option<f32>,
}

/// The JSON in `quant_state`.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// The packed tensor that a `quant_state` belongs to, by its name, and the name of its code book.
pub(super) fn packed_tensor_of(name: &str) -> Option<(&str, &str)> {
    name.split_once(STATE)
}

/// Whether the tensor `name` may be a part of a packed tensor; if so, the packed tensor's name.
pub(super) fn whole_of(name: &str) -> Option<&str> {
    match packed_tensor_of(name) {
        Some((whole, _)) => Some(whole),
        None => PARTS.iter().find_map(|part| name.strip_suffix(part)),
    }
}

impl FourBitTensor {
    /// Reads the `quant_state` of `name` and compares it with the sizes of all parts; the error lists every fault.
    pub fn open(checkpoint: &Checkpoint, name: &str, state_name: &str) -> Result<Self, Vec<String>> {
        let (state, book) = read_state(checkpoint, name, state_name).map_err(|fault| vec![fault])?;
        let mut faults = Vec::new();
        let rounded_to = match state.dtype.as_str() {
            "float32" => Some(RoundedTo::F32),
            "float16" => Some(RoundedTo::F16),
            "bfloat16" => Some(RoundedTo::Bf16),
            _ => None,
        };
        if rounded_to.is_none() {
            let found = quoted(&state.dtype.as_str().into());
            faults.push(format!("`{state_name}`: `dtype` should be float32, float16 or bfloat16, found {found}"));
        }
        let shape = <[usize; 2]>::try_from(state.shape.as_slice()).ok();
        let count = shape.and_then(|[rows, columns]| rows.checked_mul(columns));
        if state.blocksize < 2 {
            faults.push(format!("`{state_name}`: `blocksize` should be at least 2, found {}", state.blocksize));
        }
        let (Some(shape), Some(count), true) = (shape, count, faults.is_empty()) else {
            if shape.is_none() || count.is_none() {
                let found = quoted(&state.shape.into());
                faults.push(format!("`{state_name}`: `shape` should be [d_out, d_in], found {found}"));
            }
            return Err(faults);
        };
        let blocks = count.div_ceil(state.blocksize);
        let mut check = |part: &str, dtypes: &[Dtype], expected: usize| {
            let part = format!("{name}{part}");
            let Some(info) = checkpoint.info(&part) else {
                return faults.push(format!("`{part}` is missing"));
            };
            let found = info.shape.iter().product::<usize>();
            if found != expected || !dtypes.contains(&info.dtype) {
                let dtypes: Vec<String> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
                faults.push(format!(
                    "`{part}` should be {expected} of {}, found {found} of {:?}",
                    dtypes.join(" or "),
                    info.dtype
                ));
            }
        };
        let floats = [Dtype::F32, Dtype::F16, Dtype::BF16];
        check(".quant_map", &floats, 16);
        let is_nested = checkpoint.info(&format!("{name}.nested_absmax")).is_some() || state.nested_offset.is_some();
        if is_nested {
            check(".absmax", &[Dtype::U8], blocks);
            check(".nested_absmax", &floats, blocks.div_ceil(NESTED_BLOCK));
            check(".nested_quant_map", &floats, 256);
        } else {
            check(".absmax", &floats, blocks);
        }
        let offset = match (is_nested, state.nested_offset, state.nested_blocksize) {
            (false, ..) => None,
            (true, Some(offset), Some(NESTED_BLOCK)) if (offset as f32).is_finite() => Some(offset as f32),
            (true, offset, block) => {
                faults.push(format!(
                    "`{state_name}`: `nested_blocksize` should be {NESTED_BLOCK} and `nested_offset` a number, found \
                     {block:?} and {offset:?}"
                ));
                None
            }
        };
        if let Some(other) = state.nested_dtype.filter(|dtype| is_nested && dtype != "float32") {
            let found = quoted(&other.into());
            faults.push(format!("`{state_name}`: `nested_dtype` should be float32, found {found}"));
        }
        match (checkpoint.info(name), checkpoint.size_in_bytes(name)) {
            (Some(info), Ok(bytes)) => {
                // The last number of the storage dtype may be filled up.
                let expected = count.div_ceil(2);
                let size = (info.dtype.bitsize() / 8).max(1);
                if bytes < expected || bytes >= expected + size {
                    faults.push(format!(
                        "`{name}` of {shape:?} in {} should have {expected} bytes, found {bytes}",
                        state.quant_type
                    ));
                }
            }
            _ => faults.push(format!("`{name}` is missing")),
        }
        match rounded_to {
            Some(rounded_to) if faults.is_empty() => {
                Ok(Self { shape, book, block: state.blocksize, rounded_to, offset })
            }
            _ => Err(faults),
        }
    }

    /// The format.
    pub fn format(&self) -> PackedFormat {
        PackedFormat::FourBit { book: self.book, double_quantization: self.offset.is_some() }
    }

    /// Reads the matrix.
    pub fn read(&self, checkpoint: &Checkpoint, name: &str) -> Result<PackedMatrix, SourceError> {
        let floats = |part: &str| -> Result<Vec<f32>, SourceError> {
            let part = format!("{name}{part}");
            let numbers = checkpoint.numbers::<f32>(&part, false)?;
            match numbers.first_non_finite() {
                None => Ok(numbers.values),
                Some((index, value)) => Err(packed_fault(checkpoint, format!("`{part}` element {index} is {value}"))),
            }
        };
        let [rows, columns] = self.shape;
        let codes = checkpoint.raw_part(name, 0..(rows * columns).div_ceil(2))?;
        let scales = match self.offset {
            None => BlockScales::Single(floats(".absmax")?),
            Some(offset) => BlockScales::Nested(NestedScales {
                codes: checkpoint.raw(&format!("{name}.absmax"))?,
                scales: floats(".nested_absmax")?,
                book: array(&floats(".nested_quant_map")?),
                offset,
            }),
        };
        let values = array(&floats(".quant_map")?);
        let (book, block, rounded_to, codes) = (self.book, self.block, self.rounded_to, codes.into());
        let parts = FourBitParts { book, values, codes, block, scales, rounded_to };
        PackedMatrix::from_four_bit(self.shape, parts)
            .map_err(|error| packed_fault(checkpoint, format!("`{name}`: {error}")))
    }
}

/// The first `N` values; those of a file were counted before.
fn array<const N: usize>(values: &[f32]) -> [f32; N] {
    std::array::from_fn(|index| values.get(index).copied().unwrap_or_default())
}

fn read_state(checkpoint: &Checkpoint, name: &str, state_name: &str) -> Result<(QuantState, CodeBook), String> {
    let unreadable = |error: WeightsError| error.to_string();
    let size = checkpoint.size_in_bytes(state_name).map_err(unreadable)?;
    if size > LARGEST_STATE {
        return Err(format!("`{state_name}` has {size} bytes, at most {LARGEST_STATE} are read"));
    }
    let bytes = checkpoint.raw(state_name).map_err(unreadable)?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|error| format!("`{state_name}` should be JSON: {error}"))?;
    let state =
        QuantState::deserialize(&value).map_err(|error| format!("`{state_name}`: {error} in {}", quoted(&value)))?;
    let of_name = state_name[name.len()..].trim_start_matches(STATE);
    let book = [CodeBook::Nf4, CodeBook::Fp4].into_iter().find(|book| book.name() == state.quant_type);
    match book.filter(|book| book.name() == of_name) {
        Some(book) => Ok((state, book)),
        None => {
            let found = quoted(&state.quant_type.into());
            Err(format!("`{state_name}`: `quant_type` should be nf4 or fp4 as in the name, found {found}"))
        }
    }
}
