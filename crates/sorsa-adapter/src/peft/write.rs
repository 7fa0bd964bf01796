//! Export to PEFT: any adapter as a LoRA of the original weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::prelude::*;

use super::difference::truncated;
use super::read::saves;
use super::{A, B, MAGNITUDE, PREFIX, PeftAdapter, PeftConfig, PeftInit, PeftSelection, PeftVariant};
use sorsa_files::{HostTensor, NamedTensors};
use sorsa_ops::WeightOperand;

use crate::attach::AttachOptions;
use crate::config::{AdapterConfig, Scaling};
use crate::error::AdapterError;
use crate::factors::{Axes, FactorPair};
use crate::host_tensor::HostTensorExt;
use crate::parameters::{Parameter, factor_path, parameters, weights};
use crate::state::{ModuleState, SavedAdapter};
use crate::target::Pattern;
use crate::{Init, Method};

/// The weights to which an exported adapter is added, if its method splits the weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PeftForm {
    /// The original ones. The export is the difference to the start. Loading needs no decomposition.
    #[default]
    Difference,
    /// Their residual. PEFT computes it again by the decomposition that the configuration names, so the adapter must have
    /// started from that decomposition.
    AsTrained,
    /// Their residual, which is in a folder of its own. The export is a plain LoRA of the trained factors.
    OfResidual,
}

/// Options of an export to PEFT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeftExport {
    /// The weights to which the adapter is added, if its method splits the weight.
    pub form: PeftForm,
    /// Rank of the best approximation of the adapter's change. If absent, nothing is approximated.
    pub rank: Option<usize>,
    /// `base_model_name_or_path`.
    pub base_model: Option<String>,
    /// Revision of the base on the hub.
    pub revision: Option<String>,
}

/// The error of an approximation of lower rank in the change of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Truncation {
    /// Path of the linear layer.
    pub path: String,
    /// `||D - D_r||_F / ||D||_F`.
    pub relative_error: f64,
}

impl PeftAdapter {
    /// An adapter in PEFT's form, and the errors of the approximation if `options` give a rank.
    ///
    /// Adapters of methods that do not split the weight, like LoRA, are exported as they are; `options.form` decides for
    /// the others. With `options.rank`, any method is exported as a LoRA of that rank, partial fine-tuning too. `model` is
    /// the original one. Its weights are used only if the change is approximated and is not a product of factors.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] if the adapter does not fit the model; [`AdapterError::Config`] for methods that PEFT's
    /// form cannot hold: full fine-tuning, and partial fine-tuning without a rank; [`AdapterError::Decomposition`].
    pub fn from_saved<M: Module>(
        saved: &SavedAdapter,
        model: &M,
        options: &PeftExport,
    ) -> Result<(Self, Vec<Truncation>), AdapterError> {
        saved.check(model)?;
        let config = &saved.state.config;
        let method = config.method();
        let refuse = |fault: &str| Err(AdapterError::Config { faults: vec![fault.to_owned()] });
        if let Some(fault) = method.whole().and_then(|whole| (whole.peft_fault)(options.rank)) {
            return refuse(fault);
        }
        if let Some(fault) = method.factored().and_then(|definition| (definition.peft_fault)(options.rank)) {
            return refuse(fault);
        }
        if options.rank == Some(0) {
            return refuse("rank must be at least 1");
        }
        if saved.state.carries() && options.rank.is_none() && !config.methods().into_iter().all(changes_by_product) {
            return refuse(
                "the adapter started from another one, and its own change is no product of factors: give a rank",
            );
        }
        if saved.state.carries() && options.form == PeftForm::AsTrained {
            return refuse(
                "the adapter started from another one, which PEFT cannot start from: leave out the form of training",
            );
        }
        let is_mixed = !config.method_pattern.is_empty();
        if is_mixed && options.form == PeftForm::AsTrained {
            return refuse("PEFT has one method for all modules: leave out the form of training");
        }
        if is_mixed && options.rank.is_none() && config.methods().into_iter().any(|method| !changes_by_product(method))
        {
            return refuse(
                "PEFT has one method for all modules, and the change by one of these is no product of factors: give a rank",
            );
        }
        let as_trained = method.splits_weight() && options.form == PeftForm::AsTrained && options.rank.is_none();
        if as_trained && matches!(config.method.to_peft(), Some(PeftVariant { init: PeftInit::Lora(_), .. })) {
            return refuse(
                "PEFT knows no decomposition of the weights that gives the start again: export the difference to it",
            );
        }
        if as_trained {
            check_start(saved, model)?;
        }
        let keeps_factors = as_trained || options.form == PeftForm::OfResidual;
        let plain = PeftVariant { init: PeftInit::Lora(Init::default()), dora: false };
        // Approximations and differences to the start are plain LoRAs.
        let keeps_form = !method.splits_weight() && !saved.state.carries() && !is_mixed;
        let trainable = (keeps_form || as_trained) && options.rank.is_none();
        let variant = match config.method.to_peft() {
            Some(variant) if trainable => variant,
            _ => plain,
        };

        let (pairs, truncations) = match options.rank {
            Some(rank) => approximated(saved, model, rank)?,
            None => (exact(saved, keeps_factors), Vec::new()),
        };
        let mut tensors = NamedTensors::new();
        let mut scales = BTreeMap::new();
        for module in &saved.state.modules {
            let (path, pair) = (&module.path, &pairs[&module.path]);
            let scale = if options.rank.is_some() { 1.0 } else { module.scale };
            scales.insert(path.as_str(), (pair.a.shape[1], scale));
            tensors.insert(format!("{PREFIX}{path}{A}"), pair.a.transposed());
            tensors.insert(format!("{PREFIX}{path}{B}"), pair.b.transposed());
            if variant.dora {
                for factor in method.factors().iter().filter(|factor| factor.axes == Axes::Out) {
                    let magnitude = saved.trained[&factor_path(path, method, factor.name)].clone();
                    tensors.insert(format!("{PREFIX}{path}{MAGNITUDE}"), magnitude);
                }
            }
        }
        let modules_to_save = add_whole_modules(saved, model, &mut tensors);
        let rank_stabilized = trainable && config.scaling == Scaling::RankStabilized;
        let (rank, alpha) = usual(&scales, rank_stabilized);
        let mut peft = PeftConfig {
            rank,
            alpha,
            dropout: config.dropout,
            rank_stabilized,
            dora: variant.dora,
            init: variant.init,
            target_modules: target_modules(saved),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save,
            base_model: options.base_model.clone(),
            revision: options.revision.clone(),
            selection: PeftSelection::default(),
        };
        for (path, (rank, scale)) in &scales {
            if *rank != peft.rank {
                peft.rank_pattern.push(((*path).to_owned(), *rank));
            }
            let alpha = numerator(*rank, *scale, rank_stabilized);
            if (alpha - peft.alpha).abs() > 1e-9 * peft.alpha {
                peft.alpha_pattern.push(((*path).to_owned(), alpha));
            }
        }
        Ok((Self { config: peft, tensors, source: PathBuf::from("memory") }, truncations))
    }
}

/// Checks whether the adapter started from the exact decomposition, which PEFT computes again.
fn check_start<M: Module>(saved: &SavedAdapter, model: &M) -> Result<(), AdapterError> {
    let config = saved.state.config.clone();
    let config = AdapterConfig { method: config.method.starting_like_peft(), ..config };
    let (again, _) = config.prepare(model, &AttachOptions::default())?;
    let mut faults = Vec::new();
    for module in &saved.state.modules {
        let [own, exact] = [&saved.state.initial, &again.initial].map(|tensors| product(saved, module, tensors));
        let (own, exact) = (own.dense(module.scale), exact.dense(module.scale));
        if (&own - &exact).norm_l2() > 1e-2 * exact.norm_l2() {
            faults.push(format!("`{}` did not start from the exact decomposition, which PEFT would make", module.path));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(AdapterError::Config { faults }) }
}

/// Whether a method changes weights by a product of its factors.
fn changes_by_product(method: Method) -> bool {
    method.factored().is_some_and(|definition| definition.changes_by_product)
}

/// The trained factors of every module, or their difference to the start.
fn exact(saved: &SavedAdapter, keeps_factors: bool) -> BTreeMap<String, FactorPair> {
    let pair = |module: &ModuleState| {
        let now = product(saved, module, &saved.trained);
        let difference = saved.state.config.method_at(&module.path).splits_weight() && !keeps_factors;
        match difference {
            true => now.minus(&product(saved, module, &saved.state.initial)),
            false => now,
        }
    };
    // The carried change has no scale of its own.
    let pair = |module: &ModuleState| match saved.state.carried(&module.path) {
        Some(carried) if !keeps_factors => pair(module).beside(&carried.scaled(1.0 / module.scale)).within_sides(),
        _ => pair(module),
    };
    saved.state.modules.iter().map(|module| (module.path.clone(), pair(module))).collect()
}

/// The product of one module's factors, of which `tensors` are the trained ones.
fn product(saved: &SavedAdapter, module: &ModuleState, tensors: &NamedTensors) -> FactorPair {
    let definition =
        saved.state.config.method_at(&module.path).factored().expect("an adapter without factors is refused");
    (definition.product)(&saved.state.all_factors(module, tensors))
}

/// The best approximation of each weight's change, with scale 1.
fn approximated<M: Module>(
    saved: &SavedAdapter,
    model: &M,
    rank: usize,
) -> Result<(BTreeMap<String, FactorPair>, Vec<Truncation>), AdapterError> {
    let wanted: BTreeSet<&str> = saved.state.modules.iter().map(|module| module.path.as_str()).collect();
    // If the change is not a product of factors, it is the difference of the weights.
    let merged = match saved.state.config.methods().into_iter().all(changes_by_product) {
        true => None,
        false => {
            let merged = saved.attach(model.clone())?.merge().0;
            Some((weights(model, &wanted), weights(&merged, &wanted)))
        }
    };
    let exact = if merged.is_none() { exact(saved, false) } else { BTreeMap::new() };
    let (mut pairs, mut truncations, mut faults) = (BTreeMap::new(), Vec::new(), Vec::new());
    for module in &saved.state.modules {
        let path = &module.path;
        let approximation = match &merged {
            Some((before, after)) => {
                let dense = |weights: &BTreeMap<String, WeightOperand>| weights[path].clone().into_dense();
                let difference = HostTensor::from_tensor(dense(after) - dense(before));
                truncated(path, difference.matrix(), rank)
            }
            None => truncated(path, exact[path].dense(module.scale).as_ref(), rank),
        };
        match approximation {
            Ok((pair, relative_error)) => {
                pairs.insert(path.clone(), pair);
                truncations.push(Truncation { path: path.clone(), relative_error });
            }
            Err(error) => faults.push(error.to_string()),
        }
    }
    if faults.is_empty() { Ok((pairs, truncations)) } else { Err(AdapterError::Decomposition { faults }) }
}

/// Adds the parameters that were trained whole, and returns `modules_to_save` for PEFT. It takes these names for the ends of
/// any names: `norm` is `input_layernorm` too. So a name that reaches more than was trained gives way to the paths.
fn add_whole_modules<M: Module>(saved: &SavedAdapter, model: &M, tensors: &mut NamedTensors) -> Vec<String> {
    let given = &saved.state.config.modules_to_save;
    if given.is_empty() {
        return Vec::new();
    }
    let all: BTreeMap<String, Parameter> = parameters(model).into_iter().map(|p| (p.path.clone(), p)).collect();
    let mut modules = BTreeSet::new();
    for (path, _) in saved.state.dense(model) {
        let tensor = &saved.trained[&path];
        modules.extend(path.rsplit_once('.').map(|(module, _)| module.to_owned()));
        let tensor = if all[&path].linear { tensor.transposed() } else { HostTensor::clone(tensor) };
        tensors.insert(format!("{PREFIX}{path}"), tensor);
    }
    let reaches_more = |name: &String| {
        let reached = all.keys().filter_map(|path| path.rsplit_once('.')).map(|(module, _)| module);
        reached.filter(|module| saves(name, module)).any(|module| !modules.contains(module))
    };
    match given.iter().any(reaches_more) {
        true => modules.into_iter().collect(),
        false => names_or(given, modules),
    }
}

/// The alpha that gives a module of this rank the scale `scale`.
fn numerator(rank: usize, scale: f64, rank_stabilized: bool) -> f64 {
    scale * if rank_stabilized { (rank as f64).sqrt() } else { rank as f64 }
}

/// The rank and alpha that most modules have.
fn usual(scales: &BTreeMap<&str, (usize, f64)>, rank_stabilized: bool) -> (usize, f64) {
    let mut counts: Vec<((usize, f64), usize)> = Vec::new();
    for (rank, scale) in scales.values() {
        let key = (*rank, numerator(*rank, *scale, rank_stabilized));
        match counts.iter_mut().find(|(known, _)| *known == key) {
            Some((_, count)) => *count += 1,
            None => counts.push((key, 1)),
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or((1, 1.0), |(key, _)| key)
}

/// `target_modules` for PEFT.
fn target_modules(saved: &SavedAdapter) -> Vec<String> {
    names_or(&saved.state.config.target_modules, saved.state.modules.iter().map(|module| module.path.clone()))
}

/// The `given` names if all are names, because PEFT matches the ends of paths too. Otherwise the `paths`, because PEFT's
/// patterns are different ones.
fn names_or(given: &[String], paths: impl IntoIterator<Item = String>) -> Vec<String> {
    match given.iter().all(|text| matches!(Pattern::parse(text), Ok(Pattern::Name(_)))) {
        true => given.to_vec(),
        false => paths.into_iter().collect(),
    }
}
