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

use crate::config::AlphaConvention;
use crate::factors::{FactorSet, HostTensor, Principal};

/// The trained part of one weight: left singular vectors, singular values, right singular vectors.
#[derive(Module, Debug)]
pub struct Sorsa {
    /// `U_p` `[d_in, r]`, columns orthonormal at the start.
    pub u: Param<Tensor<2>>,
    /// `s_p` `[r]`.
    pub s: Param<Tensor<1>>,
    /// `V_p^T` `[r, d_out]`, rows orthonormal at the start.
    pub vt: Param<Tensor<2>>,
    pub(crate) dropout: Dropout,
    #[module(skip)]
    pub(crate) scale: f64,
}

impl Sorsa {
    pub(crate) const FACTORS: [&'static str; 3] = ["u", "s", "vt"];

    pub(crate) fn start(svd: Principal, scale: f64, convention: AlphaConvention) -> FactorSet {
        let divisor = match convention {
            AlphaConvention::Peft => scale as f32,
            AlphaConvention::Author => 1.0,
        };
        let s = svd.s.iter().map(|value| value / divisor).collect();
        FactorSet::from([("u", svd.u), ("s", HostTensor::new([svd.s.len()], s)), ("vt", svd.vt)])
    }

    pub(crate) fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        Self {
            u: factors["u"].param(device),
            s: factors["s"].param(device),
            vt: factors["vt"].param(device),
            dropout,
            scale,
        }
    }

    /// `(U_p, s_p, V_p^T)`.
    pub(crate) fn parts(&self) -> (Tensor<2>, Option<Tensor<1>>, Tensor<2>) {
        (self.u.val(), Some(self.s.val()), self.vt.val())
    }
}
