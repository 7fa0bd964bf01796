//! Attaching an adapter to a model: chooses targets, decomposes weights and replaces them by their residuals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::module::{Param, Reparameterizer};
use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use rayon::prelude::*;
use sorsa_files::NamedTensors;
use sorsa_linalg::SvdOptions;
use sorsa_linalg::tensor::Placement;
use sorsa_ops::{Form, OperationMemory, PackedWeight, WeightOperand};

use crate::cache::{SvdCache, fingerprint};
use crate::config::{AdapterConfig, RankAndScale};
use crate::error::AdapterError;
use crate::factors::FactorSet;
use crate::method::{FactoredDefinition, StartsFrom};
use crate::packed::{packed_residual, packed_weights, with_packed_weights};
use crate::parameters::{
    Parameter, Trainable, factor_path, has_adapter, linear_layers, module_of, parameters, trainable, weights,
};
use crate::start::{StartingFactors, WeightToAdapt};
use crate::state::{AdapterState, ModuleState};
use crate::target::pattern_matches;
use crate::{Adapter, Method};

/// How attaching decomposes weights.
pub struct AttachOptions<'a> {
    /// Algorithm, tolerance and seed of the SVD.
    pub svd: SvdOptions,
    /// Where the large products run: on the host, with all matrices in parallel, or on the weights' device, one by one.
    pub placement: Placement,
    /// Folder of the SVD cache. If absent, nothing is cached.
    pub cache: Option<PathBuf>,
    /// Called after each decomposed matrix with the number of decomposed matrices and the number of all.
    pub progress: Option<&'a (dyn Fn(usize, usize) + Sync)>,
}

impl Default for AttachOptions<'_> {
    fn default() -> Self {
        Self { svd: SvdOptions::default(), placement: Placement::Host, cache: None, progress: None }
    }
}

/// burn holds one adapter per weight and keeps the old one silently.
pub(crate) const HAS_ADAPTER: &str = "the model has an adapter already: merge it first";

/// How an adapter was attached to one module.
#[derive(Debug, Clone)]
pub struct ModuleReport {
    /// Path of the linear layer.
    pub path: String,
    /// `[d_in, d_out]`.
    pub shape: [usize; 2],
    /// Rank; absent for a weight that is trained whole.
    pub rank: Option<usize>,
    /// The adapter's scale.
    pub scale: f64,
    /// `max ||A v - s u|| / s_1` over the principal triplets, if there was an SVD.
    pub svd_residual: Option<f64>,
    /// Whether the SVD came from the cache.
    pub cached: bool,
    /// `||W_r - round(W_r)||_F / ||W_r||_F`, if the residual was rounded to a narrower dtype.
    pub rounding: Option<f64>,
}

/// A model with its adapter.
#[derive(Debug)]
pub struct Attached<M> {
    /// The model; everything but the adapter is frozen.
    pub model: M,
    /// The state that is saved to attach the adapter again.
    pub state: AdapterState,
    /// The trained parameters, in the model's order.
    pub trainable: Vec<Trainable>,
    /// How the adapter was attached to each module.
    pub modules: Vec<ModuleReport>,
}

impl<M> Attached<M> {
    /// How many numbers are trained.
    pub fn trainable_parameters(&self) -> usize {
        self.trainable.iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }
}

/// One linear layer that the configuration chooses.
#[derive(Debug, Clone)]
pub struct Target {
    /// Path of the linear layer.
    pub path: String,
    /// `[d_in, d_out]`.
    pub shape: [usize; 2],
    /// Rank of its factors (meaningless for partial and full fine-tuning).
    pub rank: usize,
    /// The adapter's scale.
    pub scale: f64,
}

impl Target {
    /// How many numbers `method` trains here.
    pub fn trainable_parameters(&self, method: Method) -> usize {
        if !method.is_factored() {
            return self.shape.iter().product();
        }
        method.factors().iter().map(|factor| factor.shape(self.shape, self.rank).iter().product::<usize>()).sum()
    }

    /// How many numbers of its factors are never trained.
    pub fn frozen_parameters(&self, method: Method) -> usize {
        let frozen = method.factored().map_or(&[][..], |definition| definition.frozen_factors);
        frozen.iter().map(|factor| factor.shape(self.shape, self.rank).iter().product::<usize>()).sum()
    }

    /// The memory that the adapter adds to a training step of `tokens` tokens, beside its factors.
    pub fn memory(&self, method: Method, form: Form, tokens: usize) -> OperationMemory {
        match method.factored() {
            Some(definition) => (definition.memory)(form, self.shape, self.rank, tokens),
            None => OperationMemory::default(),
        }
    }
}

impl AdapterConfig {
    /// The linear layers of `model` that this configuration chooses. Needs no weights: lazy parameters stay lazy.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Config`] as [`validate`](Self::validate); [`AdapterError::Targets`] with every pattern that
    /// matches nothing and every rank that does not fit.
    pub fn targets<M: Module>(&self, model: &M) -> Result<Vec<Target>, AdapterError> {
        self.validate()?;
        let patterns = if self.method().has_targets() { &self.target_modules } else { &[][..] };
        self.linear_layers(patterns, model)
    }

    /// The linear layers of `model` that one of `patterns` matches, in place of `target_modules`.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Targets`] like [`targets`](Self::targets).
    pub(crate) fn linear_layers<M: Module>(&self, patterns: &[String], model: &M) -> Result<Vec<Target>, AdapterError> {
        let linear = linear_layers(model);
        let method = self.method();
        let mut faults = Vec::new();
        for text in patterns.iter().filter(|text| !linear.iter().any(|(path, _)| pattern_matches(text, path))) {
            let names: BTreeSet<&str> = linear.iter().filter_map(|(path, _)| path.rsplit('.').next()).collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            faults.push(format!("`{text}` matches no linear layer (there are: {names})"));
        }
        let mut targets = Vec::new();
        for (path, shape) in linear {
            if !patterns.iter().any(|text| pattern_matches(text, &path)) {
                continue;
            }
            let RankAndScale { rank, scale } = self.rank_and_scale(&path);
            let largest = shape[0].min(shape[1]);
            if method.is_factored() && rank > largest {
                faults.push(format!("rank {rank} is larger than {largest}, the smaller side of `{path}` {shape:?}"));
            }
            targets.push(Target { path, shape, rank, scale });
        }
        if method.is_factored() {
            let overrides = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
            let idle = overrides.filter(|text| !targets.iter().any(|target| pattern_matches(text, &target.path)));
            faults.extend(idle.map(|text| format!("`{text}`, for which a rank or alpha is given, matches no target")));
        }
        faults.extend(self.saved_faults(model, &targets));
        if faults.is_empty() { Ok(targets) } else { Err(AdapterError::Targets { faults }) }
    }

    /// How many numbers of `model` are in modules that are trained whole beside the adapter.
    pub fn whole_parameters<M: Module>(&self, model: &M) -> usize {
        let saved = |parameter: &Parameter| self.saves(&parameter.path);
        parameters(model).iter().filter(|p| saved(p)).map(|p| p.shape.iter().product::<usize>()).sum()
    }

    /// A line for each entry of `modules_to_save` that matches no module or a module with an adapter.
    fn saved_faults<M: Module>(&self, model: &M, targets: &[Target]) -> Vec<String> {
        let paths: Vec<String> = match self.modules_to_save.is_empty() {
            true => Vec::new(),
            false => parameters(model).into_iter().map(|parameter| parameter.path).collect(),
        };
        let alone =
            |text: &String| Self { modules_to_save: vec![text.clone()], ..Self::new(self.method.clone(), 1, &[]) };
        let idle = self.modules_to_save.iter().filter(|text| !paths.iter().any(|path| alone(text).saves(path)));
        let idle = idle.map(|text| format!("`{text}` of modules_to_save matches no module"));
        let both = targets.iter().filter(|target| self.saves(&format!("{}.weight", target.path)));
        let both = both.map(|target| format!("`{}` is a target and in modules_to_save", target.path));
        idle.chain(both).collect()
    }

    /// Attaches a fresh adapter to `model` and freezes everything else. The model's output stays as it was.
    ///
    /// Weights may be lazy, on any device, with or without autodiff. If the device has no autodiff, call `model.train()`
    /// afterwards.
    ///
    /// # Errors
    ///
    /// Those of [`targets`](Self::targets); [`AdapterError::Targets`] if the model has an adapter already;
    /// [`AdapterError::Decomposition`] with every weight that is not finite or whose SVD does not converge.
    pub fn attach<M: Module>(&self, model: M, options: &AttachOptions<'_>) -> Result<Attached<M>, AdapterError> {
        let (state, jobs) = self.prepare(&model, options)?;
        Ok(install(model, state, jobs))
    }

    /// Does everything of [`attach`](Self::attach) except changing the model.
    pub(crate) fn prepare<M: Module>(
        &self,
        model: &M,
        options: &AttachOptions<'_>,
    ) -> Result<(AdapterState, BTreeMap<String, Installation>), AdapterError> {
        let targets = self.targets(model)?;
        if has_adapter(model) {
            return Err(AdapterError::Targets { faults: vec![HAS_ADAPTER.to_owned()] });
        }
        let definition = self.method().factored();
        let mut starts = match &definition {
            Some(definition) => self.start_all(model, &targets, definition, options)?,
            None => BTreeMap::new(),
        };
        let splits_weight = self.method().splits_weight();
        let saved: Vec<&str> = self.method().saved_with_start().iter().map(|factor| factor.name).collect();
        let mut modules = Vec::new();
        let mut initial = NamedTensors::new();
        let mut installations = BTreeMap::new();
        for target in targets {
            let start = starts.remove(&target.path);
            let Target { path, shape, rank, scale } = target;
            let mut module =
                ModuleState { path: path.clone(), shape, rank, scale, fingerprint: None, dtype: None, residual: None };
            if let Some((StartingFactors { mut factors, svd, .. }, identity)) = start {
                for name in &saved {
                    if let Some(tensor) = factors.remove(name) {
                        initial.insert(factor_path(&path, self.method(), name), tensor);
                    }
                }
                let subtract = match splits_weight {
                    true => Some(Subtraction { factors: None, saved: FactorSet::new(), dtype: None }),
                    false => None,
                };
                if let Some(identity) = identity.filter(|_| splits_weight) {
                    module.fingerprint = Some(identity.fingerprint);
                    module.dtype = identity.dtype;
                }
                let factors = if splits_weight { None } else { Some(factors) };
                installations.insert(path, Installation { factors, subtract, scale, svd });
            }
            modules.push(module);
        }
        Ok((AdapterState { config: self.clone(), modules, initial }, installations))
    }

    /// The factors of every target at the start, by path, and the identity of each weight that is decomposed.
    fn start_all<M: Module>(
        &self,
        model: &M,
        targets: &[Target],
        method: &FactoredDefinition,
        options: &AttachOptions<'_>,
    ) -> Result<BTreeMap<String, (StartingFactors, Option<WeightIdentity>)>, AdapterError> {
        let wanted = match method.starts_from {
            StartsFrom::RandomNumbers => BTreeSet::new(),
            StartsFrom::Weight | StartsFrom::SingularTriplets => {
                targets.iter().map(|target| target.path.as_str()).collect()
            }
        };
        let weights = weights(model, &wanted);
        let cache = options.cache.as_ref().map(|folder| SvdCache::new(folder.clone()));
        let done = std::sync::atomic::AtomicUsize::new(0);
        let one = |target: &Target| {
            // A packed weight is widened here, one on each thread.
            let weight = weights.get(&target.path).cloned().map(WeightOperand::into_dense);
            let identity = weight.as_ref().filter(|_| method.decomposes()).map(WeightIdentity::of);
            let to_adapt = WeightToAdapt {
                target,
                method: self.method(),
                weight,
                packing: None,
                fingerprint: identity.as_ref().map(|identity| identity.fingerprint.as_str()),
                seed: self.seed,
                svd: &options.svd,
                placement: options.placement,
                cache: cache.as_ref(),
            };
            let result = self.method.start(&to_adapt).expect("the method has factors");
            let count = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            if let Some(progress) = options.progress.filter(|_| method.decomposes()) {
                progress(count, targets.len());
            }
            (target.path.clone(), result.map(|start| (start, identity)))
        };
        let results: Vec<_> = match options.placement {
            Placement::Host => targets.par_iter().with_max_len(1).map(one).collect(),
            // A device has one stream for each thread that uses it: stay on this thread.
            Placement::Device => targets.iter().map(one).collect(),
        };
        let mut faults = Vec::new();
        let mut starts = BTreeMap::new();
        for (path, result) in results {
            match result {
                Ok(start) => {
                    starts.insert(path, start);
                }
                Err(error) => faults.push(error.to_string()),
            }
        }
        if faults.is_empty() { Ok(starts) } else { Err(AdapterError::Decomposition { faults }) }
    }
}

/// The content and storage dtype of a weight that is decomposed.
struct WeightIdentity {
    fingerprint: String,
    /// Storage dtype, if narrower than f32.
    dtype: Option<FloatDType>,
}

impl WeightIdentity {
    fn of(weight: &Tensor<2>) -> Self {
        let dtype = (weight.dtype() != DType::F32).then(|| FloatDType::from(weight.dtype()));
        Self { fingerprint: fingerprint(weight), dtype }
    }
}

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
pub(crate) struct Subtraction {
    /// Its trained factors; absent if they are those of the adapter that is installed.
    pub factors: Option<FactorSet>,
    /// The tensors that a merge saved.
    pub saved: FactorSet,
    /// Storage dtype of the weight when the adapter became a part of it, if narrower than f32.
    pub dtype: Option<FloatDType>,
}

/// Subtracts what the installations say from weights, adds factors, and freezes everything else.
pub(crate) fn install<M: Module>(
    model: M,
    state: AdapterState,
    installations: BTreeMap<String, Installation>,
) -> Attached<M> {
    struct Installer<'a> {
        state: &'a AdapterState,
        dense: &'a BTreeSet<String>,
        installations: BTreeMap<String, Installation>,
        rounding: BTreeMap<String, f64>,
        packed: BTreeMap<String, PackedWeight>,
        packed_residuals: BTreeMap<String, PackedWeight>,
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
            let Some((method, (module, installation))) = config.method().factored().zip(installation) else {
                let train = self.dense.contains(path);
                return (param.set_require_grad(train), None);
            };
            let Installation { factors, subtract, scale, .. } = installation;
            let device = param.lazy_device();
            let adapter = |factors: &FactorSet, dropout: f64, device: &Device| {
                (method.new)(factors, scale, DropoutConfig::new(dropout).init(), device)
            };
            let start = || self.state.factors_at_start(&module);
            let frozen = self.state.frozen_factors(&module);
            let with_frozen = |mut factors: FactorSet| {
                factors.extend(frozen.clone());
                factors
            };
            let own = with_frozen(factors.unwrap_or_else(start));
            let base = match subtract {
                None => param,
                Some(Subtraction { factors, saved, dtype }) => {
                    let plain_device = device.clone().without_autodiff();
                    let part = match factors {
                        Some(factors) => adapter(&with_frozen(factors), 0.0, &plain_device),
                        None => adapter(&own, 0.0, &plain_device),
                    };
                    match self.packed.get(&module) {
                        Some(weight) => {
                            let (rest, rounding) = packed_residual(weight, &part, &saved);
                            self.rounding.insert(module.clone(), rounding);
                            self.packed_residuals.insert(module.clone(), rest);
                            param
                        }
                        None => param.map(|weight| {
                            let autodiff = weight.is_autodiff();
                            let (rest, rounding) = residual(weight.without_autodiff(), &part, &saved, dtype);
                            if let Some(rounding) = rounding {
                                self.rounding.insert(module.clone(), rounding);
                            }
                            if autodiff { Tensor::from_inner(rest) } else { rest }
                        }),
                    }
                }
            };
            let base = base.set_require_grad(false);
            let packed = self.packed_residuals.get(&module).or_else(|| self.packed.get(&module)).cloned();
            let matrix = || match packed {
                Some(packed) => packed.to_dense(),
                None => {
                    let weight = base.base();
                    let shape = weight.shape();
                    weight.reshape([shape[0], shape[1]])
                }
            };
            let adapter = adapter(&own, config.dropout, &device).with_frozen_weight(matrix);
            (base, Some(adapter))
        }
    }
    let decompositions: BTreeMap<String, (f64, bool)> =
        installations.iter().filter_map(|(path, one)| Some((path.clone(), one.svd?))).collect();
    let dense: BTreeSet<String> = state.dense(&model).into_iter().map(|(path, _)| path).collect();
    let packed = packed_weights(&model, installations.keys().map(String::as_str));
    let mut installer = Installer {
        state: &state,
        dense: &dense,
        installations,
        rounding: BTreeMap::new(),
        packed,
        packed_residuals: BTreeMap::new(),
    };
    let model = model.apply_reparameterization(&mut installer);
    let Installer { rounding, packed_residuals, .. } = installer;
    let model = with_packed_weights(model, packed_residuals);
    let method = state.config.method();
    let trainable = trainable(&model, method, |path| dense.contains(path));
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
            rounding: rounding.get(&module.path).copied(),
        })
        .collect();
    Attached { model, state, trainable, modules }
}

/// The residual of a weight after `part` is subtracted in f32, rounded to the weight's dtype; and the error of the rounding
/// relative to the residual's norm. If an f32 weight was stored in the narrower `dtype` before, its residual is the one
/// that it had then.
pub(crate) fn residual<const D: usize>(
    weight: Tensor<D>,
    part: &Adapter,
    saved: &FactorSet,
    dtype: Option<FloatDType>,
) -> (Tensor<D>, Option<f64>) {
    let (own, shape) = (FloatDType::from(weight.dtype()), weight.shape());
    let wide = weight.cast(FloatDType::F32);
    let (weight, narrow) = match dtype {
        Some(dtype) if own == FloatDType::F32 => (rounded(wide, dtype), Some(dtype)),
        _ => (wide, (own != FloatDType::F32).then_some(own)),
    };
    let rest = part.unmerge(weight.reshape([shape[0], shape[1]]), saved).reshape(shape);
    let Some(narrow) = narrow else { return (rest, None) };
    let result = rounded(rest.clone(), narrow);
    let norm = |tensor: Tensor<D>| f64::from(tensor.square().sum().sqrt().into_scalar::<f32>());
    let lost = norm(rest.clone() - result.clone()) / norm(rest).max(f64::MIN_POSITIVE);
    (result.cast(own), Some(lost))
}

/// An f32 tensor with its numbers rounded to `dtype`; on the host if the device does not support this dtype.
pub(crate) fn rounded<const D: usize>(tensor: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    let device = tensor.device();
    if device.supports_dtype(DType::from(dtype)) {
        return tensor.cast(dtype).cast(FloatDType::F32);
    }
    Tensor::from_data(tensor.into_data().convert_dtype(dtype.into()).convert_dtype(DType::F32), &device)
}
