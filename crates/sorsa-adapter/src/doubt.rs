//! What is odd about an adapter that can be used all the same.

use std::collections::BTreeSet;
use std::fmt;

use burn::prelude::*;

use sorsa_files::HostTensor;

use crate::HostTensorExt;
use crate::factors::Axes;
use crate::parameters::{parameter_values, weights};
use crate::state::{ModuleState, SavedAdapter};

/// Something that an adapter's user may not expect. The adapter works; whether it is the one that was meant, its files do not
/// say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterDoubt {
    /// Names or patterns of a setting that match no adapted module.
    ReachesNothing {
        /// The setting.
        field: &'static str,
        /// Its names or patterns.
        keys: Vec<String>,
    },
    /// Modules that the configuration chooses, and for which there are no tensors.
    WithoutTensors {
        /// Their paths.
        modules: Vec<String>,
    },
    /// Modules with tensors that the configuration does not choose.
    NotTargeted {
        /// Their paths.
        modules: Vec<String>,
    },
    /// Modules whose tensors have another rank than the configuration says.
    OtherRanks {
        /// Their paths.
        modules: Vec<String>,
    },
    /// The adapter changes nothing.
    DoesNothing,
    /// The adapter changes nothing in some modules, but in others.
    DoesNothingIn {
        /// Their paths.
        modules: Vec<String>,
    },
}

impl fmt::Display for AdapterDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReachesNothing { field, keys } => {
                write!(f, "{} of {field}: no adapted module matches, so the setting reaches nothing", list(keys))
            }
            Self::WithoutTensors { modules } => {
                write!(f, "the configuration names modules without tensors, which stay as they are: {}", list(modules))
            }
            Self::NotTargeted { modules } => write!(
                f,
                "there are tensors of modules that the configuration does not name; they are used here, PEFT passes over \
                 them: {}",
                list(modules)
            ),
            Self::OtherRanks { modules } => write!(
                f,
                "the configuration has another rank than the tensors, whose rank counts here, for the scale too; PEFT \
                 refuses such an adapter: {}",
                list(modules)
            ),
            Self::DoesNothing => {
                f.write_str("the adapter changes nothing: it was saved before training, or training did not reach it")
            }
            Self::DoesNothingIn { modules } => {
                write!(f, "the adapter changes nothing in {} modules: {}", modules.len(), list(modules))
            }
        }
    }
}

/// The first five in quotes, and the number of the others.
fn list(names: &[String]) -> String {
    let first: Vec<String> = names.iter().take(5).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(5) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

impl SavedAdapter {
    /// Whether the adapter changes anything in the plain `model`, which it fits.
    pub fn doubts<M: Module>(&self, model: &M) -> Vec<AdapterDoubt> {
        let state = &self.state;
        let dense: Vec<String> = state.dense(model).into_iter().map(|(path, _)| path).collect();
        let whole_changes = || {
            // One tensor at a time.
            dense.iter().any(|path| {
                let base = parameter_values(model, &BTreeSet::from([path.as_str()]));
                base.get(path) != self.trained.get(path)
            })
        };
        let idle: Vec<String> = match state.config.method().is_factored() {
            true => state.modules.iter().filter(|module| self.is_idle(module, model)).map(|m| m.path.clone()).collect(),
            false => Vec::new(),
        };
        let all_idle = idle.len() == state.modules.len() || !state.config.method().is_factored();
        match (all_idle, idle.is_empty()) {
            (true, _) if !whole_changes() => vec![AdapterDoubt::DoesNothing],
            (_, true) => Vec::new(),
            (_, false) => vec![AdapterDoubt::DoesNothingIn { modules: idle }],
        }
    }

    /// Whether the adapter of one module adds nothing to its weight.
    fn is_idle<M: Module>(&self, module: &ModuleState, model: &M) -> bool {
        let state = &self.state;
        let Some(definition) = state.config.method_at(&module.path).factored() else { return false };
        if state.carried(&module.path).is_some() {
            return false;
        }
        let factors = state.all_factors(module, &self.trained);
        if factors.len() != definition.factors.len() + definition.frozen_factors.len() {
            return false;
        }
        if definition.splits_weight {
            return factors == state.all_factors(module, &state.initial);
        }
        let is_zero = |tensor: &HostTensor| tensor.values.iter().all(|value| *value == 0.0);
        let product = (definition.product)(&factors);
        if !is_zero(&product.a) && !is_zero(&product.b) {
            return false;
        }
        let magnitude = definition.factors.iter().find(|factor| factor.axes == Axes::Out);
        let Some(magnitude) = magnitude.and_then(|factor| factors.get(factor.name)) else { return true };
        let weight = weights(model, &BTreeSet::from([module.path.as_str()])).remove(&module.path);
        weight.is_some_and(|weight| {
            let weight = weight.into_dense();
            let norms = weight.cast(burn::tensor::FloatDType::F32).square().sum_dim(0).sqrt();
            let norms = HostTensor::from_tensor(norms);
            norms.values.iter().zip(&magnitude.values).all(|(norm, found)| (norm - found).abs() <= 1e-4 * norm)
        })
    }
}
