//! One weight before its adapter exists, and the factors that a method makes for it.

use burn::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_linalg::tensor::Placement;
use sorsa_linalg::{LinalgError, SvdOptions};

use crate::attach::Target;
use crate::cache::{CacheEntry, SvdCache};
use crate::factors::{FactorSet, Principal};
use crate::host_tensor::HostTensorExt;

/// What happens to the singular values if the scale is not 1, for methods that start from them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlphaConvention {
    /// They are divided by the scale, so that the residual is the tail of the SVD (PEFT's convention for PiSSA).
    #[default]
    Peft,
    /// They stay what they are, and `scale` times the principal part is subtracted from the weight (the code of SORSA's
    /// author).
    Author,
}

impl AlphaConvention {
    /// The divisor of the singular values at the start.
    pub(crate) fn divisor(self, scale: f64) -> f32 {
        match self {
            Self::Peft => scale as f32,
            Self::Author => 1.0,
        }
    }
}

/// One weight that gets an adapter.
pub(crate) struct WeightToAdapt<'a> {
    pub target: &'a Target,
    /// The weight `[d_in, d_out]`; absent if the method's start needs only random numbers.
    pub weight: Option<Tensor<2>>,
    /// Hash of the weight's content, for methods that decompose it.
    pub fingerprint: Option<&'a str>,
    /// Seed of the adapter's configuration.
    pub seed: u64,
    pub svd: &'a SvdOptions,
    pub placement: Placement,
    pub cache: Option<&'a SvdCache>,
}

/// The factors of one weight at the start.
pub(crate) struct StartingFactors {
    pub factors: FactorSet,
    /// If there was an SVD: `max ||A v - s u|| / s_1`, and whether it came from the cache.
    pub svd: Option<(f64, bool)>,
}

impl From<FactorSet> for StartingFactors {
    fn from(factors: FactorSet) -> Self {
        Self { factors, svd: None }
    }
}

impl WeightToAdapt<'_> {
    /// A generator that depends only on the seed and the module's path, not on the backend or on other modules.
    pub fn rng(&self) -> ChaCha8Rng {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(self.target.path.as_bytes());
        ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
    }

    /// The weight `[d_in, d_out]`, in its own dtype.
    ///
    /// # Panics
    ///
    /// Panics for a method that starts from random numbers.
    pub fn values(&self) -> Tensor<2> {
        self.weight.clone().expect("the method starts from the weight")
    }

    /// The start that `factors` makes of the weight's leading singular triplets, which come from the cache or from an
    /// SVD.
    pub fn factors_from_svd(
        &self,
        factors: impl FnOnce(Principal) -> FactorSet,
    ) -> Result<StartingFactors, LinalgError> {
        let rank = self.target.rank;
        let options = SvdOptions { seed: self.svd.seed ^ self.seed, ..self.svd.clone() };
        let cache = self.cache.zip(self.fingerprint);
        if let Some(entry) = cache.and_then(|(cache, key)| cache.get(key, self.target.shape, rank, &options)) {
            return Ok(StartingFactors { factors: factors(entry.principal), svd: Some((entry.residual, true)) });
        }
        let svd =
            sorsa_linalg::tensor::truncated_svd(&self.target.path, self.values(), rank, &options, self.placement)?;
        let principal = Principal {
            u: HostTensor::from_tensor(svd.u),
            s: HostTensor::from_tensor(svd.s).values,
            vt: HostTensor::from_tensor(svd.vt),
        };
        let entry = CacheEntry { principal, residual: svd.report.residual };
        if let Some((cache, key)) = cache {
            // If the disk is full or read-only, the next start computes the SVD again; nothing else is lost.
            let _ = cache.put(key, rank, &options, &entry);
        }
        Ok(StartingFactors { factors: factors(entry.principal), svd: Some((entry.residual, false)) })
    }
}
