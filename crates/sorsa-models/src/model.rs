//! A language model of any architecture: tokens in, scores of the next token out.

use burn::module::Param;
use burn::prelude::*;
use sorsa_adapter::{Adapter, Linear, LinearLayer, project};
use sorsa_ops::{cross_entropy_sum, head_loss_sum, linear, on_pool, soft_cap, soft_capped_head_loss_sum};

use crate::cache::KvCache;
use crate::input::ModelInput;
use crate::layers::{Embedding, Packing, index_tensor};
use crate::rwkv::{Rwkv, RwkvState};
use crate::transformer::Transformer;
use crate::transparent::transparent_module;
use sorsa_checkpoint::{Architecture, ModelConfig};

/// A language model: tokens in, next-token scores out.
///
/// Its parameters have the paths of the architecture inside, which are the names of tensors in checkpoints.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one a process: a box would save nothing")]
pub enum CausalLm {
    /// Attention over all tokens before.
    Transformer(Transformer),
    /// A recurrence with a state of fixed size.
    Rwkv(Rwkv),
}

transparent_module!(CausalLm { Transformer, Rwkv });

/// What a model keeps of the tokens it has seen.
pub(crate) enum Cache {
    Keys(KvCache),
    State(RwkvState),
}

impl Cache {
    /// Keeps only the given rows; `indices` holds them on the device.
    pub fn select_rows(&mut self, rows: &[usize], indices: &Tensor<1, Int>) {
        match self {
            Self::Keys(cache) => cache.select_rows(rows, indices),
            Self::State(state) => state.select_rows(indices),
        }
    }

    /// The rows of both, one after the other, with room for `room` more tokens.
    ///
    /// # Panics
    ///
    /// Panics where they are of different architectures.
    pub fn joined(self, other: Self, room: usize) -> Self {
        match (self, other) {
            (Self::Keys(a), Self::Keys(b)) => Self::Keys(a.joined(b, room)),
            (Self::State(a), Self::State(b)) => Self::State(RwkvState::concatenated(vec![a, b])),
            _ => unreachable!("both caches come from the same model"),
        }
    }
}

impl CausalLm {
    /// A model with fresh weights, normal with the configuration's `initializer_range`. Parameters are lazy: no
    /// matrix is allocated before it is used or replaced.
    pub fn init(config: &ModelConfig, device: &Device) -> Self {
        Self::with_packing(config, Packing::Dense, device)
    }

    /// [`init`](Self::init), with or without parameters for packed weights.
    pub(crate) fn with_packing(config: &ModelConfig, packing: Packing, device: &Device) -> Self {
        match &config.architecture {
            Architecture::Transformer(decoder) => {
                Self::Transformer(Transformer::init(config, decoder, packing, device))
            }
            Architecture::Rwkv(rwkv) => Self::Rwkv(Rwkv::init(config, rwkv, packing, device)),
        }
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Transformer(model) => &model.config,
            Self::Rwkv(model) => &model.config,
        }
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        match self {
            Self::Transformer(model) => model.device(),
            Self::Rwkv(model) => model.device(),
        }
    }

    /// Hidden states after the final norm `[rows, len, hidden_size]`, of whole sequences.
    pub fn hidden(&self, input: &ModelInput<'_>) -> Tensor<3> {
        on_pool(&self.device(), || match self {
            Self::Transformer(model) => model.hidden(input),
            Self::Rwkv(model) => model.hidden(input),
        })
    }

    /// Takes in the prompts. Returns the hidden states of their last tokens `[rows, 1, hidden_size]` and what is kept
    /// of them, with room for `room` more tokens.
    pub(crate) fn prefill(&self, prompts: &[Vec<u32>], room: usize) -> (Tensor<3>, Cache) {
        on_pool(&self.device(), || match self {
            Self::Transformer(model) => {
                let (hidden, cache) = model.prefill(prompts, room);
                (hidden, Cache::Keys(cache))
            }
            Self::Rwkv(model) => {
                let (hidden, state) = model.prefill(prompts);
                (hidden, Cache::State(state))
            }
        })
    }

    /// Hidden states `[rows, 1, hidden_size]` of one more token of each row, which `cache` takes in.
    ///
    /// # Panics
    ///
    /// Panics where the cache is not this architecture's.
    pub(crate) fn advance(&self, ids: &[i32], cache: &mut Cache) -> Tensor<3> {
        on_pool(&self.device(), || match (self, cache) {
            (Self::Transformer(model), Cache::Keys(cache)) => model.advance(ids, cache),
            (Self::Rwkv(model), Cache::State(state)) => model.advance(ids, state),
            _ => unreachable!("a cache comes from the prefill of the same model"),
        })
    }

    /// Scores of the next token, `[.., vocab_size]`, of hidden states `[.., hidden_size]`.
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        let logits = match self.head() {
            Some(head) => project(head, hidden),
            None => linear(hidden, self.embedding().as_head(), None),
        };
        match self.logit_soft_cap() {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        }
    }

    /// The cross-entropy summed over all positions whose target is not negative. `targets` `[rows * len]` holds the
    /// token that follows each position. Nothing where there is no target.
    pub fn loss_sum(&self, input: &ModelInput<'_>, targets: &[i32]) -> Option<Tensor<1>> {
        let has_targets = targets.iter().any(|target| *target >= 0);
        has_targets.then(|| self.hidden(input)).and_then(|hidden| self.loss_of_hidden(hidden, targets))
    }

    /// [`loss_sum`](Self::loss_sum) of hidden states `[rows, len, hidden_size]`.
    pub(crate) fn loss_of_hidden(&self, hidden: Tensor<3>, targets: &[i32]) -> Option<Tensor<1>> {
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
        // The head is dear: only rows that have a target go through it.
        let [rows, len, width] = hidden.dims();
        let hidden = hidden.reshape([rows * len, width]);
        let hidden = hidden.select(0, index_tensor(picked, &device));
        let targets = index_tensor(targets, &device);
        let weight = match self.head() {
            Some(head) if head.weight.reparameterization::<Adapter>().is_some() => {
                return Some(cross_entropy_sum(self.logits(hidden), targets));
            }
            Some(head) => head.frozen_weight(),
            None => self.embedding().as_head(),
        };
        Some(match self.logit_soft_cap() {
            Some(cap) => soft_capped_head_loss_sum(hidden, weight, targets, cap),
            None => head_loss_sum(hidden, weight, targets),
        })
    }

    /// The path of the output head.
    pub fn head_path(&self) -> &'static str {
        match self {
            Self::Transformer(_) => "lm_head",
            Self::Rwkv(_) => "head",
        }
    }

    /// The path of the embedding.
    pub fn embedding_path(&self) -> &'static str {
        match self {
            Self::Transformer(_) => "model.embed_tokens",
            Self::Rwkv(_) => "rwkv.embeddings",
        }
    }

    /// The same model with a head of its own, which starts as a copy of the embedding, if it was the embedding.
    pub fn with_own_head(mut self) -> Self {
        if self.head().is_some() {
            return self;
        }
        let weight = self.embedding().as_head().into_dense();
        let head = Some(Linear { weight: Param::from_tensor(weight), bias: None, packed: None });
        let config = match &mut self {
            Self::Transformer(model) => {
                model.lm_head = head;
                &mut model.config
            }
            Self::Rwkv(model) => {
                model.head = head;
                &mut model.config
            }
        };
        config.tie_word_embeddings = false;
        self
    }

    /// The values of the embedding `[vocab_size, hidden_size]`.
    pub fn embedding_weight(&self) -> Tensor<2> {
        match self.embedding().packed() {
            Some(packed) => packed.to_dense().transpose(),
            None => self.embedding().weight.val(),
        }
    }

    fn embedding(&self) -> &Embedding {
        match self {
            Self::Transformer(model) => &model.model.embed_tokens,
            Self::Rwkv(model) => &model.rwkv.embeddings,
        }
    }

    /// The output head; absent where it is the embedding.
    fn head(&self) -> Option<&Linear> {
        match self {
            Self::Transformer(model) => model.lm_head.as_ref(),
            Self::Rwkv(model) => model.head.as_ref(),
        }
    }

    fn logit_soft_cap(&self) -> Option<f64> {
        match self {
            Self::Transformer(model) => model.logit_soft_cap(),
            Self::Rwkv(_) => None,
        }
    }
}
