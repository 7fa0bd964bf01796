//! SVFT (arXiv 2405.19597): a sparse matrix is trained between the whole singular bases of the weight, which are frozen:
//!
//! ```text
//! y = x W + ((x U) M) V^T * scale        W = U diag(s) V^T        U [d_in, k]        V^T [k, d_out]        k = min(d_in, d_out)
//! ```
//!
//! `M [k, k]` has `r` diagonals, and is 0 at the start. Here the rank counts the diagonals: the main one, then by turns one above and one
//! below it. Rank 1 is the paper's plain form, `2 n + 1` its banded form with `n` diagonals on each side. The trained numbers are `r k` for
//! each weight; in the last rows of diagonals beside the main one, those that lie outside of `M` are never used.
//!
//! The change of a weight has rank `k`: no small LoRA holds it. Both bases together are as large as the weight, or twice as large if it is
//! square, and a forward costs two to three times that of the weight alone.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_ops::{Form, OperationMemory, WeightOperand, linear};

use crate::factors::{Axes, Factor, FactorPair, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::method::{FactoredMethod, LowRank, StartsFrom};
use crate::peft::{PeftInit, PeftVariant};
use crate::quantized_start::StartError;
use crate::start::{StartingFactors, WeightToAdapt};
use crate::{AdapterConfig, Init};

/// The settings of SVFT: it has none beside the rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SvftConfig {}

/// The trained diagonals and the frozen bases of one weight.
#[derive(Module, Debug)]
pub struct Svft {
    /// The diagonals of `M` `[k, r]`: row `i` has the elements of row `i` of `M` from the column `i - (r - 1) / 2` on.
    pub diagonals: Param<Tensor<2>>,
    /// `U` `[d_in, k]`, frozen.
    u: Tensor<2>,
    /// `V^T` `[k, d_out]`, frozen.
    vt: Tensor<2>,
    dropout: Dropout,
    #[module(skip)]
    scale: f64,
}

/// How many of `count` diagonals are below the main one.
fn below(count: usize) -> usize {
    (count - 1) / 2
}

impl Svft {
    /// `M` `[k, k]`.
    fn matrix(&self) -> Tensor<2> {
        let diagonals = self.diagonals.val();
        let [side, count] = diagonals.dims();
        let width = side + count - 1;
        // In rows that are one element longer, each row of the diagonals begins one column further right.
        let zeros = Tensor::zeros([side, side], &diagonals.device());
        let padded = Tensor::cat(vec![diagonals, zeros], 1).reshape([side * (width + 1)]);
        let band = padded.narrow(0, 0, side * width).reshape([side, width]);
        band.narrow(1, below(count), side)
    }
}

impl FactoredMethod for Svft {
    type Config = SvftConfig;

    const NAME: &'static str = "svft";
    const LABEL: &'static str = "SVFT";
    const FACTORS: &'static [Factor] = &[Factor::new("diagonals", Axes::SideRank)];
    const FROZEN_FACTORS: &'static [Factor] = &[Factor::new("u", Axes::InSide), Factor::new("vt", Axes::SideOut)];
    const STARTS_FROM: StartsFrom = StartsFrom::SingularTriplets;
    const SPLITS_WEIGHT: bool = false;

    /// `x U`, its product with `M`, and `M`.
    fn memory(_form: Form, [d_in, d_out]: [usize; 2], _rank: usize, tokens: usize) -> OperationMemory {
        let side = d_in.min(d_out);
        let wide = OperationMemory { kept: 0, workspace: 4 * (3 * tokens * side) as u64 };
        wide + OperationMemory::keeping(2 * tokens * side + side * side)
    }

    fn faults(_config: &SvftConfig, adapter: &AdapterConfig) -> Vec<String> {
        match adapter.rank_energy {
            Some(_) => vec!["the rank of svft counts trained diagonals: no energy of the weight decides it".to_owned()],
            None => Vec::new(),
        }
    }

    fn start(_config: &SvftConfig, weight: &WeightToAdapt<'_>) -> Result<StartingFactors, StartError> {
        let (rank, side) = (weight.target.rank, weight.target.shape[0].min(weight.target.shape[1]));
        weight.factors_from_all_triplets(0..side, |svd| {
            let diagonals = HostTensor::new([side, rank], vec![0.0; side * rank]);
            FactorSet::from([("diagonals", diagonals), ("u", svd.u), ("vt", svd.vt)])
        })
    }

    fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        let (u, vt) = (factors["u"].to_tensor(device), factors["vt"].to_tensor(device));
        Self { diagonals: factors["diagonals"].param(device), u, vt, dropout, scale }
    }

    /// `U M` and `V^T`.
    fn low_rank(&self) -> LowRank {
        LowRank { a: self.u.clone().matmul(self.matrix()), s: None, b: self.vt.clone(), scale: self.scale }
    }

    fn dropout(&self) -> &Dropout {
        &self.dropout
    }

    /// `U M` is never formed. A single diagonal multiplies the elements of `x U`.
    fn forward<const D: usize>(&self, x: Tensor<D>, base: WeightOperand, bias: Option<Tensor<1>>) -> Tensor<D> {
        let diagonals = self.diagonals.val();
        let [side, count] = diagonals.dims();
        let dtype = FloatDType::from(x.dtype());
        let input = self.drop_input(&x, &diagonals).unwrap_or_else(|| x.clone());
        let inner = linear(input, self.u.clone().cast(dtype), None);
        let mixed = match count {
            1 => inner * diagonals.reshape([side]).cast(dtype).unsqueeze(),
            _ => linear(inner, self.matrix().cast(dtype), None),
        };
        let added = linear(mixed * self.scale, self.vt.clone().cast(dtype), None);
        linear(x, base, bias) + added
    }

    fn product(factors: &FactorSet) -> FactorPair {
        let (u, diagonals) = (&factors["u"], &factors["diagonals"]);
        let [side, count] = diagonals.shape[..] else { panic!("diagonals have two axes: {:?}", diagonals.shape) };
        let mut a = vec![0.0; u.values.len()];
        for (row, out) in u.values.chunks_exact(side).zip(a.chunks_exact_mut(side)) {
            for (i, (value, elements)) in row.iter().zip(diagonals.values.chunks_exact(count)).enumerate() {
                for (index, element) in elements.iter().enumerate() {
                    if let Some(out) = (i + index).checked_sub(below(count)).and_then(|column| out.get_mut(column)) {
                        *out += value * element;
                    }
                }
            }
        }
        FactorPair { a: HostTensor::new([u.shape[0], side], a), b: factors["vt"].clone() }
    }

    fn peft_fault(rank: Option<usize>) -> Option<&'static str> {
        match rank {
            Some(_) => None,
            None => Some(
                "SVFT's change of a weight has its full rank, which no small LoRA holds: merge the adapter, or name a rank to \
                 approximate it",
            ),
        }
    }

    fn to_peft(_config: &SvftConfig) -> PeftVariant {
        PeftVariant { init: PeftInit::Lora(Init::Kaiming), dora: false }
    }
}
