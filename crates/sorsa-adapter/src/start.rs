//! Where the factors of one weight start, and what a method may make them of.

use burn::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sorsa_linalg::tensor::Placement;
use sorsa_linalg::{LinalgError, SvdOptions};

use crate::attach::Target;
use crate::cache::{Entry, SvdCache};
use crate::config::AdapterConfig;
use crate::factors::{FactorSet, HostTensor, Principal};

/// One weight whose factors are to be made.
pub(crate) struct Start<'a> {
    pub config: &'a AdapterConfig,
    pub target: &'a Target,
    /// The weight `[d_in, d_out]`, for methods whose start is made of it.
    pub weight: Option<Tensor<2>>,
    /// Hash of the weight's content, for methods that split it.
    pub fingerprint: Option<&'a str>,
    pub svd: &'a SvdOptions,
    pub placement: Placement,
    pub cache: Option<&'a SvdCache>,
}

/// The factors of one weight at the start.
pub(crate) struct Started {
    pub factors: FactorSet,
    /// `max ||A v - s u|| / s_1` of the SVD and whether it was cached, where there was one.
    pub svd: Option<(f64, bool)>,
}

impl From<FactorSet> for Started {
    fn from(factors: FactorSet) -> Self {
        Self { factors, svd: None }
    }
}

impl Start<'_> {
    /// A generator that depends on the seed and the module's path only, not on the backend or on the other modules.
    pub fn rng(&self) -> ChaCha8Rng {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.config.seed.to_le_bytes()).update(self.target.path.as_bytes());
        ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
    }

    /// The weight `[d_in, d_out]`, in its own dtype.
    ///
    /// # Panics
    ///
    /// Panics for a method whose source is nothing.
    pub fn weight(&self) -> Tensor<2> {
        self.weight.clone().expect("the method's source is the weight")
    }

    /// The start that `factors` makes of the weight's leading triplets: from the cache, or by an SVD.
    pub fn by_svd(&self, factors: impl FnOnce(Principal) -> FactorSet) -> Result<Started, LinalgError> {
        let (rank, fingerprint) = (self.target.rank, self.fingerprint.unwrap_or_default());
        let options = SvdOptions { seed: self.svd.seed ^ self.config.seed, ..self.svd.clone() };
        if let Some(entry) = self.cache.and_then(|cache| cache.get(fingerprint, self.target.shape, rank, &options)) {
            return Ok(Started { factors: factors(entry.principal), svd: Some((entry.residual, true)) });
        }
        let svd =
            sorsa_linalg::tensor::truncated_svd(&self.target.path, self.weight(), rank, &options, self.placement)?;
        let principal = Principal {
            u: HostTensor::from_tensor(svd.u),
            s: HostTensor::from_tensor(svd.s).values,
            vt: HostTensor::from_tensor(svd.vt),
        };
        let entry = Entry { principal, residual: svd.report.residual };
        if let Some(cache) = self.cache {
            // A full or read-only disk costs the next start some time, nothing else.
            let _ = cache.put(fingerprint, rank, &options, &entry);
        }
        Ok(Started { factors: factors(entry.principal), svd: Some((entry.residual, false)) })
    }
}
