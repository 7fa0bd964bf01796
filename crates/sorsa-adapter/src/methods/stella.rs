//! StelLA (arXiv 2510.01938): a trained square matrix between two trained bases that stay orthonormal,
//!
//! ```text
//! y = x W + ((x U) S) V^T * scale        U^T U = I        V^T V = I
//! ```
//!
//! with `U [d_in, r]`, `S [r, r]` and `V^T [r, d_out]`. (The paper's `U` is this `V`, as it writes `W [d_out, d_in]`.) `U` and `V` start as
//! random orthonormal bases and move on the Stiefel manifold: the gradient by the canonical metric, the optimizer's step projected to the
//! tangent space, scaled by `sqrt(width / d)`, and the polar retraction, after every step (`stiefel.rs`). `width` is the model's hidden
//! size in the paper; here it is the side that most targets have.
//!
//! The paper and its authors' code start with `S = I` and leave the weight as it is, so that attaching the adapter changes the model by
//! `scale U V^T`, a random matrix with `r` singular values of `scale` (2 in their experiments). Here `S` is `initial_s` times the
//! identity, and 0 if nothing is said: then attaching changes nothing, like `B = 0` of LoRA. The weight is not split: the adapter is an
//! exact LoRA of the factors `U S` and `V^T`.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use burn::tensor::FloatDType;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_linalg::faer::Mat;
use sorsa_linalg::leading_qr;
use sorsa_ops::{FactoredLinearShape, Form, OperationMemory, WeightOperand, factored_linear_memory, linear};

use crate::factors::{Axes, Factor, FactorPair, FactorSet, Vectors};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};
use crate::stiefel::{Metric, OrthonormalSteps, Retraction, Transport};
use crate::{AdapterConfig, Init};

/// The settings of StelLA.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StellaConfig {
    /// `S` at the start, as a multiple of the identity: 1 in the paper.
    pub initial_s: f64,
    /// Whether steps of `U` and `V` are scaled by `sqrt(width / d)`, like in the paper.
    pub scaled_steps: bool,
}

impl Default for StellaConfig {
    fn default() -> Self {
        Self { initial_s: 0.0, scaled_steps: true }
    }
}

/// The trained factors of one weight.
#[derive(Module, Debug)]
pub struct Stella {
    /// `U` `[d_in, r]`, columns orthonormal.
    pub u: Param<Tensor<2>>,
    /// `S` `[r, r]`.
    pub s: Param<Tensor<2>>,
    /// `V^T` `[r, d_out]`, rows orthonormal.
    pub vt: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for Stella {
    type Config = StellaConfig;

    const NAME: &'static str = "stella";
    const LABEL: &'static str = "StelLA";
    const SETTINGS: &'static [&'static str] = &["initial_s", "scaled_steps"];
    const FACTORS: &'static [Factor] = &[
        Factor { orthonormal: Some(Vectors::Columns), ..Factor::new("u", Axes::InRank) },
        Factor::new("s", Axes::RankRank),
        Factor { orthonormal: Some(Vectors::Rows), ..Factor::new("vt", Axes::RankOut) },
    ];
    const STARTS_FROM: StartsFrom = StartsFrom::RandomNumbers;
    const SPLITS_WEIGHT: bool = false;

    /// `x U`, and its product with `S`.
    fn memory(form: Form, _shape: [usize; 2], rank: usize, tokens: usize) -> OperationMemory {
        let product = factored_linear_memory(form, FactoredLinearShape { rows: tokens, rank, has_s: false });
        product + OperationMemory::keeping(tokens * rank)
    }

    fn faults(config: &StellaConfig, _adapter: &AdapterConfig) -> Vec<String> {
        match config.initial_s {
            size if size.is_finite() => Vec::new(),
            size => vec![format!("initial_s must be a finite number, found {size}")],
        }
    }

    fn orthonormal_steps(config: &StellaConfig) -> Option<OrthonormalSteps> {
        Some(OrthonormalSteps {
            retraction: Retraction::Polar,
            every: 1,
            metric: Metric::Canonical,
            transport: Transport::Left,
            scaled_by_width: config.scaled_steps,
        })
    }

    fn start(config: &StellaConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let ([d_in, d_out], rank) = (weight.target.shape, weight.target.rank);
        let mut rng = weight.rng();
        let mut basis = |rows: usize| {
            let normal: Mat<f64> = Mat::from_fn(rows, rank, |_, _| StandardNormal.sample(&mut rng));
            let q = leading_qr(&weight.target.path, normal.as_ref(), rank)?.q;
            let q = Mat::from_fn(rows, rank, |i, j| q[(i, j)] as f32);
            Ok::<_, StartError>(HostTensor::from_matrix(q.as_ref()))
        };
        let (u, v) = (basis(d_in)?, basis(d_out)?);
        let on_diagonal = |i: usize| if i.is_multiple_of(rank + 1) { config.initial_s as f32 } else { 0.0 };
        let s = HostTensor::new([rank, rank], (0..rank * rank).map(on_diagonal).collect());
        Ok(FactorSet::from([("u", u), ("s", s), ("vt", v.transposed())]).into())
    }

    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        let [u, s, vt] = ["u", "s", "vt"].map(|name| factors[name].param(device));
        Self { u, s, vt, dropout, scale }
    }

    fn low_rank(&self) -> LowRank {
        LowRank { a: self.u.val().matmul(self.s.val()), s: None, b: self.vt.val(), scale: self.scale }
    }

    fn dropout(&self) -> &Dropout {
        &self.dropout
    }

    /// `x U` is the input of a factored layer with the factors `S` and `V^T`: no product of the size of `U` is formed.
    fn forward<const D: usize>(&self, x: Tensor<D>, base: WeightOperand, bias: Option<Tensor<1>>) -> Tensor<D> {
        let u = self.u.val();
        let input = self.drop_input(&x, &u).unwrap_or_else(|| x.clone());
        let u = u.cast(FloatDType::from(input.dtype()));
        let projected = linear(input, u, None);
        LowRank { a: self.s.val(), s: None, b: self.vt.val(), scale: self.scale }.forward(
            x,
            base,
            bias,
            Some(projected),
        )
    }

    fn product(factors: &FactorSet) -> FactorPair {
        let a = factors["u"].matrix() * factors["s"].matrix();
        FactorPair { a: HostTensor::from_matrix(a.as_ref()), b: factors["vt"].clone() }
    }

    fn to_peft(_config: &StellaConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Lora(Init::Kaiming), dora: false }
    }
}
