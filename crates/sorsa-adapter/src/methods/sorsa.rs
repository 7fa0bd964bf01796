//! SORSA (arXiv 2409.00055): a weight `W [d_in, d_out]` with thin SVD `U diag(s) V^T` is split into a trained
//! principal part and a frozen residual,
//!
//! ```text
//! y = x W_r + ((x U_p) * s_p) V_p^T * scale        W_r = W - scale * U_p diag(s_p) V_p^T
//! ```
//!
//! with `U_p [d_in, r]`, `s_p [r]` (a vector) and `V_p^T [r, d_out]`. At the start `s_p = s / scale`. By settings, the triplets are others
//! than the leading ones, factors stay as they are at the start, and a retraction takes the place of the regularizer.

pub mod author;

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;

use crate::factors::{Axes, Factor, FactorPair, FactorSet, Vectors};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::parameters::ParameterGroup;
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{AlphaConvention, StartingFactors, WeightToAdapt};
use crate::stiefel::{OrthonormalSteps, Retraction};
use crate::{AdapterConfig, Band};

/// The settings of SORSA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SorsaConfig {
    /// What happens to the singular values if the scale is not 1.
    pub alpha_convention: AlphaConvention,
    /// Which singular triplets are split off.
    #[serde(skip_serializing_if = "Band::is_principal")]
    pub band: Band,
    /// Which of the three factors are trained.
    #[serde(skip_serializing_if = "SorsaTrained::is_all")]
    pub train: SorsaTrained,
    /// How the vectors stay orthonormal, in the place of the regularizer.
    #[serde(skip_serializing_if = "Retraction::is_none")]
    pub retraction: Retraction,
    /// Steps from one retraction to the next. Between them the vectors move in the tangent space.
    #[serde(skip_serializing_if = "is_one")]
    pub retract_every: u64,
}

impl Default for SorsaConfig {
    fn default() -> Self {
        Self {
            alpha_convention: AlphaConvention::default(),
            band: Band::default(),
            train: SorsaTrained::default(),
            retraction: Retraction::default(),
            retract_every: 1,
        }
    }
}

fn is_one(number: &u64) -> bool {
    *number == 1
}

/// Which factors of SORSA are trained. The others stay as they are at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SorsaTrained {
    /// `U_p`, `s_p` and `V_p^T`, like the paper.
    #[default]
    All,
    /// `U_p` and `V_p^T`.
    Vectors,
    /// `s_p`: `r` numbers of each weight.
    SingularValues,
}

impl SorsaTrained {
    fn is_all(&self) -> bool {
        *self == Self::All
    }
}

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
    type Config = SorsaConfig;

    const NAME: &'static str = "sorsa";
    const LABEL: &'static str = "SORSA";
    const SETTINGS: &'static [&'static str] = &["alpha_convention", "band", "train", "retraction", "retract_every"];
    const ADDS_LOW_RANK: bool = true;
    const FACTORS: &'static [Factor] = &[
        Factor { orthonormal: Some(Vectors::Columns), ..Factor::new("u", Axes::InRank) },
        Factor { group: ParameterGroup::SingularValues, ..Factor::new("s", Axes::Rank) },
        Factor { orthonormal: Some(Vectors::Rows), ..Factor::new("vt", Axes::RankOut) },
    ];
    const STARTS_FROM: StartsFrom = StartsFrom::SingularTriplets;
    const SPLITS_WEIGHT: bool = true;
    const QUANTIZATION_ROUNDS: Option<usize> = Some(5);

    fn faults(config: &SorsaConfig, _adapter: &AdapterConfig) -> Vec<String> {
        let mut faults = Vec::new();
        if config.retract_every == 0 {
            faults.push("retract_every must be at least 1".to_owned());
        }
        if config.retract_every > 1 && config.retraction.is_none() {
            faults.push("retract_every has no meaning without a retraction".to_owned());
        }
        if config.train == SorsaTrained::SingularValues && !config.retraction.is_none() {
            faults.push(
                "a retraction has no meaning with train = \"singular-values\", which keeps the vectors".to_owned(),
            );
        }
        faults
    }

    fn band(config: &SorsaConfig) -> Band {
        config.band
    }

    fn trains(config: &SorsaConfig, factor: &Factor) -> bool {
        match config.train {
            SorsaTrained::All => true,
            SorsaTrained::Vectors => factor.axes != Axes::Rank,
            SorsaTrained::SingularValues => factor.axes == Axes::Rank,
        }
    }

    fn orthonormal_steps(config: &SorsaConfig) -> Option<OrthonormalSteps> {
        match config.retraction {
            Retraction::None => None,
            retraction => Some(OrthonormalSteps::projected(retraction, config.retract_every)),
        }
    }

    fn start(config: &SorsaConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let divisor = weight.divisor(config.alpha_convention)?;
        weight.factors_from_band(config.band, |svd| {
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

    fn product(factors: &FactorSet) -> FactorPair {
        let (mut a, s) = (factors["u"].clone(), &factors["s"].values);
        for row in a.values.chunks_exact_mut(s.len()) {
            row.iter_mut().zip(s).for_each(|(value, s)| *value *= s);
        }
        FactorPair { a, b: factors["vt"].clone() }
    }

    /// PEFT has no singular values of their own: it trains the product like PiSSA.
    fn to_peft(_config: &SorsaConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Pissa, dora: false }
    }

    fn starting_like_peft(config: SorsaConfig) -> SorsaConfig {
        SorsaConfig { alpha_convention: AlphaConvention::Peft, band: Band::Principal, ..config }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_that_of_the_vectors_with_the_singular_values_between_them() {
        let waves = |shape: [usize; 2], seed: f32| {
            let count = shape[0] * shape[1];
            HostTensor::new(shape, (0..count).map(|i| ((i as f32 + seed) * 0.7).sin()).collect())
        };
        let (u, vt, s) = (waves([5, 2], 1.0), waves([2, 4], 2.0), [2.0, -0.5]);
        let element = |i: usize, j: usize| -> f32 {
            (0..2).map(|k| u.values[2 * i + k] * s[k] * vt.values[4 * k + j]).sum::<f32>() * 1.5
        };
        let factors = FactorSet::from([("u", u.clone()), ("s", HostTensor::new([2], s.to_vec())), ("vt", vt.clone())]);
        let dense = Sorsa::product(&factors).dense(1.5);
        for i in 0..5 {
            for j in 0..4 {
                assert!((dense[(i, j)] - element(i, j)).abs() < 1e-6, "{i} {j}");
            }
        }
    }
}
