//! PiSSA (arXiv 2404.02948): `A = U_p sqrt(s_p)`, `B = sqrt(s_p) V_p^T`, the same residual as SORSA's, no
//! regularizer: `y = x W_r + (x A) B * scale`.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use sorsa_linalg::LinalgError;

use crate::factors::{Axes, Factor, FactorSet};
use crate::method::{FactoredMethod, LowRank, Source};
use crate::start::{Start, Started};

/// The trained factors of one weight.
#[derive(Module, Debug)]
pub struct Pissa {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `B` `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for Pissa {
    const FACTORS: &'static [Factor] = &[Factor::new("a", Axes::InRank), Factor::new("b", Axes::RankOut)];
    const SOURCE: Source = Source::Svd;
    const SPLITS: bool = true;

    fn start(at: &Start<'_>) -> Result<Started, LinalgError> {
        let divisor = at.config.alpha_convention.divisor(at.target.scale);
        at.by_svd(|svd| {
            let root: Vec<f32> = svd.s.iter().map(|value| (value / divisor).sqrt()).collect();
            let (mut a, mut b) = (svd.u, svd.vt);
            for row in a.values.chunks_exact_mut(root.len()) {
                row.iter_mut().zip(&root).for_each(|(value, root)| *value *= root);
            }
            let d_out = b.shape[1];
            for (row, root) in b.values.chunks_exact_mut(d_out).zip(&root) {
                row.iter_mut().for_each(|value| *value *= root);
            }
            FactorSet::from([("a", a), ("b", b)])
        })
    }

    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        Self { a: factors["a"].param(device), b: factors["b"].param(device), dropout, scale }
    }

    fn low_rank(&self) -> LowRank {
        LowRank { a: self.a.val(), s: None, b: self.b.val(), scale: self.scale }
    }

    fn dropout(&self) -> &Dropout {
        &self.dropout
    }
}
