//! The parameters of a model by path: which are linear weights, which are trained, and their values.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId, Reparameterization};
use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::adapter::{Adapter, Orthonormal};
use crate::config::Method;
use crate::error::AdapterError;
use crate::factors::{HostTensor, NamedTensors};

/// What kind of parameter is trained; optimizers may treat each kind in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterGroup {
    /// A matrix factor of an adapter.
    Factor,
    /// The singular values of a SORSA adapter.
    SingularValues,
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
    /// The kind.
    pub group: ParameterGroup,
    pub(crate) orthonormal: Option<Orthonormal>,
}

/// A float parameter met while walking a model.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub id: ParamId,
    /// Path in the model, adapters' factors included.
    pub path: String,
    pub shape: Vec<usize>,
    /// Whether it is the weight of a `burn::nn::Linear`.
    pub linear: bool,
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
            let is_weight = self.path.last().is_some_and(|name| name == "weight");
            let in_linear = self.container.last().is_some_and(|name| name == "Struct:Linear");
            self.found.push(Parameter {
                id: param.id,
                path: self.path.join("."),
                shape: param.lazy_shape().to_vec(),
                linear: D == 2 && is_weight && in_linear,
            });
        }
    }
    let mut walk = Walk { path: Vec::new(), container: Vec::new(), found: Vec::new() };
    model.visit(&mut walk);
    walk.found
}

/// The trained parameters of a model to which `method` was attached; `dense` says which paths are trained whole.
pub(crate) fn trainable<M: Module>(model: &M, method: Method, dense: impl Fn(&str) -> bool) -> Vec<Trainable> {
    let separator = format!(".weight.{}.", Adapter::NAME);
    let mut found = Vec::new();
    for parameter in parameters(model) {
        let (name, group, orthonormal) = if let Some((module, rest)) = parameter.path.split_once(&separator) {
            // `rest` is `<Variant>.<factor>`.
            let factor = rest.rsplit('.').next().unwrap_or(rest);
            let group = if factor == "s" { ParameterGroup::SingularValues } else { ParameterGroup::Factor };
            (format!("{module}.{method}.{factor}"), group, Adapter::orthonormal(method, factor))
        } else if dense(&parameter.path) {
            (parameter.path, ParameterGroup::Dense, None)
        } else {
            continue;
        };
        found.push(Trainable { id: parameter.id, name, shape: parameter.shape, group, orthonormal });
    }
    found
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

/// Puts values read from `source` into the trained parameters.
///
/// # Errors
///
/// [`AdapterError::Mismatch`] with every missing, extra and misshapen tensor; the model is dropped then.
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
    let expected = trainable.iter().map(|parameter| (parameter.name.as_str(), parameter.shape.as_slice()));
    check_names(expected, values, source)?;
    let values = trainable.iter().map(|parameter| (parameter.id, &values[&parameter.name])).collect();
    Ok(model.map(&mut Import { values }))
}

/// Compares names and shapes, and reports every difference in one error.
pub(crate) fn check_names<'a>(
    expected: impl Iterator<Item = (&'a str, &'a [usize])>,
    found: &NamedTensors,
    source: &Path,
) -> Result<(), AdapterError> {
    let mut faults = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    for (name, shape) in expected {
        known.insert(name);
        match found.get(name) {
            None => faults.push(format!("`{name}` is missing")),
            Some(tensor) if tensor.shape != shape => {
                faults.push(format!("`{name}` should be {shape:?}, found {:?}", tensor.shape));
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|name| !known.contains(name.as_str()));
    faults.extend(extra.map(|name| format!("`{name}` is not in the model")));
    if faults.is_empty() { Ok(()) } else { Err(AdapterError::Mismatch { path: source.to_owned(), faults }) }
}
