//! The configuration of an adapter: method, targets, rank and scale; and its flat form in TOML and JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sorsa_ops::PackedFormat;

use crate::attach::Target;
use crate::auto_rank::{RankEnergy, RankField};
use crate::packed_residual::{PackingTime, ResidualPacking, ResidualStorage};
use crate::target::{Pattern, pattern_matches};
use crate::{AdapterError, AlphaConvention, Method, MethodConfig};

/// How the scale of an adapter follows from its `alpha` and rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// `alpha / rank`.
    #[default]
    Standard,
    /// `alpha / sqrt(rank)`, like rsLoRA (arXiv 2312.03732).
    RankStabilized,
}

/// The adapter of a model: method, targets, rank, scale.
///
/// Files hold it flat: the name of the method, the fields below, and the method's own settings beside them.
///
/// ```
/// use sorsa_adapter::{AdapterConfig, Init, LoraConfig};
///
/// let json = r#"{"method": "lora", "rank": 8, "target_modules": ["q_proj"], "init": "orthogonal"}"#;
/// let config: AdapterConfig = serde_json::from_str(json)?;
/// assert_eq!(config, AdapterConfig::new(LoraConfig { init: Init::Orthogonal }, 8, &["q_proj"]));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "FlatConfig", into = "FlatConfig")]
pub struct AdapterConfig {
    /// How the weights are trained, with the settings that only this method has.
    pub method: MethodConfig,
    /// Methods of the modules that a pattern (like those of `target_modules`) matches, in place of `method`, each with its settings. All
    /// of them train factors. If several patterns match, the first in alphabetical order decides.
    pub method_pattern: BTreeMap<String, MethodConfig>,
    /// Rank of the factors, if no pattern gives another. With a [`rank_energy`](Self::rank_energy), the largest.
    pub rank: usize,
    /// If present, the spectrum of each weight decides its rank. Files hold it as `rank = "auto:0.9"`, and `rank` as `rank_max`.
    pub rank_energy: Option<RankEnergy>,
    /// Numerator of the scale. If absent, the scale is 1.
    pub alpha: Option<f64>,
    /// Probability with which [`project`](crate::project) drops an element of the adapter's input in training.
    pub dropout: f64,
    /// The adapted linear layers: each entry is a name (`q_proj`), a glob over the module path
    /// (`model.layers.*.mlp.*`), a regular expression (`re:.*\.(q|v)_proj`), or `all-linear`.
    pub target_modules: Vec<String>,
    /// Modules that are trained whole beside the adapter, like PEFT's field of this name: names, globs or regular
    /// expressions over module paths. Submodules of such a module are trained too.
    pub modules_to_save: Vec<String>,
    /// Ranks of the modules that a pattern (like those of `target_modules`) matches. If several patterns match, the
    /// first in alphabetical order decides.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of the modules that a pattern matches, by the same rule.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// How the scale follows from alpha and rank.
    pub scaling: Scaling,
    /// Beside packed weights: how often the factors are fitted to the error of the packing, in turns with it. If absent, the
    /// method decides: 5 for SORSA and PiSSA, 0 for LoRA, which is LoftQ with 1 or more.
    pub quantization_rounds: Option<usize>,
    /// Beside packed weights: what methods that split the weight store its residual in. If absent, it is exact for weights that their
    /// files hold packed, and packed for weights that are packed while they are read, and with quantization rounds.
    pub residual: Option<ResidualStorage>,
    /// Seed of random factors and of the randomized SVD.
    pub seed: u64,
}

/// Rank and scale of one module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RankAndScale {
    pub rank: usize,
    pub scale: f64,
}

impl AdapterConfig {
    /// A configuration with scale 1 and no dropout, for the linear layers that `targets` match. `method` is a
    /// [`Method`], which gets its default settings, or the settings of a method, such as a
    /// [`LoraConfig`](crate::LoraConfig).
    pub fn new(method: impl Into<MethodConfig>, rank: usize, targets: &[&str]) -> Self {
        Self {
            method: method.into(),
            method_pattern: BTreeMap::new(),
            rank,
            rank_energy: None,
            alpha: None,
            dropout: 0.0,
            target_modules: targets.iter().map(ToString::to_string).collect(),
            modules_to_save: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            scaling: Scaling::default(),
            quantization_rounds: None,
            residual: None,
            seed: 0,
        }
    }

    /// The same configuration with another `alpha`.
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.alpha = Some(alpha);
        self
    }

    /// The same configuration with dropout on the adapter's input.
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// The method without its settings.
    pub fn method(&self) -> Method {
        self.method.method()
    }

    /// The method of the module at `path`.
    pub fn method_at(&self, path: &str) -> Method {
        self.method_config_at(path).method()
    }

    /// All methods that modules may have, each once.
    pub fn methods(&self) -> Vec<Method> {
        let mut methods = vec![self.method()];
        for config in self.method_pattern.values() {
            if !methods.contains(&config.method()) {
                methods.push(config.method());
            }
        }
        methods
    }

    /// Whether a regularizer of its own keeps factors of any module orthonormal.
    pub fn is_regularized(&self) -> bool {
        [&self.method].into_iter().chain(self.method_pattern.values()).any(MethodConfig::is_regularized)
    }

    /// Whether any module's method splits the weight.
    pub fn splits_weights(&self) -> bool {
        self.methods().into_iter().any(Method::splits_weight)
    }

    /// The method of the module at `path` with its settings.
    pub(crate) fn method_config_at(&self, path: &str) -> &MethodConfig {
        let found = self.method_pattern.iter().find(|(pattern, _)| pattern_matches(pattern, path));
        found.map_or(&self.method, |(_, config)| config)
    }

    /// Checks everything that needs no model, and reports all faults at once.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Config`] with every fault found.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let method = self.method();
        let mut faults = Vec::new();
        // The forward computes with f32.
        let positive = |value: &f64| *value > 0.0 && (*value as f32).is_normal();
        if method.is_factored() {
            if self.rank == 0 || self.rank_pattern.values().any(|rank| *rank == 0) {
                faults.push("rank must be at least 1".to_owned());
            }
            if !self.alpha.iter().chain(self.alpha_pattern.values()).all(positive) {
                faults.push("alpha must be a positive number in the range of f32".to_owned());
            }
        }
        faults.extend(self.method.faults(self));
        for (pattern, other) in &self.method_pattern {
            faults.extend(other.faults(self).into_iter().map(|fault| format!("method_pattern `{pattern}`: {fault}")));
        }
        if let Some(whole) = self.methods().into_iter().find(|method| !method.is_factored())
            && !self.method_pattern.is_empty()
        {
            faults.push(format!(
                "method_pattern chooses among methods that train factors, and {whole} trains the weights themselves"
            ));
        }
        faults.extend(self.packing_faults());
        if !(0.0..1.0).contains(&self.dropout) {
            faults.push(format!("dropout must be at least 0 and below 1, found {}", self.dropout));
        }
        if method.has_targets() && self.target_modules.is_empty() {
            faults.push("target_modules is empty".to_owned());
        }
        if !method.is_factored() && !self.modules_to_save.is_empty() {
            faults.push(format!("modules_to_save is for methods that freeze the weights, not for {method}"));
        }
        let patterns = self.target_modules.iter().chain(&self.modules_to_save);
        let patterns = patterns.chain(self.rank_pattern.keys()).chain(self.alpha_pattern.keys());
        let patterns = patterns.chain(self.method_pattern.keys());
        faults.extend(patterns.filter_map(|pattern| Pattern::parse(pattern).err()));
        if faults.is_empty() { Ok(()) } else { Err(AdapterError::Config { faults }) }
    }

    /// How many numbers are trained beside the weight of `target`, or of it.
    pub fn trained_parameters(&self, target: &Target) -> usize {
        self.trained_shapes(target).iter().map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// The shapes of what is trained of the weight of `target` or beside it.
    pub fn trained_shapes(&self, target: &Target) -> Vec<Vec<usize>> {
        if !self.method().is_factored() {
            return vec![target.shape.to_vec()];
        }
        let factors = self.method_config_at(&target.path).trained_factors();
        factors.iter().map(|factor| factor.shape(target.shape, target.rank)).collect()
    }

    /// How many numbers of the factors beside the weight of `target` stay as they are.
    pub fn frozen_parameters(&self, target: &Target) -> usize {
        let method = self.method_at(&target.path);
        let all = target.frozen_parameters(method) + target.trainable_parameters(method);
        if method.is_factored() { all - self.trained_parameters(target) } else { 0 }
    }

    /// The ranks of all modules.
    pub(crate) fn ranks(&self) -> Vec<usize> {
        self.rank_pattern.values().copied().chain([self.rank]).collect()
    }

    /// What the residual of a packed weight is stored in, if its method splits the weight.
    pub(crate) fn residual_storage(&self, packed: PackingTime) -> ResidualStorage {
        match (self.residual, packed) {
            (Some(storage), _) => storage,
            (None, PackingTime::InFile) if self.quantization_rounds.is_none() => ResidualStorage::Exact,
            (None, _) => ResidualStorage::Packed,
        }
    }

    /// How the residual of a weight in this format is packed; absent if it is dense, or if the packed weight stays what it is.
    pub(crate) fn residual_packing(
        &self,
        method: &MethodConfig,
        format: PackedFormat,
        packed: PackingTime,
    ) -> Option<ResidualPacking> {
        let rounds = match (self.quantization_rounds, format) {
            // Rounds fit leading triplets.
            (None, _) if !method.band().is_principal() => 0,
            // There is next to nothing that factors could take up.
            (None, PackedFormat::F16) => 0,
            (rounds, _) => rounds.or(method.method().quantization_rounds()).unwrap_or(0),
        };
        let is_packed_again = match method.method().splits_weight() {
            true => self.residual_storage(packed) == ResidualStorage::Packed,
            false => rounds > 0,
        };
        let format = if format.is_packable() { format } else { PackedFormat::NF4 };
        is_packed_again.then_some(ResidualPacking { format, rounds })
    }

    /// A line for each setting of packed weights that does not fit the method or the other one.
    fn packing_faults(&self) -> Vec<String> {
        let (method, mut faults) = (self.method(), Vec::new());
        if self.quantization_rounds.is_some() && method.quantization_rounds().is_none() {
            let others = Method::ALL.into_iter().filter(|other| other.quantization_rounds().is_some());
            let others = others.map(Method::name).collect::<Vec<_>>().join(", ");
            faults.push(format!("quantization_rounds is a setting of {others}, not of {method}"));
        }
        let band = self.method.band();
        if self.quantization_rounds.is_some_and(|rounds| rounds > 0) && !band.is_principal() {
            faults.push(format!(
                "quantization_rounds take the leading triplets of what packing loses, so that they must be 0 with band {band}"
            ));
        }
        if self.residual.is_some() && !method.splits_weight() {
            faults.push(format!("residual is a setting of methods that split the weight, not of {method}"));
        }
        let other = match self.residual {
            Some(ResidualStorage::Dense) => Some("dense"),
            Some(ResidualStorage::Exact) => Some("exact"),
            Some(ResidualStorage::Packed) | None => None,
        };
        if let Some(other) = other.filter(|_| self.quantization_rounds.is_some_and(|rounds| rounds > 0)) {
            faults
                .push(format!("quantization_rounds fit the factors to a packed residual, but residual is \"{other}\""));
        }
        faults
    }

    /// Whether the parameter at `path` is in a module that is trained whole beside the adapter.
    pub(crate) fn saves(&self, path: &str) -> bool {
        let modules = path.match_indices('.').map(|(end, _)| &path[..end]);
        let saved = |module: &str| self.modules_to_save.iter().any(|text| pattern_matches(text, module));
        !self.modules_to_save.is_empty() && modules.into_iter().any(saved)
    }

    /// Rank and scale of the module at `path`. The first pattern that matches decides.
    pub(crate) fn rank_and_scale(&self, path: &str) -> RankAndScale {
        fn first<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Option<T> {
            patterns.iter().find(|(key, _)| pattern_matches(key, path)).map(|(_, value)| *value)
        }
        let rank = first(&self.rank_pattern, path).unwrap_or(self.rank);
        let scale = match (first(&self.alpha_pattern, path).or(self.alpha), self.scaling) {
            (None, _) => 1.0,
            (Some(alpha), Scaling::Standard) => alpha / rank as f64,
            (Some(alpha), Scaling::RankStabilized) => alpha / (rank as f64).sqrt(),
        };
        RankAndScale { rank, scale }
    }
}

/// [`AdapterConfig`] in TOML and JSON: the settings of the method are fields like all others.
#[derive(Clone, Serialize, Deserialize)]
struct FlatConfig {
    method: Method,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    method_pattern: BTreeMap<String, NamedMethod>,
    rank: RankField,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank_max: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    #[serde(default)]
    dropout: f64,
    target_modules: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    modules_to_save: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    scaling: Scaling,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantization_rounds: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    residual: Option<ResidualStorage>,
    /// All other fields: the method's settings, and whatever does not belong there.
    #[serde(flatten)]
    settings: Map<String, Value>,
    #[serde(default)]
    seed: u64,
}

/// A method in a file: its name, or its name with its settings beside it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum NamedMethod {
    Name(String),
    WithSettings {
        method: String,
        #[serde(flatten)]
        settings: Map<String, Value>,
    },
}

impl From<MethodConfig> for NamedMethod {
    fn from(config: MethodConfig) -> Self {
        let method = config.method();
        let name = method.name().to_owned();
        match config == MethodConfig::from(method) {
            true => Self::Name(name),
            false => Self::WithSettings { method: name, settings: config.settings() },
        }
    }
}

impl TryFrom<NamedMethod> for MethodConfig {
    type Error = String;

    fn try_from(named: NamedMethod) -> Result<Self, String> {
        match named {
            NamedMethod::Name(name) => Ok(name.parse::<Method>()?.into()),
            NamedMethod::WithSettings { method, settings } => method_config(method.parse()?, settings),
        }
    }
}

/// The fields that every method has.
const SHARED_FIELDS: [&str; 14] = [
    "method",
    "method_pattern",
    "rank",
    "rank_max",
    "alpha",
    "dropout",
    "target_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "scaling",
    "quantization_rounds",
    "residual",
    "seed",
];

/// A setting that files hold for every method, because the first version wrote it for every method.
const ALWAYS_WRITTEN: &str = "alpha_convention";

impl From<AdapterConfig> for FlatConfig {
    fn from(config: AdapterConfig) -> Self {
        let mut settings = Map::new();
        settings.insert(ALWAYS_WRITTEN.to_owned(), serde_json::json!(AlphaConvention::default()));
        settings.extend(config.method.settings());
        Self {
            method: config.method(),
            method_pattern: config
                .method_pattern
                .into_iter()
                .map(|(pattern, method)| (pattern, method.into()))
                .collect(),
            rank: config.rank_energy.map_or(RankField::Number(config.rank), RankField::Energy),
            rank_max: config.rank_energy.map(|_| config.rank),
            alpha: config.alpha,
            dropout: config.dropout,
            target_modules: config.target_modules,
            modules_to_save: config.modules_to_save,
            rank_pattern: config.rank_pattern,
            alpha_pattern: config.alpha_pattern,
            scaling: config.scaling,
            quantization_rounds: config.quantization_rounds,
            residual: config.residual,
            settings,
            seed: config.seed,
        }
    }
}

impl TryFrom<FlatConfig> for AdapterConfig {
    type Error = String;

    fn try_from(flat: FlatConfig) -> Result<Self, String> {
        let mut method_pattern = BTreeMap::new();
        for (pattern, method) in flat.method_pattern {
            let method =
                MethodConfig::try_from(method).map_err(|fault| format!("method_pattern `{pattern}`: {fault}"))?;
            method_pattern.insert(pattern, method);
        }
        let (rank, rank_energy) = match (flat.rank, flat.rank_max) {
            (RankField::Number(rank), None) => (rank, None),
            (RankField::Energy(energy), most) => (most.unwrap_or(RankEnergy::MOST), Some(energy)),
            (RankField::Number(rank), Some(most)) => {
                return Err(format!("rank_max = {most} bounds a rank like \"auto:0.9\", found rank = {rank}"));
            }
        };
        Ok(Self {
            method: method_config(flat.method, flat.settings)?,
            method_pattern,
            rank,
            rank_energy,
            alpha: flat.alpha,
            dropout: flat.dropout,
            target_modules: flat.target_modules,
            modules_to_save: flat.modules_to_save,
            rank_pattern: flat.rank_pattern,
            alpha_pattern: flat.alpha_pattern,
            scaling: flat.scaling,
            quantization_rounds: flat.quantization_rounds,
            residual: flat.residual,
            seed: flat.seed,
        })
    }
}

/// The method with its settings, or one line with every field that does not belong to it or has a wrong value.
fn method_config(method: Method, mut settings: Map<String, Value>) -> Result<MethodConfig, String> {
    let mut faults = Vec::new();
    if !method.setting_names().contains(&ALWAYS_WRITTEN)
        && let Some(value) = settings.shift_remove(ALWAYS_WRITTEN)
        && let Err(error) = serde_json::from_value::<AlphaConvention>(value)
    {
        faults.push(format!("`{ALWAYS_WRITTEN}`: {error}"));
    }
    for (name, value) in &settings {
        let owners: Vec<&str> =
            Method::ALL.into_iter().filter(|m| m.setting_names().contains(&name.as_str())).map(Method::name).collect();
        if method.setting_names().contains(&name.as_str()) {
            let alone = Map::from_iter([(name.clone(), value.clone())]);
            if let Err(error) = MethodConfig::from_settings(method, alone) {
                faults.push(format!("`{name}`: {error}"));
            }
        } else if owners.is_empty() {
            let known = SHARED_FIELDS.iter().chain(method.setting_names());
            let known: Vec<String> = known.map(|field| format!("`{field}`")).collect();
            faults.push(format!("unknown field `{name}`, expected one of {}", known.join(", ")));
        } else {
            faults.push(format!("`{name}` is a setting of {}, not of {method}", owners.join(" and ")));
        }
    }
    if !faults.is_empty() {
        return Err(faults.join("; "));
    }
    MethodConfig::from_settings(method, settings).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
