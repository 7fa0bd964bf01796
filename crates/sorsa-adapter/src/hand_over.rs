//! A new adapter that starts from the weights which another one has reached: the same base, the same effective weights.
//!
//! ```text
//! W + D = effective weight of the old adapter        D = C + scale (A B - A_0 B_0)
//! ```
//!
//! - A method whose start is any product, LoRA, takes `D` itself: `scale A B = D`. Its rank must be that of `D`, `2 r` after a method
//!   that splits the weight.
//! - Every other method starts from `W + D` like from a weight. `D` is carried along as two frozen factors, which are saved with the
//!   start and are a part of the exported adapter.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_files::{HostTensor, NamedTensors};

use crate::Method;
use crate::attach::{AttachOptions, Target};
use crate::config::AdapterConfig;
use crate::error::AdapterError;
use crate::factors::FactorPair;
use crate::host_tensor::HostTensorExt;
use crate::install::Installation;
use crate::method::FactoredDefinition;
use crate::packed::{NothingPacked, packed_formats};
use crate::packed_residual::ResidualStorage;
use crate::parameters::factor_path;
use crate::peft::PeftAdapter;
use crate::state::{AdapterState, SavedAdapter};
use crate::weight_change::{KeptChange, KeptRank, WeightChange};

/// The changes that a new adapter starts with, by the path of the module.
pub(crate) type CarriedChanges = BTreeMap<String, FactorPair>;

/// The largest part of a change that a hand-over may lose, which is more than rounding loses.
const LARGEST_LOSS: f64 = 1e-6;

/// Rank and targets of a new adapter that holds what an older one has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOverDefaults {
    /// Rank of most modules.
    pub rank: usize,
    /// Ranks of the others.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Linear layers.
    pub target_modules: Vec<String>,
}

impl HandOverDefaults {
    /// What an adapter of `method` needs to go on with the adapter in `folder`, this program's or PEFT's.
    ///
    /// # Errors
    ///
    /// Those of [`AdapterState::load`] and [`PeftAdapter::load`].
    pub fn of(folder: &Path, method: Method) -> Result<Self, AdapterError> {
        let takes_products = method.factored().is_some_and(|definition| takes_products(&definition));
        if PeftAdapter::is_in(folder) {
            let peft = PeftAdapter::load(folder)?;
            let splits = peft.config.method().splits_weight();
            let modules: Vec<(String, usize, usize)> = peft
                .matrices()
                .map(|(path, a, b, _)| {
                    let side = a.shape.get(1).copied().unwrap_or(1).min(b.shape.first().copied().unwrap_or(1));
                    (path.to_owned(), a.shape.first().copied().unwrap_or(1) * if splits { 2 } else { 1 }, side)
                })
                .collect();
            let own = peft.config.rank;
            let target_modules = modules.iter().map(|(path, ..)| path.clone()).collect();
            return Ok(Self::with_ranks(if takes_products { modules } else { Vec::new() }, own, target_modules));
        }
        let state = AdapterState::load(folder)?;
        let modules = state.modules.iter().map(|module| {
            let splits = state.config.method_at(&module.path).splits_weight();
            let carried = state.carried(&module.path).map_or(0, |pair| pair.a.shape[1]);
            let rank = module.rank * if splits { 2 } else { 1 } + carried;
            (module.path.clone(), rank, module.shape[0].min(module.shape[1]))
        });
        let modules = if takes_products { modules.collect() } else { Vec::new() };
        let mut found = Self::with_ranks(modules, state.config.rank, state.config.target_modules.clone());
        if !takes_products {
            found.rank_pattern = state.config.rank_pattern.clone();
        }
        Ok(found)
    }

    /// The ranks that modules with these paths, ranks and smaller sides need.
    fn with_ranks(modules: Vec<(String, usize, usize)>, usual: usize, target_modules: Vec<String>) -> Self {
        let needed: Vec<(String, usize)> =
            modules.into_iter().map(|(path, rank, side)| (path, rank.min(side).max(1))).collect();
        let rank = needed.iter().map(|(_, rank)| *rank).max().unwrap_or(usual);
        let rank_pattern = needed.into_iter().filter(|(_, own)| *own != rank).collect();
        Self { rank, rank_pattern, target_modules }
    }
}

impl SavedAdapter {
    /// An adapter by `config` for the same `model`, whose weights with the new adapter are those with this one.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Config`] for methods without factors, for DoRA and packed residuals, whose change is no product, for a rank that
    /// is too small, with what it would lose, and for weights whose residual is packed again; those of
    /// [`AdapterConfig::attach`].
    pub fn handed_over<M: Module>(
        &self,
        model: &M,
        config: &AdapterConfig,
        options: &AttachOptions<'_>,
    ) -> Result<Self, AdapterError> {
        self.check(model)?;
        let refuse = |faults: Vec<String>| Err(AdapterError::Config { faults });
        let (old, new) = (self.state.config.method(), config.method());
        if !new.is_factored() {
            return refuse(vec![format!(
                "{new} trains the weights themselves: merge the adapter, and train the merged model"
            )]);
        }
        if !old.is_factored() || !self.changes_by_products() {
            return refuse(vec![format!(
                "the change by {old} is no product of factors that another adapter could start from: merge the adapter, and train \
                 the merged model"
            )]);
        }
        if !self.state.config.modules_to_save.is_empty() || !config.modules_to_save.is_empty() {
            return refuse(vec![
                "modules_to_save cannot be handed over: merge the adapter, and train the merged model".to_owned(),
            ]);
        }
        let targets = config.targets(model)?;
        let takes_away = |method: &Method| method.factored().is_some_and(|definition| !definition.keeps_output);
        if let Some(method) = targets.iter().map(|target| config.method_at(&target.path)).find(takes_away) {
            return refuse(vec![format!(
                "{method} takes a part of the weights away at the start: no adapter can be handed over to it"
            )]);
        }
        let changes = self.kept_changes()?;
        let lost: Vec<&str> = changes
            .keys()
            .filter(|path| !targets.iter().any(|target| target.path == **path))
            .map(String::as_str)
            .collect();
        if let [first, ..] = lost.as_slice() {
            return refuse(vec![format!(
                "{} modules that the adapter changes are no targets, `{first}` first: what it learned there would be lost",
                lost.len()
            )]);
        }
        let takes_products =
            |path: &str| config.method_at(path).factored().is_some_and(|method| takes_products(&method));
        let (products, carried): (BTreeMap<_, _>, BTreeMap<_, _>) =
            changes.into_iter().partition(|(path, _)| takes_products(path));
        let packed = packed_formats(model);
        let originals = options.originals.unwrap_or(&NothingPacked);
        let packings = config.packings(&targets, &packed, originals);
        let is_stored = |path: &&String| {
            let dense = config.residual == Some(ResidualStorage::Dense) && config.method_at(path).splits_weight();
            packings.contains_key(*path) || (dense && packed.contains_key(*path))
        };
        if let Some(path) = carried.keys().find(is_stored) {
            let method = config.method_at(path);
            return refuse(vec![format!(
                "`{path}` is packed, and {method} would store its residual with the change, which rounds it: take residual = \"exact\", \
                 go on with lora, or merge the adapter and train the merged model"
            )]);
        }
        if !products.is_empty() && config.quantization_rounds.is_some_and(|rounds| rounds > 0) {
            return refuse(vec![
                "quantization_rounds start from the error of the packing, not from another adapter".to_owned(),
            ]);
        }
        let carried: CarriedChanges =
            carried.into_iter().map(|(path, KeptChange { a, b, .. })| (path, FactorPair { a, b })).collect();
        let (state, installations) = config.prepare_with(model, options, &carried)?;
        let mut trained = starting_values(&state, &installations);
        start_from_products(config, &targets, &products, &mut trained)?;
        Ok(Self::new(state, trained, self.source()))
    }

    /// The changes that are not zero, as products of the smallest rank.
    fn kept_changes(&self) -> Result<BTreeMap<String, KeptChange>, AdapterError> {
        let (mut changes, mut faults) = (BTreeMap::new(), Vec::new());
        for part in self.trained_parts() {
            match part.since_start.unwrap_or(part.part).kept(&part.path, KeptRank::All) {
                Ok(kept) if kept.energy > 0.0 => drop(changes.insert(part.path, kept)),
                Ok(_) => {}
                Err(error) => faults.push(error.to_string()),
            }
        }
        if faults.is_empty() { Ok(changes) } else { Err(AdapterError::Decomposition { faults }) }
    }
}

/// Replaces the trained values of modules whose method starts from any product. Columns beyond the rank of the change are those of a
/// fresh start, which adds nothing.
fn start_from_products(
    config: &AdapterConfig,
    targets: &[Target],
    products: &BTreeMap<String, KeptChange>,
    trained: &mut NamedTensors,
) -> Result<(), AdapterError> {
    let mut faults = Vec::new();
    for target in targets {
        let method = config.method_at(&target.path);
        let Some((change, definition)) = products.get(&target.path).zip(method.factored()) else { continue };
        let needed = change.a.shape[1];
        let whole = WeightChange::Product { a: change.a.clone(), b: change.b.clone() };
        let kept = match whole.kept(&target.path, KeptRank::Rank(needed.min(target.rank))) {
            Ok(kept) => kept,
            Err(error) => {
                faults.push(error.to_string());
                continue;
            }
        };
        let error = (kept.lost / kept.energy).sqrt();
        if error > LARGEST_LOSS {
            let Target { path, rank, .. } = target;
            faults
                .push(format!("rank {rank} leaves out {error:.1e} of the change of `{path}`, whose rank is {needed}"));
            continue;
        }
        let fresh = trained.get(&factor_path(&target.path, method, "a")).cloned();
        let Some(factors) = (definition.of_product)(padded(kept, target, fresh)) else { continue };
        for (name, tensor) in factors {
            trained.insert(factor_path(&target.path, method, name), tensor);
        }
    }
    match faults.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => {
            let more = match rest.len() {
                0 => String::new(),
                more => format!("; {more} more modules"),
            };
            Err(AdapterError::Config { faults: vec![format!("{first}{more}: give a larger rank")] })
        }
    }
}

/// The factors of a change, divided by the scale, with columns of `fresh` and rows of zeros up to the target's rank.
fn padded(kept: KeptChange, target: &Target, fresh: Option<HostTensor>) -> FactorPair {
    let root = target.scale.sqrt();
    let ([d_in, d_out], rank, own) = (target.shape, target.rank, kept.a.shape[1].min(target.rank));
    let narrowed = |value: f32| (f64::from(value) / root) as f32;
    let (mut a, mut b) = (vec![0.0; d_in * rank], vec![0.0; rank * d_out]);
    if let Some(fresh) = fresh.filter(|fresh| fresh.values.len() == a.len()) {
        a.copy_from_slice(&fresh.values);
    }
    for (row, values) in a.chunks_exact_mut(rank).zip(kept.a.values.chunks_exact(kept.a.shape[1])) {
        row[..own].iter_mut().zip(values).for_each(|(to, from)| *to = narrowed(*from));
    }
    b[..own * d_out].iter_mut().zip(&kept.b.values).for_each(|(to, from)| *to = narrowed(*from));
    FactorPair { a: HostTensor::new([d_in, rank], a), b: HostTensor::new([rank, d_out], b) }
}

/// Whether a method can start from any product of its rank.
fn takes_products(definition: &FactoredDefinition) -> bool {
    let nothing = || HostTensor::new([0, 0], Vec::new());
    (definition.of_product)(FactorPair { a: nothing(), b: nothing() }).is_some()
}

/// The trained values at the start.
fn starting_values(state: &AdapterState, installations: &BTreeMap<String, Installation>) -> NamedTensors {
    let mut trained = NamedTensors::new();
    for (path, installation) in installations {
        let config = state.config.method_config_at(path);
        let factors = installation.factors.clone().unwrap_or_else(|| state.factors_at_start(path));
        for factor in config.trained_factors() {
            if let Some(tensor) = factors.get(factor.name) {
                trained.insert(factor_path(path, config.method(), factor.name), tensor.clone());
            }
        }
    }
    trained
}

/// A weight with the change that the adapter carries, f32.
pub(crate) fn with_carried(weight: Tensor<2>, carried: &FactorPair) -> Tensor<2> {
    let device = weight.device();
    let (a, b) = (carried.a.to_tensor::<2>(&device), carried.b.to_tensor::<2>(&device));
    weight.cast(FloatDType::F32) + a.matmul(b)
}
