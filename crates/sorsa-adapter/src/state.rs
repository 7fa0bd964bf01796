//! An adapter apart from its model: saved to a folder, loaded onto the original base, merged and taken out again.
//!
//! The folder holds `adapter.json` (configuration and modules), `adapter.safetensors` (the trained values) and, for
//! methods that split the weight, `initial.safetensors`: the factors at the start, whose product left the base. With
//! them the residual is rebuilt exactly, without a second decomposition. The adapter of a merged model may come with
//! `kept.safetensors`: what its method needs to be taken out again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use serde::{Deserialize, Serialize};

use crate::Method;
use crate::attach::{Attached, HAS_ADAPTER, Install, TakeOut, install, rounded};
use crate::cache::fingerprint;
use crate::config::AdapterConfig;
use crate::error::AdapterError;
use crate::factors::{Factor, FactorSet, NamedTensors};
use crate::files::{read_tensors, write_atomic, write_tensors};
use crate::parameters::{
    export_trainable, factor_path, fitting, has_adapter, import_trainable, linear_layers, parameters, tensor_faults,
    weights,
};

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
    /// Content of the weight it was attached to, where the method depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// What that weight was kept in where it was narrower than f32, which its residual is rounded to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<FloatDType>,
}

impl ModuleState {
    /// The weight as it was kept when the adapter was attached to it: an f32 one may have to be rounded.
    pub(crate) fn narrowed(&self, weight: Tensor<2>) -> Tensor<2> {
        match self.dtype {
            Some(dtype) if weight.dtype() == DType::F32 => rounded(weight, dtype),
            _ => weight,
        }
    }
}

/// All that is known of an attached adapter except its trained values.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterState {
    /// The configuration.
    pub config: AdapterConfig,
    /// The modules, in the model's order.
    pub modules: Vec<ModuleState>,
    /// The factors at the start, for methods that split the weight; empty otherwise.
    pub initial: NamedTensors,
}

/// A saved adapter: its state and its trained values.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedAdapter {
    /// Configuration, modules and initial factors.
    pub state: AdapterState,
    /// The trained values.
    pub trained: NamedTensors,
    /// What was kept of the weights that the adapter was merged into; empty before, and for most methods.
    kept: NamedTensors,
    source: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    config: AdapterConfig,
    modules: Vec<ModuleState>,
}

const FORMAT: u32 = 1;
const MANIFEST: &str = "adapter.json";
const TRAINED: &str = "adapter.safetensors";
const INITIAL: &str = "initial.safetensors";
const KEPT: &str = "kept.safetensors";

impl<M: Module> Attached<M> {
    /// The trained values as they are now, with what is needed to attach them again.
    pub fn snapshot(&self) -> SavedAdapter {
        let trained = export_trainable(&self.model, &self.trainable);
        SavedAdapter { state: self.state.clone(), trained, kept: NamedTensors::new(), source: PathBuf::from("memory") }
    }

    /// The plain model with the adapter merged into its weights, and the adapter, to take out again with
    /// [`SavedAdapter::unmerge`].
    pub fn merge(self) -> (M, SavedAdapter) {
        let mut adapter = self.snapshot();
        adapter.kept = adapter.kept_of(&self.model);
        (self.model.valid().materialize(), adapter)
    }
}

impl SavedAdapter {
    /// An adapter from its state and trained values; `source` is named in errors.
    pub fn new(state: AdapterState, trained: NamedTensors, source: &Path) -> Self {
        Self { state, trained, kept: NamedTensors::new(), source: source.to_owned() }
    }

    /// Writes the adapter into `folder`, which is created; each file is replaced atomically, the manifest last.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] with the file.
    pub fn save(&self, folder: &Path) -> Result<(), AdapterError> {
        std::fs::create_dir_all(folder).map_err(|source| AdapterError::Io { path: folder.to_owned(), source })?;
        if !self.state.initial.is_empty() {
            write_tensors(&folder.join(INITIAL), &self.state.initial)?;
        }
        let kept = folder.join(KEPT);
        if !self.kept.is_empty() {
            write_tensors(&kept, &self.kept)?;
        } else if let Err(source) = std::fs::remove_file(&kept)
            && source.kind() != std::io::ErrorKind::NotFound
        {
            // What another adapter kept, saved here before, would be taken for this one's.
            return Err(AdapterError::Io { path: kept, source });
        }
        write_tensors(&folder.join(TRAINED), &self.trained)?;
        let manifest =
            Manifest { format: FORMAT, config: self.state.config.clone(), modules: self.state.modules.clone() };
        let path = folder.join(MANIFEST);
        let json = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| AdapterError::Malformed { path: path.clone(), reason: error.to_string() })?;
        write_atomic(&path, &json)
    }

    /// Reads an adapter's folder.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] or [`AdapterError::Malformed`] with the file.
    pub fn load(folder: &Path) -> Result<Self, AdapterError> {
        let state = AdapterState::load(folder)?;
        let trained = read_tensors(&folder.join(TRAINED))?;
        let kept = match folder.join(KEPT) {
            file if file.exists() => read_tensors(&file)?,
            _ => NamedTensors::new(),
        };
        Ok(Self { state, trained, kept, source: folder.to_owned() })
    }

    /// Attaches the adapter to the model it was made for, trained values included.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that does not fit: modules, shapes, tensors, and bases whose
    /// content is another.
    pub fn attach<M: Module>(&self, model: M) -> Result<Attached<M>, AdapterError> {
        let mut faults = self.faults(&model);
        faults.extend(self.state.content_faults(&model));
        fitting(faults, &self.source)?;
        let split = self.state.config.method.splits_weight();
        self.install(model, split.then_some((&self.state.initial, &NamedTensors::new(), true)))
    }

    /// The inverse of [`Attached::merge`]: takes the adapter out of merged weights and attaches it. The base is as
    /// before up to rounding. Partial and full fine-tuning add nothing: their weights stay what they are.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that does not fit; the content of merged weights is not compared.
    /// DoRA's adapter must be the one that [`Attached::merge`] returned, or that one saved and loaded: it alone has the
    /// norms that merging divided by.
    pub fn unmerge<M: Module>(&self, merged: M) -> Result<Attached<M>, AdapterError> {
        let method = self.state.config.method;
        let mut faults = self.faults(&merged);
        let kept = tensor_faults(self.state.tensors(method.kept()), &self.kept);
        faults.extend(kept.into_iter().map(|fault| format!("of the merge, {fault}")));
        fitting(faults, &self.source)?;
        self.install(merged, method.is_factored().then_some((&self.trained, &self.kept, false)))
    }

    /// Attaches the adapter; what leaves the weights first is made of factors and of what a merge kept, and is the start,
    /// which left weights that may have been narrower, or not.
    fn install<M: Module>(
        &self,
        model: M,
        take_out: Option<(&NamedTensors, &NamedTensors, bool)>,
    ) -> Result<Attached<M>, AdapterError> {
        let method = self.state.config.method;
        let mut jobs = BTreeMap::new();
        if method.is_factored() {
            for module in &self.state.modules {
                let take_out = take_out.map(|(factors, kept, start)| TakeOut {
                    factors: Some(self.state.set(module, method.factors(), factors)),
                    kept: self.state.set(module, method.kept(), kept),
                    dtype: module.dtype.filter(|_| start),
                });
                let factors = self.state.set(module, method.factors(), &self.trained);
                let install = Install { factors: Some(factors), take_out, scale: module.scale, svd: None };
                jobs.insert(module.path.clone(), install);
            }
        }
        let mut attached = install(model, self.state.clone(), jobs);
        if !method.is_factored() || !self.state.config.modules_to_save.is_empty() {
            attached.model = import_trainable(attached.model, &attached.trainable, &self.trained, &self.source)?;
        }
        Ok(attached)
    }

    /// What the method keeps of the frozen weights of `model`, into which the adapter is about to be merged.
    fn kept_of<M: Module>(&self, model: &M) -> NamedTensors {
        let method = self.state.config.method;
        let Some(definition) = method.definition().filter(|definition| !definition.kept.is_empty()) else {
            return NamedTensors::new();
        };
        let weights = weights(model, &self.state.modules.iter().map(|module| module.path.as_str()).collect());
        let of = |module: &ModuleState| {
            let weight = weights[&module.path].clone();
            let factors = self.state.set(module, definition.factors, &self.trained);
            let dropout = DropoutConfig::new(0.0).init();
            let adapter = (definition.new)(&factors, module.scale, dropout, &weight.device());
            let path = module.path.clone();
            adapter.keep(weight).into_iter().map(move |(name, tensor)| (factor_path(&path, method, name), tensor))
        };
        self.state.modules.iter().flat_map(of).collect()
    }

    /// Whether names and shapes fit `model`; the content of its weights is not looked at.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that does not fit.
    pub fn check<M: Module>(&self, model: &M) -> Result<(), AdapterError> {
        fitting(self.faults(model), &self.source)
    }

    /// A line for everything that does not fit `model`, the content of its weights apart.
    fn faults<M: Module>(&self, model: &M) -> Vec<String> {
        if has_adapter(model) {
            return vec![HAS_ADAPTER.to_owned()];
        }
        let mut faults = self.state.module_faults(model);
        faults.extend(tensor_faults(self.state.expected(model), &self.trained));
        if self.state.config.method.splits_weight() {
            let factors = self.state.tensors(self.state.config.method.factors());
            let initial = tensor_faults(factors, &self.state.initial);
            faults.extend(initial.into_iter().map(|fault| format!("at the start, {fault}")));
        }
        faults
    }
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
        let initial = match manifest.config.method.splits_weight() {
            true => read_tensors(&folder.join(INITIAL))?,
            false => NamedTensors::new(),
        };
        Ok(Self { config: manifest.config, modules: manifest.modules, initial })
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

    /// A line for each weight of the right shape whose content is known and another in `model`.
    pub(crate) fn content_faults<M: Module>(&self, model: &M) -> Vec<String> {
        let known = |module: &&ModuleState| module.fingerprint.is_some();
        let known: BTreeMap<&str, &ModuleState> =
            self.modules.iter().filter(known).map(|module| (module.path.as_str(), module)).collect();
        let fault = |(path, weight): (String, Tensor<2>)| {
            let module = known[path.as_str()];
            let (dtype, other) = (weight.dtype(), weight.dims() != module.shape);
            if other || Some(fingerprint(&module.narrowed(weight))) == module.fingerprint {
                return None;
            }
            let rounded = match module.dtype {
                None if dtype != DType::F32 => format!(", or was rounded to {dtype:?}, which it was not then"),
                _ => String::new(),
            };
            Some(format!("`{path}.weight` is not the weight that the adapter was made for{rounded}"))
        };
        weights(model, &known.keys().copied().collect()).into_iter().filter_map(fault).collect()
    }

    /// Names and shapes of the trained tensors.
    fn expected<M: Module>(&self, model: &M) -> Vec<(String, Vec<usize>)> {
        let mut expected = self.tensors(self.config.method.factors());
        expected.extend(self.dense(model));
        expected
    }

    /// Names and shapes of the parameters of the plain `model` that are trained whole.
    pub(crate) fn dense<M: Module>(&self, model: &M) -> Vec<(String, Vec<usize>)> {
        let weight = |module: &ModuleState| (format!("{}.weight", module.path), module.shape.to_vec());
        match self.config.method {
            Method::Partial => self.modules.iter().map(weight).collect(),
            Method::Full => parameters(model).into_iter().map(|p| (p.path, p.shape)).collect(),
            _ if self.config.modules_to_save.is_empty() => Vec::new(),
            _ => {
                let saved = parameters(model).into_iter().filter(|parameter| self.config.saves(&parameter.path));
                saved.map(|p| (p.path, p.shape)).collect()
            }
        }
    }

    /// The tensors of one module by their short names, of those that `tensors` has.
    pub(crate) fn set(&self, module: &ModuleState, factors: &[Factor], tensors: &NamedTensors) -> FactorSet {
        let named = |factor: &Factor| {
            let tensor = tensors.get(&factor_path(&module.path, self.config.method, factor.name))?;
            Some((factor.name, tensor.clone()))
        };
        factors.iter().filter_map(named).collect()
    }

    /// The factors that the module at `path` starts from.
    pub(crate) fn initial_set(&self, path: &str) -> FactorSet {
        let module = self.modules.iter().find(|module| module.path == path);
        module.map_or_else(FactorSet::new, |module| self.set(module, self.config.method.factors(), &self.initial))
    }

    /// Names and shapes of one tensor of each kind for every module.
    pub(crate) fn tensors(&self, factors: &[Factor]) -> Vec<(String, Vec<usize>)> {
        let method = self.config.method;
        let of = |module: &ModuleState| {
            let one = |f: &Factor| (factor_path(&module.path, method, f.name), f.shape(module.shape, module.rank));
            factors.iter().map(one).collect::<Vec<_>>()
        };
        self.modules.iter().flat_map(of).collect()
    }
}
