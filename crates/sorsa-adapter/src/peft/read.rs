//! Import from PEFT: changes names and layouts, and compares everything with the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::prelude::*;

use sorsa_files::{HostTensor, NamedTensors};

use super::doubts::choice_faults;
use super::start::start_faults;
use super::{A, B, BASE_LAYER, MAGNITUDE, PREFIX, PeftAdapter, PeftConfig, PeftInit};
use crate::Method;
use crate::attach::AttachOptions;
use crate::config::{AdapterConfig, Scaling};
use crate::error::AdapterError;
use crate::factors::Axes;
use crate::parameters::{Parameter, check_fits, factor_path, linear_layers, parameter_values, parameters, weight_path};
use crate::state::{AdapterState, SavedAdapter};

/// The tensors of one module in PEFT's form.
#[derive(Default)]
struct PeftModule<'a> {
    a: Option<&'a HostTensor>,
    b: Option<&'a HostTensor>,
    magnitude: Option<&'a HostTensor>,
}

/// The tensors of an adapter by what they are.
#[derive(Default)]
struct Sorted<'a> {
    /// Factors by module.
    modules: BTreeMap<&'a str, PeftModule<'a>>,
    /// Parameters that are trained whole, or that were saved beside the adapter.
    whole: BTreeMap<&'a str, &'a HostTensor>,
    /// Copies of the base's parameters under adapted modules. PEFT writes them of embeddings and heads.
    copies: BTreeMap<String, &'a HostTensor>,
}

/// The rank of a module, and its factors by this crate's names.
type RankAndFactors = (usize, Vec<(&'static str, HostTensor)>);

impl PeftAdapter {
    /// The adapter in this crate's form, to be attached to the original weights in `model`, trained further, or merged.
    ///
    /// Folders of PiSSA and OLoRA do not hold the part that was subtracted from the weights at the start: like in PEFT, the
    /// weights are decomposed again, with `options`. PEFT's fast PiSSA (`pissa_niter_*`) subtracted an approximation that
    /// cannot be computed again: see [`attachable_from`](Self::attachable_from).
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with every tensor that is missing, misshapen, or not of this model;
    /// [`AdapterError::Decomposition`] if the weights must be decomposed and cannot.
    pub fn attachable<M: Module>(&self, model: &M, options: &AttachOptions<'_>) -> Result<SavedAdapter, AdapterError> {
        if let PeftInit::PissaApproximate(iterations) = self.config.init {
            let fault = format!(
                "`pissa_niter_{iterations}` subtracted a random approximation from the weights: give the adapter as it was \
                 before training (its start), or convert it with PEFT"
            );
            check_fits(vec![fault], &self.source)?;
        }
        self.with_start(None, model, options)
    }

    /// [`attachable`](Self::attachable) for an adapter that split its weights. `start` is the adapter before training, which
    /// PEFT's users save to convert one: it says exactly what was subtracted from the weights.
    ///
    /// # Errors
    ///
    /// Those of [`attachable`](Self::attachable), for both folders.
    pub fn attachable_from<M: Module>(
        &self,
        start: &Self,
        model: &M,
        options: &AttachOptions<'_>,
    ) -> Result<SavedAdapter, AdapterError> {
        self.with_start(Some(start), model, options)
    }

    fn with_start<M: Module>(
        &self,
        start: Option<&Self>,
        model: &M,
        options: &AttachOptions<'_>,
    ) -> Result<SavedAdapter, AdapterError> {
        let mut faults = Vec::new();
        let Sorted { modules, whole, copies } = self.sort(&mut faults);
        let linear: BTreeMap<String, [usize; 2]> = linear_layers(model).into_iter().collect();
        let method = self.config.method();
        faults.extend(choice_faults(&self.config, modules.keys().copied()));
        let mut trained = NamedTensors::new();
        let mut ranks = BTreeMap::new();
        for (path, parts) in &modules {
            let shape = linear.get(*path);
            match self.factors(path, parts, shape) {
                Ok((rank, factors)) => {
                    ranks.insert(*path, rank);
                    let named = factors.into_iter().map(|(name, tensor)| (factor_path(path, method, name), tensor));
                    trained.extend(named);
                }
                Err(found) => faults.extend(found),
            }
        }
        if modules.is_empty() {
            faults.push(format!("no tensor is called {PREFIX}..{A}"));
        }
        let whole = whole_parameters(&self.config, &whole, &copies, model, &mut faults);
        check_fits(faults, &self.source)?;
        let config = self.config_for(&ranks, &linear, &whole, model);
        trained.extend(whole);
        let (mut state, _) = config.prepare(model, options).map_err(|error| match error {
            AdapterError::Targets { faults } => AdapterError::Mismatch { path: self.source.clone(), faults },
            other => other,
        })?;
        if let Some(start) = start.filter(|_| method.splits_weight()) {
            // Its own configuration says that it is a LoRA, because PEFT tells its users to save it like that.
            let start = Self { config: self.config.clone(), ..start.clone() };
            let mut faults = Vec::new();
            state.initial.clear();
            for (path, parts) in start.sort(&mut faults).modules {
                match start.factors(path, &parts, linear.get(path)) {
                    Ok((_, factors)) => {
                        let named = |(name, tensor)| (factor_path(path, method, name), tensor);
                        state.initial.extend(factors.into_iter().map(named));
                    }
                    Err(found) => faults.extend(found),
                }
            }
            faults.extend(state.start_faults());
            check_fits(faults, &start.source)?;
            check_fits(start_faults(&state, &trained, model), &start.source)?;
        }
        Ok(SavedAdapter::new(state, trained, &self.source))
    }

    /// The paths of the modules that have factors.
    pub(super) fn adapted(&self) -> BTreeSet<&str> {
        self.sort(&mut Vec::new()).modules.into_keys().collect()
    }

    /// The paths of the parameters that are trained whole, or that were saved beside the adapter.
    pub(super) fn whole(&self) -> BTreeSet<&str> {
        self.sort(&mut Vec::new()).whole.into_keys().collect()
    }

    /// The rank of the factors of each module that has both, by path.
    pub(super) fn ranks(&self) -> BTreeMap<&str, usize> {
        let rank = |(path, parts): (&'_ str, PeftModule<'_>)| Some((path.to_owned(), parts.rank()?));
        let found: BTreeMap<String, usize> = self.sort(&mut Vec::new()).modules.into_iter().filter_map(rank).collect();
        self.adapted().into_iter().filter_map(|path| Some((path, *found.get(path)?))).collect()
    }

    fn sort(&self, faults: &mut Vec<String>) -> Sorted<'_> {
        let mut sorted = Sorted::default();
        for (name, tensor) in &self.tensors {
            let Some(path) = name.strip_prefix(PREFIX) else {
                faults.push(format!("`{name}` should start with `{PREFIX}`"));
                continue;
            };
            // Some versions of PEFT write it like the weight of a module.
            let magnitude = path.strip_suffix(".weight").unwrap_or(path).strip_suffix(MAGNITUDE);
            if let Some(module) = path.strip_suffix(A) {
                sorted.modules.entry(module).or_default().a = Some(tensor);
            } else if let Some(module) = path.strip_suffix(B) {
                sorted.modules.entry(module).or_default().b = Some(tensor);
            } else if let Some(module) = magnitude {
                sorted.modules.entry(module).or_default().magnitude = Some(tensor);
            } else if path.contains(".lora_embedding_") {
                faults.push(format!(
                    "`{name}` is a LoRA on an embedding, which is not supported: merge it with PEFT (`merge_and_unload`)"
                ));
            } else if path.contains(".lora_") {
                faults.push(format!("`{name}` is not supported"));
            } else if path.contains(BASE_LAYER) {
                sorted.copies.insert(path.replacen(BASE_LAYER, ".", 1), tensor);
            } else {
                sorted.whole.insert(path, tensor);
            }
        }
        sorted
    }

    /// The rank of a module and its factors in this crate's layout, or everything that is wrong with them.
    fn factors(
        &self,
        path: &str,
        parts: &PeftModule<'_>,
        shape: Option<&[usize; 2]>,
    ) -> Result<RankAndFactors, Vec<String>> {
        let Some([d_in, d_out]) = shape else { return Err(vec![format!("the model has no linear layer `{path}`")]) };
        let (Some(a), Some(b)) = (parts.a, parts.b) else {
            let missing = if parts.a.is_none() { A } else { B };
            return Err(vec![format!("`{PREFIX}{path}{missing}` is missing")]);
        };
        let mut faults = Vec::new();
        // The tensors decide, if they agree.
        let rank = parts.rank().unwrap_or_else(|| self.config.rank(path));
        let mut expect = |suffix: &str, tensor: &HostTensor, shape: &[usize]| {
            if tensor.shape != shape {
                faults.push(format!("`{PREFIX}{path}{suffix}` should be {shape:?}, found {:?}", tensor.shape));
            }
        };
        expect(A, a, &[rank, *d_in]);
        expect(B, b, &[*d_out, rank]);
        if let Some(magnitude) = parts.magnitude {
            expect(MAGNITUDE, magnitude, &[*d_out]);
        }
        if parts.magnitude.is_some() != self.config.dora {
            let what = if self.config.dora { "is missing" } else { "is there without `use_dora`" };
            faults.push(format!("`{PREFIX}{path}{MAGNITUDE}` {what}"));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut factors = Vec::new();
        for factor in self.config.method().factors() {
            match (factor.axes, parts.magnitude) {
                (Axes::InRank, _) => factors.push((factor.name, a.transposed())),
                (Axes::RankOut, _) => factors.push((factor.name, b.transposed())),
                (Axes::Out, Some(magnitude)) => factors.push((factor.name, magnitude.clone())),
                (Axes::Out, None) | (_, _) => {
                    unreachable!("PEFT's LoRA has A, B and a magnitude")
                }
            }
        }
        Ok((rank, factors))
    }

    /// The configuration that chooses the same modules in this model. It gives their names, and paths if a name matches
    /// other modules too.
    fn config_for<M: Module>(
        &self,
        ranks: &BTreeMap<&str, usize>,
        linear: &BTreeMap<String, [usize; 2]>,
        whole: &NamedTensors,
        model: &M,
    ) -> AdapterConfig {
        fn last(path: &str) -> &str {
            path.rsplit('.').next().unwrap_or(path)
        }
        let partly: BTreeSet<&str> =
            linear.keys().filter(|path| !ranks.contains_key(path.as_str())).map(|path| last(path)).collect();
        let name = |path| if partly.contains(last(path)) { path } else { last(path) };
        let targets: BTreeSet<&str> = ranks.keys().map(|path| name(*path)).collect();
        let targets: Vec<&str> = targets.into_iter().collect();
        let peft = &self.config;
        let mut config = AdapterConfig::new(peft.method_config(), peft.rank, &targets).with_alpha(peft.alpha);
        config.dropout = peft.dropout;
        if !whole.is_empty() {
            config.modules_to_save.clone_from(&peft.modules_to_save);
            let all = parameters(model);
            let chosen = all.iter().map(|parameter| parameter.path.as_str()).filter(|path| config.saves(path));
            // PEFT matches any ends of names.
            if !chosen.eq(all.iter().map(|parameter| parameter.path.as_str()).filter(|path| whole.contains_key(*path)))
            {
                let modules =
                    whole.keys().filter_map(|path| path.rsplit_once('.')).map(|(module, _)| module.to_owned());
                config.modules_to_save = modules.collect::<BTreeSet<_>>().into_iter().collect();
            }
        }
        config.scaling = if peft.rank_stabilized { Scaling::RankStabilized } else { Scaling::Standard };
        for (path, rank) in ranks {
            if *rank != peft.rank {
                config.rank_pattern.insert((*path).to_owned(), *rank);
            }
            let divisor = if peft.rank_stabilized { (*rank as f64).sqrt() } else { *rank as f64 };
            let alpha = peft.scale(path, *rank) * divisor;
            if (alpha - peft.alpha).abs() > 1e-9 * peft.alpha {
                config.alpha_pattern.insert((*path).to_owned(), alpha);
            }
        }
        config
    }
}

impl PeftModule<'_> {
    /// The rank, if both factors have the same.
    fn rank(&self) -> Option<usize> {
        let rank = *self.a?.shape.first()?;
        (self.b?.shape.get(1) == Some(&rank) && rank > 0).then_some(rank)
    }
}

/// The parameters that were trained whole, in this crate's layout. What was only saved beside the adapter, and is what the
/// base has, is left out.
fn whole_parameters<M: Module>(
    config: &PeftConfig,
    whole: &BTreeMap<&str, &HostTensor>,
    copies: &BTreeMap<String, &HostTensor>,
    model: &M,
    faults: &mut Vec<String>,
) -> NamedTensors {
    let all: BTreeMap<String, Parameter> = parameters(model).into_iter().map(|p| (p.path.clone(), p)).collect();
    let wanted = whole.keys().copied().chain(copies.keys().map(String::as_str)).collect();
    let base = parameter_values(model, &wanted);
    let copied = copies.iter().map(|(path, tensor)| (path.as_str(), *tensor, true));
    let mut trained = NamedTensors::new();
    for (path, tensor, is_copy) in whole.iter().map(|(path, tensor)| (*path, *tensor, false)).chain(copied) {
        let Some(parameter) = all.get(path) else {
            faults.push(format!("the model has no parameter `{path}`"));
            continue;
        };
        let mut shape = parameter.shape.clone();
        if parameter.linear {
            shape.reverse();
        }
        if tensor.shape != shape {
            let mut fault = format!("`{PREFIX}{path}` should be {shape:?}, found {:?}", tensor.shape);
            if let ([rows, columns], [found, same]) = (&shape[..], &tensor.shape[..])
                && found != rows
                && columns == same
            {
                fault += ": the adapter was trained with another vocabulary; merge it with PEFT (`merge_and_unload`) after \
                          `resize_token_embeddings`, or take the base that has these tokens";
            }
            faults.push(fault);
            continue;
        }
        let tensor = if parameter.linear { tensor.transposed() } else { tensor.clone() };
        let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
        let is_named = config.modules_to_save.iter().any(|name| saves(name, module));
        if !is_named || is_copy {
            let same = base.get(path).is_some_and(|base| equal_up_to_rounding(&tensor, base));
            if same {
                continue;
            }
            if is_copy {
                faults.push(format!(
                    "`{PREFIX}{path}` of the adapter, a copy of the base's, is not what the model has: PEFT puts it in the \
                     model's place, so the model is another one than the adapter was made for"
                ));
                continue;
            }
            let weight = weight_path(module);
            if path != weight && all.contains_key(&weight) && !whole.contains_key(weight.as_str()) {
                faults.push(format!(
                    "`{PREFIX}{path}` was trained without `{weight}`, which is not supported: merge the adapter with PEFT \
                     (`merge_and_unload`)"
                ));
                continue;
            }
        }
        trained.insert(path.to_owned(), tensor);
    }
    trained
}

/// Whether PEFT's `modules_to_save` with this name holds the parameters of `module` or of a module around it.
pub(super) fn saves(name: &str, module: &str) -> bool {
    let around = module.match_indices('.').map(|(end, _)| &module[..end]);
    around.chain([module]).any(|module| module.ends_with(name))
}

/// Whether two tensors differ by no more than rounding to bf16, in which one of them may have been saved.
fn equal_up_to_rounding(a: &HostTensor, b: &HostTensor) -> bool {
    let largest = b.values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 256.0 + largest * 1e-7;
    a.shape == b.shape && a.values.iter().zip(&b.values).all(close)
}

impl SavedAdapter {
    /// Reads an adapter for `model` from a folder in this crate's form or in PEFT's.
    ///
    /// # Errors
    ///
    /// Those of [`SavedAdapter::load`], [`PeftAdapter::load`] and [`PeftAdapter::attachable`].
    pub fn load_any<M: Module>(folder: &Path, model: &M) -> Result<Self, AdapterError> {
        match PeftAdapter::is_in(folder) {
            true => PeftAdapter::load(folder)?.attachable(model, &AttachOptions::default()),
            false => Self::load(folder),
        }
    }
}

/// The method of the adapter in `folder`, which is in this crate's form or in PEFT's. Reads only the configuration.
///
/// # Errors
///
/// [`AdapterError::Io`] or [`AdapterError::Malformed`] with the file.
pub fn method_of(folder: &Path) -> Result<Method, AdapterError> {
    match PeftAdapter::is_in(folder) {
        true => Ok(PeftConfig::load(folder)?.method()),
        false => Ok(AdapterState::load(folder)?.config.method()),
    }
}
