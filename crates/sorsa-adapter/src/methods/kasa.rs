//! KaSA (arXiv 2412.06071): the `r` minor singular components of the weight are taken away as noise, and an update in the form of an
//! SVD is trained:
//!
//! ```text
//! y = x (W - U_m diag(s_m) V_m^T) + ((x A) * s) B * scale
//! ```
//!
//! with the smallest triplets `U_m [d_in, r]`, `s_m`, `V_m^T [r, d_out]` of `W`, frozen; `A` Kaiming-uniform, `s` normal and `B = 0` at the
//! start, like in PEFT. So at the start the model is not the one before: it lacks the minor components. The weight itself stays what it
//! is, also in packed form: each forward takes the minor part away by its factors, in the same two narrow products as the update. In
//! PEFT it is an exact LoRA of rank `2 r` of the original weight.
//!
//! The method adds to the loss, for each weight, `beta ||s||^2 + gamma (||A^T A - I||_F + ||B B^T - I||_F)` (the paper's equations 9 to 12).

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_ops::{
    FactoredLinearShape, Form, LowRankFactors, OperationMemory, WeightOperand, factored_linear_memory, low_rank_product,
};

use crate::factors::{Axes, Factor, FactorPair, FactorSet, Vectors};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::parameters::ParameterGroup;
use crate::peft::{PeftInit, PeftVariant};
use crate::penalty::{Penalty, PenaltyTerm};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};
use crate::{AdapterConfig, Init};

/// The settings of KaSA.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KasaConfig {
    /// Weight of `||s||^2` in the loss.
    pub beta: f64,
    /// Weight of the orthonormality of `A` and `B` in the loss.
    pub gamma: f64,
}

impl Default for KasaConfig {
    /// The values of the paper's runs on GLUE, and PEFT's.
    fn default() -> Self {
        Self { beta: 1e-4, gamma: 1e-3 }
    }
}

/// The trained factors of one weight, and its frozen minor part.
#[derive(Module, Debug)]
pub struct Kasa {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `s` `[r]`.
    pub s: Param<Tensor<1>>,
    /// `B` `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    /// `-U_m diag(s_m) / scale` `[d_in, r]`, frozen.
    minor_a: Tensor<2>,
    /// `V_m^T` `[r, d_out]`, frozen.
    minor_b: Tensor<2>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for Kasa {
    type Config = KasaConfig;

    const NAME: &'static str = "kasa";
    const LABEL: &'static str = "KaSA";
    const SETTINGS: &'static [&'static str] = &["beta", "gamma"];
    const FACTORS: &'static [Factor] = &[
        Factor::new("a", Axes::InRank),
        Factor { group: ParameterGroup::SingularValues, ..Factor::new("s", Axes::Rank) },
        Factor::new("b", Axes::RankOut),
    ];
    const FROZEN_FACTORS: &'static [Factor] =
        &[Factor::new("minor_a", Axes::InRank), Factor::new("minor_b", Axes::RankOut)];
    const STARTS_FROM: StartsFrom = StartsFrom::SingularTriplets;
    const SPLITS_WEIGHT: bool = false;
    const KEEPS_OUTPUT: bool = false;

    /// Of a product of rank `2 r`.
    fn memory(form: Form, _shape: [usize; 2], rank: usize, tokens: usize) -> OperationMemory {
        factored_linear_memory(form, FactoredLinearShape { rows: tokens, rank: 2 * rank, has_s: false })
    }

    fn faults(config: &KasaConfig, _adapter: &AdapterConfig) -> Vec<String> {
        let weights = [("beta", config.beta), ("gamma", config.gamma)];
        let wrong = weights.into_iter().filter(|(_, weight)| !(weight.is_finite() && *weight >= 0.0));
        wrong.map(|(name, weight)| format!("{name} must be a number of at least 0, found {weight}")).collect()
    }

    fn penalties(config: &KasaConfig) -> Vec<(&'static str, Penalty)> {
        let orthonormal = |vectors| Penalty { weight: config.gamma, term: PenaltyTerm::Orthonormal(vectors) };
        vec![
            ("a", orthonormal(Vectors::Columns)),
            ("s", Penalty { weight: config.beta, term: PenaltyTerm::Squares }),
            ("b", orthonormal(Vectors::Rows)),
        ]
    }

    fn start(_config: &KasaConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let (rank, side) = (weight.target.rank, weight.target.shape[0].min(weight.target.shape[1]));
        if rank >= side {
            return Err(StartError::NothingLeft { name: weight.target.path.clone(), side, rank });
        }
        let mut drawn = Init::Kaiming.factors(weight)?;
        let s = StandardNormal.sample_iter(weight.rng()).take(rank).collect();
        drawn.insert("s", HostTensor::new([rank], s));
        let scale = weight.target.scale as f32;
        weight.factors_from_all_triplets(side - rank..side, |minor| {
            let FactorPair { mut a, b } = minor.pair();
            a.values.iter_mut().for_each(|value| *value /= -scale);
            let mut factors = drawn.clone();
            factors.extend([("minor_a", a), ("minor_b", b)]);
            factors
        })
    }

    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        Self {
            a: factors["a"].param(device),
            s: factors["s"].param(device),
            b: factors["b"].param(device),
            minor_a: factors["minor_a"].to_tensor(device),
            minor_b: factors["minor_b"].to_tensor(device),
            dropout,
            scale,
        }
    }

    /// `[A diag(s), minor A]` and `[B; minor B]`, of rank `2 r`.
    fn low_rank(&self) -> LowRank {
        let a = Tensor::cat(vec![self.a.val() * self.s.val().unsqueeze(), self.minor_a.clone()], 1);
        let b = Tensor::cat(vec![self.b.val(), self.minor_b.clone()], 0);
        LowRank { a, s: None, b, scale: self.scale }
    }

    fn dropout(&self) -> &Dropout {
        &self.dropout
    }

    /// Dropout takes elements from the input of the update alone. The minor part is a part of the frozen weight.
    fn forward<const D: usize>(&self, x: Tensor<D>, base: WeightOperand, bias: Option<Tensor<1>>) -> Tensor<D> {
        let a = self.a.val();
        let Some(input) = self.drop_input(&x, &a) else { return self.low_rank().forward(x, base, bias, None) };
        let minor = LowRank { a: self.minor_a.clone(), s: None, b: self.minor_b.clone(), scale: self.scale };
        let update = LowRankFactors { a, s: Some(self.s.val()), b: self.b.val(), scale: self.scale };
        minor.forward(x, base, bias, None) + low_rank_product(input, update)
    }

    fn product(factors: &FactorSet) -> FactorPair {
        let (rank, d_in) = (factors["s"].values.len(), factors["a"].shape[0]);
        let rows = factors["a"].values.chunks_exact(rank).zip(factors["minor_a"].values.chunks_exact(rank));
        let scaled = |row: &[f32]| row.iter().zip(&factors["s"].values).map(|(a, s)| a * s).collect::<Vec<_>>();
        let a = rows.flat_map(|(row, minor)| [scaled(row), minor.to_vec()].concat()).collect();
        let b = [&factors["b"].values[..], &factors["minor_b"].values].concat();
        let d_out = factors["b"].shape[1];
        FactorPair { a: HostTensor::new([d_in, 2 * rank], a), b: HostTensor::new([2 * rank, d_out], b) }
    }

    fn to_peft(_config: &KasaConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Lora(Init::Kaiming), dora: false }
    }
}
