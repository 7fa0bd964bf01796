//! To PEFT: any adapter as a LoRA of the original weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::prelude::*;

use super::difference::{Pair, Product, truncated};
use super::{A, B, MAGNITUDE, PREFIX, PeftAdapter, PeftConfig, PeftInit};
use crate::attach::AttachOptions;
use crate::config::{AdapterConfig, AlphaConvention, Scaling};
use crate::error::AdapterError;
use crate::factors::{Axes, HostTensor, NamedTensors};
use crate::parameters::{Parameter, factor_path, parameters, weights};
use crate::state::{ModuleState, SavedAdapter};
use crate::target::Pattern;
use crate::{Init, Method};

/// Which weights an adapter that split them shall fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PeftForm {
    /// The original ones, by the difference to the start. Loading needs no decomposition.
    #[default]
    Difference,
    /// Their residual, which PEFT makes again by the decomposition that the configuration names. For adapters whose own
    /// start was that decomposition.
    AsTrained,
}

/// How an adapter leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeftExport {
    /// Which weights an adapter that split them shall fit.
    pub form: PeftForm,
    /// Rank of the best approximation of what the adapter changed; absent, nothing is approximated.
    pub rank: Option<usize>,
    /// `base_model_name_or_path`.
    pub base_model: Option<String>,
}

/// What an approximation of lower rank leaves out of the change of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Truncation {
    /// Path of the linear layer.
    pub path: String,
    /// `||D - D_r||_F / ||D||_F`.
    pub relative_error: f64,
}

impl PeftAdapter {
    /// An adapter in PEFT's form, and what approximation cost where a rank was asked for.
    ///
    /// LoRA, rsLoRA and DoRA leave as they are; SORSA, PiSSA and OLoRA as `options.form` says. With `options.rank` any
    /// method leaves as a LoRA of that rank, partial fine-tuning too. `model` is the original one; its weights are
    /// used only where the change of DoRA or of partial fine-tuning is approximated.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] where adapter and model do not fit, [`AdapterError::Config`] for what PEFT's form cannot
    /// hold: full fine-tuning, partial fine-tuning without a rank; [`AdapterError::Decomposition`].
    pub fn from_saved<M: Module>(
        saved: &SavedAdapter,
        model: &M,
        options: &PeftExport,
    ) -> Result<(Self, Vec<Truncation>), AdapterError> {
        saved.check(model)?;
        let (config, method) = (&saved.state.config, saved.state.config.method);
        let refuse = |fault: &str| Err(AdapterError::Config { faults: vec![fault.to_owned()] });
        match (method, options.rank) {
            (Method::Full, _) => {
                return refuse("full fine-tuning changes embeddings and norms, which a LoRA cannot hold");
            }
            (Method::Partial, None) => {
                return refuse("partial fine-tuning leaves as a LoRA only with a rank to approximate it by");
            }
            (_, Some(0)) => return refuse("rank must be at least 1"),
            _ => {}
        }
        let as_trained = method.splits_weight() && options.form == PeftForm::AsTrained && options.rank.is_none();
        if as_trained {
            exact_start(saved, model)?;
        }
        let keeps_scale = (!method.splits_weight() || as_trained) && options.rank.is_none();
        let dora = method == Method::Dora && options.rank.is_none();

        let (pairs, truncations) = match options.rank {
            Some(rank) => approximated(saved, model, rank)?,
            None => (exact(saved, as_trained), Vec::new()),
        };
        let mut tensors = NamedTensors::new();
        let mut scales = BTreeMap::new();
        for module in &saved.state.modules {
            let (path, pair) = (&module.path, &pairs[&module.path]);
            let scale = if options.rank.is_some() { 1.0 } else { module.scale };
            scales.insert(path.as_str(), (pair.a.shape[1], scale));
            tensors.insert(format!("{PREFIX}{path}{A}"), pair.a.transposed());
            tensors.insert(format!("{PREFIX}{path}{B}"), pair.b.transposed());
            let magnitude = factor(saved, module, &saved.trained, Axes::Out).filter(|_| dora);
            tensors.extend(magnitude.map(|tensor| (format!("{PREFIX}{path}{MAGNITUDE}"), tensor.clone())));
        }
        let modules_to_save = whole(saved, model, &mut tensors);
        let rank_stabilized = keeps_scale && config.scaling == Scaling::RankStabilized;
        let (rank, alpha) = usual(&scales, rank_stabilized);
        let mut peft = PeftConfig {
            rank,
            alpha,
            dropout: config.dropout,
            rank_stabilized,
            dora,
            init: match method {
                Method::Sorsa | Method::Pissa if as_trained => PeftInit::Pissa,
                Method::Olora if as_trained => PeftInit::Olora,
                Method::Lora | Method::Dora if options.rank.is_none() => PeftInit::Lora(config.init),
                _ => PeftInit::Lora(Init::default()),
            },
            target_modules: target_modules(saved),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save,
            base_model: options.base_model.clone(),
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

/// Whether the start is the exact one, which PEFT computes again.
fn exact_start<M: Module>(saved: &SavedAdapter, model: &M) -> Result<(), AdapterError> {
    // PEFT divides by the scale, whatever the adapter's own convention is.
    let config = AdapterConfig { alpha_convention: AlphaConvention::Peft, ..saved.state.config.clone() };
    let (again, _) = config.prepare(model, &AttachOptions::default())?;
    let mut faults = Vec::new();
    for module in &saved.state.modules {
        let [own, exact] = [&saved.state.initial, &again.initial].map(|tensors| product(saved, module, tensors).pair());
        let (own, exact) = (own.dense(module.scale), exact.dense(module.scale));
        if (&own - &exact).norm_l2() > 1e-2 * exact.norm_l2() {
            faults.push(format!("`{}` did not start from the exact decomposition, which PEFT would make", module.path));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(AdapterError::Config { faults }) }
}

/// The trained factors of every module, or their difference to the start.
fn exact(saved: &SavedAdapter, as_trained: bool) -> BTreeMap<String, Pair> {
    let difference = saved.state.config.method.splits_weight() && !as_trained;
    let pair = |module: &ModuleState| {
        let now = product(saved, module, &saved.trained);
        match difference {
            true => now.less(&product(saved, module, &saved.state.initial)),
            false => now.pair(),
        }
    };
    saved.state.modules.iter().map(|module| (module.path.clone(), pair(module))).collect()
}

fn product<'a>(saved: &SavedAdapter, module: &ModuleState, tensors: &'a NamedTensors) -> Product<'a> {
    let factor = |axes| factor(saved, module, tensors, axes);
    let side = |axes| factor(axes).expect("the adapter was checked");
    Product { a: side(Axes::InRank), s: factor(Axes::Rank), b: side(Axes::RankOut) }
}

/// The factor of one module that has these axes.
fn factor<'a>(
    saved: &SavedAdapter,
    module: &ModuleState,
    tensors: &'a NamedTensors,
    axes: Axes,
) -> Option<&'a HostTensor> {
    let method = saved.state.config.method;
    let factor = method.factors().iter().find(|factor| factor.axes == axes)?;
    tensors.get(&factor_path(&module.path, method, factor.name))
}

/// The best approximations of what the adapter changed, with scale 1.
fn approximated<M: Module>(
    saved: &SavedAdapter,
    model: &M,
    rank: usize,
) -> Result<(BTreeMap<String, Pair>, Vec<Truncation>), AdapterError> {
    let method = saved.state.config.method;
    let wanted: BTreeSet<&str> = saved.state.modules.iter().map(|module| module.path.as_str()).collect();
    // What the weights themselves become has to be seen where no product of factors says it.
    let merged = match method {
        Method::Dora | Method::Partial => {
            let merged = saved.attach(model.clone())?.merge().0;
            Some((weights(model, &wanted), weights(&merged, &wanted)))
        }
        _ => None,
    };
    let exact = if merged.is_none() { exact(saved, false) } else { BTreeMap::new() };
    let (mut pairs, mut truncations, mut faults) = (BTreeMap::new(), Vec::new(), Vec::new());
    for module in &saved.state.modules {
        let path = &module.path;
        let approximation = match &merged {
            Some((before, after)) => {
                let difference = HostTensor::from_tensor(after[path].clone() - before[path].clone());
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

/// Adds the parameters that were trained whole, and returns the modules as PEFT reads them: by the ends of their paths.
fn whole<M: Module>(saved: &SavedAdapter, model: &M, tensors: &mut NamedTensors) -> Vec<String> {
    if saved.state.config.modules_to_save.is_empty() {
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
    names_or(&saved.state.config.modules_to_save, modules)
}

/// The numerator that makes `scale` of a rank.
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

/// The targets as PEFT reads them.
fn target_modules(saved: &SavedAdapter) -> Vec<String> {
    names_or(&saved.state.config.target_modules, saved.state.modules.iter().map(|module| module.path.clone()))
}

/// Names as they were given, for PEFT matches the ends of paths too; `paths` where any is a pattern, of which it has other
/// ones.
fn names_or(given: &[String], paths: impl IntoIterator<Item = String>) -> Vec<String> {
    match given.iter().all(|text| matches!(Pattern::parse(text), Ok(Pattern::Name(_)))) {
        true => given.to_vec(),
        false => paths.into_iter().collect(),
    }
}
