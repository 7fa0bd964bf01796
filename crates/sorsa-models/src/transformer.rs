//! The decoder-only transformer of all families that attend: norms, rotary grouped-query attention, a gated
//! feed-forward layer, and the switches of [`TransformerConfig`]. Fields are named as Hugging Face names tensors, so
//! that a parameter's path is its name in a checkpoint.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_ops::{AttentionMask, RotaryAngles, stored_as};

use sorsa_adapter::Linear;

use crate::attention::Attention;
use crate::cache::{KvCache, LayerCache};
use crate::input::ModelInput;
use crate::layers::{Embedding, Fresh, Packing, RmsNorm, embedded, ids_tensor};
use crate::mlp::Mlp;
use sorsa_checkpoint::{BlockNorms, LayerType, ModelConfig, TransformerConfig};

/// A transformer: decoder and output head.
#[derive(Module, Debug)]
pub struct Transformer {
    /// Everything but the head.
    pub model: Decoder,
    /// The output head; absent where it is the embedding.
    pub lm_head: Option<Linear>,
    #[module(skip)]
    pub(crate) config: ModelConfig,
    #[module(skip)]
    decoder: TransformerConfig,
}

/// Embedding, blocks, final norm.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embedding `[vocab_size, hidden_size]`.
    pub embed_tokens: Embedding,
    /// The blocks, first to last.
    pub layers: Vec<Block>,
    /// The final norm.
    pub norm: RmsNorm,
}

/// One block: attention and feed-forward, each behind a norm and beside a residual connection.
#[derive(Module, Debug)]
pub struct Block {
    /// Attention.
    pub self_attn: Attention,
    /// Feed-forward.
    pub mlp: Mlp,
    /// Norm before attention.
    pub input_layernorm: RmsNorm,
    /// Norm before feed-forward; with four norms, after attention.
    pub post_attention_layernorm: RmsNorm,
    /// With four norms, before feed-forward.
    pub pre_feedforward_layernorm: Option<RmsNorm>,
    /// With four norms, after feed-forward.
    pub post_feedforward_layernorm: Option<RmsNorm>,
    #[module(skip)]
    pub(crate) layer_type: LayerType,
}

/// What the layers of a type need besides their input.
pub(crate) struct View {
    pub angles: RotaryAngles,
    pub mask: Option<AttentionMask>,
    /// The dtype in which the backward pass gets activations.
    pub kept: FloatDType,
}

/// The views of all types that a model has.
pub(crate) type Views = BTreeMap<LayerType, View>;

impl Transformer {
    /// A transformer with fresh weights.
    pub(crate) fn init(config: &ModelConfig, decoder: &TransformerConfig, packing: Packing, device: &Device) -> Self {
        let fresh = Fresh::new(config, packing, device);
        let norm = || RmsNorm::init(config.hidden_size, decoder.rms_norm_eps, decoder.norm_offset, device);
        let around = || (decoder.block_norms == BlockNorms::BeforeAndAfter).then(norm);
        let block = |layer_type: &LayerType| Block {
            self_attn: Attention::init(config, decoder, &fresh),
            mlp: Mlp::init(config, decoder, &fresh),
            input_layernorm: norm(),
            post_attention_layernorm: norm(),
            pre_feedforward_layernorm: around(),
            post_feedforward_layernorm: around(),
            layer_type: *layer_type,
        };
        Self {
            model: Decoder {
                embed_tokens: fresh.embedding(config),
                layers: decoder.layer_types.iter().map(block).collect(),
                norm: norm(),
            },
            lm_head: fresh.head(config),
            config: config.clone(),
            decoder: decoder.clone(),
        }
    }

    pub(crate) fn device(&self) -> Device {
        self.model.norm.weight.lazy_device()
    }

    /// Soft cap of the logits.
    pub(crate) fn logit_soft_cap(&self) -> Option<f64> {
        self.decoder.logit_soft_cap
    }

    /// Hidden states after the final norm `[rows, len, hidden_size]`, of whole sequences.
    pub(crate) fn hidden(&self, input: &ModelInput<'_>) -> Tensor<3> {
        self.forward(input.input_ids, [input.rows, input.len], &self.views_of(input), None)
    }

    /// The views of whole sequences.
    pub(crate) fn views_of(&self, input: &ModelInput<'_>) -> Views {
        let device = self.device().without_autodiff();
        self.views(input.positions, [input.rows, input.len], |window| Some(input.mask(window, &device)))
    }

    /// The views of whole sequences whose activations the backward pass gets in the dtype `kept`.
    pub(crate) fn views_keeping(&self, input: &ModelInput<'_>, kept: FloatDType) -> Views {
        let mut views = self.views_of(input);
        views.values_mut().for_each(|view| view.kept = kept);
        views
    }

    /// What the first block takes in.
    pub(crate) fn embedded(&self, ids: &[i32], shape: [usize; 2]) -> Tensor<3> {
        let ids = ids_tensor(ids, shape, &self.device().without_autodiff());
        let x = embedded(&self.model.embed_tokens, ids);
        if self.decoder.scale_embedding { x * (self.config.hidden_size as f64).sqrt() } else { x }
    }

    /// Takes in the prompts, in one pass, padded on the left and masked. Returns the hidden states of their last
    /// tokens `[rows, 1, hidden_size]` and the cache, with room for `room` more tokens.
    pub(crate) fn prefill(&self, prompts: &[Vec<u32>], room: usize) -> (Tensor<3>, KvCache) {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let pads: Vec<usize> = prompts.iter().map(|prompt| longest - prompt.len()).collect();
        let mut ids = Vec::with_capacity(prompts.len() * longest);
        let mut positions = Vec::with_capacity(prompts.len() * longest);
        for (prompt, pad) in prompts.iter().zip(&pads) {
            ids.extend(std::iter::repeat_n(0, *pad).chain(prompt.iter().map(|id| *id as i32)));
            positions.extend((0..longest).map(|index| index.saturating_sub(*pad) as i32));
        }
        let device = self.device().without_autodiff();
        let views = self.views(&positions, [prompts.len(), longest], |window| {
            Some(AttentionMask::left_padded(&pads, longest, window, &device))
        });
        let long = self.decoder.rope.is_long(longest);
        let mut cache = KvCache::new(self.config.num_hidden_layers, prompts, room, long);
        let hidden = self.forward(&ids, [prompts.len(), longest], &views, Some(&mut cache));
        (hidden.narrow(1, longest - 1, 1), cache)
    }

    /// Hidden states `[rows, 1, hidden_size]` of one more token of each row, `cache` grows by it. Where the longest row
    /// comes to need other frequencies than the keys have that are there, all tokens are taken in again.
    pub(crate) fn advance(&self, ids: &[i32], cache: &mut KvCache) -> Tensor<3> {
        let length = cache.len();
        for (row, id) in cache.ids.iter_mut().zip(ids) {
            row.push(*id as u32);
        }
        let longest = cache.ids.iter().map(Vec::len).max().unwrap_or(0);
        if cache.long != Some(self.decoder.rope.is_long(longest)) {
            let (hidden, fresh) = self.prefill(&cache.ids, cache.room().saturating_sub(1));
            *cache = fresh;
            return hidden;
        }
        // Rows that have ended may be carried past the context; what becomes of them does not matter.
        let last = self.config.context_length().unwrap_or(usize::MAX) - 1;
        let positions: Vec<i32> = cache.pads.iter().map(|pad| (length - pad).min(last) as i32).collect();
        let device = self.device().without_autodiff();
        let shape = [ids.len(), 1];
        let views = self.views(&positions, shape, |window| {
            let nearest = window.map_or(0, |window| (length + 1).saturating_sub(window));
            let first: Vec<usize> = cache.pads.iter().map(|pad| nearest.max(*pad)).collect();
            Some(AttentionMask::last(&first, length + 1, &device))
        });
        self.forward(ids, shape, &views, Some(cache))
    }

    fn forward(&self, ids: &[i32], shape: [usize; 2], views: &Views, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let mut x = self.embedded(ids, shape);
        for (index, layer) in self.model.layers.iter().enumerate() {
            let cache = cache.as_mut().map(|cache| &mut cache.layers[index]);
            x = layer.forward(x, &views[&layer.layer_type], cache);
        }
        self.model.norm.forward(x)
    }

    /// Angles of `positions` `[rows, len]` and masks, by the window, for each type of layer that the model has.
    fn views(
        &self,
        positions: &[i32],
        [rows, len]: [usize; 2],
        mask: impl Fn(Option<usize>) -> Option<AttentionMask>,
    ) -> Views {
        // One row of angles serves all where all have the same positions.
        let same = positions.chunks_exact(len).all(|row| row == &positions[..len]);
        let rows = if same { 1 } else { rows };
        let longest = positions.iter().max().map_or(0, |last| *last as usize + 1);
        let device = self.device().without_autodiff();
        let view = |layer_type: LayerType| {
            let frequencies = self.decoder.layer_rope(layer_type).frequencies(self.decoder.rotary_dim(), longest);
            let (inverse, amplitude) = (&frequencies.inverse, frequencies.amplitude);
            let angles = RotaryAngles::new(inverse, amplitude, &positions[..rows * len], [rows, len], &device);
            View { angles, mask: mask(self.decoder.window(layer_type)), kept: FloatDType::F32 }
        };
        let mut views = Views::new();
        for layer_type in &self.decoder.layer_types {
            views.entry(*layer_type).or_insert_with(|| view(*layer_type));
        }
        views
    }
}

impl Block {
    pub(crate) fn forward(&self, x: Tensor<3>, view: &View, cache: Option<&mut LayerCache>) -> Tensor<3> {
        let normed = |norm: &RmsNorm, x: Tensor<3>| norm.forward(stored_as(x, view.kept));
        let attention = self.self_attn.forward(normed(&self.input_layernorm, x.clone()), view, cache);
        let (Some(before), Some(after)) = (&self.pre_feedforward_layernorm, &self.post_feedforward_layernorm) else {
            let x = x + attention;
            return x.clone() + self.mlp.forward(normed(&self.post_attention_layernorm, x), view.kept);
        };
        let x = x + normed(&self.post_attention_layernorm, attention);
        x.clone() + normed(after, self.mlp.forward(normed(before, x), view.kept))
    }
}
