//! The start of an adapter beside a packed weight: packing loses a part of the weight, and the factors are fitted to what it
//! loses, in turns with the packing:
//!
//! ```text
//! q = pack(W - L R)        L R = the r leading triplets of W - widen(q)
//! ```
//!
//! - QPiSSA (arXiv 2404.02948, section 4) and QSORSA begin with `L R`, the leading triplets of `W`. They differ in the form of the
//!   factors alone, so their errors are equal.
//! - LoftQ (arXiv 2310.08659) begins with `L R = 0`.
//! - QLoRA (arXiv 2305.14314) is LoftQ without a round: `q = pack(W)`, and factors that add nothing.
//!
//! Each round ends with the factors. The loop of PiSSA's authors ends with the packing: their round `n` has the `q` of round `n` here,
//! and the factors that were subtracted before it.

use sorsa_files::HostTensor;
use sorsa_linalg::{LinalgError, SvdOptions, truncated_svd};
use sorsa_ops::{PackedError, PackedFormat, PackedMatrix};

use crate::factors::{FactorPair, Principal};
use crate::host_tensor::HostTensorExt;
use crate::packed_residual::{packed_residual, packing_error};

/// Why the factors of one weight cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The weight cannot be decomposed.
    #[error(transparent)]
    Decomposition(#[from] LinalgError),
    /// The residual cannot be packed.
    #[error("matrix `{name}`: {source}")]
    Packing {
        /// The weight's module.
        name: String,
        /// The reason.
        source: PackedError,
    },
    /// Packing loses nothing that LoftQ's factors could be fitted to.
    #[error("matrix `{name}` loses nothing if it is packed to {format}: LoftQ has nothing to start from")]
    NothingLost {
        /// The weight's module.
        name: String,
        /// The format.
        format: PackedFormat,
    },
    /// A method that starts from the gradient of the loss has none, or one of zeros.
    #[error("matrix `{name}`: the start needs a gradient of the loss, and there is none")]
    NoGradient {
        /// The weight's module.
        name: String,
    },
    /// A method that takes the minor triplets away from a weight would take all.
    #[error("matrix `{name}` has {side} singular values: with the {rank} smallest taken away, nothing of it is left")]
    NothingLeft {
        /// The weight's module.
        name: String,
        /// The smaller side of the weight.
        side: usize,
        /// How many would be taken away.
        rank: usize,
    },
    /// The residual would not be what the packing leaves of the weight.
    #[error(
        "matrix `{name}`: alpha_convention = \"author\" subtracts {scale} times the principal part, which no rounds of packing \
         can fit: take \"peft\", a scale of 1, quantization_rounds = 0 or residual = \"dense\""
    )]
    ScaledPrincipalPart {
        /// The weight's module.
        name: String,
        /// The adapter's scale.
        scale: f64,
    },
}

/// What is subtracted from a weight before it is packed for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstFactors {
    /// The leading triplets of the weight.
    LeadingTriplets,
    /// Nothing.
    Nothing,
}

/// How a weight is packed beside factors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuantizedStart<'a> {
    /// Path of the module, for errors.
    pub name: &'a str,
    /// Format of the packed residual.
    pub format: PackedFormat,
    pub rank: usize,
    /// How often the factors are fitted to the error of the packing.
    pub rounds: usize,
    pub first: FirstFactors,
    pub svd: &'a SvdOptions,
}

/// A packed residual, with the factors that belong to it.
#[derive(Debug, Clone)]
pub(crate) struct PackedFit {
    /// The triplets at the start of training; absent for LoftQ without a round.
    pub start: Option<Principal>,
    /// The triplets that were subtracted before the last packing; absent for nothing.
    pub subtracted: Option<Principal>,
    /// `pack(W - L R)` of the subtracted triplets, `[d_out, d_in]`.
    pub packed: PackedMatrix,
    /// The largest residual of an SVD, `||A v - s u|| / s_1`.
    pub svd_residual: f64,
}

impl QuantizedStart<'_> {
    /// Packs `weight`, which is `W^T` `[d_out, d_in]`, and fits the factors in turns. `pair` makes of triplets the two factors, the
    /// scale included, whose product is subtracted from the weight.
    pub fn fit(&self, weight: &HostTensor, pair: impl Fn(&Principal) -> FactorPair) -> Result<PackedFit, StartError> {
        let mut svd_residual = 0f64;
        let mut leading = |transposed: &HostTensor| {
            let svd = truncated_svd(self.name, transposed.matrix().transpose(), self.rank, self.svd)?;
            svd_residual = svd_residual.max(svd.report.residual);
            let (u, vt) = (HostTensor::from_matrix(svd.u.as_ref()), HostTensor::from_matrix(svd.v.transpose()));
            Ok::<_, StartError>(Principal { u, s: svd.s, vt })
        };
        let pack = |triplets: Option<&Principal>| {
            let packed = packed_residual(weight.clone(), triplets.map(&pair).as_ref(), self.format);
            packed.map_err(|source| StartError::Packing { name: self.name.to_owned(), source })
        };
        let mut start = match self.first {
            FirstFactors::LeadingTriplets => Some(leading(weight)?),
            FirstFactors::Nothing => None,
        };
        let mut packed = pack(start.as_ref())?;
        let mut subtracted = start.clone();
        for round in 1..=self.rounds {
            let fitted = leading(&packing_error(weight, &packed))?;
            if round < self.rounds {
                packed = pack(Some(&fitted))?;
                subtracted = Some(fitted.clone());
            }
            start = Some(fitted);
        }
        Ok(PackedFit { start, subtracted, packed, svd_residual })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::quantization_errors::{ErrorNorms, StartsToMeasure};

    const RANK: usize = 4;

    /// A file of `tests/golden/quantized_starts`.
    fn golden(name: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantized_starts").join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn floats(name: &str) -> HostTensor {
        let values = golden(name).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        HostTensor::new([24, 48], values)
    }

    fn format() -> PackedFormat {
        "nf4-single".parse().unwrap()
    }

    #[test]
    fn residuals_and_factors_are_those_of_peft_and_of_pissas_authors() {
        let weight = floats("weight.f32");
        let svd = SvdOptions::default();
        for (method, first) in [("loftq", FirstFactors::Nothing), ("qpissa", FirstFactors::LeadingTriplets)] {
            for rounds in [1, 5] {
                let start = QuantizedStart { name: method, format: format(), rank: RANK, rounds, first, svd: &svd };
                let fit = start.fit(&weight, Principal::pair).unwrap();
                let codes = &fit.packed.four_bit().unwrap().codes;
                assert_eq!(codes, &golden(&format!("{method}{rounds}.codes")), "{method} {rounds}");
                let product = fit.start.unwrap().pair().dense(1.0);
                let expected = floats(&format!("{method}{rounds}.product"));
                for (i, row) in expected.values.chunks_exact(48).enumerate() {
                    for (j, value) in row.iter().enumerate() {
                        assert!((product[(j, i)] - value).abs() < 1e-5, "{method} {rounds}: {i} {j}");
                    }
                }
                let subtracted = fit.subtracted.as_ref().map(Principal::pair);
                let again = packed_residual(weight.clone(), subtracted.as_ref(), format()).unwrap();
                assert_eq!(again, fit.packed, "{method} {rounds}");
            }
        }
    }

    #[test]
    fn norms_of_the_errors_are_those_of_pytorch() {
        let norms: Vec<f64> =
            golden("norms.f64").as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let [loftq1, qpissa1, loftq5, qpissa5, qlora] = norms.as_chunks::<2>().0 else { panic!("ten norms") };
        let near = |found: ErrorNorms, expected: &[f64; 2], what: &str| {
            for (found, expected) in [(found.nuclear, expected[0]), (found.frobenius, expected[1])] {
                assert!((found / expected - 1.0).abs() < 1e-4, "{what}: {found}, expected {expected}");
            }
        };
        for (rounds, loftq, qpissa) in [(1, loftq1, qpissa1), (5, loftq5, qpissa5)] {
            let starts =
                StartsToMeasure { format: format(), ranks: vec![RANK, 99], rounds, svd: SvdOptions::default() };
            let found = starts.measure("weight", &floats("weight.f32")).unwrap();
            near(found.qlora, qlora, "QLoRA");
            near(found.loftq[0], loftq, "LoftQ");
            near(found.qpissa[0], qpissa, "QPiSSA");
            // A rank beyond the smaller side takes everything that is lost.
            assert!(found.qpissa[1].nuclear < 1e-4 * found.qlora.nuclear);
        }
    }

    #[test]
    fn without_a_round_the_factors_are_those_that_are_subtracted() {
        let (weight, svd) = (floats("weight.f32"), SvdOptions::default());
        for first in [FirstFactors::Nothing, FirstFactors::LeadingTriplets] {
            let start = QuantizedStart { name: "w", format: format(), rank: RANK, rounds: 0, first, svd: &svd };
            let fit = start.fit(&weight, Principal::pair).unwrap();
            assert_eq!(fit.start.map(|triplets| triplets.u), fit.subtracted.map(|triplets| triplets.u));
        }
    }

    #[test]
    fn a_format_that_does_not_fit_the_rows_is_an_error_with_the_name_of_the_weight() {
        let (weight, svd) = (floats("weight.f32"), SvdOptions::default());
        let format = "q4_k".parse().unwrap();
        let start =
            QuantizedStart { name: "layer", format, rank: 2, rounds: 1, first: FirstFactors::Nothing, svd: &svd };
        let error = start.fit(&weight, Principal::pair).unwrap_err().to_string();
        assert_eq!(error, "matrix `layer`: rows of 48 values are not whole blocks of q4_k, which have 256");
    }
}
