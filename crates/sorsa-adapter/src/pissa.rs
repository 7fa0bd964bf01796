//! PiSSA (arXiv 2404.02948): `A = U_p sqrt(s_p)`, `B = sqrt(s_p) V_p^T`, the same residual as SORSA's, no
//! regularizer: `y = x W_r + (x A) B * scale`.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;

use crate::config::AlphaConvention;
use crate::factors::{FactorSet, Principal};

/// The trained factors of one weight.
#[derive(Module, Debug)]
pub struct Pissa {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `B` `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    pub(crate) dropout: Dropout,
    #[module(skip)]
    pub(crate) scale: f64,
}

impl Pissa {
    pub(crate) const FACTORS: [&'static str; 2] = ["a", "b"];

    pub(crate) fn start(svd: Principal, scale: f64, convention: AlphaConvention) -> FactorSet {
        let divisor = match convention {
            AlphaConvention::Peft => scale as f32,
            AlphaConvention::Author => 1.0,
        };
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
    }

    pub(crate) fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        Self { a: factors["a"].param(device), b: factors["b"].param(device), dropout, scale }
    }

    /// `(A, none, B)`.
    pub(crate) fn parts(&self) -> (Tensor<2>, Option<Tensor<1>>, Tensor<2>) {
        (self.a.val(), None, self.b.val())
    }
}
