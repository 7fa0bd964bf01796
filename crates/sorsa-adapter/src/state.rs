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
use crate::attach::{Attached, Install, install};
use crate::cache::fingerprint;
use crate::config::{AdapterConfig, Method};
use crate::error::AdapterError;
use crate::factors::{FactorSet, NamedTensors};
use crate::files::{read_tensors, write_atomic, write_tensors};
use crate::parameters::{check_names, export_trainable, import_trainable, parameters};

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
        self.state.check(&model, &self.source)?;
        self.check_tensors()?;
        let subtract = self.state.config.method.needs_svd().then_some(&self.state.initial);
        self.install(model, subtract)
    }

    /// The inverse of [`Attached::merge`]: takes the adapter out of merged weights and attaches it. The base is as
    /// before up to rounding.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Mismatch`] where the adapter does not fit.
    pub fn unmerge<M: Module>(&self, merged: M) -> Result<Attached<M>, AdapterError> {
        self.check_tensors()?;
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

    /// Whether the tensors are those that the manifest calls for.
    fn check_tensors(&self) -> Result<(), AdapterError> {
        let method = self.state.config.method;
        if !method.is_factored() {
            return Ok(());
        }
        let expected: Vec<(String, Vec<usize>)> = self
            .state
            .modules
            .iter()
            .flat_map(|module| {
                Adapter::factor_names(method).iter().map(|name| {
                    let shape = Adapter::factor_shape(name, module.shape, module.rank);
                    (format!("{}.{method}.{name}", module.path), shape)
                })
            })
            .collect();
        let expected = || expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
        check_names(expected(), &self.trained, &self.source)?;
        match method.needs_svd() {
            true => check_names(expected(), &self.state.initial, &self.source),
            false => Ok(()),
        }
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

    /// Whether `model` has the modules with their shapes and, where known, their content.
    fn check<M: Module>(&self, model: &M, source: &Path) -> Result<(), AdapterError> {
        let mut faults = Vec::new();
        let linear: BTreeMap<String, [usize; 2]> = parameters(model)
            .into_iter()
            .filter(|parameter| parameter.linear)
            .map(|p| (p.path.trim_end_matches(".weight").to_owned(), [p.shape[0], p.shape[1]]))
            .collect();
        for module in &self.modules {
            match linear.get(&module.path) {
                None => faults.push(format!("the model has no linear layer `{}`", module.path)),
                Some(shape) if *shape != module.shape => {
                    faults.push(format!(
                        "`{}` is {:?} in the adapter, {shape:?} in the model",
                        module.path, module.shape
                    ));
                }
                Some(_) => {}
            }
        }
        if faults.is_empty() && self.config.method != Method::Full {
            let expected: BTreeMap<String, &str> = self
                .modules
                .iter()
                .filter_map(|module| Some((format!("{}.weight", module.path), module.fingerprint.as_deref()?)))
                .collect();
            faults.extend(foreign_weights(model, &expected));
        }
        if faults.is_empty() { Ok(()) } else { Err(AdapterError::Mismatch { path: source.to_owned(), faults }) }
    }
}

/// A line for each weight whose content is not the expected one.
fn foreign_weights<M: Module>(model: &M, expected: &BTreeMap<String, &str>) -> Vec<String> {
    use burn::module::{ModuleVisitor, Param};
    struct Compare<'a> {
        path: Vec<String>,
        expected: &'a BTreeMap<String, &'a str>,
        faults: Vec<String>,
    }
    impl ModuleVisitor for Compare<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.join(".");
            let Some(expected) = self.expected.get(&path) else { return };
            let shape = param.lazy_shape();
            let weight = param.base().without_autodiff().reshape([shape[0], shape[1]]);
            if fingerprint(&weight) != *expected {
                self.faults.push(format!("`{path}` is not the weight that the adapter was made for"));
            }
        }
    }
    let mut compare = Compare { path: Vec::new(), expected, faults: Vec::new() };
    model.visit(&mut compare);
    compare.faults
}
