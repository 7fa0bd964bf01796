//! MiCA (arXiv 2604.01694): LoRA on the minor components of the weight. `y = x W + (x A) B * scale`, with the rows of `B [r, d_out]` frozen
//! at the right singular vectors of the `r` smallest singular values of `W [d_in, d_out]`, and `A [d_in, r]`, which is trained, 0 at the
//! start. In PyTorch's orientation these are left singular vectors, and PEFT's `init_lora_weights = "mica"`. The trained numbers are
//! `r d_in` for each weight.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;

use crate::Init;
use crate::factors::{Axes, Factor, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};

/// The settings of MiCA: it has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MicaConfig {}

/// The trained and the frozen factor of one weight.
#[derive(Module, Debug)]
pub struct Mica {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `B` `[r, d_out]`, frozen.
    b: Tensor<2>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for Mica {
    type Config = MicaConfig;

    const NAME: &'static str = "mica";
    const LABEL: &'static str = "MiCA";
    const ADDS_LOW_RANK: bool = true;
    const FACTORS: &'static [Factor] = &[Factor::new("a", Axes::InRank)];
    const FROZEN_FACTORS: &'static [Factor] = &[Factor::new("b", Axes::RankOut)];
    const STARTS_FROM: StartsFrom = StartsFrom::SingularTriplets;
    const SPLITS_WEIGHT: bool = false;

    fn start(_config: &MicaConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let ([d_in, d_out], rank) = (weight.target.shape, weight.target.rank);
        let side = d_in.min(d_out);
        weight.factors_from_all_triplets(side - rank..side, |minor| {
            FactorSet::from([("a", HostTensor::new([d_in, rank], vec![0.0; d_in * rank])), ("b", minor.vt)])
        })
    }

    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        Self { a: factors["a"].param(device), b: factors["b"].to_tensor(device), dropout, scale }
    }

    fn low_rank(&self) -> LowRank {
        LowRank { a: self.a.val(), s: None, b: self.b.clone(), scale: self.scale }
    }

    fn dropout(&self) -> &Dropout {
        &self.dropout
    }

    /// PEFT before 0.21 does not know the name `mica`, and the start of an adapter that is trained already does not matter.
    fn to_peft(_config: &MicaConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Lora(Init::Kaiming), dora: false }
    }
}
