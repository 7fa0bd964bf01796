//! LoRA (arXiv 2106.09685): `y = x W + (x A) B * scale` with `A` random and `B = 0` at the start. The weight `W` is
//! frozen. rsLoRA is the same with another scale. Beside a packed weight it is QLoRA (arXiv 2305.14314), and with rounds of packing
//! LoftQ (arXiv 2310.08659): `scale A B` starts as the leading part of what packing loses.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_linalg::faer::Mat;
use sorsa_linalg::leading_qr;

use crate::AdapterConfig;
use crate::factors::{Axes, Factor, FactorPair, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};

/// How the factors of LoRA and DoRA start: PEFT's `init_lora_weights` `true`, `"gaussian"` and `"orthogonal"`. With
/// each of them the adapter adds nothing at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// `A` uniform within `1 / sqrt(d_in)`, which is Kaiming's with `a = sqrt(5)`; `B = 0`.
    #[default]
    Kaiming,
    /// `A` normal with standard deviation `1 / rank`; `B = 0`.
    Gaussian,
    /// `A = X Q_even / 10` and `B = Q_odd^T Y / 10`. `X` and `Y` are standard normal; `Q_even` and `Q_odd` are the even
    /// and the odd rows of a random orthogonal `[r, r]`. Neither factor is 0, but their product is. The rank must be even.
    Orthogonal,
}

/// The settings of LoRA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// How the factors start.
    #[serde(skip_serializing_if = "Init::is_default")]
    pub init: Init,
}

impl Init {
    /// Whether it is the start that files do not mention.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// A line for each of the `ranks` that this start cannot have.
    pub(super) fn faults(self, ranks: &[usize]) -> Vec<String> {
        match self {
            Self::Kaiming | Self::Gaussian => Vec::new(),
            Self::Orthogonal => {
                let odd = ranks.iter().filter(|rank| *rank % 2 == 1);
                odd.map(|rank| format!("init = \"orthogonal\" takes an even rank, found {rank}")).collect()
            }
        }
    }

    /// The factors `a` and `b` of one weight.
    pub(super) fn factors(self, weight: &WeightToAdapt<'_>) -> Result<FactorSet, StartError> {
        let ([d_in, d_out], rank) = (weight.target.shape, weight.target.rank);
        let mut rng = weight.rng();
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
                let q = leading_qr(&weight.target.path, normal(rank, rank).as_ref(), rank)?.q;
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
    type Config = LoraConfig;

    const NAME: &'static str = "lora";
    const LABEL: &'static str = "LoRA";
    const SETTINGS: &'static [&'static str] = &["init"];
    const ADDS_LOW_RANK: bool = true;
    const FACTORS: &'static [Factor] = &[Factor::new("a", Axes::InRank), Factor::new("b", Axes::RankOut)];
    const STARTS_FROM: StartsFrom = StartsFrom::RandomNumbers;
    const SPLITS_WEIGHT: bool = false;
    const QUANTIZATION_ROUNDS: Option<usize> = Some(0);

    fn faults(config: &LoraConfig, adapter: &AdapterConfig) -> Vec<String> {
        let mut faults = config.init.faults(&adapter.ranks());
        if !config.init.is_default() && adapter.quantization_rounds.is_some_and(|rounds| rounds > 0) {
            let name = serde_json::json!(config.init);
            faults.push(format!(
                "init = {name} has no meaning with quantization_rounds, which start from the error of the packing"
            ));
        }
        faults
    }

    fn start(config: &LoraConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        match weight.packing {
            None => Ok(config.init.factors(weight)?.into()),
            // LoftQ, whose factors correct what packing loses.
            Some(packing) => {
                let scale = weight.target.scale as f32;
                weight.factors_from_packing_error(packing, |svd| {
                    let [a, b] = svd.balanced(scale);
                    FactorSet::from([("a", a), ("b", b)])
                })
            }
        }
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

    fn of_product(pair: FactorPair) -> Option<FactorSet> {
        Some(FactorSet::from([("a", pair.a), ("b", pair.b)]))
    }

    fn to_peft(config: &LoraConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Lora(config.init), dora: false }
    }

    fn from_peft(variant: PeftVariant) -> Option<LoraConfig> {
        match variant {
            PeftVariant { init: PeftInit::Lora(init), dora: false } => Some(LoraConfig { init }),
            _ => None,
        }
    }
}
