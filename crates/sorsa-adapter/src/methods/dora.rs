//! DoRA (arXiv 2402.09353): LoRA on the direction of each column of the weight, and a trained magnitude for each:
//!
//! ```text
//! y = (x W + (x A) B * scale) * g + bias        g = m / n        n_j = ||(W + scale A B)_j||
//! ```
//!
//! with `m [d_out]` the norms of the columns of `W` at the start. No gradient flows through `n`, like in the paper
//! (section 4.3) and in PEFT.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use serde::{Deserialize, Serialize};
use sorsa_ops::{FactoredLinearShape, Form, OperationMemory, WeightOperand, factored_linear_memory};

use super::lora::Init;
use sorsa_files::HostTensor;

use crate::AdapterConfig;
use crate::factors::{Axes, Factor, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::parameters::ParameterGroup;
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};

/// The settings of DoRA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DoraConfig {
    /// How the factors start.
    #[serde(skip_serializing_if = "Init::is_default")]
    pub init: Init,
}

/// The trained factors and magnitudes of one weight.
#[derive(Module, Debug)]
pub struct Dora {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `B` `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    /// `m` `[d_out]`.
    pub magnitude: Param<Tensor<1>>,
    /// `||W_j||^2` `[d_out]` of the frozen weight.
    column_squares: Option<Tensor<1>>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

/// `||W_j||^2` of each column, f32.
fn column_squares(weight: Tensor<2>) -> Tensor<1> {
    weight.cast(FloatDType::F32).square().sum_dim(0).squeeze_dim(0)
}

/// `A^T W` `[r, d_out]` in f32, of a weight of any float dtype or packed format.
fn projected(a: Tensor<2>, weight: WeightOperand) -> Tensor<2> {
    /// Rows of a narrower weight that are widened at a time; a widened copy of the weight is twice its size.
    const ROWS: usize = 1024;
    let weight = match weight {
        WeightOperand::Dense(weight) => weight,
        packed @ WeightOperand::Packed(_) => return sorsa_ops::linear(a.transpose(), packed, None),
    };
    if weight.dtype() == DType::F32 {
        return a.transpose().matmul(weight);
    }
    let d_in = weight.dims()[0];
    let part = |start: usize| {
        let rows = start..d_in.min(start + ROWS);
        let wide = weight.clone().slice([rows.clone()]).cast(FloatDType::F32);
        a.clone().slice([rows]).transpose().matmul(wide)
    };
    (ROWS..d_in).step_by(ROWS).map(part).fold(part(0), |sum, part| sum + part)
}

impl Dora {
    /// The norms `n` `[d_out]` of the columns of `W + scale A B`, f32 and without autodiff.
    ///
    /// They are computed from the terms of the square, `||W_j||^2 + B_j^T (2 scale A^T W + scale^2 A^T A B)_j`. This
    /// takes one narrow product with the weight, like the forward of `r` tokens; a dense `A B` costs the same but fills
    /// `[d_in, d_out]` numbers each step. The first term never changes: it is computed once. If the adapter cancels a
    /// column, accuracy is lost: the relative error of `n` is `eps ||W_j||^2 / n^2`.
    fn norms(&self, base: WeightOperand) -> Tensor<1> {
        let (a, b) = (self.a.val().without_autodiff(), self.b.val().without_autodiff());
        let base = match base {
            WeightOperand::Dense(weight) => weight.without_autodiff().into(),
            packed @ WeightOperand::Packed(_) => packed,
        };
        let squares = match &self.column_squares {
            Some(squares) => squares.clone().without_autodiff(),
            None => column_squares(base.clone().into_dense()),
        };
        let gram = a.clone().transpose().matmul(a.clone());
        let cross = projected(a, base) * (2.0 * self.scale) + gram.matmul(b.clone()) * self.scale.powi(2);
        let added = (cross * b).sum_dim(0).squeeze_dim(0);
        let norms = (squares + added).clamp_min(0.0).sqrt();
        // A column of zeros stays one under any magnitude.
        let zero = norms.clone().equal_elem(0.0);
        norms.mask_fill(zero, 1.0)
    }

    /// `g` `[d_out]`, f32. Only the magnitude gets a gradient.
    fn gain(&self, base: WeightOperand) -> Tensor<1> {
        self.magnitude.val() / self.norms(base)
    }
}

impl FactoredMethod for Dora {
    type Config = DoraConfig;

    const NAME: &'static str = "dora";
    const LABEL: &'static str = "DoRA";
    const SETTINGS: &'static [&'static str] = &["init"];
    const FACTORS: &'static [Factor] = &[
        Factor::new("a", Axes::InRank),
        Factor::new("b", Axes::RankOut),
        Factor { group: ParameterGroup::Magnitude, ..Factor::new("magnitude", Axes::Out) },
    ];
    /// A merged column has the norm `|m|`, which says nothing about `n`.
    const UNMERGE_FACTORS: &'static [Factor] = &[Factor::new("norm", Axes::Out)];
    const STARTS_FROM: StartsFrom = StartsFrom::Weight;
    const SPLITS_WEIGHT: bool = false;
    const CHANGES_BY_PRODUCT: bool = false;

    /// The gradient of the magnitude needs the output before the gain too.
    fn memory(form: Form, [_, d_out]: [usize; 2], rank: usize, tokens: usize) -> OperationMemory {
        let product = factored_linear_memory(form, FactoredLinearShape { rows: tokens, rank, has_s: false });
        product + OperationMemory::keeping(tokens * d_out)
    }

    fn faults(config: &DoraConfig, adapter: &AdapterConfig) -> Vec<String> {
        config.init.faults(&adapter.ranks())
    }

    fn start(config: &DoraConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let mut factors = config.init.factors(weight)?;
        factors.insert("magnitude", HostTensor::from_tensor(column_squares(weight.values()).sqrt()));
        Ok(factors.into())
    }

    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        let magnitude = factors["magnitude"].param(device);
        Self {
            a: factors["a"].param(device),
            b: factors["b"].param(device),
            magnitude,
            column_squares: None,
            dropout,
            scale,
        }
    }

    fn low_rank(&self) -> LowRank {
        LowRank { a: self.a.val(), s: None, b: self.b.val(), scale: self.scale }
    }

    fn dropout(&self) -> &Dropout {
        &self.dropout
    }

    fn with_frozen_weight(self, base: impl FnOnce() -> Tensor<2>) -> Self {
        Self { column_squares: Some(column_squares(base().without_autodiff())), ..self }
    }

    /// With dropout, like PEFT: `y = x W + bias + x_d W (g - 1) + (x_d A) B * scale * g`. The adapter's change of the
    /// weight is applied to its input `x_d` after dropout.
    fn forward<const D: usize>(&self, x: Tensor<D>, base: WeightOperand, bias: Option<Tensor<1>>) -> Tensor<D> {
        let gain = self.gain(base.clone()).cast(FloatDType::from(x.dtype())).unsqueeze::<D>();
        let low_rank = self.low_rank();
        match self.drop_input(&x, &low_rank.a) {
            None => {
                let y = low_rank.forward(x, base, None, None) * gain;
                match bias {
                    Some(bias) => {
                        let bias = bias.cast(FloatDType::from(y.dtype()));
                        y + bias.unsqueeze()
                    }
                    None => y,
                }
            }
            Some(input) => {
                let lost = sorsa_ops::linear(x - input.clone(), base.clone(), bias);
                lost + low_rank.forward(input, base, None, None) * gain
            }
        }
    }

    fn compose(&self, base: Tensor<2>) -> Tensor<2> {
        let gain = self.gain(base.clone().into()).unsqueeze();
        self.low_rank().added_to(base, 1.0) * gain
    }

    fn unmerge_factors(&self, base: Tensor<2>) -> FactorSet {
        FactorSet::from([("norm", HostTensor::from_tensor(self.norms(base.into())))])
    }

    fn unmerge(&self, weight: Tensor<2>, saved: &FactorSet) -> Tensor<2> {
        let norms = saved["norm"].to_tensor::<1>(&weight.device());
        let magnitude = self.magnitude.val();
        let zero = magnitude.clone().equal_elem(0.0);
        let inverse_gain = (norms / magnitude).mask_fill(zero, 0.0);
        self.low_rank().added_to(weight * inverse_gain.unsqueeze(), -1.0)
    }

    fn to_peft(config: &DoraConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Lora(config.init), dora: true }
    }

    fn from_peft(variant: PeftVariant) -> Option<DoraConfig> {
        match variant {
            PeftVariant { init: PeftInit::Lora(init), dora: true } => Some(DoraConfig { init }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    #[test]
    fn norms_by_the_terms_of_the_square_are_those_of_the_dense_sum_for_a_weight_of_either_dtype() {
        let device = Device::flex();
        let (d_in, d_out, rank) = (2100, 3, 2);
        let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let factors = |a, b| {
            let magnitude = HostTensor::new([d_out], vec![1.0; d_out]);
            FactorSet::from([
                ("a", HostTensor::from_tensor(a)),
                ("b", HostTensor::from_tensor(b)),
                ("magnitude", magnitude),
            ])
        };
        let (a, b) = (random([d_in, rank]), random([rank, d_out]));
        let dropout = burn::nn::DropoutConfig::new(0.0).init();
        let dora = Dora::new(&factors(a.clone(), b.clone()), 1.5, dropout, &device);
        for dtype in [FloatDType::F32, FloatDType::BF16] {
            let weight = random([d_in, d_out]).cast(dtype);
            let dense = weight.clone().cast(FloatDType::F32) + a.clone().matmul(b.clone()) * 1.5;
            let expected = HostTensor::from_tensor(column_squares(dense).sqrt()).values;
            // With and without the squares of the weight that are computed once.
            for module in [dora.clone(), dora.clone().with_frozen_weight(|| weight.clone())] {
                let found = HostTensor::from_tensor(module.norms(weight.clone().into())).values;
                let near = found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-5 * e);
                assert!(near, "{dtype:?}: {found:?}, expected {expected:?}");
            }
        }
    }
}
