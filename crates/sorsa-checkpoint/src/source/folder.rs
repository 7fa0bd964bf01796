//! The weights of a folder in Hugging Face's layout, dense or packed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sorsa_kernels::packed::{PackedFormat, PackedMatrix};

use super::four_bit::{self, FourBitTensor};
use super::grouped::{self, GroupedTensor};
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
    Grouped(GroupedTensor),
}

impl PackedTensor {
    fn shape(&self) -> &[usize; 2] {
        match self {
            Self::FourBit(tensor) => &tensor.shape,
            Self::Grouped(tensor) => &tensor.shape,
        }
    }

    fn format(&self) -> PackedFormat {
        match self {
            Self::FourBit(tensor) => tensor.format(),
            Self::Grouped(tensor) => tensor.format(),
        }
    }
}

impl Folder {
    /// Opens the weights of a folder whose configuration has this `quantization`. Packed tensors are told by their parts, not by the
    /// configuration: mixed folders have dense ones too.
    pub fn open(path: &Path, quantization: Option<&Quantization>) -> Result<Self, SourceError> {
        let checkpoint = Checkpoint::open(path)?;
        let (mut packed, mut faults) = (BTreeMap::new(), Vec::new());
        let states = checkpoint.names().filter_map(|name| Some((four_bit::packed_tensor_of(name)?.0, name)));
        for (name, state) in states {
            match FourBitTensor::open(&checkpoint, name, state) {
                Ok(_) if packed.contains_key(name) => faults.push(format!("`{name}` has two quant_states")),
                Ok(tensor) => drop(packed.insert(name.to_owned(), PackedTensor::FourBit(tensor))),
                Err(more) => faults.extend(more),
            }
        }
        for module in checkpoint.names().filter_map(grouped::module_of_codes) {
            let name = format!("{module}.weight");
            match GroupedTensor::open(&checkpoint, module, quantization) {
                Ok(_) if checkpoint.info(&name).is_some() => {
                    faults.push(format!("`{name}` is there beside `{module}.qweight`"));
                }
                Ok(tensor) => drop(packed.insert(name, PackedTensor::Grouped(tensor))),
                Err(more) => faults.extend(more),
            }
        }
        let is_part = |name: &&str| {
            let module = grouped::module_of_part(name).map(|module| format!("{module}.weight"));
            match (four_bit::whole_of(name), module) {
                (Some(whole), _) => packed.contains_key(whole),
                (None, Some(whole)) => matches!(packed.get(&whole), Some(PackedTensor::Grouped(_))),
                (None, None) => false,
            }
        };
        let parts = checkpoint.names().filter(is_part).map(str::to_owned).collect();
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
        // Before the shapes: packed tensors have other shapes, and other tensors beside them.
        let faults: Vec<String> = expected
            .iter()
            .filter(|tensor| !self.packed.contains_key(&tensor.name))
            .filter_map(|tensor| Some((&tensor.name, self.checkpoint.info(&tensor.name)?)))
            .filter(|(_, info)| !is_float(info.dtype))
            .map(|(name, info)| {
                format!("`{name}` is {:?}, without the scales of a format that is read here", info.dtype)
            })
            .collect();
        if !faults.is_empty() {
            return Err(SourceError::Packed { folder: self.checkpoint.dir().to_owned(), faults });
        }
        let ignorable = |name: &str| ignorable(name) || self.is_empty_bias(name);
        Ok(Differences::find(expected, self.tensors(), ignorable).into_result(self.checkpoint.dir())?)
    }

    /// Whether a tensor is a bias of zeros beside a packed weight: AutoGPTQ gave one to every layer.
    fn is_empty_bias(&self, name: &str) -> bool {
        let module = name.strip_suffix(".bias");
        let is_grouped = module.is_some_and(|module| {
            matches!(self.packed.get(&format!("{module}.weight")), Some(PackedTensor::Grouped(_)))
        });
        is_grouped && self.checkpoint.to_f32(name).is_ok_and(|values| values.iter().all(|value| *value == 0.0))
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match self.packed.get(name) {
            Some(tensor) => Some(tensor.shape()),
            None => self.checkpoint.info(name).map(|info| info.shape.as_slice()),
        }
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
            Some(PackedTensor::Grouped(tensor)) => tensor.read(&self.checkpoint).map(Some),
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
