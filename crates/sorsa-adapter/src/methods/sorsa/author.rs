//! The checkpoint of SORSA's author (package `sorsa`): a whole model, every name behind `model.`, with the residual in the
//! place of each adapted weight and beside it `sorsa_A` `[r, d_in]`, `sorsa_S` `[r]` and `sorsa_B` `[d_out, r]`:
//!
//! ```text
//! y = x W_res^T + scale * x ((B * S) A)^T
//! ```
//!
//! This module knows names, layouts and the arithmetic. The caller reads the files and passes tensors one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::prelude::*;
use serde_json::{Map, Value, json};
use sorsa_linalg::faer::{Mat, Scale};
use sorsa_linalg::{SvdOptions, truncated_svd};

use super::SorsaConfig;
use sorsa_files::{HostTensor, NamedTensors};

use crate::Method;
use crate::cache::fingerprint;
use crate::config::AdapterConfig;
use crate::error::AdapterError;
use crate::host_tensor::HostTensorExt;
use crate::parameters::{check_fits, factor_path, weights};
use crate::start::AlphaConvention;
use crate::state::{AdapterState, ModuleState, SavedAdapter};

/// Prefix of every name.
pub const PREFIX: &str = "model.";
/// Value of `model_type`.
pub const MODEL_TYPE: &str = "sorsa";
const A: &str = ".sorsa_A";
const S: &str = ".sorsa_S";
const B: &str = ".sorsa_B";
/// Largest part of the difference between base and residual outside rank `r`, relative to its norm. It is not 0, because
/// a residual in bf16 is rounded.
const TOLERANCE: f64 = 2e-2;

/// `config.json` of such a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorConfig {
    /// Rank of every adapter.
    pub rank: usize,
    /// Numerator of the scale; absent, the scale is 1.
    pub alpha: Option<f64>,
    /// Dropout on the adapter's input.
    pub dropout: f64,
    /// Names of the adapted modules.
    pub target_modules: Vec<String>,
    /// Name of the adapted model.
    pub base_model: Option<String>,
}

impl AuthorConfig {
    /// Reads the JSON. The result is `None` if it is the configuration of another model.
    ///
    /// # Errors
    ///
    /// One line with everything that is wrong.
    pub fn parse(json: &[u8]) -> Result<Option<Self>, String> {
        let object: Map<String, Value> =
            serde_json::from_slice(json).map_err(|error| format!("should be a JSON object: {error}"))?;
        if object.get("model_type").and_then(Value::as_str) != Some(MODEL_TYPE) {
            return Ok(None);
        }
        let mut faults = Vec::new();
        let field = |name: &str| object.get(name).filter(|value| !value.is_null());
        let rank = field("rank").and_then(Value::as_u64).filter(|rank| *rank > 0);
        if rank.is_none() {
            faults.push("`rank` should be a positive integer");
        }
        let alpha = field("alpha").map(|value| value.as_f64().filter(|alpha| alpha.is_finite() && *alpha > 0.0));
        if alpha == Some(None) {
            faults.push("`alpha` should be a positive number or null");
        }
        let dropout = field("dropout").map_or(Some(0.0), Value::as_f64).filter(|p| (0.0..1.0).contains(p));
        if dropout.is_none() {
            faults.push("`dropout` should be a number from 0 to 1");
        }
        let names = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
        };
        let target_modules = field("target_modules").and_then(names);
        if target_modules.is_none() {
            faults.push("`target_modules` should be a list of names");
        }
        match (rank, dropout, target_modules) {
            (Some(rank), Some(dropout), Some(target_modules)) if faults.is_empty() => Ok(Some(Self {
                rank: rank as usize,
                alpha: alpha.flatten(),
                dropout,
                target_modules,
                base_model: field("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            })),
            _ => Err(faults.join("; ")),
        }
    }

    /// The JSON that the author's code reads.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["SORSAModel"],
            "model_type": MODEL_TYPE,
            "base_model_name_or_path": self.base_model,
            "rank": self.rank,
            "alpha": self.alpha,
            "dropout": self.dropout,
            "target_modules": self.target_modules,
            "torch_dtype": "float32",
        })
    }

    /// alpha / rank, or 1.
    pub fn scale(&self) -> f64 {
        self.alpha.map_or(1.0, |alpha| alpha / self.rank as f64)
    }
}

/// The adapter in an author's checkpoint of the tensors `names`, to be attached to the original weights in `model`.
/// `read` gives a tensor, f32, in PyTorch's layout.
///
/// The difference between an original weight and its residual is the adapter at the start. This function decomposes it
/// again, so that the adapter can be trained further, merged and unmerged like any other.
///
/// # Errors
///
/// [`AdapterError::Mismatch`] with every tensor that is missing or misshapen, and every weight whose difference to the
/// residual does not have the adapter's rank: then `model` is not the model that was adapted.
pub fn attachable<M: Module>(
    config: &AuthorConfig,
    names: &[String],
    mut read: impl FnMut(&str) -> Result<HostTensor, AdapterError>,
    model: &M,
    source: &Path,
) -> Result<SavedAdapter, AdapterError> {
    let paths: BTreeSet<&str> = names.iter().filter_map(|name| name.strip_prefix(PREFIX)?.strip_suffix(A)).collect();
    let originals = weights(model, &paths);
    let (rank, scale) = (config.rank, config.scale());
    let (mut modules, mut faults) = (Vec::new(), Vec::new());
    let (mut trained, mut initial) = (NamedTensors::new(), NamedTensors::new());
    if paths.is_empty() {
        faults.push(format!("no tensor is called {PREFIX}..{A}"));
    }
    for path in paths {
        let Some(original) = originals.get(path) else {
            faults.push(format!("the model has no linear layer `{path}`"));
            continue;
        };
        let original = original.clone().into_dense();
        let [d_in, d_out] = original.dims();
        let mut take = |suffix: &str, shape: &[usize]| -> Result<Option<HostTensor>, AdapterError> {
            let name = format!("{PREFIX}{path}{suffix}");
            if !names.contains(&name) {
                faults.push(format!("`{name}` is missing"));
                return Ok(None);
            }
            let tensor = read(&name)?;
            if tensor.shape != shape {
                faults.push(format!("`{name}` should be {shape:?}, found {:?}", tensor.shape));
                return Ok(None);
            }
            Ok(Some(tensor))
        };
        let parts = (take(A, &[rank, d_in])?, take(S, &[rank])?, take(B, &[d_out, rank])?);
        let (Some(a), Some(s), Some(b)) = parts else { continue };
        let Some(residual) = take(".weight", &[d_out, d_in])? else { continue };
        let weight = HostTensor::from_tensor(original.clone());
        let difference = weight.matrix() - residual.matrix().transpose();
        let svd = match truncated_svd(path, difference.as_ref(), rank, &SvdOptions::default()) {
            Ok(svd) => svd,
            Err(error) => {
                faults.push(error.to_string());
                continue;
            }
        };
        let left = &difference - columns_scaled(&svd.u, &svd.s) * svd.v.transpose();
        if f64::from(left.norm_l2()) > TOLERANCE * f64::from(difference.norm_l2()) {
            faults.push(format!("`{path}.weight` less the residual is not of rank {rank}: another base model"));
            continue;
        }
        let factor = |name: &str| factor_path(path, Method::Sorsa, name);
        initial.insert(factor("u"), HostTensor::from_matrix(svd.u.as_ref()));
        initial.insert(factor("s"), HostTensor::new([rank], svd.s.iter().map(|s| s / scale as f32).collect()));
        initial.insert(factor("vt"), HostTensor::from_matrix(svd.v.transpose()));
        trained.insert(factor("u"), a.transposed());
        trained.insert(factor("s"), s);
        trained.insert(factor("vt"), b.transposed());
        let fingerprint = Some(fingerprint(&original));
        modules.push(ModuleState {
            path: path.to_owned(),
            shape: [d_in, d_out],
            rank,
            scale,
            fingerprint,
            dtype: None,
            residual: None,
        });
    }
    check_fits(faults, source)?;
    let targets: Vec<&str> = config.target_modules.iter().map(String::as_str).collect();
    let sorsa = SorsaConfig { alpha_convention: AlphaConvention::Author, ..SorsaConfig::default() };
    let mut adapter = AdapterConfig::new(sorsa, rank, &targets);
    adapter.alpha = config.alpha;
    adapter.dropout = config.dropout;
    let state = AdapterState { config: adapter, modules, initial };
    Ok(SavedAdapter::new(state, trained, source))
}

/// `A diag(s)`.
fn columns_scaled(a: &Mat<f32>, s: &[f32]) -> Mat<f32> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] * s[j])
}

/// A SORSA adapter in the author's names.
#[derive(Debug)]
pub struct AuthorExport<'a> {
    /// `config.json`.
    pub config: AuthorConfig,
    saved: &'a SavedAdapter,
    modules: BTreeMap<&'a str, &'a ModuleState>,
}

impl<'a> AuthorExport<'a> {
    /// Exports an adapter that fits `model`.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Config`] for another method than SORSA, and for ranks or scales that differ between modules, for
    /// which the author's configuration has no field; [`AdapterError::Mismatch`] if the adapter does not fit the model.
    pub fn new<M: Module>(
        saved: &'a SavedAdapter,
        model: &M,
        base_model: Option<String>,
    ) -> Result<Self, AdapterError> {
        saved.check(model)?;
        let config = &saved.state.config;
        let mut faults = Vec::new();
        if config.method() != Method::Sorsa {
            faults.push(format!("the author's checkpoint holds SORSA, not {}", config.method()));
        }
        let modules = &saved.state.modules;
        let one = modules.first().map_or((config.rank, 1.0), |module| (module.rank, module.scale));
        if modules.iter().any(|module| (module.rank, module.scale) != one) {
            faults.push("the author's checkpoint has one rank and scale for all modules".to_owned());
        }
        if !config.modules_to_save.is_empty() {
            faults.push("the author's checkpoint has no modules_to_save".to_owned());
        }
        if saved.state.carries() {
            faults.push("the author's checkpoint cannot hold an adapter that started from another one".to_owned());
        }
        if !faults.is_empty() {
            return Err(AdapterError::Config { faults });
        }
        let names: BTreeSet<&str> =
            modules.iter().map(|module| module.path.rsplit('.').next().unwrap_or(&module.path)).collect();
        let (rank, scale) = one;
        let config = AuthorConfig {
            rank,
            alpha: ((scale - 1.0).abs() > 1e-12).then_some(scale * rank as f64),
            dropout: config.dropout,
            target_modules: names.into_iter().map(str::to_owned).collect(),
            base_model,
        };
        Ok(Self { config, saved, modules: modules.iter().map(|module| (module.path.as_str(), module)).collect() })
    }

    /// Names and shapes of the author's three tensors for the module at `path`; nothing for a module without adapter.
    pub fn beside(&self, path: &str) -> Vec<(String, Vec<usize>)> {
        let Some(module) = self.modules.get(path) else { return Vec::new() };
        let ([d_in, d_out], rank) = (module.shape, module.rank);
        vec![
            (format!("{PREFIX}{path}{A}"), vec![rank, d_in]),
            (format!("{PREFIX}{path}{B}"), vec![d_out, rank]),
            (format!("{PREFIX}{path}{S}"), vec![rank]),
        ]
    }

    /// The tensor called `name` in the checkpoint, f32. `original` is the base model's tensor of that name without the
    /// prefix, if it has one.
    pub fn tensor(&self, name: &str, original: Option<HostTensor>) -> Option<HostTensor> {
        let path = name.strip_prefix(PREFIX)?;
        let trained = |module: &str, factor: &str| self.saved.trained.get(&factor_path(module, Method::Sorsa, factor));
        if let Some(module) = path.strip_suffix(A) {
            return trained(module, "u").map(HostTensor::transposed);
        }
        if let Some(module) = path.strip_suffix(B) {
            return trained(module, "vt").map(HostTensor::transposed);
        }
        if let Some(module) = path.strip_suffix(S) {
            return trained(module, "s").cloned();
        }
        let original = original?;
        let Some(module) = path.strip_suffix(".weight").and_then(|module| self.modules.get(module)) else {
            return Some(original);
        };
        let start = |factor: &str| self.saved.state.initial.get(&factor_path(&module.path, Method::Sorsa, factor));
        let (u, s, vt) = (start("u")?, start("s")?, start("vt")?);
        let scaled = columns_scaled(&u.matrix().to_owned(), &s.values);
        let part = scaled * vt.matrix() * Scale(module.scale as f32);
        Some(HostTensor::from_matrix((original.matrix() - part.transpose()).as_ref()))
    }
}
