//! The weights of a folder in Hugging Face's layout, dense or packed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sorsa_kernels::packed::{PackedFormat, PackedMatrix};

use super::four_bit::{self, FourBitTensor};
use super::quantization::Quantization;
use super::{SourceError, Stored};
use crate::weights::{
    Checkpoint, Differences, Dtype, Expected, Number, Numbers, TensorInfo, WeightsError, widened, widened_transposed,
};

/// The weights of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    pub checkpoint: Checkpoint,
    /// The packed matrices by the names of the weights.
    packed: BTreeMap<String, PackedTensor>,
    /// The tensors that are parts of packed matrices.
    parts: BTreeSet<String>,
}

/// A packed matrix in the files.
#[derive(Debug)]
enum PackedTensor {
    FourBit(FourBitTensor),
}

impl PackedTensor {
    fn shape(&self) -> &[usize; 2] {
        match self {
            Self::FourBit(tensor) => &tensor.shape,
        }
    }

    fn format(&self) -> PackedFormat {
        match self {
            Self::FourBit(tensor) => tensor.format(),
        }
    }
}

impl Folder {
    /// Opens the weights of a folder whose configuration has this `quantization`. Packed tensors are told by their parts, not by the
    /// configuration: mixed folders have dense ones too.
    pub fn open(path: &Path, quantization: Option<&Quantization>) -> Result<Self, SourceError> {
        let checkpoint = Checkpoint::open(path)?;
        let (mut packed, mut parts, mut faults) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let states = checkpoint.names().filter_map(|name| Some((four_bit::packed_tensor_of(name)?.0, name)));
        for (name, state) in states {
            match FourBitTensor::open(&checkpoint, name, state) {
                Ok(_) if packed.contains_key(name) => faults.push(format!("`{name}` has two quant_states")),
                Ok(tensor) => drop(packed.insert(name.to_owned(), PackedTensor::FourBit(tensor))),
                Err(more) => faults.extend(more),
            }
        }
        parts.extend(
            checkpoint
                .names()
                .filter(|name| four_bit::whole_of(name).is_some_and(|whole| packed.contains_key(whole)))
                .map(str::to_owned),
        );
        if matches!(quantization, Some(Quantization::Gptq(_) | Quantization::Awq)) {
            faults.push("weights of gptq and awq are not supported".to_owned());
        }
        if faults.is_empty() {
            Ok(Self { checkpoint, packed, parts })
        } else {
            Err(SourceError::Packed { folder: path.to_owned(), faults })
        }
    }

    /// Names and shapes of the model's tensors, whatever their parts in the files.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let dense =
            self.checkpoint.names().filter(|name| !self.packed.contains_key(*name) && !self.parts.contains(*name));
        let dense = dense.filter_map(|name| Some((name, self.checkpoint.info(name)?.shape.as_slice())));
        dense.chain(self.packed.iter().map(|(name, tensor)| (name.as_str(), tensor.shape().as_slice())))
    }

    pub fn check(&self, expected: &[Expected], ignorable: impl Fn(&str) -> bool) -> Result<(), SourceError> {
        Differences::find(expected, self.tensors(), ignorable).into_result(self.checkpoint.dir())?;
        let faults: Vec<String> = expected
            .iter()
            .filter(|tensor| !self.packed.contains_key(&tensor.name))
            .filter_map(|tensor| Some((&tensor.name, self.checkpoint.info(&tensor.name)?)))
            .filter(|(_, info)| !is_float(info.dtype))
            .map(|(name, info)| {
                format!("`{name}` is {:?}, without the scales of a format that is read here", info.dtype)
            })
            .collect();
        if faults.is_empty() {
            return Ok(());
        }
        Err(SourceError::Packed { folder: self.checkpoint.dir().to_owned(), faults })
    }

    pub fn stored(&self, name: &str) -> Option<Stored> {
        match self.packed.get(name) {
            Some(tensor) => Some(Stored::Packed(tensor.format())),
            None => self.checkpoint.info(name).map(|TensorInfo { dtype, .. }| Stored::Dense(*dtype)),
        }
    }

    pub fn packed(&self, name: &str) -> Result<Option<PackedMatrix>, SourceError> {
        match self.packed.get(name) {
            Some(PackedTensor::FourBit(tensor)) => tensor.read(&self.checkpoint, name).map(Some),
            None if self.checkpoint.info(name).is_some() => Ok(None),
            None => {
                let dir = self.checkpoint.dir().to_owned();
                Err(WeightsError::NoTensor { name: name.to_owned(), dir }.into())
            }
        }
    }

    pub fn numbers<T: Number>(&self, name: &str, transposed: bool) -> Result<Numbers<T>, SourceError> {
        match self.packed(name)? {
            Some(matrix) if transposed => Ok(widened_transposed(&matrix)),
            Some(matrix) => Ok(widened(&matrix)),
            None => Ok(self.checkpoint.numbers(name, transposed)?),
        }
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}
