//! PiSSA (arXiv 2404.02948): `y = x W_r + (x A) B * scale` with `A = U_p sqrt(s_p)` and `B = sqrt(s_p) V_p^T` at the
//! start. The residual `W_r` is the same as SORSA's; there is no regularizer.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Band;
use crate::factors::{Axes, Factor, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{AlphaConvention, StartingFactors, WeightToAdapt};

/// The settings of PiSSA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PissaConfig {
    /// What happens to the singular values if the scale is not 1.
    pub alpha_convention: AlphaConvention,
    /// Which singular triplets are split off. With the minor ones it is MiLoRA (arXiv 2406.09044).
    #[serde(skip_serializing_if = "Band::is_principal")]
    pub band: Band,
}

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
    type Config = PissaConfig;

    const NAME: &'static str = "pissa";
    const LABEL: &'static str = "PiSSA";
    const SETTINGS: &'static [&'static str] = &["alpha_convention", "band"];
    const ADDS_LOW_RANK: bool = true;
    const FACTORS: &'static [Factor] = &[Factor::new("a", Axes::InRank), Factor::new("b", Axes::RankOut)];
    const STARTS_FROM: StartsFrom = StartsFrom::SingularTriplets;
    const SPLITS_WEIGHT: bool = true;
    const QUANTIZATION_ROUNDS: Option<usize> = Some(5);

    fn band(config: &PissaConfig) -> Band {
        config.band
    }

    fn start(config: &PissaConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let divisor = weight.divisor(config.alpha_convention)?;
        weight.factors_from_band(config.band, |svd| {
            let [a, b] = svd.balanced(divisor);
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

    fn to_peft(_config: &PissaConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Pissa, dora: false }
    }

    fn from_peft(variant: PeftVariant) -> Option<PissaConfig> {
        match variant.init {
            PeftInit::Pissa | PeftInit::PissaApproximate(_) => Some(PissaConfig::default()),
            PeftInit::Lora(_) | PeftInit::Olora => None,
        }
    }

    fn starting_like_peft(_config: PissaConfig) -> PissaConfig {
        PissaConfig::default()
    }
}
