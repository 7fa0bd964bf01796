//! One weight before its adapter exists, and the factors that a method makes for it.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::FloatDType;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_linalg::tensor::Placement;
use sorsa_linalg::{SvdOptions, svd_band};

use crate::attach::Target;
use crate::cache::{CacheEntry, CacheKey, SvdCache};
use crate::factors::{FactorSet, Principal};
use crate::host_tensor::HostTensorExt;
use crate::packed_residual::ResidualPacking;
use crate::quantized_start::{FirstFactors, QuantizedStart, StartError};
use crate::{Band, Method};

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
    fn divisor(self, scale: f64) -> f32 {
        match self {
            Self::Peft => scale as f32,
            Self::Author => 1.0,
        }
    }
}

/// One weight that gets an adapter.
pub(crate) struct WeightToAdapt<'a> {
    pub target: &'a Target,
    pub method: Method,
    /// The weight `[d_in, d_out]`; absent if the method's start needs only random numbers.
    pub weight: Option<Tensor<2>>,
    /// How the residual is packed; absent for a dense residual, and if the frozen weight stays what it is.
    pub packing: Option<ResidualPacking>,
    /// Hash of the weight's content, for methods that decompose it.
    pub fingerprint: Option<&'a str>,
    /// Seed of the adapter's configuration.
    pub seed: u64,
    pub svd: &'a SvdOptions,
    pub placement: Placement,
    pub cache: Option<&'a SvdCache>,
    /// The mean gradient of the loss `[d_in, d_out]`, for methods that start from it.
    pub gradient: Option<HostTensor>,
}

/// The factors of one weight at the start.
pub(crate) struct StartingFactors {
    pub factors: FactorSet,
    /// The factors whose product is subtracted from the weight before it is packed, if they are not those at the start.
    pub subtracted: Option<FactorSet>,
    /// If there was an SVD: `max ||A v - s u|| / s_1`, and whether it came from the cache.
    pub svd: Option<(f64, bool)>,
}

impl From<FactorSet> for StartingFactors {
    fn from(factors: FactorSet) -> Self {
        Self { factors, subtracted: None, svd: None }
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

    /// The divisor of the singular values at the start.
    ///
    /// # Errors
    ///
    /// [`StartError::ScaledPrincipalPart`] if rounds of packing would fit another part than the convention subtracts.
    pub fn divisor(&self, convention: AlphaConvention) -> Result<f32, StartError> {
        let scale = self.target.scale;
        let fits = self.packing.is_some_and(|packing| packing.rounds > 0);
        match convention {
            AlphaConvention::Author if fits && scale != 1.0 => {
                Err(StartError::ScaledPrincipalPart { name: self.target.path.clone(), scale })
            }
            convention => Ok(convention.divisor(scale)),
        }
    }

    /// The start that `factors` makes of the weight's leading singular triplets, like [`factors_from_band`](Self::factors_from_band).
    pub fn factors_from_svd(&self, factors: impl Fn(Principal) -> FactorSet) -> Result<StartingFactors, StartError> {
        self.factors_from_band(Band::Principal, factors)
    }

    /// The start that `factors` makes of a band of the weight's singular triplets, or of those that are fitted to the error of
    /// packing, if the residual is packed in rounds. Triplets come from the cache or from an SVD.
    pub fn factors_from_band(
        &self,
        band: Band,
        factors: impl Fn(Principal) -> FactorSet,
    ) -> Result<StartingFactors, StartError> {
        if let Some(packing) = self.packing.filter(|packing| packing.rounds > 0) {
            return self.fitted(packing, FirstFactors::LeadingTriplets, factors);
        }
        let (rank, options) = (self.target.rank, self.svd_options());
        let first = band.first(self.target.shape, rank);
        let compute = || {
            let (path, placement) = (&self.target.path, self.placement);
            if first > 0 {
                return self.triplets(first..first + rank);
            }
            let svd = sorsa_linalg::tensor::truncated_svd(path, self.values(), rank, &options, placement)?;
            let principal = Principal {
                u: HostTensor::from_tensor(svd.u),
                s: HostTensor::from_tensor(svd.s).values,
                vt: HostTensor::from_tensor(svd.vt),
            };
            Ok(CacheEntry { principal, subtracted: None, residual: svd.report.residual })
        };
        let (entry, cached) = self.cached(|key| key.of_band(first), compute)?;
        Ok(StartingFactors { factors: factors(entry.principal), subtracted: None, svd: Some((entry.residual, cached)) })
    }

    /// The start that `factors` makes of all singular triplets of the weight at these indexes, the largest singular value first. It
    /// takes the decomposition of the whole weight.
    pub fn factors_from_all_triplets(
        &self,
        indexes: Range<usize>,
        factors: impl Fn(Principal) -> FactorSet,
    ) -> Result<StartingFactors, StartError> {
        let compute = || self.triplets(indexes.clone());
        let (entry, cached) = self.cached_triplets(indexes.len(), |key| key.of_indexes(&indexes), compute)?;
        Ok(StartingFactors { factors: factors(entry.principal), subtracted: None, svd: Some((entry.residual, cached)) })
    }

    /// The singular triplets of the weight at these indexes, by the decomposition of the whole weight.
    fn triplets(&self, indexes: Range<usize>) -> Result<CacheEntry, StartError> {
        let weight = HostTensor::from_tensor(self.values().inner().cast(FloatDType::F32));
        let options = self.svd_options();
        let svd = svd_band(&self.target.path, weight.matrix(), indexes.start, indexes.len(), &options)?;
        let (u, vt) = (HostTensor::from_matrix(svd.u.as_ref()), HostTensor::from_matrix(svd.v.transpose()));
        let principal = Principal { u, s: svd.s, vt };
        Ok(CacheEntry { principal, subtracted: None, residual: svd.report.residual })
    }

    /// The start that `factors` makes of `count` leading singular triplets of the gradient, or of as many as it has.
    pub fn factors_from_gradient(
        &self,
        count: usize,
        factors: impl Fn(Principal) -> FactorSet,
    ) -> Result<StartingFactors, StartError> {
        let name = &self.target.path;
        let Some(gradient) = &self.gradient else { return Err(StartError::NoGradient { name: name.clone() }) };
        let count = count.min(self.target.shape[0]).min(self.target.shape[1]);
        let svd = sorsa_linalg::truncated_svd(name, gradient.matrix(), count, &self.svd_options())?;
        if svd.s[0] == 0.0 {
            return Err(StartError::NoGradient { name: name.clone() });
        }
        let (u, vt) = (HostTensor::from_matrix(svd.u.as_ref()), HostTensor::from_matrix(svd.v.transpose()));
        let residual = svd.report.residual;
        let factors = factors(Principal { u, s: svd.s, vt });
        Ok(StartingFactors { factors, subtracted: None, svd: Some((residual, false)) })
    }

    /// The start that `factors` makes of the leading triplets of what packing loses of the weight.
    ///
    /// # Errors
    ///
    /// [`StartError::NothingLost`] among others.
    pub fn factors_from_packing_error(
        &self,
        packing: ResidualPacking,
        factors: impl Fn(Principal) -> FactorSet,
    ) -> Result<StartingFactors, StartError> {
        self.fitted(packing, FirstFactors::Nothing, factors)
    }

    fn fitted(
        &self,
        packing: ResidualPacking,
        first: FirstFactors,
        factors: impl Fn(Principal) -> FactorSet,
    ) -> Result<StartingFactors, StartError> {
        /// Singular values below this part of the weight's norm are rounding errors of f32.
        const ROUNDING: f64 = 1e-6;
        let (name, rank, scale, options) = (&self.target.path, self.target.rank, self.target.scale, self.svd_options());
        let method = self.method.factored().expect("a method with factors");
        let pair = |triplets: &Principal| (method.product)(&factors(triplets.clone())).scaled(scale);
        let compute = || {
            let ResidualPacking { format, rounds } = packing;
            let weight = self.transposed();
            let fit = QuantizedStart { name, format, rank, rounds, first, svd: &options }.fit(&weight, pair)?;
            let squares: f64 = weight.values.iter().map(|value| f64::from(*value).powi(2)).sum();
            match fit.start {
                Some(start) if first != FirstFactors::Nothing || f64::from(start.s[0]) > ROUNDING * squares.sqrt() => {
                    Ok(CacheEntry { principal: start, subtracted: fit.subtracted, residual: fit.svd_residual })
                }
                _ => Err(StartError::NothingLost { name: name.clone(), format }),
            }
        };
        let form = format!("{} {scale}", self.method);
        let (entry, cached) = self.cached(|key| key.of_fit(packing, first, &form), compute)?;
        let nothing = || {
            let [d_in, d_out] = self.target.shape;
            let zeros = |shape: [usize; 2]| HostTensor::new(shape, vec![0.0; shape[0] * shape[1]]);
            Principal { u: zeros([d_in, rank]), s: vec![0.0; rank], vt: zeros([rank, d_out]) }
        };
        Ok(StartingFactors {
            subtracted: Some(factors(entry.subtracted.unwrap_or_else(nothing))),
            factors: factors(entry.principal),
            svd: Some((entry.residual, cached)),
        })
    }

    /// The entry of the cache, or what `compute` gives, which is kept; and whether it was in the cache.
    fn cached(
        &self,
        key: impl FnOnce(CacheKey) -> CacheKey,
        compute: impl FnOnce() -> Result<CacheEntry, StartError>,
    ) -> Result<(CacheEntry, bool), StartError> {
        self.cached_triplets(self.target.rank, key, compute)
    }

    /// [`cached`](Self::cached) of an entry with `rank` triplets.
    fn cached_triplets(
        &self,
        rank: usize,
        key: impl FnOnce(CacheKey) -> CacheKey,
        compute: impl FnOnce() -> Result<CacheEntry, StartError>,
    ) -> Result<(CacheEntry, bool), StartError> {
        let Some((cache, fingerprint)) = self.cache.zip(self.fingerprint) else { return Ok((compute()?, false)) };
        let key = key(CacheKey::new(fingerprint, rank, &self.svd_options()));
        if let Some(entry) = cache.get(&key, self.target.shape, rank) {
            return Ok((entry, true));
        }
        let entry = compute()?;
        // If the disk is full or read-only, the next start computes the SVD again; nothing else is lost.
        let _ = cache.put(&key, &entry);
        Ok((entry, false))
    }

    fn svd_options(&self) -> SvdOptions {
        SvdOptions { seed: self.svd.seed ^ self.seed, ..self.svd.clone() }
    }

    /// `W^T` `[d_out, d_in]` on the host.
    fn transposed(&self) -> HostTensor {
        HostTensor::from_tensor(self.values().inner().cast(FloatDType::F32).transpose())
    }
}
