//! Attaching an adapter to a model: targets are chosen, weights decomposed, bases replaced by their residuals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::module::{Param, Reparameterizer};
use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use rayon::prelude::*;
use sorsa_linalg::SvdOptions;
use sorsa_linalg::tensor::Placement;

use crate::cache::{SvdCache, fingerprint};
use crate::config::{AdapterConfig, Sizes};
use crate::error::AdapterError;
use crate::factors::{FactorSet, HostTensor, NamedTensors};
use crate::method::{Definition, Source};
use crate::parameters::{
    Parameter, Trainable, factor_path, has_adapter, linear_layers, module_of, parameters, trainable, weights,
};
use crate::start::{Start, Started};
use crate::state::{AdapterState, ModuleState};
use crate::target::means;
use crate::{Adapter, Method};

/// How weights are decomposed while attaching.
pub struct AttachOptions<'a> {
    /// Algorithm, tolerance and seed of the SVD.
    pub svd: SvdOptions,
    /// Where the large products run: on the host, all matrices in parallel, or on the weights' device, one by one.
    pub placement: Placement,
    /// Folder of the SVD cache; absent, nothing is cached.
    pub cache: Option<PathBuf>,
    /// Called after each decomposed matrix with how many are done and how many there are.
    pub progress: Option<&'a (dyn Fn(usize, usize) + Sync)>,
}

impl Default for AttachOptions<'_> {
    fn default() -> Self {
        Self { svd: SvdOptions::default(), placement: Placement::Host, cache: None, progress: None }
    }
}

/// A weight has one adapter in burn, which would keep the old one without a word.
pub(crate) const HAS_ADAPTER: &str = "the model has an adapter already: merge it first";

/// What was done to one module.
#[derive(Debug, Clone)]
pub struct ModuleReport {
    /// Path of the linear layer.
    pub path: String,
    /// `[d_in, d_out]`.
    pub shape: [usize; 2],
    /// Rank; none for a densely trained weight.
    pub rank: Option<usize>,
    /// The adapter's scale.
    pub scale: f64,
    /// `max ||A v - s u|| / s_1` over the principal triplets, where there was an SVD.
    pub svd_residual: Option<f64>,
    /// Whether the SVD came from the cache.
    pub cached: bool,
    /// `||W_r - round(W_r)||_F / ||W_r||_F`, where the residual was rounded to a narrower dtype.
    pub rounding: Option<f64>,
}

/// A model with its adapter.
#[derive(Debug)]
pub struct Attached<M> {
    /// The model; everything but the adapter is frozen.
    pub model: M,
    /// What is needed to save the adapter and to attach it again.
    pub state: AdapterState,
    /// The trained parameters, in the model's order.
    pub trainable: Vec<Trainable>,
    /// What was done to each module.
    pub modules: Vec<ModuleReport>,
}

impl<M> Attached<M> {
    /// How many numbers are trained.
    pub fn trainable_parameters(&self) -> usize {
        self.trainable.iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }
}

/// One linear layer that was chosen.
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

    /// How many numbers the adapter adds to what the forward of one token keeps for the backward pass.
    pub fn kept_per_token(&self, method: Method) -> usize {
        method.definition().map_or(0, |definition| (definition.kept_per_token)(self.shape, self.rank))
    }
}

impl AdapterConfig {
    /// The linear layers of `model` that this configuration means. Needs no weights: lazy parameters stay lazy.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Config`] as [`validate`](Self::validate); [`AdapterError::Targets`] with every pattern that
    /// matches nothing and every rank that does not fit.
    pub fn targets<M: Module>(&self, model: &M) -> Result<Vec<Target>, AdapterError> {
        self.validate()?;
        let linear = linear_layers(model);
        let patterns = if self.method == Method::Full { &[][..] } else { &self.target_modules };
        let mut faults = Vec::new();
        for text in patterns.iter().filter(|text| !linear.iter().any(|(path, _)| means(text, path))) {
            let names: BTreeSet<&str> = linear.iter().filter_map(|(path, _)| path.rsplit('.').next()).collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            faults.push(format!("`{text}` matches no linear layer (there are: {names})"));
        }
        let mut targets = Vec::new();
        for (path, shape) in linear {
            if !patterns.iter().any(|text| means(text, &path)) {
                continue;
            }
            let Sizes { rank, scale } = self.sizes(&path);
            let largest = shape[0].min(shape[1]);
            if self.method.is_factored() && rank > largest {
                faults.push(format!("rank {rank} is larger than {largest}, the smaller side of `{path}` {shape:?}"));
            }
            targets.push(Target { path, shape, rank, scale });
        }
        if self.method.is_factored() {
            let overrides = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
            let idle = overrides.filter(|text| !targets.iter().any(|target| means(text, &target.path)));
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

    /// A line for each entry of `modules_to_save` that means nothing, or a module that has an adapter too.
    fn saved_faults<M: Module>(&self, model: &M, targets: &[Target]) -> Vec<String> {
        let paths: Vec<String> = match self.modules_to_save.is_empty() {
            true => Vec::new(),
            false => parameters(model).into_iter().map(|parameter| parameter.path).collect(),
        };
        let alone = |text: &String| Self { modules_to_save: vec![text.clone()], ..Self::new(self.method, 1, &[]) };
        let idle = self.modules_to_save.iter().filter(|text| !paths.iter().any(|path| alone(text).saves(path)));
        let idle = idle.map(|text| format!("`{text}` of modules_to_save matches no module"));
        let both = targets.iter().filter(|target| self.saves(&format!("{}.weight", target.path)));
        let both = both.map(|target| format!("`{}` is a target and in modules_to_save", target.path));
        idle.chain(both).collect()
    }

    /// Attaches a fresh adapter to `model` and freezes everything else. The model's output stays as it was.
    ///
    /// Weights may be lazy, on any device, with or without autodiff; call `model.train()` afterwards where the
    /// device has none.
    ///
    /// # Errors
    ///
    /// See [`targets`](Self::targets), and [`AdapterError::Targets`] where the model has an adapter already;
    /// [`AdapterError::Decomposition`] where a weight that is to be decomposed is not finite or its SVD does not converge, for all weights at
    /// once.
    pub fn attach<M: Module>(&self, model: M, options: &AttachOptions<'_>) -> Result<Attached<M>, AdapterError> {
        let (state, jobs) = self.prepare(&model, options)?;
        Ok(install(model, state, jobs))
    }

    /// All of [`attach`](Self::attach) but the change of the model.
    pub(crate) fn prepare<M: Module>(
        &self,
        model: &M,
        options: &AttachOptions<'_>,
    ) -> Result<(AdapterState, BTreeMap<String, Install>), AdapterError> {
        let targets = self.targets(model)?;
        if has_adapter(model) {
            return Err(AdapterError::Targets { faults: vec![HAS_ADAPTER.to_owned()] });
        }
        let mut started = match self.method.definition() {
            Some(method) => self.start_all(model, &targets, &method, options)?,
            None => BTreeMap::new(),
        };
        let splits = self.method.splits_weight();
        let mut modules = Vec::new();
        let mut initial = NamedTensors::new();
        let mut jobs = BTreeMap::new();
        for target in targets {
            let start = started.remove(&target.path);
            let (started, split) = start.unzip();
            let (fingerprint, dtype) = split.flatten().map(|split| (split.fingerprint, split.dtype)).unzip();
            let dtype = dtype.flatten();
            let Target { path, shape, rank, scale } = target;
            modules.push(ModuleState { path: path.clone(), shape, rank, scale, fingerprint, dtype });
            let Some(Started { factors, svd }) = started else { continue };
            let (factors, take_out) = match splits {
                true => {
                    let named = |(name, tensor): (&str, HostTensor)| (factor_path(&path, self.method, name), tensor);
                    initial.extend(factors.into_iter().map(named));
                    (None, Some(TakeOut { factors: None, kept: FactorSet::new(), dtype: None }))
                }
                false => (Some(factors), None),
            };
            jobs.insert(path, Install { factors, take_out, scale, svd });
        }
        Ok((AdapterState { config: self.clone(), modules, initial }, jobs))
    }

    /// The factors of every target at the start, by path, and what is remembered of a weight that they split.
    fn start_all<M: Module>(
        &self,
        model: &M,
        targets: &[Target],
        method: &Definition,
        options: &AttachOptions<'_>,
    ) -> Result<BTreeMap<String, (Started, Option<Split>)>, AdapterError> {
        let wanted = match method.source {
            Source::Nothing => BTreeSet::new(),
            Source::Weight | Source::Svd => targets.iter().map(|target| target.path.as_str()).collect(),
        };
        let weights = weights(model, &wanted);
        let cache = options.cache.as_ref().map(|folder| SvdCache::new(folder.clone()));
        let done = std::sync::atomic::AtomicUsize::new(0);
        let one = |target: &Target| {
            let weight = weights.get(&target.path).cloned();
            let split = weight.as_ref().filter(|_| method.splits).map(Split::of);
            let start = Start {
                config: self,
                target,
                weight,
                fingerprint: split.as_ref().map(|split| split.fingerprint.as_str()),
                svd: &options.svd,
                placement: options.placement,
                cache: cache.as_ref(),
            };
            let result = (method.start)(&start);
            let count = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            if let Some(progress) = options.progress.filter(|_| method.splits) {
                progress(count, targets.len());
            }
            (target.path.clone(), result.map(|started| (started, split)))
        };
        let results: Vec<_> = match options.placement {
            Placement::Host => targets.par_iter().with_max_len(1).map(one).collect(),
            // A device keeps one stream for each thread that uses it: stay on this one.
            Placement::Device => targets.iter().map(one).collect(),
        };
        let mut faults = Vec::new();
        let mut started = BTreeMap::new();
        for (path, result) in results {
            match result {
                Ok(start) => {
                    started.insert(path, start);
                }
                Err(error) => faults.push(error.to_string()),
            }
        }
        if faults.is_empty() { Ok(started) } else { Err(AdapterError::Decomposition { faults }) }
    }
}

/// What is remembered of a weight that is split.
struct Split {
    fingerprint: String,
    /// Of a weight that is narrower than f32.
    dtype: Option<FloatDType>,
}

impl Split {
    fn of(weight: &Tensor<2>) -> Self {
        let dtype = (weight.dtype() != DType::F32).then(|| FloatDType::from(weight.dtype()));
        Self { fingerprint: fingerprint(weight), dtype }
    }
}

/// What is done to one weight.
pub(crate) struct Install {
    /// The adapter's factors; absent where they are those that the state starts from.
    pub factors: Option<FactorSet>,
    /// What leaves the weight first.
    pub take_out: Option<TakeOut>,
    pub scale: f64,
    /// Residual of the SVD and whether it was cached.
    pub svd: Option<(f64, bool)>,
}

/// An adapter that is a part of a weight, to be taken out of it.
pub(crate) struct TakeOut {
    /// Absent where they are the adapter's own, as at the start.
    pub factors: Option<FactorSet>,
    /// What was kept of the weight when the adapter was merged into it.
    pub kept: FactorSet,
    /// What the weight was kept in then, where it was narrower than f32.
    pub dtype: Option<FloatDType>,
}

/// Replaces bases, adds factors, freezes the rest.
pub(crate) fn install<M: Module>(model: M, state: AdapterState, jobs: BTreeMap<String, Install>) -> Attached<M> {
    struct Installer<'a> {
        state: &'a AdapterState,
        dense: &'a BTreeSet<String>,
        jobs: BTreeMap<String, Install>,
        rounding: BTreeMap<String, f64>,
    }
    impl Reparameterizer for &mut Installer<'_> {
        type Reparam = Adapter;

        fn reparameterize<const D: usize>(
            &mut self,
            path: &str,
            param: Param<Tensor<D>>,
        ) -> (Param<Tensor<D>>, Option<Adapter>) {
            let config = &self.state.config;
            let job = module_of(path).and_then(|module| self.jobs.remove_entry(module));
            let Some((method, (module, job))) = config.method.definition().zip(job) else {
                let train = self.dense.contains(path);
                return (param.set_require_grad(train), None);
            };
            let device = param.lazy_device();
            let own = job.factors.unwrap_or_else(|| self.state.initial_set(&module));
            let adapter = |factors: &FactorSet, dropout: f64, device: &Device| {
                (method.new)(factors, job.scale, DropoutConfig::new(dropout).init(), device)
            };
            let base = match &job.take_out {
                None => param,
                Some(TakeOut { factors, kept, dtype }) => {
                    let part = adapter(factors.as_ref().unwrap_or(&own), 0.0, &device.clone().without_autodiff());
                    param.map(|weight| {
                        let autodiff = weight.is_autodiff();
                        let (rest, rounding) = residual(weight.without_autodiff(), &part, kept, *dtype);
                        if let Some(rounding) = rounding {
                            self.rounding.insert(module, rounding);
                        }
                        if autodiff { Tensor::from_inner(rest) } else { rest }
                    })
                }
            };
            let base = base.set_require_grad(false);
            let matrix = || {
                let weight = base.base();
                let shape = weight.shape();
                weight.reshape([shape[0], shape[1]])
            };
            let adapter = adapter(&own, config.dropout, &device).beside(matrix);
            (base, Some(adapter))
        }
    }
    let reports: BTreeMap<String, (f64, bool)> =
        jobs.iter().filter_map(|(path, job)| Some((path.clone(), job.svd?))).collect();
    let dense: BTreeSet<String> = state.dense(&model).into_iter().map(|(path, _)| path).collect();
    let mut installer = Installer { state: &state, dense: &dense, jobs, rounding: BTreeMap::new() };
    let model = model.apply_reparameterization(&mut installer);
    let rounding = installer.rounding;
    let method = state.config.method;
    let trainable = trainable(&model, method, |path| dense.contains(path));
    let modules = state
        .modules
        .iter()
        .map(|module| ModuleReport {
            path: module.path.clone(),
            shape: module.shape,
            rank: method.is_factored().then_some(module.rank),
            scale: module.scale,
            svd_residual: reports.get(&module.path).map(|report| report.0),
            cached: reports.get(&module.path).is_some_and(|report| report.1),
            rounding: rounding.get(&module.path).copied(),
        })
        .collect();
    Attached { model, state, trainable, modules }
}

/// What is left of a weight without `part`, in f32, rounded to the weight's dtype, and what the rounding took, relative
/// to the residual's norm. An f32 weight that was kept in the narrower `dtype` once has the residual that it had then.
pub(crate) fn residual<const D: usize>(
    weight: Tensor<D>,
    part: &Adapter,
    kept: &FactorSet,
    dtype: Option<FloatDType>,
) -> (Tensor<D>, Option<f64>) {
    let (own, shape) = (FloatDType::from(weight.dtype()), weight.shape());
    let wide = weight.cast(FloatDType::F32);
    let (weight, narrow) = match dtype {
        Some(dtype) if own == FloatDType::F32 => (rounded(wide, dtype), Some(dtype)),
        _ => (wide, (own != FloatDType::F32).then_some(own)),
    };
    let rest = part.take_out(weight.reshape([shape[0], shape[1]]), kept).reshape(shape);
    let Some(narrow) = narrow else { return (rest, None) };
    let result = rounded(rest.clone(), narrow);
    let norm = |tensor: Tensor<D>| f64::from(tensor.square().sum().sqrt().into_scalar::<f32>());
    let lost = norm(rest.clone() - result.clone()) / norm(rest).max(f64::MIN_POSITIVE);
    (result.cast(own), Some(lost))
}

/// An f32 tensor whose numbers are those of `dtype` that are nearest; on the host where the device does not know it.
pub(crate) fn rounded<const D: usize>(tensor: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    let device = tensor.device();
    if device.supports_dtype(DType::from(dtype)) {
        return tensor.cast(dtype).cast(FloatDType::F32);
    }
    Tensor::from_data(tensor.into_data().convert_dtype(dtype.into()).convert_dtype(DType::F32), &device)
}
