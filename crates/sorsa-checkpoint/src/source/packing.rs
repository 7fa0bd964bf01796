//! Packing the linear layers of a dense model while it is read, and its embedding and head if asked for.

use std::fmt;
use std::str::FromStr;

use sorsa_kernels::BlockFormat;
use sorsa_kernels::packed::{PackedFormat, PackedMatrix, UnknownPackedFormat};

use super::{ModelSource, SourceError, Stored};
use crate::message::quoted;
use crate::weights::{Expected, HEADS, Numbers};

/// Shape `[rows, columns]` and numbers, row-major.
pub type DenseMatrix = ([usize; 2], Vec<f32>);

/// The formats that a dense model is packed in while it is read. Their text is that of the linear layers, or both with a plus between them:
/// `nf4`, `nf4+q8_0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackingFormats {
    /// That of the linear layers.
    pub linear: PackedFormat,
    /// That of the embedding and of the head; if absent, they stay as they are, like in bitsandbytes.
    pub head: Option<PackedFormat>,
}

impl PackingFormats {
    /// The format whose matrices come from files alone, if one of them is such a format.
    pub fn not_packable(self) -> Option<PackedFormat> {
        [Some(self.linear), self.head].into_iter().flatten().find(|format| !format.is_packable())
    }
}

impl From<PackedFormat> for PackingFormats {
    fn from(linear: PackedFormat) -> Self {
        Self { linear, head: None }
    }
}

impl FromStr for PackingFormats {
    type Err = UnknownPackedFormat;

    fn from_str(text: &str) -> Result<Self, UnknownPackedFormat> {
        match text.split_once('+') {
            Some((linear, head)) => Ok(Self { linear: linear.parse()?, head: Some(head.parse()?) }),
            None => Ok(text.parse::<PackedFormat>()?.into()),
        }
    }
}

impl fmt::Display for PackingFormats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.head {
            Some(head) => write!(f, "{}+{head}", self.linear),
            None => self.linear.fmt(f),
        }
    }
}

impl ModelSource {
    /// The same model, whose dense linear layers are packed while they are read, and its dense embedding and head if `formats` has a format
    /// for them. The norms stay as they are, and so does what the files have packed already. Matrices whose rows are not whole blocks of
    /// their format take the one that llama.cpp falls back to; see [`packing_note`](Self::packing_note).
    ///
    /// # Errors
    ///
    /// [`SourceError::NotPackable`] of a format whose matrices come from files alone.
    pub fn with_packing(self, formats: impl Into<PackingFormats>) -> Result<Self, SourceError> {
        let formats = formats.into();
        match formats.not_packable() {
            None => Ok(Self { packing: Some(formats), ..self }),
            Some(format) => Err(SourceError::NotPackable { format }),
        }
    }

    /// What is odd about the packing: matrices in another format than asked for, or that there was nothing to pack.
    pub fn packing_note(&self) -> Option<String> {
        let formats = self.packing?;
        let tensors = self.tensors();
        let packed = tensors.iter().filter_map(|tensor| Some((tensor, self.packing_of(tensor)?)));
        let packed: Vec<(&Expected, PackedFormat)> = packed.collect();
        let others: Vec<&(&Expected, PackedFormat)> =
            packed.iter().filter(|(tensor, found)| formats.asked(tensor) != Some(*found)).collect();
        let has_linear = packed.iter().any(|(tensor, _)| is_linear_weight(tensor));
        match others.as_slice() {
            _ if !has_linear => {
                Some(format!("no linear layer was packed as {}: the files have none that is dense", formats.linear))
            }
            [] => None,
            [(first, other), ..] => Some(format!(
                "{} {}, {} among them, are not {} but {other}: their rows are not whole blocks of it",
                others.len(),
                if others.iter().all(|(tensor, _)| is_linear_weight(tensor)) { "linear layers" } else { "matrices" },
                quoted(&first.name.as_str().into()),
                formats.asked(first).unwrap_or(formats.linear)
            )),
        }
    }

    /// Shape `[d_out, d_in]` and numbers of a matrix as they are in the files, if it is packed while it is read; nothing otherwise.
    ///
    /// # Errors
    ///
    /// [`SourceError`] of a tensor that cannot be read, or that is not finite.
    pub fn before_packing(&self, name: &str) -> Result<Option<DenseMatrix>, SourceError> {
        let Some(tensor) = self.packing.and_then(|_| self.tensor(name)) else { return Ok(None) };
        match self.packing_of(&tensor) {
            Some(_) => Ok(Some(([tensor.shape[0], tensor.shape[1]], self.finite(&tensor)?.values))),
            None => Ok(None),
        }
    }

    /// Whether a matrix is packed while it is read.
    pub fn packs(&self, name: &str) -> bool {
        self.packing.and_then(|_| self.packing_of(&self.tensor(name)?)).is_some()
    }

    /// The format that a dense tensor is packed in while it is read.
    pub(super) fn packing_of(&self, tensor: &Expected) -> Option<PackedFormat> {
        let format = self.packing?.asked(tensor)?;
        let &[_, columns] = tensor.shape.as_slice() else { return None };
        match self.stored_in_files(&tensor.name)? {
            Stored::Dense(_) => Some(for_columns(format, columns)),
            Stored::Packed(_) => None,
        }
    }

    /// Reads a dense tensor and packs it.
    pub(super) fn pack(&self, tensor: &Expected, format: PackedFormat) -> Result<PackedMatrix, SourceError> {
        let numbers = self.finite(tensor)?;
        let shape = [tensor.shape[0], tensor.shape[1]];
        PackedMatrix::pack(format, shape, &numbers.values)
            .map_err(|error| self.packing_fault(format!("`{}`: {error}", tensor.name)))
    }

    /// The numbers of a tensor in the files, all of them finite.
    fn finite(&self, tensor: &Expected) -> Result<Numbers<f32>, SourceError> {
        let numbers = self.numbers_in_files::<f32>(&tensor.name, false)?;
        match numbers.first_non_finite() {
            Some((index, value)) => Err(self.packing_fault(format!("`{}` element {index} is {value}", tensor.name))),
            None => Ok(numbers),
        }
    }

    fn packing_fault(&self, fault: String) -> SourceError {
        SourceError::Packed { folder: self.path.clone(), faults: vec![fault] }
    }
}

impl PackingFormats {
    /// The format that is asked for a tensor.
    fn asked(self, tensor: &Expected) -> Option<PackedFormat> {
        match (is_linear_weight(tensor), is_head(tensor)) {
            (true, _) => Some(self.linear),
            (_, true) => self.head,
            _ => None,
        }
    }
}

/// Whether a tensor is the weight of a linear layer and not of the head.
fn is_linear_weight(tensor: &Expected) -> bool {
    tensor.shape.len() == 2 && tensor.name.ends_with(".weight") && !is_head(tensor)
}

/// Whether a tensor is the weight of the embedding or of the head.
fn is_head(tensor: &Expected) -> bool {
    HEADS.iter().any(|(head, embedding)| tensor.name == *head || tensor.name == *embedding)
}

/// The format of a matrix with rows of `columns` values: llama.cpp takes smaller blocks if they are not whole blocks, and f16 if they are
/// whole blocks of none.
fn for_columns(format: PackedFormat, columns: usize) -> PackedFormat {
    let smaller = match format {
        PackedFormat::Blocks(BlockFormat::Q4K) => BlockFormat::Q5_0,
        PackedFormat::Blocks(BlockFormat::Q5K) => BlockFormat::Q5_1,
        PackedFormat::Blocks(BlockFormat::Q6K) => BlockFormat::Q8_0,
        _ => return if format.takes_columns(columns) { format } else { PackedFormat::F16 },
    };
    let candidates = [format, PackedFormat::Blocks(smaller)];
    candidates.into_iter().find(|format| format.takes_columns(columns)).unwrap_or(PackedFormat::F16)
}
