//! What is adapted, how, and with which rank and scale.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::AdapterError;
use crate::target::{Pattern, means};

/// How a weight is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Singular values and orthonormal regularized singular vectors (arXiv 2409.00055).
    Sorsa,
    /// Principal singular values and vectors (arXiv 2404.02948).
    Pissa,
    /// Low-rank adaptation (arXiv 2106.09685).
    Lora,
    /// The target weights themselves, dense.
    Partial,
    /// Every parameter of the model.
    Full,
}

impl Method {
    /// Every method, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Sorsa, Self::Pissa, Self::Lora, Self::Partial, Self::Full];

    /// Whether the method adds factors to a frozen weight.
    pub fn is_factored(self) -> bool {
        matches!(self, Self::Sorsa | Self::Pissa | Self::Lora)
    }

    /// Whether the method starts from the weight's singular vectors, which then leave the frozen base.
    pub fn needs_svd(self) -> bool {
        matches!(self, Self::Sorsa | Self::Pissa)
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sorsa => "sorsa",
            Self::Pissa => "pissa",
            Self::Lora => "lora",
            Self::Partial => "partial",
            Self::Full => "full",
        })
    }
}

impl std::str::FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|method| method.to_string() == text)
            .ok_or_else(|| format!("unknown method `{text}`, expected sorsa, pissa, lora, partial or full"))
    }
}

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
    /// Seed of LoRA's random factor and of the randomized SVD.
    #[serde(default)]
    pub seed: u64,
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
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            scaling: Scaling::default(),
            alpha_convention: AlphaConvention::default(),
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
        if !(0.0..1.0).contains(&self.dropout) {
            faults.push(format!("dropout must be at least 0 and below 1, found {}", self.dropout));
        }
        if self.method != Method::Full && self.target_modules.is_empty() {
            faults.push("target_modules is empty".to_owned());
        }
        let patterns = self.target_modules.iter().chain(self.rank_pattern.keys()).chain(self.alpha_pattern.keys());
        faults.extend(patterns.filter_map(|pattern| Pattern::parse(pattern).err()));
        if faults.is_empty() { Ok(()) } else { Err(AdapterError::Config { faults }) }
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
}
