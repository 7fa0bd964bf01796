//! The channel mix of RWKV, `sigmoid(receptance) * value(relu(key)^2)`, which both versions share but for the way a
//! token is blended with its predecessor.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::FloatDType;
use burn::tensor::activation::{relu, sigmoid};
use sorsa_adapter::{Linear, project};

use super::start::Start;
use crate::layers::Fresh;
use crate::transparent::transparent_module;
use sorsa_checkpoint::ModelConfig;

/// The channel mix of a version.
#[derive(Debug, Clone)]
pub enum ChannelMix {
    /// Blends by the share of the token.
    V4(ChannelMix4),
    /// Blends by the share of its predecessor.
    V6(ChannelMix6),
}

transparent_module!(ChannelMix { V4, V6 });

/// The channel mix of RWKV-4. Vectors are f32.
#[derive(Module, Debug)]
pub struct ChannelMix4 {
    /// Share of the token, against its predecessor, in what keys are made of `[1, 1, hidden_size]`.
    pub time_mix_key: Param<Tensor<3>>,
    /// The same for receptances.
    pub time_mix_receptance: Param<Tensor<3>>,
    /// Keys `[hidden_size, intermediate_size]`.
    pub key: Linear,
    /// Receptances `[hidden_size, hidden_size]`.
    pub receptance: Linear,
    /// Values `[intermediate_size, hidden_size]`.
    pub value: Linear,
}

/// The channel mix of RWKV-6. Vectors are f32.
#[derive(Module, Debug)]
pub struct ChannelMix6 {
    /// Share of the predecessor, against the token, in what keys are made of `[1, 1, hidden_size]`.
    pub time_maa_k: Param<Tensor<3>>,
    /// The same for receptances.
    pub time_maa_r: Param<Tensor<3>>,
    /// Keys `[hidden_size, intermediate_size]`.
    pub key: Linear,
    /// Receptances `[hidden_size, hidden_size]`.
    pub receptance: Linear,
    /// Values `[intermediate_size, hidden_size]`.
    pub value: Linear,
}

impl ChannelMix4 {
    pub(super) fn init(config: &ModelConfig, fresh: &Fresh<'_>, start: &Start<'_>) -> Self {
        let (d, ffn) = (config.hidden_size, config.intermediate_size);
        Self {
            time_mix_key: start.own_share(d, 1.0, 0.0),
            time_mix_receptance: start.own_share(d, 1.0, 0.0),
            key: fresh.linear(d, ffn, false),
            receptance: fresh.linear(d, d, false),
            value: fresh.linear(ffn, d, false),
        }
    }
}

impl ChannelMix6 {
    pub(super) fn init(config: &ModelConfig, fresh: &Fresh<'_>, start: &Start<'_>) -> Self {
        let (d, ffn) = (config.hidden_size, config.intermediate_size);
        Self {
            time_maa_k: start.predecessor_share(d, 1.0, 0.0),
            time_maa_r: start.predecessor_share(d, 1.0, 0.0),
            key: fresh.linear(d, ffn, false),
            receptance: fresh.linear(d, d, false),
            value: fresh.linear(ffn, d, false),
        }
    }
}

impl ChannelMix {
    /// Mixes the channels of `x` `[rows, len, hidden_size]`, whose predecessors are `shifted`.
    pub(super) fn forward(&self, x: Tensor<3>, shifted: Tensor<3>) -> Tensor<3> {
        let (for_key, for_receptance, key, receptance, value) = match self {
            Self::V4(mix) => (
                blend(&x, &shifted, &mix.time_mix_key),
                blend(&x, &shifted, &mix.time_mix_receptance),
                &mix.key,
                &mix.receptance,
                &mix.value,
            ),
            // The share of the predecessor: the two change places.
            Self::V6(mix) => (
                blend(&shifted, &x, &mix.time_maa_k),
                blend(&shifted, &x, &mix.time_maa_r),
                &mix.key,
                &mix.receptance,
                &mix.value,
            ),
        };
        let hidden = relu(project(key, for_key)).square();
        sigmoid(project(receptance, for_receptance)) * project(value, hidden)
    }
}

/// `share * a + (1 - share) * b`, in the dtype of `a`.
pub(super) fn blend(a: &Tensor<3>, b: &Tensor<3>, share: &Param<Tensor<3>>) -> Tensor<3> {
    let share = share.val().cast(FloatDType::from(a.dtype()));
    b.clone() + (a.clone() - b.clone()) * share
}
