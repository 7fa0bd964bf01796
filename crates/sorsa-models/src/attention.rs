//! Rotary attention with grouped keys and values.

use burn::prelude::*;
use sorsa_adapter::{Linear, project, project_each};
use sorsa_ops::{rotary_attention, rotate_half, soft_capped_attention, stored_as};

use crate::cache::LayerCache;
use crate::layers::{Fresh, RmsNorm};
use crate::transformer::View;
use crate::transparent::transparent_module;
use sorsa_checkpoint::{ModelConfig, TransformerConfig};

/// Attention, with its projections as the family's checkpoints have them.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one a block: a box would save nothing")]
pub enum Attention {
    /// Queries, keys and values from a layer each.
    Separate(SeparateAttention),
    /// All three from one.
    Fused(FusedAttention),
}

transparent_module!(Attention { Separate, Fused });

/// Attention whose queries, keys and values come from a linear layer each.
#[derive(Module, Debug)]
pub struct SeparateAttention {
    /// Queries `[hidden_size, heads * head_dim]`.
    pub q_proj: Linear,
    /// Keys `[hidden_size, kv_heads * head_dim]`.
    pub k_proj: Linear,
    /// Values, as keys.
    pub v_proj: Linear,
    /// Output `[heads * head_dim, hidden_size]`.
    pub o_proj: Linear,
    /// Norm of each head's queries, where there is one.
    pub q_norm: Option<RmsNorm>,
    /// Norm of each head's keys, where there is one.
    pub k_norm: Option<RmsNorm>,
    #[module(skip)]
    heads: Heads,
}

/// Attention whose queries, keys and values come from one linear layer.
#[derive(Module, Debug)]
pub struct FusedAttention {
    /// Queries, keys, values, in this order: `[hidden_size, (heads + 2 * kv_heads) * head_dim]`.
    pub qkv_proj: Linear,
    /// Output `[heads * head_dim, hidden_size]`.
    pub o_proj: Linear,
    #[module(skip)]
    heads: Heads,
}

/// Number, width and constants of the heads of a layer.
#[derive(Debug, Clone)]
struct Heads {
    queries: usize,
    keys: usize,
    width: usize,
    rotated: usize,
    scale: f64,
    soft_cap: Option<f64>,
}

impl Attention {
    pub(crate) fn init(config: &ModelConfig, decoder: &TransformerConfig, fresh: &Fresh<'_>) -> Self {
        let heads = Heads {
            queries: decoder.num_attention_heads,
            keys: decoder.num_key_value_heads,
            width: decoder.head_dim,
            rotated: decoder.rotary_dim(),
            scale: 1.0 / decoder.query_pre_attn_scalar.sqrt(),
            soft_cap: decoder.attention_soft_cap,
        };
        let (d, q, kv) = (config.hidden_size, heads.queries * heads.width, heads.keys * heads.width);
        let o_proj = fresh.linear(q, d, decoder.output_bias);
        if decoder.fused_projections {
            let qkv_proj = fresh.linear(d, q + 2 * kv, decoder.qkv_bias);
            return Self::Fused(FusedAttention { qkv_proj, o_proj, heads });
        }
        let norm = || {
            let norm = || RmsNorm::init(heads.width, decoder.rms_norm_eps, decoder.norm_offset, fresh.device);
            decoder.query_key_norm.then(norm)
        };
        Self::Separate(SeparateAttention {
            q_proj: fresh.linear(d, q, decoder.qkv_bias),
            k_proj: fresh.linear(d, kv, decoder.qkv_bias),
            v_proj: fresh.linear(d, kv, decoder.qkv_bias),
            o_proj,
            q_norm: norm(),
            k_norm: norm(),
            heads,
        })
    }

    /// Attention of `x` `[rows, len, hidden_size]` to itself and to what `cache` holds, which grows by it.
    pub(crate) fn forward(&self, x: Tensor<3>, view: &View, cache: Option<&mut LayerCache>) -> Tensor<3> {
        match self {
            Self::Separate(attention) => attention.forward(x, view, cache),
            Self::Fused(attention) => attention.forward(x, view, cache),
        }
    }
}

impl SeparateAttention {
    fn forward(&self, x: Tensor<3>, view: &View, cache: Option<&mut LayerCache>) -> Tensor<3> {
        let normed = |norm: &Option<RmsNorm>, x: Tensor<4>| match norm {
            Some(norm) => norm.forward(stored_as(x, view.kept)),
            None => x,
        };
        let [q, k, v] = project_each([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let q = normed(&self.q_norm, self.heads.split(q, self.heads.queries));
        let k = normed(&self.k_norm, self.heads.split(k, self.heads.keys));
        let v = self.heads.split(v, self.heads.keys);
        project(&self.o_proj, stored_as(self.heads.attend([q, k, v], view, cache), view.kept))
    }
}

impl FusedAttention {
    fn forward(&self, x: Tensor<3>, view: &View, cache: Option<&mut LayerCache>) -> Tensor<3> {
        let Heads { queries, keys, width, .. } = self.heads;
        let qkv = project(&self.qkv_proj, x);
        let part =
            |first: usize, count: usize| self.heads.split(qkv.clone().narrow(2, first * width, count * width), count);
        let parts = [part(0, queries), part(queries, keys), part(queries + keys, keys)];
        project(&self.o_proj, stored_as(self.heads.attend(parts, view, cache), view.kept))
    }
}

impl Heads {
    /// `[rows, len, count * width]` as `[rows, count, len, width]`.
    fn split(&self, x: Tensor<3>, count: usize) -> Tensor<4> {
        let [rows, len, _] = x.dims();
        x.reshape([rows, len, count, self.width]).swap_dims(1, 2)
    }

    /// The heads' outputs beside each other, `[rows, len, queries * width]`.
    fn attend(&self, [q, k, v]: [Tensor<4>; 3], view: &View, cache: Option<&mut LayerCache>) -> Tensor<3> {
        let [rows, _, len, _] = q.dims();
        // A whole sequence whose heads are rotated wholly, with no cap: the rotation is a part of the operation.
        let whole = self.soft_cap.is_none() && self.rotated == self.width;
        let y = match (cache, &view.mask) {
            (None, Some(mask)) if whole => {
                let [q, k, v] = [q, k, v].map(|x| stored_as(x, view.kept));
                rotary_attention(q, k, v, &view.angles, mask, self.scale)
            }
            (cache, mask) => {
                let (q, k) = (self.rotate(q, view), self.rotate(k, view));
                let (k, v) = match cache {
                    Some(cache) => cache.append(k, v),
                    None => (k, v),
                };
                let [q, k, v] = match self.soft_cap {
                    None => [q, k, v].map(|x| stored_as(x, view.kept)),
                    Some(_) => [q, k, v],
                };
                soft_capped_attention(q, k, v, mask.as_ref(), self.scale, self.soft_cap)
            }
        };
        y.swap_dims(1, 2).reshape([rows, len, self.queries * self.width])
    }

    /// Rotates the first part of each head; the rest, where there is one, has no position.
    fn rotate(&self, x: Tensor<4>, view: &View) -> Tensor<4> {
        if self.rotated == self.width {
            return rotate_half(x, &view.angles);
        }
        let rotated = rotate_half(x.clone().narrow(3, 0, self.rotated), &view.angles);
        Tensor::cat(vec![rotated, x.narrow(3, self.rotated, self.width - self.rotated)], 3)
    }
}
