//! The principal triplets of one weight: from the cache, or by an SVD.

use burn::prelude::*;
use sorsa_linalg::tensor::Placement;
use sorsa_linalg::{LinalgError, SvdOptions};

use crate::cache::{Entry, SvdCache, fingerprint};
use crate::factors::{HostTensor, Principal};

/// One decomposed weight.
pub(crate) struct Decomposed {
    pub principal: Principal,
    /// `max ||A v - s u|| / s_1`.
    pub residual: f64,
    pub cached: bool,
    pub fingerprint: String,
}

/// Decomposes `weight` `[d_in, d_out]` of the module at `path`.
pub(crate) fn decompose(
    path: &str,
    weight: Tensor<2>,
    rank: usize,
    options: &SvdOptions,
    placement: Placement,
    cache: Option<&SvdCache>,
) -> Result<Decomposed, LinalgError> {
    let shape = weight.dims();
    let fingerprint = fingerprint(&weight);
    if let Some(entry) = cache.and_then(|cache| cache.get(&fingerprint, shape, rank, options)) {
        return Ok(Decomposed { principal: entry.principal, residual: entry.residual, cached: true, fingerprint });
    }
    let svd = sorsa_linalg::tensor::truncated_svd(path, weight, rank, options, placement)?;
    let principal = Principal {
        u: HostTensor::from_tensor(svd.u),
        s: HostTensor::from_tensor(svd.s).values,
        vt: HostTensor::from_tensor(svd.vt),
    };
    let entry = Entry { principal, residual: svd.report.residual };
    if let Some(cache) = cache {
        // A full or read-only disk costs the next start some time, nothing else.
        let _ = cache.put(&fingerprint, rank, options, &entry);
    }
    Ok(Decomposed { principal: entry.principal, residual: entry.residual, cached: false, fingerprint })
}
