//! The time mix of RWKV-6 (arXiv 2404.05892, section 4.2): the blend of a token with its predecessor, and the decay,
//! depend on the token through low-rank maps.

use burn::module::{Initializer, Param};
use burn::prelude::*;
use burn::tensor::FloatDType;
use burn::tensor::activation::{silu, tanh};
use burn::tensor::module::linear;
use sorsa_adapter::{Linear, project};
use sorsa_ops::{group_norm, wkv6};

use super::start::Start;
use crate::layers::{Fresh, LayerNorm};
use sorsa_checkpoint::{ModelConfig, RwkvConfig};

/// `output(silu(gate) * norm(wkv(receptance, key, value, decay)))`. All but the projections is f32.
#[derive(Module, Debug)]
pub struct TimeMix6 {
    /// Share of the predecessor in what the other shares depend on `[1, 1, hidden_size]`.
    pub time_maa_x: Param<Tensor<3>>,
    /// Share of the predecessor in what decays are made of, before what the token adds.
    pub time_maa_w: Param<Tensor<3>>,
    /// The same for keys.
    pub time_maa_k: Param<Tensor<3>>,
    /// The same for values.
    pub time_maa_v: Param<Tensor<3>>,
    /// The same for receptances.
    pub time_maa_r: Param<Tensor<3>>,
    /// The same for gates.
    pub time_maa_g: Param<Tensor<3>>,
    /// What the token adds to the five shares, first factor: `[hidden_size, 5 * rank]`.
    pub time_maa_w1: Param<Tensor<2>>,
    /// Second factor, in the order w, k, v, r, g: `[5, rank, hidden_size]`.
    pub time_maa_w2: Param<Tensor<3>>,
    /// Logarithm of the decay rate `[1, 1, attention_hidden_size]`, before what the token adds.
    pub time_decay: Param<Tensor<3>>,
    /// What the token adds, first factor: `[hidden_size, rank]`.
    pub time_decay_w1: Param<Tensor<2>>,
    /// Second factor: `[rank, attention_hidden_size]`.
    pub time_decay_w2: Param<Tensor<2>>,
    /// Weight of the token itself `[heads, head_size]`.
    pub time_faaaa: Param<Tensor<2>>,
    /// Receptances `[hidden_size, attention_hidden_size]`.
    pub receptance: Linear,
    /// Keys, as receptances.
    pub key: Linear,
    /// Values, as receptances.
    pub value: Linear,
    /// Gates, as receptances.
    pub gate: Linear,
    /// Output `[attention_hidden_size, hidden_size]`.
    pub output: Linear,
    /// Norm over each head.
    pub ln_x: LayerNorm,
}

impl TimeMix6 {
    pub(super) fn init(
        config: &ModelConfig,
        sizes: &RwkvConfig,
        [head_size, head_size_divisor]: [usize; 2],
        fresh: &Fresh<'_>,
        start: &Start<'_>,
    ) -> Self {
        let (d, width) = (config.hidden_size, sizes.attention_hidden_size);
        let [mix_rank, decay_rank] = sizes.low_ranks(d);
        let small = Initializer::Uniform { min: -1e-4, max: 1e-4 };
        let projection = || fresh.linear(d, width, false);
        Self {
            time_maa_x: start.predecessor_share(d, 1.0, 0.0),
            time_maa_w: start.predecessor_share(d, 1.0, 0.0),
            time_maa_k: start.predecessor_share(d, 1.0, 0.0),
            time_maa_v: start.predecessor_share(d, 1.0, 0.3),
            time_maa_r: start.predecessor_share(d, 0.5, 0.0),
            time_maa_g: start.predecessor_share(d, 0.5, 0.0),
            time_maa_w1: small.init([d, 5 * mix_rank], fresh.device),
            time_maa_w2: small.init([5, mix_rank, d], fresh.device),
            time_decay: start.decay([1, 1, width], -6.0, 5.0),
            time_decay_w1: small.init([d, decay_rank], fresh.device),
            time_decay_w2: small.init([decay_rank, width], fresh.device),
            time_faaaa: start.bonus([width / head_size, head_size]),
            receptance: projection(),
            key: projection(),
            value: projection(),
            gate: projection(),
            output: fresh.linear(width, d, false),
            ln_x: LayerNorm::init(width, 1e-5 * (head_size_divisor as f64).powi(2), fresh.device),
        }
    }

    /// Mixes `x` `[rows, len, hidden_size]`, whose predecessors are `shifted`, from `state`
    /// `[rows, heads, head_size, head_size]` on.
    pub(super) fn forward(&self, x: Tensor<3>, shifted: Tensor<3>, state: Tensor<4>) -> (Tensor<3>, Tensor<4>) {
        let [rows, len, d] = x.dims();
        let [heads, head_size] = self.time_faaaa.dims();
        let dtype = FloatDType::from(x.dtype());
        let (x, shifted) = (x.cast(FloatDType::F32), shifted.cast(FloatDType::F32));
        let difference = shifted - x.clone();

        // What the token adds to the five shares, [5, rows * len, hidden_size].
        let rank = self.time_maa_w2.dims()[1];
        let inner = x.clone() + difference.clone() * self.time_maa_x.val();
        let inner = tanh(linear(inner, self.time_maa_w1.val(), None)).reshape([rows * len, 5, rank]);
        let added = inner.swap_dims(0, 1).matmul(self.time_maa_w2.val());
        let blend = |index: usize, share: &Param<Tensor<3>>| {
            let added = added.clone().narrow(0, index, 1).reshape([rows, len, d]);
            x.clone() + difference.clone() * (added + share.val())
        };
        let project = |layer: &Linear, x: Tensor<3>| project(layer, x.cast(dtype));
        let for_decay = blend(0, &self.time_maa_w);
        let k = project(&self.key, blend(1, &self.time_maa_k));
        let v = project(&self.value, blend(2, &self.time_maa_v));
        let r = project(&self.receptance, blend(3, &self.time_maa_r));
        let gate = silu(project(&self.gate, blend(4, &self.time_maa_g)));

        let added = linear(tanh(linear(for_decay, self.time_decay_w1.val(), None)), self.time_decay_w2.val(), None);
        let log_decay = (added + self.time_decay.val()).exp().neg();

        let split = |x: Tensor<3>| x.reshape([rows, len, heads, head_size]).swap_dims(1, 2);
        let (mixed, state) = wkv6(split(r), split(k), split(v), split(log_decay), self.time_faaaa.val(), state);
        let mixed = mixed.swap_dims(1, 2).reshape([rows, len, heads * head_size]);
        let (weight, bias) = (self.ln_x.weight.val(), self.ln_x.bias.val());
        let normed = group_norm(mixed, heads, weight, bias, self.ln_x.epsilon());
        (project(&self.output, (normed.cast(dtype) * gate).cast(FloatDType::F32)), state)
    }
}
