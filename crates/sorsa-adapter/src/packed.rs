//! Packed weights of a model: read, replaced by their residuals, widened for a merge.

use std::collections::BTreeMap;

use burn::module::{ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::DType;
use sorsa_files::HostTensor;
use sorsa_ops::{PackedMatrix, PackedWeight, WeightOperand};

use crate::Adapter;
use crate::factors::FactorSet;
use crate::host_tensor::HostTensorExt;
use crate::parameters::{module_of, packed_module_of, weights};

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

/// The residual of a packed weight after `part` is subtracted from its values, packed in the same format; and the error of the packing
/// relative to the residual's norm.
pub(crate) fn packed_residual(weight: &PackedWeight, part: &Adapter, saved: &FactorSet) -> (PackedWeight, f64) {
    let matrix = weight.matrix();
    let rest = part.unmerge(weight.to_dense(), saved);
    let values = HostTensor::from_tensor(rest.transpose());
    let packed = PackedMatrix::pack(matrix.format(), matrix.shape(), &values.values)
        .expect("the shape and the format of a packed matrix")
        .with_precision(matrix.precision());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let widened = packed.to_f32();
    let lost = norm(&mut values.values.iter().zip(&widened).map(|(a, b)| f64::from(a - b)));
    let whole = norm(&mut values.values.iter().map(|value| f64::from(*value)));
    (PackedWeight::new(&packed, &weight.device()), lost / whole.max(f64::MIN_POSITIVE))
}

/// Replaces the packed weights of the modules at these paths.
pub(crate) fn with_packed_weights<M: Module>(model: M, weights: BTreeMap<String, PackedWeight>) -> M {
    let words = weights.into_iter().map(|(path, weight)| (path, weight.words())).collect();
    replaced(model, BTreeMap::new(), words)
}

/// Replaces these packed weights by their values, f32.
pub(crate) fn widened<M: Module>(model: M, weights: BTreeMap<String, PackedWeight>) -> M {
    let no_words = |weight: &PackedWeight| Tensor::empty([0], (&weight.device(), DType::I32));
    let words = weights.iter().map(|(path, weight)| (path.clone(), no_words(weight))).collect();
    replaced(model, weights, words)
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
