//! The gated feed-forward layer, `down(f(gate(x)) * up(x))` (Shazeer, 2020).

use burn::prelude::*;
use burn::tensor::FloatDType;
use burn::tensor::activation::gelu;
use sorsa_adapter::{Linear, project, project_each};
use sorsa_ops::{gated_gelu, gated_silu};

use crate::layers::Fresh;
use crate::transparent::transparent_module;
use sorsa_checkpoint::{Activation, ModelConfig, TransformerConfig};

/// The feed-forward layer, with its projections as the family's checkpoints have them.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one a block: a box would save nothing")]
pub enum Mlp {
    /// Gate and up from a layer each.
    Separate(SeparateMlp),
    /// Both from one.
    Fused(FusedMlp),
}

transparent_module!(Mlp { Separate, Fused });

/// A feed-forward layer whose gate and up are a linear layer each.
#[derive(Module, Debug)]
pub struct SeparateMlp {
    /// Gate `[hidden_size, intermediate_size]`.
    pub gate_proj: Linear,
    /// Up, as gate.
    pub up_proj: Linear,
    /// Down `[intermediate_size, hidden_size]`.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

/// A feed-forward layer whose gate and up are one linear layer.
#[derive(Module, Debug)]
pub struct FusedMlp {
    /// Gate and up, in this order: `[hidden_size, 2 * intermediate_size]`.
    pub gate_up_proj: Linear,
    /// Down `[intermediate_size, hidden_size]`.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    pub(crate) fn init(config: &ModelConfig, decoder: &TransformerConfig, fresh: &Fresh<'_>) -> Self {
        let (d, ffn, bias) = (config.hidden_size, config.intermediate_size, decoder.mlp_bias);
        let (down_proj, activation) = (fresh.linear(ffn, d, bias), decoder.activation);
        if decoder.fused_projections {
            let gate_up_proj = fresh.linear(d, 2 * ffn, bias);
            return Self::Fused(FusedMlp { gate_up_proj, down_proj, activation });
        }
        let (gate_proj, up_proj) = (fresh.linear(d, ffn, bias), fresh.linear(d, ffn, bias));
        Self::Separate(SeparateMlp { gate_proj, up_proj, down_proj, activation })
    }

    pub(crate) fn forward(&self, x: Tensor<3>, kept: FloatDType) -> Tensor<3> {
        match self {
            Self::Separate(mlp) => {
                let [gate, up] = project_each([&mlp.gate_proj, &mlp.up_proj], x);
                gated_down(mlp.activation, gate, up, &mlp.down_proj, kept)
            }
            Self::Fused(mlp) => {
                let both = project(&mlp.gate_up_proj, x);
                let width = both.dims()[2] / 2;
                let (gate, up) = (both.clone().narrow(2, 0, width), both.narrow(2, width, width));
                gated_down(mlp.activation, gate, up, &mlp.down_proj, kept)
            }
        }
    }
}

/// `down(f(gate) * up)`. The gated unit keeps its operands in bf16 if `kept` is bf16 or the weight that follows is.
///
/// # Shapes
///
/// - `gate`, `up`: `[rows, len, intermediate_size]`
/// - output: `[rows, len, hidden_size]`
fn gated_down(activation: Activation, gate: Tensor<3>, up: Tensor<3>, down: &Linear, kept: FloatDType) -> Tensor<3> {
    let kept = if kept == FloatDType::BF16 { kept } else { FloatDType::from(down.weight.dtype()) };
    let gated = match activation {
        Activation::Silu => gated_silu(gate, up, kept),
        Activation::Gelu => gelu(gate) * up,
        Activation::GeluTanh => gated_gelu(gate, up, kept),
    };
    project(down, gated)
}
