//! Packed weights of a model: read, replaced by their residuals, widened for a merge. And the weights that were packed while their
//! model was read, as they were before.

use std::collections::BTreeMap;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use sorsa_files::HostTensor;
use sorsa_ops::{PackedFormat, PackedWeight, WeightOperand};

use crate::error::AdapterError;
use crate::host_tensor::HostTensorExt;
use crate::parameters::{module_of, packed_module_of, packed_weight, weights};

/// The formats of all packed weights of linear layers and embeddings, by the path of the module.
pub(crate) fn packed_formats<M: Module>(model: &M) -> BTreeMap<String, PackedFormat> {
    struct Formats {
        path: Vec<String>,
        found: BTreeMap<String, PackedFormat>,
    }
    impl ModuleVisitor for Formats {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            let path = self.path.join(".");
            if let (Some(module), Some(packed)) = (packed_module_of(&path), packed_weight(param)) {
                self.found.insert(module.to_owned(), packed.matrix().format());
            }
        }
    }
    let mut formats = Formats { path: Vec::new(), found: BTreeMap::new() };
    model.visit(&mut formats);
    formats.found
}

/// The packed weights among those of the linear layers at `paths`.
pub(crate) fn packed_weights<'a, M: Module>(
    model: &M,
    paths: impl Iterator<Item = &'a str>,
) -> BTreeMap<String, PackedWeight> {
    let found = weights(model, &paths.collect()).into_iter().filter_map(|(path, weight)| match weight {
        WeightOperand::Packed(weight) => Some((path, weight)),
        WeightOperand::Dense(_) => None,
    });
    found.collect()
}

/// Reads weights as they were before they were packed while the model was read.
pub trait OriginalWeights: Sync {
    /// The transpose `[d_out, d_in]` of the weight of the linear layer at the path `module`; absent if it is in the model as it is in
    /// its files.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Original`] if it cannot be read any more.
    fn read(&self, module: &str) -> Result<Option<HostTensor>, AdapterError>;

    /// Whether [`read`](Self::read) has the weight, so that it was packed while the model was read.
    fn contains(&self, module: &str) -> bool;
}

/// The original weights of a model that has its weights as they are in its files: there are none.
#[derive(Debug, Clone, Copy)]
pub struct NothingPacked;

impl OriginalWeights for NothingPacked {
    fn read(&self, _module: &str) -> Result<Option<HostTensor>, AdapterError> {
        Ok(None)
    }

    fn contains(&self, _module: &str) -> bool {
        false
    }
}

/// The transpose `[d_out, d_in]` of a weight, f32: before it was packed, or widened.
pub(crate) fn transposed(
    module: &str,
    weight: WeightOperand,
    originals: &dyn OriginalWeights,
) -> Result<HostTensor, AdapterError> {
    if let WeightOperand::Packed(packed) = &weight {
        if let Some(original) = originals.read(module)? {
            return Ok(original);
        }
        let matrix = packed.matrix();
        return Ok(HostTensor::new(matrix.shape(), matrix.to_f32()));
    }
    Ok(HostTensor::from_tensor(weight.into_dense().cast(FloatDType::F32).transpose()))
}

/// The values `[d_in, d_out]` of a weight that a method decomposes: before it was packed, or widened.
pub(crate) fn original_or_widened(
    module: &str,
    weight: WeightOperand,
    originals: &dyn OriginalWeights,
) -> Result<Tensor<2>, AdapterError> {
    match weight {
        WeightOperand::Dense(weight) => Ok(weight),
        WeightOperand::Packed(packed) => match originals.read(module)? {
            Some(original) => Ok(original.to_tensor::<2>(&packed.device()).transpose()),
            None => Ok(packed.to_dense()),
        },
    }
}

/// Replaces the packed weights of the modules at these paths.
pub(crate) fn with_packed_weights<M: Module>(model: M, weights: BTreeMap<String, PackedWeight>) -> M {
    let words = weights.into_iter().map(|(path, weight)| (path, weight.words())).collect();
    replaced(model, BTreeMap::new(), words)
}

/// Takes away the packed weights of the modules at these paths, which have dense weights.
pub(crate) fn without_packed_weights<M: Module>(model: M, modules: BTreeMap<String, PackedWeight>) -> M {
    let words = modules.into_iter().map(|(path, weight)| (path, no_words(&weight))).collect();
    replaced(model, BTreeMap::new(), words)
}

/// Replaces these packed weights by their values, f32.
pub(crate) fn widened<M: Module>(model: M, weights: BTreeMap<String, PackedWeight>) -> M {
    let words = weights.iter().map(|(path, weight)| (path.clone(), no_words(weight))).collect();
    replaced(model, weights, words)
}

fn no_words(weight: &PackedWeight) -> Tensor<1, Int> {
    Tensor::empty([0], (&weight.device(), DType::I32))
}

/// The model whose modules at the paths `dense` have these values as weights, and those at the paths `words` these words.
fn replaced<M: Module>(model: M, dense: BTreeMap<String, PackedWeight>, words: BTreeMap<String, Tensor<1, Int>>) -> M {
    struct Replace {
        path: Vec<String>,
        dense: BTreeMap<String, PackedWeight>,
        words: BTreeMap<String, Tensor<1, Int>>,
    }
    impl ModuleMapper for Replace {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.path.join(".");
            let Some(weight) = module_of(&path).and_then(|module| self.dense.remove(module)) else { return param };
            param.map(|old| {
                let values = weight.to_dense().reshape(old.shape());
                if old.is_autodiff() { Tensor::from_inner(values) } else { values }
            })
        }
        fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
            let path = self.path.join(".");
            let words = packed_module_of(&path).and_then(|module| self.words.remove(module));
            let Some(words) = words else { return param };
            param.map(|old| {
                // The parameter has one axis.
                let words = words.clone().reshape([words.dims()[0]; D]);
                if old.is_autodiff() { Tensor::from_inner(words) } else { words }
            })
        }
    }
    if words.is_empty() {
        return model;
    }
    model.map(&mut Replace { path: Vec::new(), dense, words })
}
