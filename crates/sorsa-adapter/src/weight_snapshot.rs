//! One weight at one moment of a run, from what a checkpoint holds of it: for whoever studies what training did.

use std::collections::BTreeSet;
use std::path::Path;

use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::attach::residual;
use crate::error::AdapterError;
use crate::factors::{FactorSet, HostTensor, NamedTensors, Orthonormal};
use crate::method::{Definition, LowRank};
use crate::parameters::{fitting, tensor_faults, weights};
use crate::state::{AdapterState, ModuleState};
use crate::{Adapter, AdapterConfig, Method, TensorFile};

/// A weight with what was trained of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// The merged weight `[d_in, d_out]`.
    pub merged: HostTensor,
    /// What the method trains beside a frozen weight; none where it trains the weight itself.
    pub factors: Option<TrainedFactors>,
}

/// The trained part `A diag(s) B` of a weight, without the adapter's scale.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedFactors {
    /// `A` `[d_in, r]`.
    pub a: HostTensor,
    /// `s` `[r]`, where the method has singular values.
    pub s: Option<Vec<f32>>,
    /// `B` `[r, d_out]`.
    pub b: HostTensor,
    /// Whether the method keeps the columns of `A` and the rows of `B` orthonormal.
    pub orthonormal: bool,
}

impl AdapterState {
    /// The state of a run on the plain `model` whose start is in the folder `start`; without such a folder, as partial
    /// and full fine-tuning leave none, that of `config`. Full fine-tuning then has the modules that its
    /// `target_modules` mean, or every linear layer but the output head where there are none.
    ///
    /// # Errors
    ///
    /// As [`AdapterState::load`] and [`AdapterConfig::targets`]; [`AdapterError::Mismatch`] where the start does not fit
    /// the model, or was made from other weights as far as the method's files tell: methods that split the weight
    /// keep a fingerprint of it.
    pub fn of_run<M: Module>(config: &AdapterConfig, start: &Path, model: &M) -> Result<Self, AdapterError> {
        if config.method.is_factored() || start.exists() {
            let state = Self::load(start)?;
            let mut faults = state.module_faults(model);
            if state.config.method.splits_weight() {
                let factors = state.tensors(state.config.method.factors());
                faults.extend(tensor_faults(factors, &state.initial).into_iter().map(|f| format!("at the start, {f}")));
            }
            faults.extend(state.content_faults(model));
            fitting(faults, start)?;
            return Ok(state);
        }
        let dense = AdapterConfig { method: Method::Partial, ..config.clone() };
        let dense = match dense.target_modules.is_empty() {
            true => AdapterConfig { target_modules: vec!["all-linear".to_owned()], ..dense },
            false => dense,
        };
        let module = |target: crate::Target| ModuleState {
            path: target.path,
            shape: target.shape,
            rank: target.rank.min(target.shape[0]).min(target.shape[1]),
            scale: target.scale,
            fingerprint: None,
            dtype: None,
        };
        let modules = dense.targets(model)?.into_iter().map(module).collect();
        Ok(Self { config: config.clone(), modules, initial: NamedTensors::new() })
    }

    /// The weights of this adapter's modules in the plain `model` as they are without it, in the modules' order.
    pub fn originals<M: Module>(&self, model: &M) -> Vec<Tensor<2>> {
        let wanted: BTreeSet<&str> = self.modules.iter().map(|module| module.path.as_str()).collect();
        let mut found = weights(model, &wanted);
        self.modules.iter().filter_map(|module| Some(module.narrowed(found.remove(&module.path)?))).collect()
    }

    /// The part of a weight that was split off before training, by way of `device`; none for methods that split nothing.
    pub fn start(&self, module: &ModuleState, device: &Device) -> Option<TrainedFactors> {
        let definition = self.config.method.definition().filter(|definition| definition.splits)?;
        let factors = self.set(module, definition.factors, &self.initial);
        Some(trained(&definition, &adapter(&definition, &factors, module, device)))
    }

    /// The weight of `module` with what `checkpoint` holds of it. `original` is the module's weight without the
    /// adapter; the frozen part is rounded to its dtype, as it was while training.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] and [`AdapterError::Malformed`] as [`TensorFile::read`]; [`AdapterError::Mismatch`] where
    /// shapes do not fit.
    pub fn moment(
        &self,
        module: &ModuleState,
        original: &Tensor<2>,
        checkpoint: &TensorFile,
    ) -> Result<Moment, AdapterError> {
        let only = Self { modules: vec![module.clone()], ..self.without_tensors() };
        let expected = match self.config.method.definition() {
            Some(definition) => only.tensors(definition.factors),
            None => vec![(format!("{}.weight", module.path), module.shape.to_vec())],
        };
        let read = |(name, _): &(String, Vec<usize>)| Ok((name.clone(), checkpoint.read(name)?));
        let mut found = expected.iter().map(read).collect::<Result<NamedTensors, AdapterError>>()?;
        fitting(tensor_faults(expected, &found), checkpoint.path())?;
        let Some(definition) = self.config.method.definition() else {
            let (_, merged) = found.pop_first().expect("one tensor was expected and found");
            return Ok(Moment { merged, factors: None });
        };
        let device = original.device();
        let frozen = match definition.splits {
            true => {
                let factors = self.set(module, definition.factors, &self.initial);
                let part = adapter(&definition, &factors, module, &device);
                residual(original.clone(), &part, &FactorSet::new(), module.dtype).0
            }
            false => original.clone(),
        };
        let factors = self.set(module, definition.factors, &found);
        let adapter = adapter(&definition, &factors, module, &device);
        let merged = HostTensor::from_tensor(adapter.compose(frozen.cast(FloatDType::F32)));
        Ok(Moment { merged, factors: Some(trained(&definition, &adapter)) })
    }

    fn without_tensors(&self) -> Self {
        Self { config: self.config.clone(), modules: Vec::new(), initial: NamedTensors::new() }
    }
}

fn adapter(definition: &Definition, factors: &FactorSet, module: &ModuleState, device: &Device) -> Adapter {
    (definition.new)(factors, module.scale, DropoutConfig::new(0.0).init(), device)
}

fn trained(definition: &Definition, adapter: &Adapter) -> TrainedFactors {
    let LowRank { a, s, b, .. } = adapter.low_rank();
    let kept = |side| definition.factors.iter().any(|factor| factor.orthonormal == Some(side));
    TrainedFactors {
        a: HostTensor::from_tensor(a),
        s: s.map(|s| HostTensor::from_tensor(s).values),
        b: HostTensor::from_tensor(b),
        orthonormal: kept(Orthonormal::Columns) && kept(Orthonormal::Rows),
    }
}
