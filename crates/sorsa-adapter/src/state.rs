//! An adapter apart from its model: saved to a folder, loaded onto the original base, merged and taken out again.
//!
//! The folder holds `adapter.json` (configuration and modules), `adapter.safetensors` (the trained values) and, for
//! methods that split the weight, `initial.safetensors`: the factors at the start, whose product left the base. With
//! them the residual is rebuilt exactly, without a second SVD.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::attach::{Attached, HAS_ADAPTER, Install, install};
use crate::cache::fingerprint;
use crate::config::{AdapterConfig, Method};
use crate::error::AdapterError;
use crate::factors::{FactorSet, NamedTensors};
use crate::files::{read_tensors, write_atomic, write_tensors};
use crate::parameters::{
    export_trainable, fitting, has_adapter, import_trainable, linear_layers, parameters, tensor_faults, weights,
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

impl<M: Module> Attached<M> {
    /// The trained values as they are now, with what is needed to attach them again.
    pub fn snapshot(&self) -> SavedAdapter {
        let trained = export_trainable(&self.model, &self.trainable);
        SavedAdapter { state: self.state.clone(), trained, source: PathBuf::from("memory") }
    }

    /// The plain model with the adapter merged into its weights, and the adapter, to take out again with
    /// [`SavedAdapter::unmerge`].
    pub fn merge(self) -> (M, SavedAdapter) {
        let adapter = self.snapshot();
        (self.model.valid().materialize(), adapter)
    }
}

impl SavedAdapter {
    /// An adapter from its state and trained values; `source` is named in errors.
    pub fn new(state: AdapterState, trained: NamedTensors, source: &Path) -> Self {
        Self { state, trained, source: source.to_owned() }
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
        Ok(Self { state, trained, source: folder.to_owned() })
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
        let subtract = self.state.config.method.needs_svd().then_some(&self.state.initial);
        self.install(model, subtract)
    }

    /// The inverse of [`Attached::merge`]: takes the adapter out of merged weights and attaches it. The base is as
    /// before up to rounding. Partial and full fine-tuning add nothing: their weights stay what they are.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] with everything that does not fit; the content of merged weights is not compared.
    pub fn unmerge<M: Module>(&self, merged: M) -> Result<Attached<M>, AdapterError> {
        fitting(self.faults(&merged), &self.source)?;
        let subtract = self.state.config.method.is_factored().then_some(&self.trained);
        self.install(merged, subtract)
    }

    fn install<M: Module>(&self, model: M, subtract: Option<&NamedTensors>) -> Result<Attached<M>, AdapterError> {
        let method = self.state.config.method;
        let factors = |module: &ModuleState, tensors: &NamedTensors| -> FactorSet {
            let tensor = |name: &&'static str| (*name, tensors[&format!("{}.{method}.{name}", module.path)].clone());
            Adapter::factor_names(method).iter().map(tensor).collect()
        };
        let mut jobs = BTreeMap::new();
        if method.is_factored() {
            for module in &self.state.modules {
                let subtract = subtract.map(|tensors| factors(module, tensors));
                let factors = factors(module, &self.trained);
                jobs.insert(module.path.clone(), Install { factors, subtract, scale: module.scale, report: None });
            }
        }
        let mut attached = install(model, self.state.clone(), jobs);
        if !method.is_factored() {
            attached.model = import_trainable(attached.model, &attached.trainable, &self.trained, &self.source)?;
        }
        Ok(attached)
    }

    /// A line for everything that does not fit `model`, the content of its weights apart.
    fn faults<M: Module>(&self, model: &M) -> Vec<String> {
        if has_adapter(model) {
            return vec![HAS_ADAPTER.to_owned()];
        }
        let mut faults = self.state.module_faults(model);
        faults.extend(tensor_faults(self.state.expected(model), &self.trained));
        if self.state.config.method.needs_svd() {
            let initial = tensor_faults(self.state.expected(model), &self.state.initial);
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
        manifest.config.validate()?;
        let initial = match manifest.config.method.needs_svd() {
            true => read_tensors(&folder.join(INITIAL))?,
            false => NamedTensors::new(),
        };
        Ok(Self { config: manifest.config, modules: manifest.modules, initial })
    }

    /// A line for each module that `model` lacks or has in another shape.
    fn module_faults<M: Module>(&self, model: &M) -> Vec<String> {
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
    fn content_faults<M: Module>(&self, model: &M) -> Vec<String> {
        let known = |module: &ModuleState| Some((module.path.clone(), (module.shape, module.fingerprint.clone()?)));
        let known: BTreeMap<String, ([usize; 2], String)> = self.modules.iter().filter_map(known).collect();
        weights(model, &known.keys().map(String::as_str).collect())
            .into_iter()
            .filter(|(path, weight)| weight.dims() == known[path].0 && fingerprint(weight) != known[path].1)
            .map(|(path, _)| format!("`{path}.weight` is not the weight that the adapter was made for"))
            .collect()
    }

    /// Names and shapes of the trained tensors; full fine-tuning takes them from `model`.
    fn expected<M: Module>(&self, model: &M) -> Vec<(String, Vec<usize>)> {
        let method = self.config.method;
        match method {
            Method::Full => parameters(model).into_iter().map(|p| (p.path, p.shape)).collect(),
            Method::Partial => self.modules.iter().map(|m| (format!("{}.weight", m.path), m.shape.to_vec())).collect(),
            Method::Sorsa | Method::Pissa | Method::Lora => {
                let factors = |module: &ModuleState| {
                    let (path, shape, rank) = (module.path.clone(), module.shape, module.rank);
                    Adapter::factor_names(method)
                        .iter()
                        .map(move |name| (format!("{path}.{method}.{name}"), Adapter::factor_shape(name, shape, rank)))
                };
                self.modules.iter().flat_map(factors).collect()
            }
        }
    }
}
