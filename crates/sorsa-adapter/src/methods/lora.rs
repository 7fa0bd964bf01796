//! LoRA (arXiv 2106.09685): `y = x W + (x A) B * scale` with `A` random and `B = 0` at the start; the base is
//! untouched. rsLoRA is the same with another scale.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use sorsa_linalg::faer::Mat;
use sorsa_linalg::{LinalgError, leading_qr};

use crate::factors::{Axes, Factor, FactorSet, HostTensor};
use crate::method::{FactoredMethod, LowRank, Source};
use crate::start::{Start, Started};

/// Where the factors of LoRA and DoRA start: PEFT's `init_lora_weights` `true`, `"gaussian"` and `"orthogonal"`. The
/// adapter does nothing at the start of any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// `A` uniform within `1 / sqrt(d_in)`, which is Kaiming's with `a = sqrt(5)`; `B = 0`.
    #[default]
    Kaiming,
    /// `A` normal with standard deviation `1 / rank`; `B = 0`.
    Gaussian,
    /// `A = X Q_even / 10` and `B = Q_odd^T Y / 10` with `X`, `Y` standard normal and `Q_even`, `Q_odd` the rows of a
    /// random orthogonal `[r, r]`, taken in turn: neither is 0, their product is. The rank must be even.
    Orthogonal,
}

impl Init {
    /// The factors `a` and `b` of one weight.
    pub(crate) fn factors(self, at: &Start<'_>) -> Result<FactorSet, LinalgError> {
        let ([d_in, d_out], rank) = (at.target.shape, at.target.rank);
        let mut rng = at.rng();
        let zeros = || vec![0.0; rank * d_out];
        let (a, b) = match self {
            Self::Kaiming => {
                let bound = 1.0 / (d_in as f32).sqrt();
                ((0..d_in * rank).map(|_| rng.random_range(-bound..bound)).collect(), zeros())
            }
            Self::Gaussian => {
                let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
                ((0..d_in * rank).map(|_| normal() / rank as f32).collect(), zeros())
            }
            Self::Orthogonal => {
                let mut normal =
                    |rows, cols| -> Mat<f64> { Mat::from_fn(rows, cols, |_, _| StandardNormal.sample(&mut rng)) };
                let q = leading_qr(&at.target.path, normal(rank, rank).as_ref(), rank)?.q;
                let half = |first| Mat::from_fn(rank / 2, rank, |i, j| q[(2 * i + first, j)]);
                let a = normal(d_in, rank / 2) * half(0);
                let b = half(1).transpose() * normal(rank / 2, d_out);
                let tenth = |m: Mat<f64>| {
                    m.row_iter().flat_map(|row| row.iter().map(|x| (x / 10.0) as f32).collect::<Vec<_>>()).collect()
                };
                (tenth(a), tenth(b))
            }
        };
        Ok(FactorSet::from([("a", HostTensor::new([d_in, rank], a)), ("b", HostTensor::new([rank, d_out], b))]))
    }
}

/// The trained factors of one weight.
#[derive(Module, Debug)]
pub struct Lora {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `B` `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for Lora {
    const FACTORS: &'static [Factor] = &[Factor::new("a", Axes::InRank), Factor::new("b", Axes::RankOut)];
    const SOURCE: Source = Source::Nothing;
    const SPLITS: bool = false;

    fn start(at: &Start<'_>) -> Result<Started, LinalgError> {
        Ok(at.config.init.factors(at)?.into())
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
