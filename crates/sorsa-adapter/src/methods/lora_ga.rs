//! LoRA-GA (arXiv 2407.05000): LoRA whose first step goes where that of full fine-tuning goes. The factors start from the gradient of the
//! loss with respect to the weight, over some batches. In PyTorch's orientation, `dL/dW = U diag(s) V^T [d_out, d_in]` and
//!
//! ```text
//! A = c V[:, :r]^T        B = c U[:, r:2r]        c = d_out^(1/4) / sqrt(stable_gamma)        W_r = W - scale * B A
//! ```
//!
//! so that the model computes the same at the start. If the gradient has fewer than `2 r` triplets, `B` takes the last `r`. PEFT multiplies
//! `B` by the gradient's singular values besides and leaves `A` as it is; here the equation of the paper and of its authors' code holds.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::factors::{Axes, Factor, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};
use crate::{AdapterConfig, Init};

/// The settings of LoRA-GA.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraGaConfig {
    /// Batches of the mean gradient.
    pub gradient_batches: usize,
    /// The larger, the smaller are the factors at the start.
    pub stable_gamma: f64,
}

impl Default for LoraGaConfig {
    fn default() -> Self {
        Self { gradient_batches: 8, stable_gamma: 16.0 }
    }
}

/// The trained factors of one weight.
#[derive(Module, Debug)]
pub struct LoraGa {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `B` `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for LoraGa {
    type Config = LoraGaConfig;

    const NAME: &'static str = "lora-ga";
    const LABEL: &'static str = "LoRA-GA";
    const SETTINGS: &'static [&'static str] = &["gradient_batches", "stable_gamma"];
    const ADDS_LOW_RANK: bool = true;
    const FACTORS: &'static [Factor] = &[Factor::new("a", Axes::InRank), Factor::new("b", Axes::RankOut)];
    const STARTS_FROM: StartsFrom = StartsFrom::Gradient;
    const SPLITS_WEIGHT: bool = true;

    fn faults(config: &LoraGaConfig, _adapter: &AdapterConfig) -> Vec<String> {
        let mut faults = Vec::new();
        if config.gradient_batches == 0 {
            faults.push("gradient_batches must be at least 1".to_owned());
        }
        if !(config.stable_gamma > 0.0 && (config.stable_gamma as f32).is_normal()) {
            faults.push(format!("stable_gamma must be a positive number, found {}", config.stable_gamma));
        }
        faults
    }

    fn gradient_batches(config: &LoraGaConfig) -> Option<usize> {
        Some(config.gradient_batches)
    }

    fn start(config: &LoraGaConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let ([_, d_out], rank) = (weight.target.shape, weight.target.rank);
        let length = ((d_out as f64).powf(0.25) / config.stable_gamma.sqrt()) as f32;
        weight.factors_from_gradient(2 * rank, |svd| {
            // The gradient of burn's weight is the transpose of PyTorch's.
            let count = svd.s.len();
            let (mut a, mut b) = (svd.part(0..rank).u, svd.part(count - rank..count).vt);
            a.values.iter_mut().chain(&mut b.values).for_each(|value| *value *= length);
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

    fn to_peft(_config: &LoraGaConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Lora(Init::Kaiming), dora: false }
    }
}
