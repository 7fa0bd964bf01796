//! The time mix of RWKV-4 (arXiv 2305.13048, equations 11 to 17).

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::FloatDType;
use burn::tensor::activation::sigmoid;
use sorsa_adapter::{Linear, project};
use sorsa_ops::{Wkv4State, wkv4};

use super::channel_mix::blend;
use super::start::Start;
use crate::layers::Fresh;
use sorsa_checkpoint::{ModelConfig, RwkvConfig};

/// `output(sigmoid(receptance) * wkv(key, value))`, each of a blend of the token with its predecessor. Vectors are f32.
#[derive(Module, Debug)]
pub struct TimeMix4 {
    /// Logarithm of the decay rate of each channel `[attention_hidden_size]`.
    pub time_decay: Param<Tensor<1>>,
    /// What is added to the key of the token itself `[attention_hidden_size]`.
    pub time_first: Param<Tensor<1>>,
    /// Share of the token, against its predecessor, in what keys are made of `[1, 1, hidden_size]`.
    pub time_mix_key: Param<Tensor<3>>,
    /// The same for values.
    pub time_mix_value: Param<Tensor<3>>,
    /// The same for receptances.
    pub time_mix_receptance: Param<Tensor<3>>,
    /// Keys `[hidden_size, attention_hidden_size]`.
    pub key: Linear,
    /// Values, as keys.
    pub value: Linear,
    /// Receptances, as keys.
    pub receptance: Linear,
    /// Output `[attention_hidden_size, hidden_size]`.
    pub output: Linear,
}

impl TimeMix4 {
    pub(super) fn init(config: &ModelConfig, sizes: &RwkvConfig, fresh: &Fresh<'_>, start: &Start<'_>) -> Self {
        let (d, width) = (config.hidden_size, sizes.attention_hidden_size);
        Self {
            time_decay: start.decay([width], -5.0, 8.0),
            time_first: start.first(width),
            time_mix_key: start.own_share(d, 1.0, 0.0),
            time_mix_value: start.own_share(d, 1.0, 0.3),
            time_mix_receptance: start.own_share(d, 0.5, 0.0),
            key: fresh.linear(d, width, false),
            value: fresh.linear(d, width, false),
            receptance: fresh.linear(d, width, false),
            output: fresh.linear(width, d, false),
        }
    }

    /// Mixes `x` `[rows, len, hidden_size]`, whose predecessors are `shifted`, from `state` on.
    pub(super) fn forward(&self, x: Tensor<3>, shifted: Tensor<3>, state: Wkv4State) -> (Tensor<3>, Wkv4State) {
        let dtype = FloatDType::from(x.dtype());
        let k = project(&self.key, blend(&x, &shifted, &self.time_mix_key));
        let v = project(&self.value, blend(&x, &shifted, &self.time_mix_value));
        let r = sigmoid(project(&self.receptance, blend(&x, &shifted, &self.time_mix_receptance)));
        let (mixed, state) = wkv4(self.time_decay.val(), self.time_first.val(), k, v, state);
        (project(&self.output, r * mixed.cast(dtype)), state)
    }
}
