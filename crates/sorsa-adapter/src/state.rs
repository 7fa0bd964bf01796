//! An adapter apart from its model: saved to a folder, loaded onto the original base, merged and unmerged.
//!
//! The folder holds `adapter.json` (configuration and modules) and `adapter.safetensors` (the trained values).
//! `initial.safetensors` holds, for methods that split the weight, the factors at the start, whose product was subtracted
//! from the base: with them the residual is rebuilt exactly, without a second decomposition. It holds the frozen factors of
//! methods that have such; and for packed residuals the factors that were subtracted before the last packing, with which the
//! residual is packed again to the same bits. `kept.safetensors` holds, for an adapter that was merged, the tensors that its method needs to
//! unmerge it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use serde::{Deserialize, Serialize};
use sorsa_files::{FolderKind, NamedTensors, OwnedFolder, not_finite, read_tensors, write_atomic, write_tensors};
use sorsa_ops::{PackedFormat, WeightOperand, rounded};

use crate::attach::{Attached, HAS_ADAPTER};
use crate::cache::fingerprint;
use crate::config::AdapterConfig;
use crate::error::AdapterError;
use crate::factors::{Factor, FactorPair, FactorSet};
use crate::install::{Installation, Subtraction, install};
use crate::method::FactoredDefinition;
use crate::packed::{NothingPacked, OriginalWeights, original_or_widened, packed_weights, widened};
use crate::packed_residual::{ResidualStorage, format_name};
use crate::parameters::{
    carried_path, check_fits, export_trainable, factor_path, has_adapter, import_trainable, linear_layers, parameters,
    subtracted_path, tensor_faults, weights,
};
use crate::peft::{CONFIG_FILE, TENSORS_FILE};
use crate::{Adapter, Method, MethodConfig};

/// One adapted module, as saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleState {
    /// Path of the linear layer.
    pub path: String,
    /// `[d_in, d_out]`.
    pub shape: [usize; 2],
    /// Rank of the factors.
    pub rank: usize,
    /// The adapter's scale.
    pub scale: f64,
    /// Hash of the base weight's content, if the method splits the weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Storage dtype of the base weight, if narrower than f32. The residual is rounded to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<FloatDType>,
    /// Format of the residual, if it is packed again after factors were subtracted from the weight.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "format_name")]
    pub residual: Option<PackedFormat>,
}

impl ModuleState {
    /// The weight as it was when the adapter was attached: an f32 weight is rounded to the storage dtype of then.
    pub(crate) fn narrowed(&self, weight: Tensor<2>) -> Tensor<2> {
        match self.dtype {
            Some(dtype) if weight.dtype() == DType::F32 => rounded(weight, dtype),
            _ => weight,
        }
    }
}

/// The state of an attached adapter except its trained values.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterState {
    /// The configuration.
    pub config: AdapterConfig,
    /// The modules, in the model's order.
    pub modules: Vec<ModuleState>,
    /// The factors at the start, for methods that split the weight, and the frozen factors; for packed residuals the subtracted
    /// factors too. Empty for other methods.
    pub initial: NamedTensors,
}

/// A saved adapter: its state and its trained values.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedAdapter {
    /// Configuration, modules and initial factors.
    pub state: AdapterState,
    /// The trained values.
    pub trained: NamedTensors,
    /// The tensors that a merge saved for [`unmerge`](Self::unmerge); empty before a merge, and for most methods.
    unmerge_tensors: NamedTensors,
    source: PathBuf,
}

/// The weights to which a saved adapter is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WeightsBefore {
    /// They are those that the adapter was made for.
    Original,
    /// They contain the trained adapter.
    Merged,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    config: AdapterConfig,
    modules: Vec<ModuleState>,
    /// Ranks of the changes that the adapter carries along, by the path of the module.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    carried: BTreeMap<String, usize>,
}

const FORMAT: u32 = 1;
const MANIFEST: &str = "adapter.json";
const TRAINED: &str = "adapter.safetensors";
const INITIAL: &str = "initial.safetensors";
const UNMERGE: &str = "kept.safetensors";

/// The folder of an adapter, in this crate's form or in PEFT's.
pub(crate) const ADAPTER_FOLDER: FolderKind = FolderKind { name: "an adapter", owns: is_adapter_file };

/// Whether a file of this name belongs to an adapter. An earlier version left temporary files if it was killed.
fn is_adapter_file(name: &str) -> bool {
    let files = [MANIFEST, TRAINED, INITIAL, UNMERGE, CONFIG_FILE, TENSORS_FILE, "adapter_model.bin", "README.md"];
    files.contains(&name) || (name.starts_with(".") && name.contains(".safetensors.tmp-"))
}

impl<M: Module> Attached<M> {
    /// The trained values as they are now, with the state that attaches them again.
    pub fn snapshot(&self) -> SavedAdapter {
        let trained = export_trainable(&self.model, &self.trainable);
        SavedAdapter {
            state: self.state.clone(),
            trained,
            unmerge_tensors: NamedTensors::new(),
            source: PathBuf::from("memory"),
        }
    }

    /// Writes the adapter's folder, like [`SavedAdapter::save`] of the [`snapshot`](Self::snapshot). The factors at the start are not copied
    /// for it.
    ///
    /// # Errors
    ///
    /// Those of [`SavedAdapter::save`].
    pub fn save(&self, folder: &Path) -> Result<(), AdapterError> {
        save(folder, &self.state, &export_trainable(&self.model, &self.trainable), &NamedTensors::new())
    }

    /// The plain model with the adapter merged into its weights, and the adapter, for [`SavedAdapter::unmerge`].
    pub fn merge(self) -> (M, SavedAdapter) {
        let mut adapter = self.snapshot();
        adapter.unmerge_tensors = adapter.unmerge_tensors_of(&self.model);
        // The adapter is added to values.
        let packed = packed_weights(&self.model, self.state.modules.iter().map(|module| module.path.as_str()));
        (widened(self.model.valid(), packed).materialize(), adapter)
    }
}

impl SavedAdapter {
    /// An adapter from its state and trained values; `source` is named in errors.
    pub fn new(state: AdapterState, trained: NamedTensors, source: &Path) -> Self {
        Self { state, trained, unmerge_tensors: NamedTensors::new(), source: source.to_owned() }
    }

    /// What is named in errors.
    pub(crate) fn source(&self) -> &Path {
        &self.source
    }

    /// Writes the adapter's folder. An older adapter there is replaced as a whole: its files and this adapter's are never
    /// side by side.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] with the file; [`AdapterError::Folder`] if the folder holds more than an adapter;
    /// [`AdapterError::NotFinite`] if a trained value is not finite, with nothing written.
    pub fn save(&self, folder: &Path) -> Result<(), AdapterError> {
        save(folder, &self.state, &self.trained, &self.unmerge_tensors)
    }

    /// Reads an adapter's folder.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] or [`AdapterError::Malformed`] with the file.
    pub fn load(folder: &Path) -> Result<Self, AdapterError> {
        let state = AdapterState::load(folder)?;
        let trained = read_tensors(&folder.join(TRAINED))?;
        let unmerge_tensors = match folder.join(UNMERGE) {
            file if file.exists() => read_tensors(&file)?,
            _ => NamedTensors::new(),
        };
        Ok(Self { state, trained, unmerge_tensors, source: folder.to_owned() })
    }

    /// Attaches the adapter to the model it was made for, trained values included.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that does not fit: modules, shapes, tensors, and the content of base
    /// weights.
    pub fn attach<M: Module>(&self, model: M) -> Result<Attached<M>, AdapterError> {
        self.attach_with(model, &NothingPacked)
    }

    /// [`attach`](Self::attach) to a model whose weights were packed while it was read.
    ///
    /// # Errors
    ///
    /// Those of [`attach`](Self::attach), and of `originals`.
    pub fn attach_with<M: Module>(
        &self,
        model: M,
        originals: &dyn OriginalWeights,
    ) -> Result<Attached<M>, AdapterError> {
        let mut faults = self.faults(&model);
        faults.extend(self.state.content_faults(&model, originals)?);
        check_fits(faults, &self.source)?;
        self.install(model, WeightsBefore::Original, originals)
    }

    /// The inverse of [`Attached::merge`]: subtracts the adapter from merged weights and attaches it. The base is the
    /// same as before the merge, up to rounding. Partial and full fine-tuning keep the trained weights.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that does not fit; the content of merged weights is not compared.
    /// DoRA's adapter must be the one that [`Attached::merge`] returned, also after it was saved and loaded: no other has
    /// the norms by which the merge divided.
    pub fn unmerge<M: Module>(&self, merged: M) -> Result<Attached<M>, AdapterError> {
        let mut faults = self.faults(&merged);
        let expected = self.state.tensor_shapes(|config| config.method().unmerge_factors().to_vec());
        let found = tensor_faults(expected, &self.unmerge_tensors);
        faults.extend(found.into_iter().map(|fault| format!("of the merge, {fault}")));
        check_fits(faults, &self.source)?;
        self.install(merged, WeightsBefore::Merged, &NothingPacked)
    }

    /// Attaches the adapter to weights, from which the adapter that they contain is subtracted first.
    fn install<M: Module>(
        &self,
        model: M,
        before: WeightsBefore,
        originals: &dyn OriginalWeights,
    ) -> Result<Attached<M>, AdapterError> {
        let state = &self.state;
        let method = state.config.method();
        let mut installations = BTreeMap::new();
        if method.is_factored() {
            for module in &state.modules {
                let method = state.config.method_at(&module.path);
                let factors = state.own_factors(module, &self.trained);
                let subtract = match before {
                    WeightsBefore::Original if method.splits_weight() || module.residual.is_some() => {
                        Some(Subtraction::Start)
                    }
                    WeightsBefore::Original => None,
                    WeightsBefore::Merged => Some(Subtraction::Merged {
                        factors: factors.clone(),
                        saved: state.factor_set(module, method.unmerge_factors(), &self.unmerge_tensors),
                    }),
                };
                let installation = Installation { factors: Some(factors), subtract, scale: module.scale, svd: None };
                installations.insert(module.path.clone(), installation);
            }
        }
        let mut attached = install(model, state.clone(), installations, originals)?;
        if !method.is_factored() || !state.config.modules_to_save.is_empty() {
            attached.model = import_trainable(attached.model, &attached.trainable, &self.trained, &self.source)?;
        }
        Ok(attached)
    }

    /// The tensors that unmerging will need from the frozen weights of `model`, before the adapter is merged into it.
    fn unmerge_tensors_of<M: Module>(&self, model: &M) -> NamedTensors {
        let state = &self.state;
        let needs_any = |method: &Method| !method.unmerge_factors().is_empty();
        if !state.config.methods().iter().any(needs_any) {
            return NamedTensors::new();
        }
        let weights = weights(model, &state.modules.iter().map(|module| module.path.as_str()).collect());
        let mut tensors = NamedTensors::new();
        for module in &state.modules {
            let method = state.config.method_at(&module.path);
            let Some(definition) = method.factored().filter(|_| needs_any(&method)) else { continue };
            let weight = weights[&module.path].clone();
            let adapter = self.adapter_of(module, &definition, &weight);
            for (name, tensor) in adapter.unmerge_factors(weight.into_dense()) {
                tensors.insert(factor_path(&module.path, method, name), tensor);
            }
        }
        tensors
    }

    /// The adapter of a frozen weight, as the model with this adapter has it.
    pub(crate) fn adapter_of(
        &self,
        module: &ModuleState,
        definition: &FactoredDefinition,
        weight: &WeightOperand,
    ) -> Adapter {
        let (device, subtracted) = match weight {
            WeightOperand::Dense(weight) => (weight.device(), None),
            WeightOperand::Packed(weight) => (weight.device(), self.state.subtracted_beside(module)),
        };
        let factors = self.state.all_factors(module, &self.trained);
        let adapter = (definition.new)(&factors, module.scale, DropoutConfig::new(0.0).init(), &device);
        match subtracted {
            Some(pair) => adapter.subtracting(&pair, &device),
            None => adapter,
        }
    }

    /// Checks whether names and shapes fit `model`. The content of its weights is not compared.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that does not fit.
    pub fn check<M: Module>(&self, model: &M) -> Result<(), AdapterError> {
        check_fits(self.faults(model), &self.source)
    }

    /// A line for everything that does not fit `model`, except the content of its weights.
    fn faults<M: Module>(&self, model: &M) -> Vec<String> {
        if has_adapter(model) {
            return vec![HAS_ADAPTER.to_owned()];
        }
        let mut faults = self.state.module_faults(model);
        faults.extend(tensor_faults(self.state.expected(model), &self.trained));
        faults.extend(self.state.start_faults());
        faults
    }
}

/// Writes an adapter's folder.
fn save(
    folder: &Path,
    state: &AdapterState,
    trained: &NamedTensors,
    unmerge_tensors: &NamedTensors,
) -> Result<(), AdapterError> {
    let tensors = not_finite(trained);
    if !tensors.is_empty() {
        return Err(AdapterError::NotFinite { path: folder.join(TRAINED), tensors });
    }
    let new = OwnedFolder::create(folder, ADAPTER_FOLDER)?;
    let folder = new.path();
    if !state.initial.is_empty() {
        write_tensors(&folder.join(INITIAL), &state.initial)?;
    }
    if !unmerge_tensors.is_empty() {
        write_tensors(&folder.join(UNMERGE), unmerge_tensors)?;
    }
    write_tensors(&folder.join(TRAINED), trained)?;
    let manifest = Manifest {
        format: FORMAT,
        config: state.config.clone(),
        modules: state.modules.clone(),
        carried: state.carried_ranks(),
    };
    let path = folder.join(MANIFEST);
    let json = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| AdapterError::Malformed { path: path.clone(), reason: error.to_string() })?;
    write_atomic(&path, &json)?;
    Ok(new.commit()?)
}

impl AdapterState {
    /// Reads the state from an adapter's folder, without the trained values.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] or [`AdapterError::Malformed`] with the file.
    pub fn load(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(MANIFEST);
        let json = std::fs::read(&path).map_err(|source| AdapterError::Io { path: path.clone(), source })?;
        let malformed = |reason: String| AdapterError::Malformed { path: path.clone(), reason };
        let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| malformed(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(malformed(format!("format should be {FORMAT}, found {}", manifest.format)));
        }
        manifest.config.validate().map_err(|error| malformed(error.to_string()))?;
        let packed = manifest.modules.iter().any(|module| module.residual.is_some());
        let has_start = packed || !manifest.carried.is_empty();
        let is_saved = |method: &Method| !method.saved_with_start().is_empty();
        let initial = match has_start || manifest.config.methods().iter().any(is_saved) {
            true => read_tensors(&folder.join(INITIAL))?,
            false => NamedTensors::new(),
        };
        let state = Self { config: manifest.config, modules: manifest.modules, initial };
        if state.carried_ranks() != manifest.carried {
            let path = folder.join(INITIAL);
            let reason = format!(
                "the carried changes should have the ranks {:?}, found {:?}",
                manifest.carried,
                state.carried_ranks()
            );
            return Err(AdapterError::Malformed { path, reason });
        }
        Ok(state)
    }

    /// The change that the adapter of the module at `path` carries along, if any: it is a part of the frozen weight.
    pub(crate) fn carried(&self, path: &str) -> Option<FactorPair> {
        let factor = |name: &str| self.initial.get(&carried_path(path, name)).cloned();
        Some(FactorPair { a: factor("a")?, b: factor("b")? })
    }

    /// Whether any module carries a change along.
    pub(crate) fn carries(&self) -> bool {
        self.modules.iter().any(|module| self.initial.contains_key(&carried_path(&module.path, "a")))
    }

    fn carried_ranks(&self) -> BTreeMap<String, usize> {
        let rank = |module: &ModuleState| {
            let pair = self.carried(&module.path)?;
            Some((module.path.clone(), *pair.a.shape.get(1)?))
        };
        self.modules.iter().filter_map(rank).collect()
    }

    /// A line for each tensor of the start that is missing, misshapen or not expected.
    pub(crate) fn start_faults(&self) -> Vec<String> {
        let mut expected = self.tensor_shapes(|config| config.method().saved_with_start());
        for module in self.modules.iter().filter(|module| module.residual.is_some()) {
            let method = self.config.method_at(&module.path);
            let one = |f: &Factor| (subtracted_path(&module.path, method, f.name), f.shape(module.shape, module.rank));
            expected.extend(method.factors().iter().map(one));
        }
        for module in &self.modules {
            let a = self.initial.get(&carried_path(&module.path, "a"));
            let Some(rank) = a.and_then(|a| a.shape.get(1)) else { continue };
            expected.push((carried_path(&module.path, "a"), vec![module.shape[0], *rank]));
            expected.push((carried_path(&module.path, "b"), vec![*rank, module.shape[1]]));
        }
        if expected.is_empty() {
            return Vec::new();
        }
        let faults = tensor_faults(expected, &self.initial);
        faults.into_iter().map(|fault| format!("at the start, {fault}")).collect()
    }

    /// A line for each module that `model` lacks or has in another shape.
    pub(crate) fn module_faults<M: Module>(&self, model: &M) -> Vec<String> {
        let linear: BTreeMap<String, [usize; 2]> = linear_layers(model).into_iter().collect();
        let fault = |module: &ModuleState| match linear.get(&module.path) {
            None => Some(format!("the model has no linear layer `{}`", module.path)),
            Some(shape) if *shape != module.shape => {
                Some(format!("`{}` is {:?} in the adapter, {shape:?} in the model", module.path, module.shape))
            }
            Some(_) => None,
        };
        self.modules.iter().filter_map(fault).collect()
    }

    /// A line for each weight of the right shape whose content in `model` differs from the fingerprint.
    pub(crate) fn content_faults<M: Module>(
        &self,
        model: &M,
        originals: &dyn OriginalWeights,
    ) -> Result<Vec<String>, AdapterError> {
        let known = |module: &&ModuleState| module.fingerprint.is_some();
        let known: BTreeMap<&str, &ModuleState> =
            self.modules.iter().filter(known).map(|module| (module.path.as_str(), module)).collect();
        let mut faults = Vec::new();
        for (path, weight) in weights(model, &known.keys().copied().collect()) {
            let module = known[path.as_str()];
            let weight = original_or_widened(&path, weight, originals)?;
            let (dtype, other) = (weight.dtype(), weight.dims() != module.shape);
            if other || Some(fingerprint(&module.narrowed(weight))) == module.fingerprint {
                continue;
            }
            let rounded = match module.dtype {
                None if dtype != DType::F32 => format!(", or was rounded to {dtype:?}, which it was not then"),
                _ => String::new(),
            };
            faults.push(format!("`{path}.weight` is not the weight that the adapter was made for{rounded}"));
        }
        Ok(faults)
    }

    /// Names and shapes of the trained tensors.
    fn expected<M: Module>(&self, model: &M) -> Vec<(String, Vec<usize>)> {
        let mut expected = self.tensor_shapes(MethodConfig::trained_factors);
        expected.extend(self.dense(model));
        expected
    }

    /// Names and shapes of the parameters of the plain `model` that are trained whole.
    pub(crate) fn dense<M: Module>(&self, model: &M) -> Vec<(String, Vec<usize>)> {
        if let Some(whole) = self.config.method().whole() {
            return (whole.trained)(&self.modules, parameters(model));
        }
        if self.config.modules_to_save.is_empty() {
            return Vec::new();
        }
        let saved = parameters(model).into_iter().filter(|parameter| self.config.saves(&parameter.path));
        saved.map(|p| (p.path, p.shape)).collect()
    }

    /// The `factors` of one module by their short names, as far as `tensors` has them.
    pub(crate) fn factor_set(&self, module: &ModuleState, factors: &[Factor], tensors: &NamedTensors) -> FactorSet {
        let method = self.config.method_at(&module.path);
        let named = |factor: &Factor| {
            let tensor = tensors.get(&factor_path(&module.path, method, factor.name))?;
            Some((factor.name, tensor.clone()))
        };
        factors.iter().filter_map(named).collect()
    }

    /// The trained factors of one module from `tensors`, and its frozen ones.
    pub(crate) fn all_factors(&self, module: &ModuleState, tensors: &NamedTensors) -> FactorSet {
        let Some(definition) = self.config.method_at(&module.path).factored() else { return FactorSet::new() };
        let mut factors = self.own_factors(module, tensors);
        factors.extend(self.factor_set(module, definition.frozen_factors, &self.initial));
        factors
    }

    /// The factors of one module without the method's frozen ones: the trained ones from `tensors`, and those that stay as they are at
    /// the start by a setting.
    pub(crate) fn own_factors(&self, module: &ModuleState, tensors: &NamedTensors) -> FactorSet {
        let config = self.config.method_config_at(&module.path);
        let (trained, fixed): (Vec<Factor>, Vec<Factor>) =
            config.method().factors().iter().partition(|factor| config.trains(factor));
        let mut factors = self.factor_set(module, &fixed, &self.initial);
        factors.extend(self.factor_set(module, &trained, tensors));
        factors
    }

    /// The trained factors of the module at `path` at the start.
    pub(crate) fn factors_at_start(&self, path: &str) -> FactorSet {
        self.initial_set(path, self.config.method_at(path).factors())
    }

    /// The trained factors whose product is subtracted from the weight of `module`: those at the start, or those before the last
    /// packing if the residual is packed.
    pub(crate) fn subtracted_factors(&self, module: &ModuleState) -> FactorSet {
        let method = self.config.method_at(&module.path);
        if module.residual.is_none() {
            return self.factor_set(module, method.factors(), &self.initial);
        }
        let named = |factor: &Factor| {
            let tensor = self.initial.get(&subtracted_path(&module.path, method, factor.name))?;
            Some((factor.name, tensor.clone()))
        };
        method.factors().iter().filter_map(named).collect()
    }

    /// The product that is subtracted beside the weight of `module` if that is packed and stays as it is: the part that the method takes
    /// out of the weight, without the change that the adapter carries along. Absent if nothing is, and if the residual is packed again or
    /// dense.
    pub(crate) fn subtracted_beside(&self, module: &ModuleState) -> Option<FactorPair> {
        let definition = self.config.method_at(&module.path).factored()?;
        let is_stored = module.residual.is_some() || self.config.residual == Some(ResidualStorage::Dense);
        if is_stored && definition.splits_weight {
            return None;
        }
        let start = || (definition.product)(&self.all_factors(module, &self.initial)).scaled(module.scale);
        match (definition.splits_weight, self.carried(&module.path)) {
            (true, Some(carried)) => Some(start().minus(&carried)),
            (true, None) => Some(start()),
            (false, Some(carried)) if module.residual.is_none() => Some(carried.scaled(-1.0)),
            (false, _) => None,
        }
    }

    /// The frozen factors of the module at `path`.
    pub(crate) fn frozen_factors(&self, path: &str) -> FactorSet {
        match self.config.method_at(path).factored() {
            Some(definition) => self.initial_set(path, definition.frozen_factors),
            None => FactorSet::new(),
        }
    }

    fn initial_set(&self, path: &str, factors: &[Factor]) -> FactorSet {
        match self.modules.iter().find(|module| module.path == path) {
            Some(module) if !factors.is_empty() => self.factor_set(module, factors, &self.initial),
            _ => FactorSet::new(),
        }
    }

    /// Names and shapes of the factors of every module that `factors` chooses of its method's.
    pub(crate) fn tensor_shapes(&self, factors: impl Fn(&MethodConfig) -> Vec<Factor>) -> Vec<(String, Vec<usize>)> {
        let of = |module: &ModuleState| {
            let config = self.config.method_config_at(&module.path);
            let method = config.method();
            let one = |f: &Factor| (factor_path(&module.path, method, f.name), f.shape(module.shape, module.rank));
            factors(config).iter().map(one).collect::<Vec<_>>()
        };
        self.modules.iter().flat_map(of).collect()
    }
}
