//! The parameters of a model by path: which of them are linear weights, which are trained, and their values.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId, Reparameterization};
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_files::{HostTensor, NamedTensors};
use sorsa_ops::{PackedWeight, WeightOperand};

use crate::error::AdapterError;
use crate::factors::{Factor, Vectors};
use crate::host_tensor::HostTensorExt;
use crate::regularizer::{Lengths, Regularized};
use crate::state::{AdapterState, ModuleState};
use crate::stiefel::{OrthonormalSteps, Retraction, Stiefel};
use crate::{Adapter, Method};

/// The group of a trained parameter. Optimizers may treat each group in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterGroup {
    /// A matrix factor of an adapter.
    Factor,
    /// Singular values of an adapter.
    SingularValues,
    /// Norms of the columns of an adapted weight.
    Magnitude,
    /// A parameter of the model itself (partial and full fine-tuning).
    Dense,
}

/// One trained parameter.
#[derive(Debug, Clone)]
pub struct Trainable {
    /// burn's identity of the parameter, kept through `train`, `valid` and updates.
    pub id: ParamId,
    /// Stable name: `<module>.<method>.<factor>` for factors, the path in the model otherwise.
    pub name: String,
    /// Axes.
    pub shape: Vec<usize>,
    /// The group by which the optimizer treats it.
    pub group: ParameterGroup,
    pub(crate) regularized: Option<Regularized>,
    pub(crate) stiefel: Option<Stiefel>,
}

impl Trainable {
    /// The manifold that an optimizer's steps keep the parameter on; absent if it is free.
    pub fn stiefel(&self) -> Option<&Stiefel> {
        self.stiefel.as_ref()
    }

    /// The parameter on the manifold of SORSA's retractions instead of under its regularizer, if its vectors are to be orthonormal.
    pub fn retracted_by(mut self, retraction: Retraction) -> Self {
        if let Some(Regularized { vectors, lengths: Lengths::One }) = self.regularized.take() {
            let steps = OrthonormalSteps::projected(retraction, 1);
            self.stiefel = Some(Stiefel { vectors, steps, step_factor: 1.0 });
        }
        self
    }
}

/// A float parameter of a model.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub id: ParamId,
    /// Path in the model, adapters' factors included.
    pub path: String,
    pub shape: Vec<usize>,
    /// Whether it is the weight of a `burn::nn::Linear` inside the model.
    pub linear: bool,
}

/// Whether the innermost of these containers is a `burn::nn::Linear`.
fn in_linear(containers: &[String]) -> bool {
    containers.last().is_some_and(|name| name == "Struct:Linear")
}

/// The path of the module whose weight is the parameter at `path`.
pub(crate) fn module_of(path: &str) -> Option<&str> {
    path.strip_suffix(".weight")
}

/// The path of the module whose packed weight is the parameter at `path`.
pub(crate) fn packed_module_of(path: &str) -> Option<&str> {
    path.strip_suffix(".packed")
}

/// The packed weight whose words a parameter holds, if it holds any.
pub(crate) fn packed_weight<const D: usize>(words: &Param<Tensor<D, Int>>) -> Option<PackedWeight> {
    let words = words.val();
    let count = words.dims().iter().product::<usize>();
    PackedWeight::from_words(words.reshape([count]))
}

/// The path of the weight of the module at the path `module`.
pub(crate) fn weight_path(module: &str) -> String {
    format!("{module}.weight")
}

/// The name of a factor of the module at the path `module`.
pub(crate) fn factor_path(module: &str, method: Method, factor: &str) -> String {
    format!("{module}.{method}.{factor}")
}

/// The name of a factor that was subtracted before the last packing of the module's residual.
pub(crate) fn subtracted_path(module: &str, method: Method, factor: &str) -> String {
    format!("{module}.{method}.subtracted.{factor}")
}

/// The name of a factor of the change that the adapter of the module carries along.
pub(crate) fn carried_path(module: &str, factor: &str) -> String {
    format!("{module}.carried.{factor}")
}

/// Walks every float parameter of a model with its path, without touching values.
pub(crate) fn parameters<M: Module>(model: &M) -> Vec<Parameter> {
    struct Walk {
        path: Vec<String>,
        container: Vec<String>,
        found: Vec<Parameter>,
    }
    impl ModuleVisitor for Walk {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.push(name.to_owned());
            self.container.push(container_type.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
            self.container.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.join(".");
            let linear = D == 2 && in_linear(&self.container) && module_of(&path).is_some();
            self.found.push(Parameter { id: param.id, path, shape: param.lazy_shape().to_vec(), linear });
        }
    }
    let mut walk = Walk { path: Vec::new(), container: Vec::new(), found: Vec::new() };
    model.visit(&mut walk);
    walk.found
}

/// The linear layers of a model by path, with the shapes `[d_in, d_out]` of their weights, in the model's order.
pub(crate) fn linear_layers<M: Module>(model: &M) -> Vec<(String, [usize; 2])> {
    let linear = parameters(model).into_iter().filter(|parameter| parameter.linear);
    linear.filter_map(|p| Some((module_of(&p.path)?.to_owned(), [p.shape[0], p.shape[1]]))).collect()
}

/// Whether an adapter is attached to any weight of the model.
pub(crate) fn has_adapter<M: Module>(model: &M) -> bool {
    let marker = format!(".weight.{}.", Adapter::NAME);
    parameters(model).iter().any(|parameter| parameter.path.contains(&marker))
}

/// The values of the parameters at the paths `wanted`, on the host, f32. Lazy parameters are initialized. A wanted path
/// that is no parameter has no entry.
pub(crate) fn parameter_values<M: Module>(model: &M, wanted: &BTreeSet<&str>) -> NamedTensors {
    struct Collect<'a> {
        path: Vec<String>,
        container: Vec<String>,
        wanted: &'a BTreeSet<&'a str>,
        found: NamedTensors,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.push(name.to_owned());
            self.container.push(container_type.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
            self.container.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.join(".");
            if self.wanted.contains(path.as_str()) {
                self.found.insert(path, HostTensor::from_tensor(param.base().without_autodiff()));
            }
        }
        /// A packed weight is visited after its placeholder.
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            let path = self.path.join(".");
            let Some(weight) = packed_module_of(&path).map(weight_path) else { return };
            let Some(packed) = self.wanted.contains(weight.as_str()).then(|| packed_weight(param)).flatten() else {
                return;
            };
            let matrix = packed.matrix();
            let stored = HostTensor::new(matrix.shape(), matrix.to_f32());
            let value = if in_linear(&self.container) { stored.transposed() } else { stored };
            self.found.insert(weight, value);
        }
    }
    let mut collect = Collect { path: Vec::new(), container: Vec::new(), wanted, found: NamedTensors::new() };
    if !wanted.is_empty() {
        model.visit(&mut collect);
    }
    collect.found
}

/// The weights of the linear layers at the paths `wanted`, without autodiff. Lazy weights are initialized; nothing is
/// copied or widened. A wanted path that is not a linear layer has no entry.
pub(crate) fn weights<M: Module>(model: &M, wanted: &BTreeSet<&str>) -> BTreeMap<String, WeightOperand> {
    struct Collect<'a> {
        path: Vec<String>,
        container: Vec<String>,
        wanted: &'a BTreeSet<&'a str>,
        found: BTreeMap<String, WeightOperand>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.push(name.to_owned());
            self.container.push(container_type.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
            self.container.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.join(".");
            let Some(module) = module_of(&path).filter(|module| self.wanted.contains(module)) else { return };
            if D != 2 || !in_linear(&self.container) {
                return;
            }
            // The same tensor, which has two axes; a reshape would copy the placeholder of a packed weight to its whole size.
            let weight = Tensor::<2>::from_dispatch(param.base().without_autodiff().into_dispatch());
            self.found.insert(module.to_owned(), weight.into());
        }
        /// A packed weight is visited after its placeholder.
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            let path = self.path.join(".");
            let Some(module) = packed_module_of(&path).filter(|module| self.wanted.contains(module)) else { return };
            if !in_linear(&self.container) {
                return;
            }
            if let Some(packed) = packed_weight(param) {
                self.found.insert(module.to_owned(), packed.into());
            }
        }
    }
    let mut collect = Collect { path: Vec::new(), container: Vec::new(), wanted, found: BTreeMap::new() };
    model.visit(&mut collect);
    collect.found
}

/// The trained parameters of a model with the adapter of `state`. `dense` says which paths are trained whole.
pub(crate) fn trainable<M: Module>(model: &M, state: &AdapterState, dense: impl Fn(&str) -> bool) -> Vec<Trainable> {
    let width = usual_side(&state.modules);
    let separator = format!(".weight.{}.", Adapter::NAME);
    let mut found = Vec::new();
    for parameter in parameters(model) {
        let (name, group, regularized, stiefel) = if let Some((module, rest)) = parameter.path.split_once(&separator) {
            // `rest` is `<Variant>.<factor>`.
            let name = rest.rsplit('.').next().unwrap_or(rest);
            let config = state.config.method_config_at(module);
            let (method, factors, steps) = (config.method(), config.trained_factors(), config.orthonormal_steps());
            let Some(Factor { group, orthonormal, .. }) = factors.iter().find(|factor| factor.name == name) else {
                continue;
            };
            let (regularized, stiefel) = match (*orthonormal, steps) {
                (None, _) => (None, None),
                (Some(vectors), None) => (Some(Regularized { vectors, lengths: Lengths::One }), None),
                (Some(vectors), Some(steps)) => {
                    let length = match vectors {
                        Vectors::Columns => parameter.shape[0],
                        Vectors::Rows => parameter.shape[1],
                    };
                    let step_factor = if steps.scaled_by_width { (width as f64 / length as f64).sqrt() } else { 1.0 };
                    (None, Some(Stiefel { vectors, steps, step_factor }))
                }
            };
            (factor_path(module, method, name), *group, regularized, stiefel)
        } else if dense(&parameter.path) {
            (parameter.path, ParameterGroup::Dense, None, None)
        } else {
            continue;
        };
        found.push(Trainable { id: parameter.id, name, shape: parameter.shape, group, regularized, stiefel });
    }
    found
}

/// The length of a side that most of the weights have: the hidden size of a transformer. The smaller of two that are as frequent.
fn usual_side(modules: &[ModuleState]) -> usize {
    let mut counts = BTreeMap::new();
    for side in modules.iter().flat_map(|module| module.shape) {
        *counts.entry(side).or_insert(0usize) += 1;
    }
    let most = counts.values().max().copied().unwrap_or_default();
    counts.into_iter().find(|(_, count)| *count == most).map_or(1, |(side, _)| side)
}

/// The values of the trained parameters, on the host, f32.
pub fn export_trainable<M: Module>(model: &M, trainable: &[Trainable]) -> NamedTensors {
    struct Export<'a> {
        names: BTreeMap<ParamId, &'a str>,
        out: NamedTensors,
    }
    impl ModuleVisitor for Export<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(name) = self.names.get(&param.id) {
                self.out.insert((*name).to_owned(), HostTensor::from_tensor(param.base().without_autodiff()));
            }
        }
    }
    let names = trainable.iter().map(|parameter| (parameter.id, parameter.name.as_str())).collect();
    let mut export = Export { names, out: NamedTensors::new() };
    model.visit(&mut export);
    export.out
}

/// Replaces the values of the trained parameters by `values`, which were read from `source`.
///
/// # Errors
///
/// [`AdapterError::Mismatch`] with every missing, extra and misshapen tensor; the model is dropped.
pub fn import_trainable<M: Module>(
    model: M,
    trainable: &[Trainable],
    values: &NamedTensors,
    source: &Path,
) -> Result<M, AdapterError> {
    struct Import<'a> {
        values: BTreeMap<ParamId, &'a HostTensor>,
    }
    impl ModuleMapper for Import<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(value) = self.values.get(&param.id) else { return param };
            param.map(|old| {
                let device = old.device().without_autodiff();
                let new = value.to_tensor::<D>(&device).cast(FloatDType::from(old.dtype()));
                if old.is_autodiff() { Tensor::from_inner(new).set_require_grad(true) } else { new }
            })
        }
    }
    let expected = trainable.iter().map(|parameter| (parameter.name.clone(), parameter.shape.clone()));
    check_fits(tensor_faults(expected, values), source)?;
    let values = trainable.iter().map(|parameter| (parameter.id, &values[&parameter.name])).collect();
    Ok(model.map(&mut Import { values }))
}

/// A line for each tensor that is missing, misshapen or not expected.
pub(crate) fn tensor_faults(
    expected: impl IntoIterator<Item = (String, Vec<usize>)>,
    found: &NamedTensors,
) -> Vec<String> {
    let expected: BTreeMap<String, Vec<usize>> = expected.into_iter().collect();
    let mut faults = Vec::new();
    for (name, shape) in &expected {
        match found.get(name) {
            None => faults.push(format!("`{name}` is missing")),
            Some(tensor) if tensor.shape != *shape => {
                faults.push(format!("`{name}` should be {shape:?}, found {:?}", tensor.shape));
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|name| !expected.contains_key(*name));
    faults.extend(extra.map(|name| format!("`{name}` is not in the model")));
    faults
}

/// An error if there are `faults` between an adapter from `source` and a model.
pub(crate) fn check_fits(faults: Vec<String>, source: &Path) -> Result<(), AdapterError> {
    if faults.is_empty() { Ok(()) } else { Err(AdapterError::Mismatch { path: source.to_owned(), faults }) }
}
