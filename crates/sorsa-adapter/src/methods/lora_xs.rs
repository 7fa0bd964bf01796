//! LoRA-XS (arXiv 2405.17604): between two frozen factors, the leading singular triplets of the weight, only
//! a square matrix is trained:
//!
//! ```text
//! y = x W + ((x A) R) B * scale        A = U_r diag(s_r)        B = V_r^T
//! ```
//!
//! with `W ~ U_r diag(s_r) V_r^T`, `A [d_in, r]`, `B [r, d_out]` and `R [r, r]`. `R` is normal with a small standard
//! deviation at the start (1e-5 by default), so the adapter adds nearly nothing; the weight is not split. The trained
//! numbers are `r^2` for each weight, whatever its shape. In PEFT it is an exact LoRA of the factors `A R` and `B`.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use burn::tensor::FloatDType;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_ops::{FactoredLinearShape, Form, OperationMemory, WeightOperand, factored_linear_memory, linear};

use crate::factors::{Axes, Factor, FactorPair, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};
use crate::{AdapterConfig, Init};

/// The settings of LoRA-XS.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraXsConfig {
    /// Standard deviation of `R` at the start.
    pub deviation: f64,
}

impl Default for LoraXsConfig {
    fn default() -> Self {
        Self { deviation: 1e-5 }
    }
}

/// The trained matrix and the frozen factors of one weight.
#[derive(Module, Debug)]
pub struct LoraXs {
    /// `R` `[r, r]`.
    pub r: Param<Tensor<2>>,
    /// `A` `[d_in, r]`, frozen.
    a: Tensor<2>,
    /// `B` `[r, d_out]`, frozen.
    b: Tensor<2>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for LoraXs {
    type Config = LoraXsConfig;

    const NAME: &'static str = "lora-xs";
    const LABEL: &'static str = "LoRA-XS";
    const SETTINGS: &'static [&'static str] = &["deviation"];
    const FACTORS: &'static [Factor] = &[Factor::new("r", Axes::RankRank)];
    const FROZEN_FACTORS: &'static [Factor] = &[Factor::new("a", Axes::InRank), Factor::new("b", Axes::RankOut)];
    const STARTS_FROM: StartsFrom = StartsFrom::SingularTriplets;
    const SPLITS_WEIGHT: bool = false;

    /// `x A`, and its product with `R`.
    fn memory(form: Form, _shape: [usize; 2], rank: usize, tokens: usize) -> OperationMemory {
        let product = factored_linear_memory(form, FactoredLinearShape { rows: tokens, rank, has_s: false });
        product + OperationMemory::keeping(tokens * rank)
    }

    fn faults(config: &LoraXsConfig, _adapter: &AdapterConfig) -> Vec<String> {
        match config.deviation {
            deviation if deviation.is_finite() && deviation >= 0.0 => Vec::new(),
            deviation => vec![format!("deviation must be a number of at least 0, found {deviation}")],
        }
    }

    fn start(config: &LoraXsConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let (rank, mut rng) = (weight.target.rank, weight.rng());
        let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
        let r: Vec<f32> = (0..rank * rank).map(|_| (config.deviation * normal()) as f32).collect();
        weight.factors_from_svd(|svd| {
            let mut a = svd.u;
            for row in a.values.chunks_exact_mut(rank) {
                row.iter_mut().zip(&svd.s).for_each(|(value, s)| *value *= s);
            }
            FactorSet::from([("r", HostTensor::new([rank, rank], r.clone())), ("a", a), ("b", svd.vt)])
        })
    }

    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        let (a, b) = (factors["a"].to_tensor(device), factors["b"].to_tensor(device));
        Self { r: factors["r"].param(device), a, b, dropout, scale }
    }

    fn low_rank(&self) -> LowRank {
        LowRank { a: self.a.clone().matmul(self.r.val()), s: None, b: self.b.clone(), scale: self.scale }
    }

    fn dropout(&self) -> &Dropout {
        &self.dropout
    }

    /// `x A` is the input of a factored layer with the factors `R` and `B`: no product of the size of `A` is formed.
    fn forward<const D: usize>(&self, x: Tensor<D>, base: WeightOperand, bias: Option<Tensor<1>>) -> Tensor<D> {
        let r = self.r.val();
        let input = self.drop_input(&x, &r).unwrap_or_else(|| x.clone());
        let a = self.a.clone().cast(FloatDType::from(input.dtype()));
        let projected = linear(input, a, None);
        LowRank { a: r, s: None, b: self.b.clone(), scale: self.scale }.forward(x, base, bias, Some(projected))
    }

    fn product(factors: &FactorSet) -> FactorPair {
        let a = factors["a"].matrix() * factors["r"].matrix();
        FactorPair { a: HostTensor::from_matrix(a.as_ref()), b: factors["b"].clone() }
    }

    fn to_peft(_config: &LoraXsConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Lora(Init::Kaiming), dora: false }
    }
}
