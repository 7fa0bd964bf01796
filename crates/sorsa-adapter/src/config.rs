//! What is adapted, how, and with which rank and scale.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::target::{Pattern, means};
use crate::{AdapterError, Init, Method};

/// What the scale of an adapter is, from its `alpha` and rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// `alpha / rank`.
    #[default]
    Standard,
    /// `alpha / sqrt(rank)`, as rsLoRA (arXiv 2312.03732).
    RankStabilized,
}

/// What becomes of the singular values where the scale is not 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlphaConvention {
    /// They are divided by the scale, so that the residual is the tail of the SVD (PEFT's convention for PiSSA).
    #[default]
    Peft,
    /// They are kept, and `scale` times the principal part leaves the weight (the author's code).
    Author,
}

impl AlphaConvention {
    /// What the singular values are divided by at the start.
    pub(crate) fn divisor(self, scale: f64) -> f32 {
        match self {
            Self::Peft => scale as f32,
            Self::Author => 1.0,
        }
    }
}

/// The adapter of a model: method, targets, rank, scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// How the weights are trained.
    pub method: Method,
    /// Rank of the factors, where a pattern gives no other.
    pub rank: usize,
    /// Numerator of the scale; absent, the scale is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Probability of dropping an element of the adapter's input while training, by [`project`](crate::project) only.
    #[serde(default)]
    pub dropout: f64,
    /// Which linear layers: a name (`q_proj`), a glob over the module path (`model.layers.*.mlp.*`), a regular
    /// expression (`re:.*\.(q|v)_proj`), or `all-linear`.
    pub target_modules: Vec<String>,
    /// Modules trained whole beside the adapter, as PEFT's field of this name: names, globs or regular expressions over
    /// module paths; what lies below such a module is trained too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Ranks for the modules that a pattern (as in `target_modules`) matches; of several, the first in alphabetical
    /// order decides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas for the modules that a pattern matches, chosen likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// How the scale follows from alpha and rank.
    #[serde(default)]
    pub scaling: Scaling,
    /// What becomes of the singular values where the scale is not 1.
    #[serde(default)]
    pub alpha_convention: AlphaConvention,
    /// Where the factors of LoRA and DoRA start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub init: Init,
    /// Seed of random factors and of the randomized SVD.
    #[serde(default)]
    pub seed: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Rank and scale of one module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sizes {
    pub rank: usize,
    pub scale: f64,
}

impl AdapterConfig {
    /// A configuration with scale 1 and no dropout, for the linear layers that `targets` match.
    pub fn new(method: Method, rank: usize, targets: &[&str]) -> Self {
        Self {
            method,
            rank,
            alpha: None,
            dropout: 0.0,
            target_modules: targets.iter().map(ToString::to_string).collect(),
            modules_to_save: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            scaling: Scaling::default(),
            alpha_convention: AlphaConvention::default(),
            init: Init::default(),
            seed: 0,
        }
    }

    /// The same with another `alpha`.
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.alpha = Some(alpha);
        self
    }

    /// The same with dropout on the adapter's input.
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// The same with another start of LoRA's or DoRA's factors.
    pub fn with_init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Checks what can be checked without a model; reports all that is wrong.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Config`] with every fault found.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let mut faults = Vec::new();
        let positive = |value: &f64| value.is_finite() && *value > 0.0;
        if self.method.is_factored() {
            if self.rank == 0 || self.rank_pattern.values().any(|rank| *rank == 0) {
                faults.push("rank must be at least 1".to_owned());
            }
            if !self.alpha.iter().chain(self.alpha_pattern.values()).all(positive) {
                faults.push("alpha must be a positive number".to_owned());
            }
        }
        if self.init != Init::default() && (!self.method.is_factored() || self.method.splits_weight()) {
            faults
                .push(format!("init is for methods that add nothing to the weight at first, not for {}", self.method));
        } else if self.init == Init::Orthogonal {
            let ranks = self.rank_pattern.values().chain([&self.rank]);
            let odd = ranks.filter(|rank| *rank % 2 == 1);
            faults.extend(odd.map(|rank| format!("init = \"orthogonal\" takes an even rank, found {rank}")));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            faults.push(format!("dropout must be at least 0 and below 1, found {}", self.dropout));
        }
        if self.method != Method::Full && self.target_modules.is_empty() {
            faults.push("target_modules is empty".to_owned());
        }
        if !self.method.is_factored() && !self.modules_to_save.is_empty() {
            faults.push(format!("modules_to_save is for methods that freeze the weights, not for {}", self.method));
        }
        let patterns = self.target_modules.iter().chain(&self.modules_to_save);
        let patterns = patterns.chain(self.rank_pattern.keys()).chain(self.alpha_pattern.keys());
        faults.extend(patterns.filter_map(|pattern| Pattern::parse(pattern).err()));
        if faults.is_empty() { Ok(()) } else { Err(AdapterError::Config { faults }) }
    }

    /// Whether the parameter at `path` is in a module that is trained whole beside the adapter.
    pub(crate) fn saves(&self, path: &str) -> bool {
        let modules = path.match_indices('.').map(|(end, _)| &path[..end]);
        let saved = |module: &str| self.modules_to_save.iter().any(|text| means(text, module));
        !self.modules_to_save.is_empty() && modules.into_iter().any(saved)
    }

    /// Rank and scale of the module at `path`; the first pattern that matches decides.
    pub(crate) fn sizes(&self, path: &str) -> Sizes {
        fn first<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Option<T> {
            patterns.iter().find(|(key, _)| means(key, path)).map(|(_, value)| *value)
        }
        let rank = first(&self.rank_pattern, path).unwrap_or(self.rank);
        let scale = match (first(&self.alpha_pattern, path).or(self.alpha), self.scaling) {
            (None, _) => 1.0,
            (Some(alpha), Scaling::Standard) => alpha / rank as f64,
            (Some(alpha), Scaling::RankStabilized) => alpha / (rank as f64).sqrt(),
        };
        Sizes { rank, scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_override_rank_and_alpha_per_module() {
        let mut config = AdapterConfig::new(Method::Lora, 8, &["q_proj"]).with_alpha(16.0);
        config.rank_pattern.insert("layers.1.*".into(), 4);
        config.alpha_pattern.insert("q_proj".into(), 4.0);
        assert_eq!(config.sizes("layers.0.k_proj"), Sizes { rank: 8, scale: 2.0 });
        assert_eq!(config.sizes("layers.1.k_proj"), Sizes { rank: 4, scale: 4.0 });
        assert_eq!(config.sizes("layers.1.q_proj"), Sizes { rank: 4, scale: 1.0 });
        config.scaling = Scaling::RankStabilized;
        assert_eq!(config.sizes("layers.1.q_proj"), Sizes { rank: 4, scale: 2.0 });
    }

    #[test]
    fn every_fault_of_a_configuration_is_reported_at_once() {
        let mut config = AdapterConfig::new(Method::Sorsa, 0, &["re:(", "q_proj"]).with_alpha(-1.0).with_dropout(1.0);
        config.rank_pattern.insert("[".into(), 2);
        let Err(AdapterError::Config { faults }) = config.validate() else { panic!("accepted") };
        assert_eq!(faults.len(), 5, "{faults:?}");
    }

    #[test]
    fn a_start_is_refused_by_methods_that_have_their_own_and_by_odd_ranks() {
        let faults = |config: AdapterConfig| match config.validate() {
            Err(AdapterError::Config { faults }) => faults,
            other => panic!("{other:?}"),
        };
        for method in [Method::Sorsa, Method::Olora, Method::Full] {
            let config = AdapterConfig::new(method, 4, &["q_proj"]).with_init(Init::Gaussian);
            assert_eq!(faults(config).len(), 1, "{method}");
        }
        let mut config = AdapterConfig::new(Method::Dora, 4, &["q_proj"]).with_init(Init::Orthogonal);
        assert!(config.validate().is_ok());
        config.rank_pattern.insert("q_proj".into(), 3);
        assert_eq!(faults(config), ["init = \"orthogonal\" takes an even rank, found 3"]);
    }

    #[test]
    fn the_default_start_is_not_written() {
        // A file of before the choice existed, and a program of then, fit.
        let config = AdapterConfig::new(Method::Lora, 4, &["q_proj"]);
        let json = serde_json::to_string(&config).unwrap();
        assert!(!json.contains("init"), "{json}");
        assert_eq!(serde_json::from_str::<AdapterConfig>(&json).unwrap(), config);
        let json = serde_json::to_string(&config.with_init(Init::Orthogonal)).unwrap();
        assert!(json.contains("\"init\":\"orthogonal\""), "{json}");
    }
}
