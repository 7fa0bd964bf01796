//! The layers that all architectures are made of: norms with their Hugging Face names, and fresh linear layers.

use burn::module::{Initializer, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::prelude::*;
use sorsa_ops::{activation_dtype, layer_norm, rms_norm, rms_norm_offset};

use sorsa_checkpoint::ModelConfig;

/// Root-mean-square norm with a learned scale.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The scale, or what it differs from 1 by, `[width]`, f32.
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
    #[module(skip)]
    offset: bool,
}

impl RmsNorm {
    /// A norm that scales by 1, whose weight is added to 1 where `offset`.
    pub(crate) fn init(width: usize, epsilon: f64, offset: bool, device: &Device) -> Self {
        let initial = if offset { Initializer::Zeros } else { Initializer::Ones };
        Self { weight: initial.init([width], device), epsilon, offset }
    }

    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.offset {
            true => rms_norm_offset(x, self.weight.val(), self.epsilon),
            false => rms_norm(x, self.weight.val(), self.epsilon),
        }
    }
}

/// Layer norm with a learned scale and bias.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// The scale `[width]`, f32.
    pub weight: Param<Tensor<1>>,
    /// The bias `[width]`, f32.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
}

impl LayerNorm {
    pub(crate) fn init(width: usize, epsilon: f64, device: &Device) -> Self {
        let (weight, bias) = (Initializer::Ones.init([width], device), Initializer::Zeros.init([width], device));
        Self { weight, bias, epsilon }
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        layer_norm(x, self.weight.val(), self.bias.val(), self.epsilon)
    }

    pub(crate) fn epsilon(&self) -> f64 {
        self.epsilon
    }
}

/// Makes fresh layers, normal with the configuration's `initializer_range`. Parameters are lazy: nothing is allocated
/// before it is used or replaced.
pub(crate) struct Fresh<'a> {
    normal: Initializer,
    pub device: &'a Device,
}

impl<'a> Fresh<'a> {
    pub fn new(config: &ModelConfig, device: &'a Device) -> Self {
        Self { normal: Initializer::Normal { mean: 0.0, std: config.initializer_range }, device }
    }

    pub fn linear(&self, d_in: usize, d_out: usize, bias: bool) -> Linear {
        LinearConfig::new(d_in, d_out).with_bias(bias).with_initializer(self.normal.clone()).init(self.device)
    }

    pub fn embedding(&self, config: &ModelConfig) -> Embedding {
        EmbeddingConfig::new(config.vocab_size, config.hidden_size)
            .with_initializer(self.normal.clone())
            .init(self.device)
    }

    /// The output head; none where it is the embedding.
    pub fn head(&self, config: &ModelConfig) -> Option<Linear> {
        (!config.tie_word_embeddings).then(|| self.linear(config.hidden_size, config.vocab_size, false))
    }
}

/// The embeddings `[rows, len, hidden_size]` of token ids, in the dtype of activations beside such weights.
pub(crate) fn embedded(embedding: &Embedding, ids: Tensor<2, Int>) -> Tensor<3> {
    embedding.forward(ids).cast(activation_dtype(&embedding.weight.val()))
}

/// Token ids as a tensor `[rows, len]` on a device without autodiff.
pub(crate) fn ids_tensor(ids: &[i32], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new::<i32, _>(ids.to_vec(), shape), device)
}

/// Indices as a tensor on a device without autodiff.
pub(crate) fn index_tensor(indices: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = indices.len();
    Tensor::from_data(TensorData::new::<i32, _>(indices, [count]), device)
}
