//! One weight at one step of a run, read from a checkpoint, to study how training changed it.

use std::collections::BTreeSet;
use std::path::Path;

use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_files::{HostTensor, NamedTensors};
use sorsa_ops::{PackedWeight, WeightOperand};

use crate::attach::Target;
use crate::error::AdapterError;
use crate::factors::{FactorSet, Vectors};
use crate::hand_over::with_carried;
use crate::host_tensor::HostTensorExt;
use crate::install::{Split, residual};
use crate::method::{FactoredDefinition, LowRank};
use crate::packed::{OriginalWeights, original_or_widened};
use crate::packed_residual::packed_residual;
use crate::parameters::{check_fits, tensor_faults, weight_path, weights};
use crate::state::{AdapterState, ModuleState};
use crate::{Adapter, AdapterConfig, TensorFile};

/// One weight at one step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightSnapshot {
    /// The merged weight `[d_in, d_out]`.
    pub merged: HostTensor,
    /// The factors that the method trains beside a frozen weight; absent if it trains the weight itself.
    pub factors: Option<TrainedFactors>,
}

/// The trained part `A diag(s) B` of a weight, without the adapter's scale.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedFactors {
    /// `A` `[d_in, r]`.
    pub a: HostTensor,
    /// `s` `[r]`, if the method has singular values.
    pub s: Option<Vec<f32>>,
    /// `B` `[r, d_out]`.
    pub b: HostTensor,
    /// Whether the method keeps the columns of `A` and the rows of `B` orthonormal.
    pub orthonormal: bool,
}

impl AdapterState {
    /// The state of a run on the plain `model`. It is read from the folder `start`. Partial and full fine-tuning have no
    /// such folder: their state follows from `config`. The modules of full fine-tuning are those that its
    /// `target_modules` match, or every linear layer except the output head if it has none.
    ///
    /// # Errors
    ///
    /// Those of [`AdapterState::load`] and [`AdapterConfig::targets`]; [`AdapterError::Mismatch`] if the start does not fit
    /// the model, or if a fingerprint in it says that it was made from other weights.
    pub fn of_run<M: Module>(
        config: &AdapterConfig,
        start: &Path,
        model: &M,
        originals: &dyn OriginalWeights,
    ) -> Result<Self, AdapterError> {
        if config.method().is_factored() || start.exists() {
            let state = Self::load(start)?;
            let mut faults = state.module_faults(model);
            faults.extend(state.start_faults());
            faults.extend(state.content_faults(model, originals)?);
            check_fits(faults, start)?;
            return Ok(state);
        }
        config.validate()?;
        let patterns = match config.target_modules.as_slice() {
            [] => &["all-linear".to_owned()],
            patterns => patterns,
        };
        let module = |target: Target| ModuleState {
            path: target.path,
            shape: target.shape,
            rank: target.rank.min(target.shape[0]).min(target.shape[1]),
            scale: target.scale,
            fingerprint: None,
            dtype: None,
            residual: None,
        };
        let modules = config.linear_layers(patterns, model)?.into_iter().map(module).collect();
        Ok(Self { config: config.clone(), modules, initial: NamedTensors::new() })
    }

    /// The weights of this adapter's modules in the plain `model`, without the adapter, in the modules' order. `originals` has those
    /// that were packed while the model was read and that the adapter decomposed before.
    ///
    /// # Errors
    ///
    /// Those of `originals`.
    pub fn originals<M: Module>(
        &self,
        model: &M,
        originals: &dyn OriginalWeights,
    ) -> Result<Vec<Tensor<2>>, AdapterError> {
        let wanted: BTreeSet<&str> = self.modules.iter().map(|module| module.path.as_str()).collect();
        let mut found = weights(model, &wanted);
        let known = self.modules.iter().filter_map(|module| Some((module, found.remove(&module.path)?)));
        let original = |(module, weight): (&ModuleState, WeightOperand)| {
            let weight = match module.fingerprint {
                Some(_) => original_or_widened(&module.path, weight, originals)?,
                None => weight.into_dense(),
            };
            Ok(module.narrowed(weight))
        };
        known.map(original).collect()
    }

    /// The principal part that was subtracted from a weight before training, computed on `device`; absent for methods that
    /// do not split the weight.
    pub fn start(&self, module: &ModuleState, device: &Device) -> Option<TrainedFactors> {
        let definition = self.config.method().factored().filter(|definition| definition.splits_weight)?;
        let factors = self.all_factors(module, &self.initial);
        Some(trained(&definition, &adapter(&definition, &factors, module, device)))
    }

    /// The weight of `module` with the trained values of `checkpoint`. `original` is the module's weight without the
    /// adapter; the frozen part is rounded to its dtype, like in training.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] and [`AdapterError::Malformed`] like [`TensorFile::read`]; [`AdapterError::Mismatch`] if
    /// shapes do not fit.
    pub fn weight_snapshot(
        &self,
        module: &ModuleState,
        original: &Tensor<2>,
        checkpoint: &TensorFile,
    ) -> Result<WeightSnapshot, AdapterError> {
        let only = Self { modules: vec![module.clone()], ..self.without_tensors() };
        let definition = self.config.method().factored();
        let expected = match definition {
            Some(_) => only.tensor_shapes(&self.config.trained_factors()),
            None => vec![(weight_path(&module.path), module.shape.to_vec())],
        };
        let read = |(name, _): &(String, Vec<usize>)| Ok((name.clone(), checkpoint.read(name)?));
        let mut found = expected.iter().map(read).collect::<Result<NamedTensors, AdapterError>>()?;
        check_fits(tensor_faults(expected, &found), checkpoint.path())?;
        let Some(definition) = definition else {
            let (_, merged) = found.pop_first().expect("one tensor was expected and found");
            return Ok(WeightSnapshot { merged, factors: None });
        };
        let device = original.device();
        let frozen = match module.residual {
            Some(format) => {
                let transposed = HostTensor::from_tensor(original.clone().cast(FloatDType::F32).transpose());
                let pair = (definition.product)(&self.subtracted_factors(module)).scaled(module.scale);
                let fault = |error| vec![format!("matrix `{}`: {error}", module.path)];
                let packed = packed_residual(transposed, Some(&pair), format)
                    .map_err(|error| AdapterError::Decomposition { faults: fault(error) })?;
                PackedWeight::new(&packed, &device).to_dense()
            }
            None if definition.splits_weight => {
                let factors = self.all_factors(module, &self.initial);
                let part = adapter(&definition, &factors, module, &device);
                let (carried, saved) = (self.carried(&module.path), FactorSet::new());
                let split = Split { part: &part, saved: &saved, carried: carried.as_ref(), dtype: module.dtype };
                residual(original.clone(), &split).0
            }
            None => match self.carried(&module.path) {
                Some(carried) => with_carried(original.clone(), &carried),
                None => original.clone(),
            },
        };
        let factors = self.all_factors(module, &found);
        let adapter = adapter(&definition, &factors, module, &device);
        let merged = HostTensor::from_tensor(adapter.compose(frozen.cast(FloatDType::F32)));
        Ok(WeightSnapshot { merged, factors: Some(trained(&definition, &adapter)) })
    }

    fn without_tensors(&self) -> Self {
        Self { config: self.config.clone(), modules: Vec::new(), initial: NamedTensors::new() }
    }
}

fn adapter(definition: &FactoredDefinition, factors: &FactorSet, module: &ModuleState, device: &Device) -> Adapter {
    (definition.new)(factors, module.scale, DropoutConfig::new(0.0).init(), device)
}

fn trained(definition: &FactoredDefinition, adapter: &Adapter) -> TrainedFactors {
    let LowRank { a, s, b, .. } = adapter.low_rank();
    let kept = |side| definition.factors.iter().any(|factor| factor.orthonormal == Some(side));
    TrainedFactors {
        a: HostTensor::from_tensor(a),
        // A square matrix between the vectors is a part of `A`.
        orthonormal: s.is_some() && kept(Vectors::Columns) && kept(Vectors::Rows),
        s: s.map(|s| HostTensor::from_tensor(s).values),
        b: HostTensor::from_tensor(b),
    }
}
