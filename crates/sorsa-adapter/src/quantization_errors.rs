//! What each start beside a packed weight loses of the weight: norms of `W - (widen(q) + L R)`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::prelude::*;
use rayon::prelude::*;
use serde::Serialize;
use sorsa_files::HostTensor;
use sorsa_linalg::spectral::nuclear_norm;
use sorsa_linalg::{LinalgError, SvdOptions};
use sorsa_ops::{PackedFormat, PackedMatrix, WeightOperand};

use crate::attach::Target;
use crate::config::AdapterConfig;
use crate::error::AdapterError;
use crate::factors::{FactorPair, Principal};
use crate::host_tensor::HostTensorExt;
use crate::packed::{NothingPacked, transposed};
use crate::packed_residual::{packing_error, subtract_product};
use crate::parameters::weights;
use crate::quantized_start::{FirstFactors, QuantizedStart, StartError};

/// Two sizes of a matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ErrorNorms {
    /// The sum of the singular values.
    pub nuclear: f64,
    /// The root of the sum of squares.
    pub frobenius: f64,
}

/// Which starts beside a packed weight are measured.
#[derive(Debug, Clone)]
pub struct StartsToMeasure {
    /// Format of the packed weights.
    pub format: PackedFormat,
    /// Ranks of the factors. A rank that is larger than the smaller side of a weight counts as this side.
    pub ranks: Vec<usize>,
    /// Rounds of LoftQ, QPiSSA and QSORSA.
    pub rounds: usize,
    /// How weights and errors are decomposed.
    pub svd: SvdOptions,
}

/// What each start loses of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizationErrors {
    /// Format that the weight has in the model. If it is packed, its widened values are measured.
    pub stored: Option<PackedFormat>,
    /// The weight itself.
    pub weight: ErrorNorms,
    /// QLoRA, whatever its rank: `W - widen(pack(W))`.
    pub qlora: ErrorNorms,
    /// LoftQ, by rank.
    pub loftq: Vec<ErrorNorms>,
    /// QPiSSA, by rank. QSORSA loses the same, as the product of its factors is the same.
    pub qpissa: Vec<ErrorNorms>,
}

impl StartsToMeasure {
    /// What each start loses of every weight that `config` chooses in the plain `model`, one weight on each thread at a time.
    /// `progress` is called after each weight with the number of measured weights and the number of all.
    ///
    /// # Errors
    ///
    /// Those of [`AdapterConfig::targets`]; [`AdapterError::Decomposition`] with a line for each weight that cannot be measured.
    pub fn measure_model<M: Module>(
        &self,
        config: &AdapterConfig,
        model: &M,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<(Target, QuantizationErrors)>, AdapterError> {
        let targets = config.targets(model)?;
        let paths: BTreeSet<&str> = targets.iter().map(|target| target.path.as_str()).collect();
        let weights = weights(model, &paths);
        let done = AtomicUsize::new(0);
        let one = |target: &Target| {
            let weight = weights[&target.path].clone();
            let stored = match &weight {
                WeightOperand::Dense(_) => None,
                WeightOperand::Packed(packed) => Some(packed.matrix().format()),
            };
            let measured = match transposed(&target.path, weight, &NothingPacked) {
                Ok(weight) => match self.measure(&target.path, &weight) {
                    Ok(errors) => Ok(QuantizationErrors { stored, ..errors }),
                    Err(error) => Err(error.to_string()),
                },
                Err(error) => Err(error.to_string()),
            };
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, targets.len());
            measured
        };
        let measured: Vec<_> = targets.par_iter().with_max_len(1).map(one).collect();
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        for (target, measured) in targets.into_iter().zip(measured) {
            match measured {
                Ok(errors) => found.push((target, errors)),
                Err(fault) => faults.push(fault),
            }
        }
        if faults.is_empty() { Ok(found) } else { Err(AdapterError::Decomposition { faults }) }
    }

    /// What each start loses of `weight`, which is `W^T` `[d_out, d_in]`. Errors call it `name`.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the weight is not finite, does not fit the format, or an SVD does not converge.
    pub fn measure(&self, name: &str, weight: &HostTensor) -> Result<QuantizationErrors, StartError> {
        let smaller_side = weight.shape.iter().copied().min().unwrap_or(0);
        let of = |first: FirstFactors, rank: usize, rounds: usize| {
            let (rank, format, svd) = (rank.min(smaller_side), self.format, &self.svd);
            let fit = QuantizedStart { name, format, rank, rounds, first, svd }.fit(weight, Principal::pair)?;
            let pair = fit.start.as_ref().map(Principal::pair);
            Ok::<_, StartError>(error_norms(name, weight, &fit.packed, pair.as_ref())?)
        };
        let by_rank =
            |first| self.ranks.iter().map(|rank| of(first, *rank, self.rounds)).collect::<Result<Vec<_>, _>>();
        Ok(QuantizationErrors {
            stored: None,
            weight: norms(name, weight)?,
            qlora: of(FirstFactors::Nothing, 1, 0)?,
            loftq: by_rank(FirstFactors::Nothing)?,
            qpissa: by_rank(FirstFactors::LeadingTriplets)?,
        })
    }
}

/// Norms of `W - (widen(q) + A B)`, for `weight`, which is `W^T` `[d_out, d_in]`.
fn error_norms(
    name: &str,
    weight: &HostTensor,
    packed: &PackedMatrix,
    pair: Option<&FactorPair>,
) -> Result<ErrorNorms, LinalgError> {
    let mut error = packing_error(weight, packed);
    if let Some(pair) = pair {
        subtract_product(&mut error, pair);
    }
    norms(name, &error)
}

fn norms(name: &str, matrix: &HostTensor) -> Result<ErrorNorms, LinalgError> {
    let squares = matrix.values.iter().map(|value| f64::from(*value).powi(2));
    Ok(ErrorNorms { nuclear: nuclear_norm(name, matrix.matrix())?, frobenius: squares.sum::<f64>().sqrt() })
}
