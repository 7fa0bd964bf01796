//! The tensors of GPTQ and AWQ in safetensors: `P.qweight`, `P.qzeros`, `P.scales` and, for GPTQ, perhaps `P.g_idx` in place of
//! `P.weight`. [`GptqParts`] and [`AwqParts`] say what they hold.

use sorsa_kernels::packed::{AwqParts, GptqBits, GptqParts, PackedFormat, PackedMatrix};

use super::quantization::{GptqConfig, Quantization};
use super::{SourceError, packed_fault};
use crate::weights::{Checkpoint, Dtype};

/// The ending of the name of the codes.
const CODES: &str = ".qweight";
/// Endings of the names of all parts.
const PARTS: [&str; 4] = [CODES, ".qzeros", ".scales", ".g_idx"];

/// A packed matrix in the files, its parts checked against each other.
#[derive(Debug)]
pub(super) struct GroupedTensor {
    /// `[d_out, d_in]`.
    pub shape: [usize; 2],
    /// The name without the part's.
    module: String,
    kind: Kind,
    /// Columns of a group.
    group: usize,
    has_group_indices: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    Gptq(GptqConfig),
    Awq,
}

/// The module that a tensor of codes belongs to, by its name.
pub(super) fn module_of_codes(name: &str) -> Option<&str> {
    name.strip_suffix(CODES)
}

/// The module that a part belongs to, by its name.
pub(super) fn module_of_part(name: &str) -> Option<&str> {
    PARTS.iter().find_map(|part| name.strip_suffix(part))
}

impl GroupedTensor {
    /// Compares the sizes of the parts of a module; the error lists every fault.
    pub fn open(
        checkpoint: &Checkpoint,
        module: &str,
        quantization: Option<&Quantization>,
    ) -> Result<Self, Vec<String>> {
        let kind = match quantization {
            Some(Quantization::Gptq(config)) => Kind::Gptq(config.clone()),
            Some(Quantization::Awq) => Kind::Awq,
            _ => {
                return Err(vec![format!(
                    "`{module}{CODES}` is of gptq or awq, but `quantization_config` does not say which"
                )]);
            }
        };
        let mut faults = Vec::new();
        let mut matrix = |part: &str, dtypes: &[Dtype]| {
            let part = format!("{module}{part}");
            let Some(info) = checkpoint.info(&part) else {
                faults.push(format!("`{part}` is missing"));
                return None;
            };
            match <[usize; 2]>::try_from(info.shape.as_slice()) {
                Ok(shape) if dtypes.contains(&info.dtype) => Some(shape),
                _ => {
                    let dtypes: Vec<String> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
                    let (expected, shape, found) = (dtypes.join(" or "), &info.shape, info.dtype);
                    faults.push(format!("`{part}` should be a matrix of {expected}, found {shape:?} of {found:?}"));
                    None
                }
            }
        };
        let codes = matrix(CODES, &[Dtype::I32]);
        let zeros = matrix(".qzeros", &[Dtype::I32]);
        let scales = matrix(".scales", &[Dtype::F16, Dtype::BF16, Dtype::F32]);
        let (Some([words, lines]), Some(zeros), Some(scales)) = (codes, zeros, scales) else { return Err(faults) };
        let (shape, per_word) = match &kind {
            Kind::Gptq(config) => ([Some(lines), words.checked_mul(config.per_word())], config.per_word()),
            Kind::Awq => ([lines.checked_mul(8), Some(words)], 8),
        };
        let [Some(d_out), Some(d_in)] = shape else {
            return Err(vec![format!("`{module}{CODES}` is larger than any memory")]);
        };
        let group = match &kind {
            Kind::Gptq(config) => config.group_size.unwrap_or(d_in).min(d_in),
            Kind::Awq => d_in.div_ceil(scales[0].max(1)),
        }
        .max(1);
        let groups = d_in.div_ceil(group);
        for (part, found, expected) in
            [(".qzeros", zeros, [groups, d_out.div_ceil(per_word)]), (".scales", scales, [groups, d_out])]
        {
            if found != expected {
                faults.push(format!(
                    "`{module}{part}` should be {expected:?} beside codes for [{d_out}, {d_in}] in groups of {group}, \
                     found {found:?}"
                ));
            }
        }
        let indices = checkpoint.info(&format!("{module}.g_idx")).filter(|_| matches!(kind, Kind::Gptq(_)));
        if let Some(info) = indices.filter(|info| info.shape != [d_in] || info.dtype != Dtype::I32) {
            faults.push(format!(
                "`{module}.g_idx` should be [{d_in}] of I32, found {:?} of {:?}",
                info.shape, info.dtype
            ));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let has_group_indices = indices.is_some();
        Ok(Self { shape: [d_out, d_in], module: module.to_owned(), kind, group, has_group_indices })
    }

    /// The format.
    pub fn format(&self) -> PackedFormat {
        match &self.kind {
            Kind::Gptq(GptqConfig { bits: GptqBits::Four, .. }) => PackedFormat::Gptq4,
            Kind::Gptq(GptqConfig { bits: GptqBits::Eight, .. }) => PackedFormat::Gptq8,
            Kind::Awq => PackedFormat::Awq,
        }
    }

    /// Reads the matrix.
    pub fn read(&self, checkpoint: &Checkpoint) -> Result<PackedMatrix, SourceError> {
        let words = |part: &str| -> Result<Vec<i32>, SourceError> {
            let bytes = checkpoint.raw(&format!("{}{part}", self.module))?;
            Ok(bytes.as_chunks().0.iter().map(|word| i32::from_le_bytes(*word)).collect())
        };
        let name = format!("{}.scales", self.module);
        let scales = checkpoint.numbers::<f32>(&name, false)?;
        if let Some((index, value)) = scales.first_non_finite() {
            return Err(packed_fault(checkpoint, format!("`{name}` element {index} is {value}")));
        }
        let (codes, zeros, scales, group) = (words(CODES)?, words(".qzeros")?, scales.values, self.group);
        let matrix = match &self.kind {
            Kind::Gptq(GptqConfig { bits, zero_points, .. }) => {
                let column_groups = if self.has_group_indices { Some(words(".g_idx")?) } else { None };
                let (bits, zero_points) = (*bits, *zero_points);
                let parts = GptqParts { bits, codes, zeros, zero_points, scales, group, column_groups };
                PackedMatrix::from_gptq(self.shape, parts)
            }
            Kind::Awq => PackedMatrix::from_awq(self.shape, AwqParts { codes, zeros, scales, group }),
        };
        matrix.map_err(|error| packed_fault(checkpoint, format!("`{}.weight`: {error}", self.module)))
    }
}
