//! Changes the weights of a model and adds the factors of an adapter, once both are known.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{ModuleMapper, Param, Reparameterizer};
use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_files::HostTensor;
use sorsa_ops::{PackedFormat, PackedMatrix, PackedWeight, Precision, WeightOperand, rounded};

use crate::attach::{Attached, ModuleReport};
use crate::error::AdapterError;
use crate::factors::{FactorPair, FactorSet};
use crate::hand_over::with_carried;
use crate::method::FactoredDefinition;
use crate::packed::{
    OriginalWeights, original_or_widened, packed_weights, transposed, with_packed_weights, without_packed_weights,
};
use crate::packed_residual::{packed_residual, packing_error, subtract_product};
use crate::parameters::{module_of, trainable};
use crate::state::{AdapterState, ModuleState};
use crate::{Adapter, MethodConfig};

/// The change of one weight: what is subtracted from it, and the adapter that it gets.
pub(crate) struct Installation {
    /// The trained factors; absent if they are those at the start, which the state has.
    pub factors: Option<FactorSet>,
    /// The adapter that is subtracted from the weight first, if any.
    pub subtract: Option<Subtraction>,
    pub scale: f64,
    /// Residual of the SVD, and whether it came from the cache.
    pub svd: Option<(f64, bool)>,
}

/// An adapter that a weight contains, to be subtracted from it.
pub(crate) enum Subtraction {
    /// What the state says was subtracted at the start.
    Start,
    /// A trained adapter, after a merge.
    Merged {
        /// Its trained factors.
        factors: FactorSet,
        /// The tensors that the merge saved.
        saved: FactorSet,
    },
}

/// Subtracts what the installations say from weights, adds factors, and freezes everything else.
///
/// # Errors
///
/// [`AdapterError::Original`]; [`AdapterError::Decomposition`] of a residual that does not fit its packed format.
pub(crate) fn install<M: Module>(
    model: M,
    state: AdapterState,
    installations: BTreeMap<String, Installation>,
    originals: &dyn OriginalWeights,
) -> Result<Attached<M>, AdapterError> {
    let decompositions: BTreeMap<String, (f64, bool)> =
        installations.iter().filter_map(|(path, one)| Some((path.clone(), one.svd?))).collect();
    let dense: BTreeSet<String> = state.dense(&model).into_iter().map(|(path, _)| path).collect();
    let packed = packed_weights(&model, installations.keys().map(String::as_str));
    let mut installer = Installer {
        state: &state,
        dense: &dense,
        installations,
        packed,
        originals,
        lost: BTreeMap::new(),
        packed_residuals: BTreeMap::new(),
        dense_residuals: BTreeMap::new(),
        error: None,
    };
    let model = model.apply_reparameterization(&mut installer);
    let Installer { lost, packed_residuals, dense_residuals, error, .. } = installer;
    if let Some(error) = error {
        return Err(error);
    }
    let model = without_packed_weights(with_packed_weights(model, packed_residuals), dense_residuals);
    let method = state.config.method();
    let trainable = trainable(&model, &state, |path| dense.contains(path));
    let modules = state
        .modules
        .iter()
        .map(|module| ModuleReport {
            path: module.path.clone(),
            shape: module.shape,
            rank: method.is_factored().then_some(module.rank),
            scale: module.scale,
            svd_residual: decompositions.get(&module.path).map(|svd| svd.0),
            cached: decompositions.get(&module.path).is_some_and(|svd| svd.1),
            rounding: lost.get(&module.path).copied(),
        })
        .collect();
    Ok(Attached { model, state, trainable, modules })
}

struct Installer<'a> {
    state: &'a AdapterState,
    dense: &'a BTreeSet<String>,
    installations: BTreeMap<String, Installation>,
    packed: BTreeMap<String, PackedWeight>,
    originals: &'a dyn OriginalWeights,
    /// What the storage of residuals loses of them.
    lost: BTreeMap<String, f64>,
    /// The packed weights that are replaced by another.
    packed_residuals: BTreeMap<String, PackedWeight>,
    /// The packed weights that are replaced by a dense one.
    dense_residuals: BTreeMap<String, PackedWeight>,
    error: Option<AdapterError>,
}

impl Reparameterizer for &mut Installer<'_> {
    type Reparam = Adapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Adapter>) {
        let config = &self.state.config;
        let installation = module_of(path).and_then(|module| self.installations.remove_entry(module));
        let definition = module_of(path).and_then(|module| config.method_at(module).factored());
        let Some((method, (path, installation))) = definition.zip(installation) else {
            let train = self.dense.contains(path);
            return (param.set_require_grad(train), None);
        };
        let Installation { factors, subtract, scale, .. } = installation;
        let state = self.state;
        let module = state.modules.iter().find(|module| module.path == path).expect("an installation of the state's");
        let device = param.lazy_device();
        let own = self.with_frozen(&path, factors.unwrap_or_else(|| state.factors_at_start(&path)));
        let beside = match (&subtract, self.packed.contains_key(&path)) {
            (Some(Subtraction::Merged { .. }), _) | (_, false) => None,
            (Some(Subtraction::Start) | None, true) => state.subtracted_beside(module),
        };
        let base = match subtract {
            _ if beside.is_some() => param,
            None => match state.carried(&path) {
                Some(carried) => with_change(param, &carried),
                None => param,
            },
            Some(subtract) => {
                let base = self.without_part(param, module, &method, subtract);
                if self.error.is_some() {
                    return (base, None);
                }
                base
            }
        };
        let base = base.set_require_grad(false);
        let packed = match self.dense_residuals.contains_key(&path) {
            true => None,
            false => self.packed_residuals.get(&path).or_else(|| self.packed.get(&path)).cloned(),
        };
        let matrix = || match packed {
            Some(packed) => packed.to_dense(),
            None => {
                let weight = base.base();
                let shape = weight.shape();
                weight.reshape([shape[0], shape[1]])
            }
        };
        let dropout = DropoutConfig::new(config.dropout).init();
        let adapter = (method.new)(&own, scale, dropout, &device);
        let adapter = match beside {
            Some(pair) => adapter.subtracting(&pair, &device),
            None => adapter,
        };
        let adapter = adapter.with_frozen_weight(matrix);
        let adapter = with_fixed_factors(adapter, config.method_config_at(&path));
        (base, Some(adapter))
    }
}

/// The adapter with no gradient for the factors that stay as they are by a setting.
fn with_fixed_factors(adapter: Adapter, config: &MethodConfig) -> Adapter {
    struct Fix {
        names: Vec<&'static str>,
        path: Vec<String>,
    }
    impl ModuleMapper for Fix {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let is_fixed = self.path.last().is_some_and(|last| self.names.contains(&last.as_str()));
            if is_fixed { param.set_require_grad(false) } else { param }
        }
    }
    let fixed = config.method().factors().iter().filter(|factor| !config.trains(factor));
    let names: Vec<&str> = fixed.map(|factor| factor.name).collect();
    if names.is_empty() { adapter } else { adapter.map(&mut Fix { names, path: Vec::new() }) }
}

/// The parameter of a dense weight after a change is added to it.
fn with_change<const D: usize>(param: Param<Tensor<D>>, carried: &FactorPair) -> Param<Tensor<D>> {
    param.map(|weight| {
        let (autodiff, dtype, shape) = (weight.is_autodiff(), FloatDType::from(weight.dtype()), weight.shape());
        let matrix = weight.without_autodiff().reshape([shape[0], shape[1]]);
        let sum = with_carried(matrix, carried).cast(dtype).reshape(shape);
        if autodiff { Tensor::from_inner(sum) } else { sum }
    })
}

impl Installer<'_> {
    fn with_frozen(&self, path: &str, mut factors: FactorSet) -> FactorSet {
        factors.extend(self.state.frozen_factors(path));
        factors
    }

    fn failed<T>(&mut self, unchanged: T, error: AdapterError) -> T {
        self.error.get_or_insert(error);
        unchanged
    }

    /// The parameter of a weight after an adapter is subtracted from it; unchanged if that fails, with `error` set.
    fn without_part<const D: usize>(
        &mut self,
        param: Param<Tensor<D>>,
        module: &ModuleState,
        method: &FactoredDefinition,
        subtract: Subtraction,
    ) -> Param<Tensor<D>> {
        let (path, packed) = (&module.path, self.packed.get(&module.path).cloned());
        let (factors, saved, dtype, format, carried) = match subtract {
            Subtraction::Start => {
                let factors = self.state.subtracted_factors(module);
                (factors, FactorSet::new(), module.dtype, module.residual, self.state.carried(path))
            }
            // The merged weight has the change already, and keeps it.
            Subtraction::Merged { factors, saved } => (factors, saved, None, None, None),
        };
        if carried.is_some() && packed.is_some() {
            let fault = format!(
                "matrix `{path}` is packed, and so is its residual: a change that an adapter carries along cannot be added to it"
            );
            return self.failed(param, AdapterError::Decomposition { faults: vec![fault] });
        }
        let factors = self.with_frozen(path, factors);
        let operand = |param: &Param<Tensor<D>>| match &packed {
            Some(packed) => WeightOperand::Packed(packed.clone()),
            None => {
                let weight = param.base().without_autodiff();
                let shape = weight.shape();
                WeightOperand::Dense(weight.reshape([shape[0], shape[1]]))
            }
        };
        let replaced = |param: Param<Tensor<D>>, values: Tensor<2>| {
            param.map(|old| {
                let values = values.reshape(old.shape());
                if old.is_autodiff() { Tensor::from_inner(values) } else { values }
            })
        };
        if let Some(format) = format {
            let pair = (method.product)(&factors).scaled(module.scale);
            let weight = match transposed(path, operand(&param), self.originals) {
                Ok(weight) => weight,
                Err(error) => return self.failed(param, error),
            };
            let (matrix, lost) = match packed_with_loss(weight, &pair, format) {
                Ok(residual) => residual,
                Err(fault) => {
                    let faults = vec![format!("matrix `{path}`: {fault}")];
                    return self.failed(param, AdapterError::Decomposition { faults });
                }
            };
            self.lost.insert(path.clone(), lost);
            let device = param.lazy_device();
            let Some(packed) = packed else {
                // The base is the widened one: so is the residual.
                let values = PackedWeight::new(&matrix, &device).to_dense();
                return replaced(param, values);
            };
            let matrix = matrix.with_precision(packed.matrix().precision());
            self.packed_residuals.insert(path.clone(), PackedWeight::new(&matrix, &packed.device()));
            return param;
        }
        let plain_device = param.lazy_device().without_autodiff();
        let part = (method.new)(&factors, module.scale, DropoutConfig::new(0.0).init(), &plain_device);
        let Some(packed) = packed else {
            return param.map(|weight| {
                let autodiff = weight.is_autodiff();
                let split = Split { part: &part, saved: &saved, carried: carried.as_ref(), dtype };
                let (rest, rounding) = residual(weight.without_autodiff(), &split);
                if let Some(rounding) = rounding {
                    self.lost.insert(path.clone(), rounding);
                }
                if autodiff { Tensor::from_inner(rest) } else { rest }
            });
        };
        let weight = match original_or_widened(path, packed.clone().into(), self.originals) {
            Ok(weight) => weight,
            Err(error) => return self.failed(param, error),
        };
        let split = Split { part: &part, saved: &saved, carried: None, dtype: None };
        let (rest, _) = residual(weight, &split);
        let rest = match packed.matrix().precision() {
            Precision::F32 => rest,
            Precision::Bf16 => {
                let narrow = rounded(rest.clone(), FloatDType::BF16);
                self.lost.insert(path.clone(), relative_loss(rest, narrow.clone()));
                narrow.cast(FloatDType::BF16)
            }
        };
        self.dense_residuals.insert(path.clone(), packed);
        replaced(param, rest)
    }
}

/// The packed residual `W - A B` of `W^T` `[d_out, d_in]`, and what packing loses of it, relative to its norm.
fn packed_with_loss(
    weight: HostTensor,
    pair: &FactorPair,
    format: PackedFormat,
) -> Result<(PackedMatrix, f64), sorsa_ops::PackedError> {
    let mut rest = weight.clone();
    let packed = packed_residual(weight, Some(pair), format)?;
    subtract_product(&mut rest, pair);
    let norm = |tensor: &HostTensor| {
        tensor.values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE)
    };
    let lost = norm(&packing_error(&rest, &packed)) / norm(&rest);
    Ok((packed, lost))
}

/// `||a - b|| / ||a||`.
fn relative_loss<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    let norm = |tensor: Tensor<D>| f64::from(tensor.square().sum().sqrt().into_scalar::<f32>());
    norm(a.clone() - b) / norm(a).max(f64::MIN_POSITIVE)
}

/// How a weight is split.
pub(crate) struct Split<'a> {
    /// What is subtracted from the weight.
    pub part: &'a Adapter,
    /// The tensors that a merge saved.
    pub saved: &'a FactorSet,
    /// The change that is added to the weight first, if the adapter carries one along.
    pub carried: Option<&'a FactorPair>,
    /// Storage dtype of the weight when it was split first, if narrower than f32.
    pub dtype: Option<FloatDType>,
}

/// The residual of a weight after `part` is subtracted in f32, rounded to the weight's dtype; and the error of the rounding
/// relative to the residual's norm. If an f32 weight was stored in the narrower `dtype` before, its residual is the one
/// that it had then.
pub(crate) fn residual<const D: usize>(
    weight: Tensor<D>,
    &Split { part, saved, carried, dtype }: &Split<'_>,
) -> (Tensor<D>, Option<f64>) {
    let (own, shape) = (FloatDType::from(weight.dtype()), weight.shape());
    let wide = weight.cast(FloatDType::F32);
    let (weight, narrow) = match dtype {
        Some(dtype) if own == FloatDType::F32 => (rounded(wide, dtype), Some(dtype)),
        _ => (wide, (own != FloatDType::F32).then_some(own)),
    };
    let weight = weight.reshape([shape[0], shape[1]]);
    let weight = match carried {
        Some(carried) => with_carried(weight, carried),
        None => weight,
    };
    let rest = part.unmerge(weight, saved).reshape(shape);
    let Some(narrow) = narrow else { return (rest, None) };
    let result = rounded(rest.clone(), narrow);
    let lost = relative_loss(rest, result.clone());
    (result.cast(own), Some(lost))
}
