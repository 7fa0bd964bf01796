//! The layers that all architectures are made of: norms with their Hugging Face names, and fresh linear layers.

use burn::module::{Initializer, Param, ParamId};
use burn::nn::LinearConfig;
use burn::prelude::*;
use burn::tensor::DType;
use sorsa_adapter::Linear;
use sorsa_ops::{
    PackedWeight, WeightOperand, activation_dtype, layer_norm, packed_embedding, rms_norm, rms_norm_offset,
};

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

/// Token embeddings, whose weight may be packed.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab_size, hidden_size]`. If the weight is packed, a [`placeholder`](sorsa_adapter::placeholder).
    pub weight: Param<Tensor<2>>,
    /// The words of a [`PackedWeight`]; absent or empty if the weight is not packed.
    pub packed: Option<Param<Tensor<1, Int>>>,
}

impl Embedding {
    /// The weight, if it is packed.
    pub fn packed(&self) -> Option<PackedWeight> {
        PackedWeight::from_words(self.packed.as_ref()?.val())
    }

    /// The weight as an output head `[hidden_size, vocab_size]`.
    pub fn as_head(&self) -> WeightOperand {
        match self.packed() {
            Some(packed) => packed.into(),
            None => self.weight.val().transpose().into(),
        }
    }
}

/// The parameters that fresh layers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// None for packed weights.
    Dense,
    /// An empty one for each weight that may be packed.
    Possible,
}

/// Makes fresh layers, normal with the configuration's `initializer_range`. Parameters are lazy: nothing is allocated
/// before it is used or replaced.
pub(crate) struct Fresh<'a> {
    normal: Initializer,
    packing: Packing,
    pub device: &'a Device,
}

impl<'a> Fresh<'a> {
    pub fn new(config: &ModelConfig, packing: Packing, device: &'a Device) -> Self {
        Self { normal: Initializer::Normal { mean: 0.0, std: config.initializer_range }, packing, device }
    }

    pub fn linear(&self, d_in: usize, d_out: usize, bias: bool) -> Linear {
        let linear = LinearConfig::new(d_in, d_out).with_bias(bias).with_initializer(self.normal.clone());
        Linear { packed: self.no_words(), ..linear.init(self.device).into() }
    }

    pub fn embedding(&self, config: &ModelConfig) -> Embedding {
        let weight = self.normal.init([config.vocab_size, config.hidden_size], self.device);
        Embedding { weight, packed: self.no_words() }
    }

    fn no_words(&self) -> Option<Param<Tensor<1, Int>>> {
        let init = |device: &Device, _| Tensor::empty([0], (device, DType::I32));
        let words = || Param::uninitialized(ParamId::new(), init, self.device.clone(), false, [0].into());
        (self.packing == Packing::Possible).then(words)
    }

    /// The output head; none where it is the embedding.
    pub fn head(&self, config: &ModelConfig) -> Option<Linear> {
        (!config.tie_word_embeddings).then(|| self.linear(config.hidden_size, config.vocab_size, false))
    }
}

/// The embeddings `[rows, len, hidden_size]` of token ids, in the dtype of activations beside such weights.
pub(crate) fn embedded(embedding: &Embedding, ids: Tensor<2, Int>) -> Tensor<3> {
    let Some(packed) = embedding.packed() else {
        let weight = embedding.weight.val();
        let dtype = activation_dtype(&weight);
        return burn::tensor::module::embedding(weight, ids).cast(dtype);
    };
    let rows = packed_embedding(&packed, ids);
    if embedding.weight.lazy_device().is_autodiff() { Tensor::from_inner(rows) } else { rows }
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
