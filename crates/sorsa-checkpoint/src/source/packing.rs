//! Packing the linear layers of a dense model while it is read.

use sorsa_kernels::BlockFormat;
use sorsa_kernels::packed::{PackedFormat, PackedMatrix};

use super::{ModelSource, SourceError, Stored};
use crate::message::quoted;
use crate::weights::{Expected, HEADS, Numbers};

/// Shape `[rows, columns]` and numbers, row-major.
pub type DenseMatrix = ([usize; 2], Vec<f32>);

impl ModelSource {
    /// The same model, whose dense linear layers are packed in `format` while they are read. The head, the embedding and the norms stay
    /// as they are, like in bitsandbytes, and so does what the files have packed already. Matrices whose rows are not whole blocks of
    /// the format take the one that llama.cpp falls back to; see [`packing_note`](Self::packing_note).
    ///
    /// # Errors
    ///
    /// [`SourceError::NotPackable`] of a format whose matrices come from files alone.
    pub fn with_packing(self, format: PackedFormat) -> Result<Self, SourceError> {
        match format.is_packable() {
            true => Ok(Self { packing: Some(format), ..self }),
            false => Err(SourceError::NotPackable { format }),
        }
    }

    /// What is odd about the packing: matrices in another format than asked for, or that there was nothing to pack.
    pub fn packing_note(&self) -> Option<String> {
        let format = self.packing?;
        let linear: Vec<Expected> = self.tensors().into_iter().filter(is_linear_weight).collect();
        let packed = linear.iter().filter_map(|tensor| Some((tensor, self.packing_of(tensor)?)));
        let packed: Vec<(&Expected, PackedFormat)> = packed.collect();
        let others: Vec<&(&Expected, PackedFormat)> = packed.iter().filter(|(_, found)| *found != format).collect();
        match others.as_slice() {
            [] if packed.is_empty() => {
                Some(format!("no linear layer was packed as {format}: the files have none that is dense"))
            }
            [] => None,
            [(first, other), ..] => Some(format!(
                "{} linear layers, {} among them, are not {format} but {other}: their rows are not whole blocks of it",
                others.len(),
                quoted(&first.name.as_str().into())
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
        let format = self.packing?;
        let &[_, columns] = tensor.shape.as_slice() else { return None };
        match self.stored_in_files(&tensor.name)? {
            Stored::Dense(_) if is_linear_weight(tensor) => Some(for_columns(format, columns)),
            Stored::Dense(_) | Stored::Packed(_) => None,
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

/// Whether a tensor is the weight of a linear layer and not of the head.
fn is_linear_weight(tensor: &Expected) -> bool {
    let is_other = |name: &str| HEADS.iter().any(|(head, embedding)| name == *head || name == *embedding);
    tensor.shape.len() == 2 && tensor.name.ends_with(".weight") && !is_other(&tensor.name)
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
