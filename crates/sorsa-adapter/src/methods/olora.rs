//! OLoRA (arXiv 2406.01775): LoRA that starts from a part of the weight's QR decomposition. Like in PEFT, the weight is
//! decomposed in PyTorch's orientation, `W^T [d_out, d_in] = Q R`, and
//!
//! ```text
//! A = R[:r]^T        B = Q[:, :r]^T        W_r = W - scale * A B        y = x W_r + (x A) B * scale
//! ```
//!
//! for `A [d_in, r]` and `B [r, d_out]`, whose rows are orthonormal at the start.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_linalg::faer::MatRef;
use sorsa_linalg::{LeadingQr, leading_qr};

use crate::factors::{Axes, Factor, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};

/// The settings of OLoRA: it has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OloraConfig {}

/// The trained factors of one weight.
#[derive(Module, Debug)]
pub struct Olora {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `B` `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

impl FactoredMethod for Olora {
    type Config = OloraConfig;

    const NAME: &'static str = "olora";
    const LABEL: &'static str = "OLoRA";
    const ADDS_LOW_RANK: bool = true;
    const FACTORS: &'static [Factor] = &[Factor::new("a", Axes::InRank), Factor::new("b", Axes::RankOut)];
    const STARTS_FROM: StartsFrom = StartsFrom::Weight;
    const SPLITS_WEIGHT: bool = true;

    fn start(_config: &OloraConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let ([d_in, d_out], rank) = (weight.target.shape, weight.target.rank);
        // Rows of burn's weight are columns of PyTorch's.
        let values = HostTensor::from_tensor(weight.values()).values;
        let transposed = MatRef::from_column_major_slice(&values, d_out, d_in);
        let LeadingQr { q, r } = leading_qr(&weight.target.path, transposed, rank)?;
        let by_columns = |m: MatRef<'_, f32>| m.col_iter().flat_map(|column| column.iter().copied()).collect();
        let a = HostTensor::new([d_in, rank], by_columns(r.as_ref()));
        let b = HostTensor::new([rank, d_out], by_columns(q.as_ref()));
        Ok(FactorSet::from([("a", a), ("b", b)]).into())
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

    fn to_peft(_config: &OloraConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Olora, dora: false }
    }

    fn from_peft(variant: PeftVariant) -> Option<OloraConfig> {
        (variant.init == PeftInit::Olora).then_some(OloraConfig {})
    }
}
