//! The decoder-only transformer of Llama and Mistral: RMSNorm before each part, rotary grouped-query attention,
//! SwiGLU. Fields are named as Hugging Face names tensors, so that a parameter's path is its name in a checkpoint.

use burn::module::{Initializer, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use sorsa_adapter::project;
use sorsa_ops::{
    AttentionMask, RotaryAngles, causal_attention, gated_silu, head_loss_sum, rms_norm, rotary_attention, rotate_half,
};

use crate::cache::{KvCache, LayerCache};
use crate::config::ModelConfig;
use crate::input::ModelInput;

/// A language model: tokens in, next-token scores out.
#[derive(Module, Debug)]
pub struct CausalLm {
    /// Everything but the head.
    pub model: Decoder,
    /// The output head; absent where it is the embedding.
    pub lm_head: Option<Linear>,
    #[module(skip)]
    config: ModelConfig,
    #[module(skip)]
    inverse_frequencies: Vec<f64>,
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
    /// Norm before feed-forward.
    pub post_attention_layernorm: RmsNorm,
}

/// Grouped-query attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries `[hidden_size, heads * head_dim]`.
    pub q_proj: Linear,
    /// Keys `[hidden_size, kv_heads * head_dim]`.
    pub k_proj: Linear,
    /// Values, as keys.
    pub v_proj: Linear,
    /// Output `[heads * head_dim, hidden_size]`.
    pub o_proj: Linear,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    kv_heads: usize,
    #[module(skip)]
    head_dim: usize,
}

/// `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Gate `[hidden_size, intermediate_size]`.
    pub gate_proj: Linear,
    /// Up, as gate.
    pub up_proj: Linear,
    /// Down `[intermediate_size, hidden_size]`.
    pub down_proj: Linear,
}

/// Root-mean-square norm with a learned scale.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The scale `[hidden_size]`, f32.
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
}

/// What every block needs besides its input.
struct Context {
    angles: RotaryAngles,
    mask: Option<AttentionMask>,
}

impl CausalLm {
    /// A model with fresh weights, normal with the configuration's `initializer_range`. Parameters are lazy: nothing
    /// is allocated before it is used or replaced.
    pub fn init(config: &ModelConfig, device: &Device) -> Self {
        let normal = Initializer::Normal { mean: 0.0, std: config.initializer_range };
        let linear = |d_in, d_out, bias| {
            LinearConfig::new(d_in, d_out).with_bias(bias).with_initializer(normal.clone()).init(device)
        };
        let norm =
            || RmsNorm { weight: Initializer::Ones.init([config.hidden_size], device), epsilon: config.rms_norm_eps };
        let (d, ffn, head_dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let block = || Block {
            self_attn: Attention {
                q_proj: linear(d, heads * head_dim, config.attention_bias),
                k_proj: linear(d, kv_heads * head_dim, config.attention_bias),
                v_proj: linear(d, kv_heads * head_dim, config.attention_bias),
                o_proj: linear(heads * head_dim, d, config.attention_bias),
                heads,
                kv_heads,
                head_dim,
            },
            mlp: Mlp {
                gate_proj: linear(d, ffn, config.mlp_bias),
                up_proj: linear(d, ffn, config.mlp_bias),
                down_proj: linear(ffn, d, config.mlp_bias),
            },
            input_layernorm: norm(),
            post_attention_layernorm: norm(),
        };
        Self {
            model: Decoder {
                embed_tokens: EmbeddingConfig::new(config.vocab_size, d).with_initializer(normal.clone()).init(device),
                layers: (0..config.num_hidden_layers).map(|_| block()).collect(),
                norm: norm(),
            },
            lm_head: (!config.tie_word_embeddings).then(|| linear(d, config.vocab_size, false)),
            inverse_frequencies: config.rope.inverse_frequencies(head_dim),
            config: config.clone(),
        }
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.model.norm.weight.lazy_device()
    }

    /// Hidden states after the final norm `[rows, len, hidden_size]`, of whole sequences.
    pub fn hidden(&self, input: &ModelInput<'_>) -> Tensor<3> {
        let device = self.device().without_autodiff();
        let context = Context {
            angles: self.angles(input.positions, [input.rows, input.len], &device),
            mask: Some(input.mask(self.config.sliding_window, &device)),
        };
        let mut x = self.embed(input.input_ids, [input.rows, input.len]);
        for layer in &self.model.layers {
            x = layer.forward(x, &context, None);
        }
        self.model.norm.forward(x)
    }

    /// Hidden states of the tokens that follow what `cache` holds, `[rows, len, hidden_size]`; `cache` grows by them.
    /// `mask` says which cached and new keys each new token sees.
    pub(crate) fn hidden_cached(
        &self,
        ids: &[i32],
        positions: &[i32],
        shape: [usize; 2],
        mask: Option<AttentionMask>,
        cache: &mut KvCache,
    ) -> Tensor<3> {
        let device = self.device().without_autodiff();
        let context = Context { angles: self.angles(positions, shape, &device), mask };
        let mut x = self.embed(ids, shape);
        for (layer, cache) in self.model.layers.iter().zip(&mut cache.layers) {
            x = layer.forward(x, &context, Some(cache));
        }
        self.model.norm.forward(x)
    }

    /// Scores of the next token, `[.., vocab_size]`, of hidden states `[.., hidden_size]`.
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        match &self.lm_head {
            Some(head) => project(head, hidden),
            None => burn::tensor::module::linear(hidden, self.model.embed_tokens.weight.val().transpose(), None),
        }
    }

    /// The cross-entropy summed over all positions whose target is not negative. `targets` `[rows * len]` holds the
    /// token that follows each position. Nothing where there is no target.
    pub fn loss_sum(&self, input: &ModelInput<'_>, targets: &[i32]) -> Option<Tensor<1>> {
        let (picked, targets): (Vec<i32>, Vec<i32>) = targets
            .iter()
            .enumerate()
            .filter(|(_, target)| **target >= 0)
            .map(|(index, target)| (index as i32, *target))
            .unzip();
        if picked.is_empty() {
            return None;
        }
        let device = self.device().without_autodiff();
        let ints = |values: Vec<i32>| {
            let count = values.len();
            Tensor::<1, Int>::from_data(TensorData::new::<i32, _>(values, [count]), &device)
        };
        // The head is dear: only rows that have a target go through it.
        let hidden = self.hidden(input).reshape([input.rows * input.len, self.config.hidden_size]);
        let hidden = hidden.select(0, ints(picked));
        let targets = ints(targets);
        Some(match &self.lm_head {
            Some(head) if head.weight.reparameterization::<sorsa_adapter::Adapter>().is_some() => {
                sorsa_ops::cross_entropy_sum(project(head, hidden), targets)
            }
            Some(head) => head_loss_sum(hidden, head.weight.val(), targets),
            None => head_loss_sum(hidden, self.model.embed_tokens.weight.val().transpose(), targets),
        })
    }

    fn embed(&self, ids: &[i32], [rows, len]: [usize; 2]) -> Tensor<3> {
        let device = self.device().without_autodiff();
        let ids = Tensor::<2, Int>::from_data(TensorData::new::<i32, _>(ids.to_vec(), [rows, len]), &device);
        self.model.embed_tokens.forward(ids)
    }

    /// Angles of one row where all rows have the same positions, else of each.
    fn angles(&self, positions: &[i32], [rows, len]: [usize; 2], device: &Device) -> RotaryAngles {
        let same = positions.chunks_exact(len).all(|row| row == &positions[..len]);
        let rows = if same { 1 } else { rows };
        RotaryAngles::new(&self.inverse_frequencies, 1.0, &positions[..rows * len], [rows, len], device)
    }
}

impl Block {
    fn forward(&self, x: Tensor<3>, context: &Context, cache: Option<&mut LayerCache>) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.input_layernorm.forward(x), context, cache);
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x))
    }
}

impl Attention {
    fn forward(&self, x: Tensor<3>, context: &Context, cache: Option<&mut LayerCache>) -> Tensor<3> {
        let [rows, len, _] = x.dims();
        let split = |y: Tensor<3>, heads: usize| y.reshape([rows, len, heads, self.head_dim]).swap_dims(1, 2);
        let q = split(project(&self.q_proj, x.clone()), self.heads);
        let k = split(project(&self.k_proj, x.clone()), self.kv_heads);
        let v = split(project(&self.v_proj, x), self.kv_heads);
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let y = match (cache, &context.mask) {
            (None, Some(mask)) => rotary_attention(q, k, v, &context.angles, mask, scale),
            (cache, mask) => {
                let (q, k) = (rotate_half(q, &context.angles), rotate_half(k, &context.angles));
                let (k, v) = match cache {
                    Some(cache) => cache.append(k, v),
                    None => (k, v),
                };
                causal_attention(q, k, v, mask.as_ref(), scale)
            }
        };
        project(&self.o_proj, y.swap_dims(1, 2).reshape([rows, len, self.heads * self.head_dim]))
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = project(&self.gate_proj, x.clone());
        project(&self.down_proj, gated_silu(gate, project(&self.up_proj, x)))
    }
}

impl RmsNorm {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        rms_norm(x, self.weight.val(), self.epsilon)
    }
}

/// The dtype in which a parameter is kept where the model's weights are `weights`: norms stay f32.
pub(crate) fn parameter_dtype(path: &str, weights: FloatDType) -> DType {
    let norm = path.rsplit('.').nth(1).is_some_and(|module| module.ends_with("norm"));
    if norm { DType::F32 } else { DType::from(weights) }
}
