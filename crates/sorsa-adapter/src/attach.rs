//! Attaching an adapter to a model: chooses targets, decomposes weights and replaces them by their residuals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use rayon::prelude::*;
use sorsa_files::{HostTensor, NamedTensors};
use sorsa_linalg::SvdOptions;
use sorsa_linalg::tensor::Placement;
use sorsa_ops::{Form, OperationMemory, PackedFormat, WeightOperand};

use crate::Method;
use crate::cache::{SvdCache, fingerprint};
use crate::config::{AdapterConfig, RankAndScale};
use crate::error::AdapterError;
use crate::hand_over::{CarriedChanges, with_carried};
use crate::host_tensor::HostTensorExt;
use crate::install::{Installation, Subtraction, install};
use crate::method::StartsFrom;
use crate::packed::{NothingPacked, OriginalWeights, packed_formats};
use crate::packed_residual::{PackingTime, ResidualPacking};
use crate::parameters::{
    Parameter, Trainable, carried_path, factor_path, has_adapter, linear_layers, parameters, subtracted_path, weights,
};
use crate::start::{StartingFactors, WeightToAdapt};
use crate::state::{AdapterState, ModuleState};
use crate::target::pattern_matches;
use crate::weight_gradients::{WeightGradients, groups};

/// How attaching decomposes weights.
pub struct AttachOptions<'a> {
    /// Algorithm, tolerance and seed of the SVD.
    pub svd: SvdOptions,
    /// Where the large products run: on the host, with all matrices in parallel, or on the weights' device, one by one.
    pub placement: Placement,
    /// Folder of the SVD cache. If absent, nothing is cached.
    pub cache: Option<PathBuf>,
    /// The weights that were packed while the model was read, as they were before: methods that decompose weights decompose those.
    /// If absent, they decompose the widened ones.
    pub originals: Option<&'a dyn OriginalWeights>,
    /// Gives gradients of the loss, for methods that start from them. If absent, such a method cannot start.
    pub gradients: Option<&'a dyn WeightGradients>,
    /// Called after each decomposed matrix with the number of decomposed matrices and the number of all.
    pub progress: Option<&'a (dyn Fn(usize, usize) + Sync)>,
}

impl Default for AttachOptions<'_> {
    fn default() -> Self {
        let (svd, placement) = (SvdOptions::default(), Placement::Host);
        Self { svd, placement, cache: None, originals: None, gradients: None, progress: None }
    }
}

/// The most memory that gradients of dense weights take at a time, unless a single one takes more.
const GRADIENT_BYTES: usize = 256 << 20;

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
            // The bound of ranks that the weights decide may be larger than a weight.
            let rank = if self.rank_energy.is_some() && rank == self.rank { rank.min(largest) } else { rank };
            if method.is_factored() && rank > largest {
                faults.push(format!("rank {rank} is larger than {largest}, the smaller side of `{path}` {shape:?}"));
            }
            faults.extend(self.method.band().fault(&path, shape, rank));
            targets.push(Target { path, shape, rank, scale });
        }
        if method.is_factored() {
            let overrides = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
            let idle = overrides.filter(|text| !targets.iter().any(|target| pattern_matches(text, &target.path)));
            faults.extend(idle.map(|text| format!("`{text}`, for which a rank or alpha is given, matches no target")));
        }
        let idle =
            self.method_pattern.keys().filter(|text| !targets.iter().any(|one| pattern_matches(text, &one.path)));
        faults.extend(idle.map(|text| format!("`{text}` of method_pattern matches no target")));
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
        install(model, state, jobs, options.originals.unwrap_or(&NothingPacked))
    }

    /// Does everything of [`attach`](Self::attach) except changing the model.
    pub(crate) fn prepare<M: Module>(
        &self,
        model: &M,
        options: &AttachOptions<'_>,
    ) -> Result<(AdapterState, BTreeMap<String, Installation>), AdapterError> {
        self.prepare_with(model, options, &CarriedChanges::new())
    }

    /// [`prepare`](Self::prepare) for weights to which the `carried` changes are added first.
    pub(crate) fn prepare_with<M: Module>(
        &self,
        model: &M,
        options: &AttachOptions<'_>,
        carried: &CarriedChanges,
    ) -> Result<(AdapterState, BTreeMap<String, Installation>), AdapterError> {
        if self.rank_energy.is_some() {
            return self.with_resolved_ranks(model, options)?.config.prepare_with(model, options, carried);
        }
        let targets = self.targets(model)?;
        if has_adapter(model) {
            return Err(AdapterError::Targets { faults: vec![HAS_ADAPTER.to_owned()] });
        }
        let originals = options.originals.unwrap_or(&NothingPacked);
        let packed = packed_formats(model);
        let faults = self.packed_faults(&targets, &packed);
        if !faults.is_empty() {
            return Err(AdapterError::Targets { faults });
        }
        let packings = self.packings(&targets, &packed, originals);
        let mut starts = match self.method().is_factored() {
            true => self.start_all(model, &targets, &packings, (originals, carried), options)?,
            false => BTreeMap::new(),
        };
        let mut modules = Vec::new();
        let mut initial = NamedTensors::new();
        for (path, pair) in carried {
            initial.insert(carried_path(path, "a"), pair.a.clone());
            initial.insert(carried_path(path, "b"), pair.b.clone());
        }
        let mut installations = BTreeMap::new();
        for target in targets {
            let start = starts.remove(&target.path);
            let Target { path, shape, rank, scale } = target;
            let method = self.method_at(&path);
            let splits_weight = method.splits_weight();
            let mut module =
                ModuleState { path: path.clone(), shape, rank, scale, fingerprint: None, dtype: None, residual: None };
            if let Some((StartingFactors { mut factors, subtracted, svd }, identity)) = start {
                module.residual = packings.get(&path).map(|packing| packing.format);
                if module.residual.is_some() {
                    for (name, tensor) in subtracted.as_ref().unwrap_or(&factors) {
                        initial.insert(subtracted_path(&path, method, name), tensor.clone());
                    }
                }
                for factor in method.saved_with_start() {
                    if let Some(tensor) = factors.remove(factor.name) {
                        initial.insert(factor_path(&path, method, factor.name), tensor);
                    }
                }
                let subtract = match splits_weight || module.residual.is_some() {
                    true => Some(Subtraction::Start),
                    false => None,
                };
                if let Some(identity) = identity.filter(|_| subtract.is_some()) {
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

    /// The values of a weight that factors start from.
    fn weight_at_start(
        &self,
        target: &Target,
        weight: WeightOperand,
        originals: &dyn OriginalWeights,
    ) -> Result<Tensor<2>, String> {
        let packed = match weight {
            WeightOperand::Dense(weight) => return Ok(weight),
            WeightOperand::Packed(packed) => packed,
        };
        match originals.read(&target.path) {
            Ok(Some(original)) => Ok(original.to_tensor::<2>(&packed.device()).transpose()),
            Ok(None)
                if self.quantization_rounds.is_some_and(|rounds| rounds > 0)
                    && !self.method_at(&target.path).splits_weight() =>
            {
                Err(format!(
                    "`{}` is packed in its file, and what that lost is not known: quantization_rounds of {} need dense weights \
                     that are packed while they are read",
                    target.path,
                    self.method_at(&target.path)
                ))
            }
            Ok(None) => Ok(packed.to_dense()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// How residuals are packed, by the path of the module; without those that are not. `packed` has the formats of packed weights.
    pub(crate) fn packings(
        &self,
        targets: &[Target],
        packed: &BTreeMap<String, PackedFormat>,
        originals: &dyn OriginalWeights,
    ) -> BTreeMap<String, ResidualPacking> {
        let packing = |target: &Target| {
            let path = &target.path;
            let time = if originals.contains(path) { PackingTime::WhileRead } else { PackingTime::InFile };
            let packing = self.residual_packing(self.method_config_at(path), *packed.get(path)?, time)?;
            Some((path.clone(), packing))
        };
        targets.iter().filter_map(packing).collect()
    }

    /// The gradients that the factors of `targets` start from, by path; none of those whose method starts from something else. Several
    /// methods take the mean over the batches of the one that asks for most.
    fn gradients(
        &self,
        targets: &[Target],
        options: &AttachOptions<'_>,
    ) -> Result<BTreeMap<String, HostTensor>, AdapterError> {
        let batches = |target: &Target| self.method_config_at(&target.path).gradient_batches();
        let wanted: Vec<Target> = targets.iter().filter(|target| batches(target).is_some()).cloned().collect();
        let Some(first) = wanted.first() else { return Ok(BTreeMap::new()) };
        let Some(gradients) = options.gradients else {
            let method = self.method_at(&first.path);
            let fault = format!("{method} starts from gradients of the loss, and there are no data for them here");
            return Err(AdapterError::Config { faults: vec![fault] });
        };
        gradients.mean(&wanted, wanted.iter().filter_map(batches).max().unwrap_or(1))
    }

    /// The factors of every target at the start, by path, and the identity of each weight that is decomposed.
    fn start_all<M: Module>(
        &self,
        model: &M,
        targets: &[Target],
        packings: &BTreeMap<String, ResidualPacking>,
        (originals, carried): (&dyn OriginalWeights, &CarriedChanges),
        options: &AttachOptions<'_>,
    ) -> Result<BTreeMap<String, (StartingFactors, Option<WeightIdentity>)>, AdapterError> {
        let packing = |target: &Target| packings.get(&target.path).copied();
        let definition = |target: &Target| self.method_at(&target.path).factored();
        let needs_weight = |target: &&Target| {
            let starts_from = definition(target).map(|method| method.starts_from);
            starts_from != Some(StartsFrom::RandomNumbers) || packing(target).is_some()
        };
        let wanted = targets.iter().filter(needs_weight).map(|target| target.path.as_str()).collect();
        let weights = weights(model, &wanted);
        let cache = options.cache.as_ref().map(|folder| SvdCache::new(folder.clone()));
        let done = std::sync::atomic::AtomicUsize::new(0);
        let (svd, placement, progress) = (&options.svd, options.placement, options.progress);
        let one = |target: &Target, gradient: Option<HostTensor>| {
            let packing = packing(target);
            let decomposes = definition(target).is_some_and(|method| method.decomposes()) || packing.is_some();
            // A packed weight is widened, or read again, here: one on each thread.
            let weight = match weights.get(&target.path).cloned() {
                Some(weight) => match self.weight_at_start(target, weight, originals) {
                    Ok(weight) => Some(weight),
                    Err(fault) => return (target.path.clone(), Err(fault)),
                },
                None => None,
            };
            let identity = weight.as_ref().filter(|_| decomposes).map(WeightIdentity::of);
            let (weight, decomposed) = match (weight, carried.get(&target.path)) {
                (Some(weight), Some(pair)) => {
                    let weight = with_carried(weight, pair);
                    let decomposed = fingerprint(&weight);
                    (Some(weight), Some(decomposed))
                }
                (weight, _) => (weight, identity.as_ref().map(|identity| identity.fingerprint.clone())),
            };
            let to_adapt = WeightToAdapt {
                target,
                method: self.method_at(&target.path),
                weight,
                packing,
                fingerprint: decomposed.as_deref(),
                seed: self.seed,
                svd,
                placement,
                cache: cache.as_ref(),
                gradient,
            };
            let result = self.method_config_at(&target.path).start(&to_adapt).expect("the method has factors");
            let count = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            if let Some(progress) = progress.filter(|_| decomposes) {
                progress(count, targets.len());
            }
            (target.path.clone(), result.map(|start| (start, identity)).map_err(|error| error.to_string()))
        };
        let mut results = Vec::with_capacity(targets.len());
        let starts_from_gradient =
            |target: &Target| definition(target).is_some_and(|method| method.starts_from == StartsFrom::Gradient);
        let bytes = if targets.iter().any(starts_from_gradient) { GRADIENT_BYTES } else { usize::MAX };
        for group in groups(targets, bytes) {
            let gradients = self.gradients(group, options)?;
            let one = |target: &Target| one(target, gradients.get(&target.path).cloned());
            match placement {
                Placement::Host => results.par_extend(group.par_iter().with_max_len(1).map(one)),
                // A device has one stream for each thread that uses it: stay on this thread.
                Placement::Device => results.extend(group.iter().map(one)),
            }
        }
        let mut faults = Vec::new();
        let mut starts = BTreeMap::new();
        for (path, result) in results {
            match result {
                Ok(start) => {
                    starts.insert(path, start);
                }
                Err(fault) => faults.push(fault),
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
