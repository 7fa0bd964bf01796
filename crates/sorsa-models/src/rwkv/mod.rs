//! RWKV: blocks whose tokens mix by a recurrence with a state of fixed size, not by attention. Whole sequences are
//! taken in chunk by chunk, single tokens by the state; both are the same sums. Fields are named as Hugging Face names
//! tensors, so that a parameter's path is its name in a checkpoint.

mod channel_mix;
mod packing;
mod start;
mod state;
mod time_mix4;
mod time_mix6;

use std::collections::BTreeMap;

use burn::prelude::*;

pub use channel_mix::{ChannelMix, ChannelMix4, ChannelMix6};
pub(crate) use state::RwkvState;
pub use time_mix4::TimeMix4;
pub use time_mix6::TimeMix6;

use sorsa_adapter::Linear;

use crate::input::ModelInput;
use crate::layers::{Embedding, Fresh, LayerNorm, Packing, embedded, ids_tensor, index_tensor};
use crate::transparent::transparent_module;
use packing::Pieces;
use sorsa_checkpoint::{ModelConfig, RwkvConfig, RwkvVersion};
use start::Start;
use state::{LayerState, MixState};

/// An RWKV: its blocks and the output head.
#[derive(Module, Debug)]
pub struct Rwkv {
    /// Everything but the head.
    pub rwkv: RwkvModel,
    /// The output head; absent where it is the embedding.
    pub head: Option<Linear>,
    #[module(skip)]
    pub(crate) config: ModelConfig,
    #[module(skip)]
    sizes: RwkvConfig,
}

/// Embedding, blocks, final norm.
#[derive(Module, Debug)]
pub struct RwkvModel {
    /// Token embedding `[vocab_size, hidden_size]`.
    pub embeddings: Embedding,
    /// The blocks, first to last.
    pub blocks: Vec<RwkvBlock>,
    /// The final norm.
    pub ln_out: LayerNorm,
}

/// One block: time mix and channel mix, each behind a norm and beside a residual connection.
#[derive(Module, Debug)]
pub struct RwkvBlock {
    /// Norm of the embeddings, in the first block.
    pub pre_ln: Option<LayerNorm>,
    /// Norm before the time mix.
    pub ln1: LayerNorm,
    /// Norm before the channel mix.
    pub ln2: LayerNorm,
    /// Mixes tokens.
    pub attention: TimeMix,
    /// Mixes channels.
    pub feed_forward: ChannelMix,
}

/// What mixes tokens.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one a block: a box would save nothing")]
pub enum TimeMix {
    /// One state per channel, constant decay.
    V4(TimeMix4),
    /// A matrix per head, decay and token shift that depend on the token.
    V6(TimeMix6),
}

transparent_module!(TimeMix { V4, V6 });

impl Rwkv {
    /// A model with fresh weights: projections normal, the rest as the reference implementation starts it.
    pub(crate) fn init(config: &ModelConfig, sizes: &RwkvConfig, packing: Packing, device: &Device) -> Self {
        let fresh = Fresh::new(config, packing, device);
        let norm = || LayerNorm::init(config.hidden_size, sizes.layer_norm_epsilon, device);
        let block = |index: usize| {
            let start = Start::new(index, config.num_hidden_layers, device);
            let (attention, feed_forward) = match sizes.version {
                RwkvVersion::V4 => (
                    TimeMix::V4(TimeMix4::init(config, sizes, &fresh, &start)),
                    ChannelMix::V4(ChannelMix4::init(config, &fresh, &start)),
                ),
                RwkvVersion::V6 { head_size, head_size_divisor } => (
                    TimeMix::V6(TimeMix6::init(config, sizes, [head_size, head_size_divisor], &fresh, &start)),
                    ChannelMix::V6(ChannelMix6::init(config, &fresh, &start)),
                ),
            };
            RwkvBlock { pre_ln: (index == 0).then(norm), ln1: norm(), ln2: norm(), attention, feed_forward }
        };
        Self {
            rwkv: RwkvModel {
                embeddings: fresh.embedding(config),
                blocks: (0..config.num_hidden_layers).map(block).collect(),
                ln_out: norm(),
            },
            head: fresh.head(config),
            config: config.clone(),
            sizes: sizes.clone(),
        }
    }

    pub(crate) fn device(&self) -> Device {
        self.rwkv.ln_out.weight.lazy_device()
    }

    /// Hidden states after the final norm `[rows, len, hidden_size]`, of whole sequences.
    pub(crate) fn hidden(&self, input: &ModelInput<'_>) -> Tensor<3> {
        let x = self.embed(input.input_ids, [input.rows, input.len]);
        if !input.is_packed() {
            // Padding is on the right: no token comes after it.
            let state = self.empty_state(&x);
            return self.forward(x, state).0;
        }
        let pieces = Pieces::new(input);
        let device = self.device().without_autodiff();
        let x = pieces.unpack(x, &device);
        let state = self.empty_state(&x);
        pieces.pack(self.forward(x, state).0, &device)
    }

    /// Takes in the prompts, those of equal length together. Returns the hidden states of their last tokens
    /// `[rows, 1, hidden_size]` and the state after them.
    pub(crate) fn prefill(&self, prompts: &[Vec<u32>]) -> (Tensor<3>, RwkvState) {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (row, prompt) in prompts.iter().enumerate() {
            by_length.entry(prompt.len()).or_default().push(row);
        }
        let (mut hidden, mut states) = (Vec::new(), Vec::new());
        for (len, rows) in &by_length {
            let ids: Vec<i32> = rows.iter().flat_map(|row| prompts[*row].iter().map(|id| *id as i32)).collect();
            let x = self.embed(&ids, [rows.len(), *len]);
            let state = self.empty_state(&x);
            let (y, state) = self.forward(x, state);
            hidden.push(y.narrow(1, len - 1, 1));
            states.push(state);
        }
        // Back to the order of the prompts.
        let mut places = vec![0; prompts.len()];
        for (place, row) in by_length.values().flatten().enumerate() {
            places[*row] = place as i32;
        }
        let places = index_tensor(places, &self.device().without_autodiff());
        let mut state = RwkvState::concatenated(states);
        state.select_rows(&places);
        (Tensor::cat(hidden, 0).select(0, places), state)
    }

    /// Hidden states `[rows, 1, hidden_size]` of one more token of each row, which `state` takes in.
    pub(crate) fn advance(&self, ids: &[i32], state: &mut RwkvState) -> Tensor<3> {
        let x = self.embed(ids, [ids.len(), 1]);
        let (hidden, next) = self.forward(x, std::mem::take(state));
        *state = next;
        hidden
    }

    fn embed(&self, ids: &[i32], shape: [usize; 2]) -> Tensor<3> {
        embedded(&self.rwkv.embeddings, ids_tensor(ids, shape, &self.device().without_autodiff()))
    }

    /// The state before the first token of sequences like `x`.
    fn empty_state(&self, x: &Tensor<3>) -> RwkvState {
        let [rows, _, d] = x.dims();
        let device = self.device().without_autodiff();
        let layer = || {
            let shift = Tensor::zeros([rows, d], (&device, x.dtype()));
            let mixed = MixState::empty(&self.sizes, rows, &device);
            LayerState { attention_shift: shift.clone(), feed_forward_shift: shift, mixed }
        };
        RwkvState { layers: self.rwkv.blocks.iter().map(|_| layer()).collect() }
    }

    fn forward(&self, mut x: Tensor<3>, state: RwkvState) -> (Tensor<3>, RwkvState) {
        let mut layers = Vec::with_capacity(state.layers.len());
        for (block, state) in self.rwkv.blocks.iter().zip(state.layers) {
            let (y, state) = block.forward(x, state);
            x = y;
            layers.push(state);
        }
        (self.rwkv.ln_out.forward(x), RwkvState { layers })
    }
}

impl RwkvBlock {
    fn forward(&self, x: Tensor<3>, state: LayerState) -> (Tensor<3>, LayerState) {
        let x = match &self.pre_ln {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let normed = self.ln1.forward(x.clone());
        let (shifted, attention_shift) = shift(&normed, state.attention_shift);
        let (attention, mixed) = match (&self.attention, state.mixed) {
            (TimeMix::V4(mix), MixState::V4(state)) => {
                let (y, state) = mix.forward(normed, shifted, state);
                (y, MixState::V4(state))
            }
            (TimeMix::V6(mix), MixState::V6(state)) => {
                let (y, state) = mix.forward(normed, shifted, state);
                (y, MixState::V6(state))
            }
            _ => unreachable!("a state comes from the same model"),
        };
        let x = x + attention;
        let normed = self.ln2.forward(x.clone());
        let (shifted, feed_forward_shift) = shift(&normed, state.feed_forward_shift);
        let x = x + self.feed_forward.forward(normed, shifted);
        (x, LayerState { attention_shift, feed_forward_shift, mixed })
    }
}

/// Each token's predecessor, the first one's being `last` `[rows, d]`; and the last token, for the next call.
fn shift(x: &Tensor<3>, last: Tensor<2>) -> (Tensor<3>, Tensor<2>) {
    let len = x.dims()[1];
    let first = last.unsqueeze_dim::<3>(1);
    let shifted = if len == 1 { first } else { Tensor::cat(vec![first, x.clone().narrow(1, 0, len - 1)], 1) };
    (shifted, x.clone().narrow(1, len - 1, 1).squeeze_dim::<2>(1))
}
