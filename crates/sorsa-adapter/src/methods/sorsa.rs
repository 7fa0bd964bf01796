//! SORSA (arXiv 2409.00055): a weight `W [d_in, d_out]` with thin SVD `U diag(s) V^T` is split into a trained
//! principal part and a frozen residual,
//!
//! ```text
//! y = x W_r + ((x U_p) * s_p) V_p^T * scale        W_r = W - scale * U_p diag(s_p) V_p^T
//! ```
//!
//! with `U_p [d_in, r]`, `s_p [r]` (a vector) and `V_p^T [r, d_out]`. At the start `s_p = s / scale`.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use sorsa_linalg::LinalgError;

use crate::factors::{Axes, Factor, FactorSet, HostTensor, Orthonormal};
use crate::method::{FactoredMethod, LowRank, Source};
use crate::parameters::ParameterGroup;
use crate::start::{Start, Started};

/// The trained part of one weight: left singular vectors, singular values, right singular vectors.
#[derive(Module, Debug)]
pub struct Sorsa {
    /// `U_p` `[d_in, r]`, columns orthonormal at the start.
    pub u: Param<Tensor<2>>,
    /// `s_p` `[r]`.
    pub s: Param<Tensor<1>>,
    /// `V_p^T` `[r, d_out]`, rows orthonormal at the start.
    pub vt: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for Sorsa {
    const FACTORS: &'static [Factor] = &[
        Factor { orthonormal: Some(Orthonormal::Columns), ..Factor::new("u", Axes::InRank) },
        Factor { group: ParameterGroup::SingularValues, ..Factor::new("s", Axes::Rank) },
        Factor { orthonormal: Some(Orthonormal::Rows), ..Factor::new("vt", Axes::RankOut) },
    ];
    const SOURCE: Source = Source::Svd;
    const SPLITS: bool = true;

    /// Before the singular values and after.
    fn kept_per_token(_shape: [usize; 2], rank: usize) -> usize {
        2 * rank
    }

    fn start(at: &Start<'_>) -> Result<Started, LinalgError> {
        let divisor = at.config.alpha_convention.divisor(at.target.scale);
        at.by_svd(|svd| {
            let s = svd.s.iter().map(|value| value / divisor).collect();
            FactorSet::from([("u", svd.u), ("s", HostTensor::new([svd.s.len()], s)), ("vt", svd.vt)])
        })
    }

    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        Self {
            u: factors["u"].param(device),
            s: factors["s"].param(device),
            vt: factors["vt"].param(device),
            dropout,
            scale,
        }
    }

    fn low_rank(&self) -> LowRank {
        LowRank { a: self.u.val(), s: Some(self.s.val()), b: self.vt.val(), scale: self.scale }
    }

    fn dropout(&self) -> &Dropout {
        &self.dropout
    }
}
