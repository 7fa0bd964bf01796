//! Ranks that the spectrum of each weight decides: `rank = "auto:0.9"` is the smallest rank whose singular values hold 0.9 of the
//! weight's squared Frobenius norm.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use burn::prelude::*;
use burn::tensor::FloatDType;
use rayon::prelude::*;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sorsa_files::HostTensor;
use sorsa_linalg::{rank_of_energy, squared_singular_values};

use crate::attach::{AttachOptions, Target};
use crate::config::AdapterConfig;
use crate::error::AdapterError;
use crate::host_tensor::HostTensorExt;
use crate::packed::{NothingPacked, original_or_widened};
use crate::parameters::weights;
use crate::target::pattern_matches;

/// The share of a weight's squared Frobenius norm that the singular values of its rank hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankEnergy {
    /// Above 0, at most 1.
    share: f64,
}

impl RankEnergy {
    /// The largest rank, if a file names no `rank_max`.
    pub const MOST: usize = 128;

    /// A share above 0 and at most 1; nothing for any other number.
    pub fn new(share: f64) -> Option<Self> {
        if share > 0.0 && share <= 1.0 { Some(Self { share }) } else { None }
    }

    /// The share.
    pub fn share(self) -> f64 {
        self.share
    }
}

impl fmt::Display for RankEnergy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "auto:{}", self.share)
    }
}

impl std::str::FromStr for RankEnergy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.strip_prefix("auto:").and_then(|share| share.parse().ok());
        let energy = share.and_then(Self::new);
        energy.ok_or_else(|| {
            format!("expected a number, or auto:SHARE with a share above 0 and at most 1 like auto:0.9, found `{text}`")
        })
    }
}

/// `rank` in files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RankField {
    Number(usize),
    Energy(RankEnergy),
}

impl Serialize for RankField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(rank) => rank.serialize(serializer),
            Self::Energy(energy) => serializer.collect_str(energy),
        }
    }
}

impl<'de> Deserialize<'de> for RankField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Field;
        impl Visitor<'_> for Field {
            type Value = RankField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("usize, or a text like \"auto:0.9\"")
            }

            fn visit_u64<E: Error>(self, rank: u64) -> Result<RankField, E> {
                let number = usize::try_from(rank).map(RankField::Number);
                number.map_err(|_| E::invalid_value(Unexpected::Unsigned(rank), &self))
            }

            fn visit_i64<E: Error>(self, rank: i64) -> Result<RankField, E> {
                let number = usize::try_from(rank).map(RankField::Number);
                number.map_err(|_| E::invalid_value(Unexpected::Signed(rank), &self))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RankField, E> {
                match text.parse() {
                    Ok(energy) => Ok(RankField::Energy(energy)),
                    Err(_) if !text.starts_with("auto") => Err(E::invalid_type(Unexpected::Str(text), &self)),
                    Err(fault) => Err(E::custom(fault)),
                }
            }
        }
        deserializer.deserialize_any(Field)
    }
}

/// The rank of one module, as the spectrum of its weight decides it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedRank {
    /// Path of the linear layer.
    pub path: String,
    /// The rank.
    pub rank: usize,
    /// The share of the energy that its singular values hold: below the wanted one if the largest rank was not enough.
    pub share: f64,
}

/// The ranks of all targets, and a configuration that has them as numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedRanks {
    /// The most frequent rank as `rank`, the others in `rank_pattern`.
    pub config: AdapterConfig,
    /// The modules whose spectrum decided, in the model's order. A pattern decides for the others.
    pub modules: Vec<ResolvedRank>,
    energy: RankEnergy,
    most: usize,
}

impl fmt::Display for ResolvedRanks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks = || self.modules.iter().map(|module| module.rank);
        let (Some(least), Some(largest)) = (ranks().min(), ranks().max()) else {
            return write!(f, "rank = {}: patterns decide the rank of every module", self.energy);
        };
        let count = self.modules.len();
        let mean = ranks().sum::<usize>() as f64 / count as f64;
        write!(f, "rank = {}: ranks {least} to {largest} in {count} modules, {mean:.1} on average", self.energy)?;
        let short: Vec<f64> =
            self.modules.iter().map(|m| m.share).filter(|s| *s < self.energy.share * (1.0 - 1e-9)).collect();
        if let Some(lowest) = short.iter().copied().reduce(f64::min) {
            let (short, most) = (short.len(), self.most);
            write!(
                f,
                "; in {short} of them the largest rank, {most} (rank_max), holds less, {:.1} % at least",
                100.0 * lowest
            )?;
        }
        Ok(())
    }
}

impl AdapterConfig {
    /// The ranks that the spectra of the weights in `model` decide. Weights of patterns in `rank_pattern` keep their numbers; a
    /// configuration without a [`rank_energy`](Self::rank_energy) stays what it is. Of `options`, only
    /// [`originals`](AttachOptions::originals) is used.
    ///
    /// # Errors
    ///
    /// Those of [`targets`](Self::targets); [`AdapterError::Decomposition`] with every weight that is not finite.
    pub fn with_resolved_ranks<M: Module>(
        &self,
        model: &M,
        options: &AttachOptions<'_>,
    ) -> Result<ResolvedRanks, AdapterError> {
        let plain = Self { rank_energy: None, ..self.clone() };
        let energy = match self.rank_energy {
            Some(energy) if self.method().is_factored() => energy,
            _ => {
                let energy = RankEnergy { share: 1.0 };
                return Ok(ResolvedRanks { config: plain, modules: Vec::new(), energy, most: self.rank });
            }
        };
        self.validate()?;
        // The bound may be larger than a weight.
        let targets = Self { rank: 1, ..plain.clone() }.linear_layers(&self.target_modules, model)?;
        let decided = |target: &&Target| !self.rank_pattern.keys().any(|key| pattern_matches(key, &target.path));
        let open: Vec<&Target> = targets.iter().filter(decided).collect();
        let wanted: BTreeSet<&str> = open.iter().map(|target| target.path.as_str()).collect();
        let weights = weights(model, &wanted);
        let originals = options.originals.unwrap_or(&NothingPacked);
        let one = |target: &&Target| {
            let path = &target.path;
            let weight =
                original_or_widened(path, weights[path].clone(), originals).map_err(|error| error.to_string())?;
            let weight = HostTensor::from_tensor(weight.inner().cast(FloatDType::F32));
            let squares = squared_singular_values(path, weight.matrix()).map_err(|error| error.to_string())?;
            let rank = rank_of_energy(&squares, energy.share).min(self.rank);
            let (held, total) = (squares[..rank].iter().sum::<f64>(), squares.iter().sum::<f64>());
            let share = if total == 0.0 { 1.0 } else { held / total };
            Ok(ResolvedRank { path: path.clone(), rank, share })
        };
        let found: Vec<Result<ResolvedRank, String>> = open.par_iter().with_max_len(1).map(one).collect();
        let (mut modules, mut faults) = (Vec::new(), Vec::new());
        for result in found {
            match result {
                Ok(module) => modules.push(module),
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(AdapterError::Decomposition { faults });
        }
        let mut ranks: BTreeMap<&str, usize> = targets.iter().map(|t| (t.path.as_str(), t.rank)).collect();
        ranks.extend(modules.iter().map(|module| (module.path.as_str(), module.rank)));
        let config = plain.with_ranks(&ranks);
        Ok(ResolvedRanks { config, modules, energy, most: self.rank })
    }

    /// The configuration that gives each module at a path its rank.
    fn with_ranks(self, ranks: &BTreeMap<&str, usize>) -> Self {
        let mut counts = BTreeMap::<usize, usize>::new();
        ranks.values().for_each(|rank| *counts.entry(*rank).or_default() += 1);
        let usual = counts.into_iter().max_by_key(|(_, count)| *count).map_or(self.rank, |(rank, _)| rank);
        let with_keys = |key: fn(&str) -> String| {
            let others = ranks.iter().filter(|(_, rank)| **rank != usual);
            let rank_pattern = others.map(|(path, rank)| (key(path), *rank)).collect();
            Self { rank: usual, rank_pattern, ..self.clone() }
        };
        let by_path = with_keys(str::to_owned);
        let fits = ranks.iter().all(|(path, rank)| by_path.rank_and_scale(path).rank == *rank);
        // A path that is the end of another one would match that too.
        if fits { by_path } else { with_keys(|path| format!("re:{}", regex::escape(path))) }
    }
}
