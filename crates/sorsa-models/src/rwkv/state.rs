//! What an RWKV keeps of the tokens it has seen: the last one's inputs to each mix, and the sums of the recurrence.

use burn::prelude::*;
use burn::tensor::DType;
use sorsa_ops::Wkv4State;

use sorsa_checkpoint::{RwkvConfig, RwkvVersion};

/// The state of a model; empty only while it is replaced.
#[derive(Debug, Clone, Default)]
pub(crate) struct RwkvState {
    pub layers: Vec<LayerState>,
}

/// The state of a block.
#[derive(Debug, Clone)]
pub(crate) struct LayerState {
    /// The last input of the time mix `[rows, hidden_size]`.
    pub attention_shift: Tensor<2>,
    /// The last input of the channel mix `[rows, hidden_size]`.
    pub feed_forward_shift: Tensor<2>,
    /// The sums.
    pub mixed: MixState,
}

/// The sums of a recurrence.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one a block: a box would save nothing")]
pub(crate) enum MixState {
    V4(Wkv4State),
    /// `[rows, heads, head_size, head_size]`.
    V6(Tensor<4>),
}

impl MixState {
    pub fn empty(sizes: &RwkvConfig, rows: usize, device: &Device) -> Self {
        let width = sizes.attention_hidden_size;
        match sizes.version {
            RwkvVersion::V4 => Self::V4(Wkv4State::empty([rows, width], device)),
            RwkvVersion::V6 { head_size, .. } => {
                Self::V6(Tensor::zeros([rows, width / head_size, head_size, head_size], (device, DType::F32)))
            }
        }
    }

    fn select(self, rows: &Tensor<1, Int>) -> Self {
        match self {
            Self::V4(state) => Self::V4(Wkv4State {
                numerator: state.numerator.select(0, rows.clone()),
                denominator: state.denominator.select(0, rows.clone()),
                exponent: state.exponent.select(0, rows.clone()),
            }),
            Self::V6(state) => Self::V6(state.select(0, rows.clone())),
        }
    }

    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::V4(a), Self::V4(b)) => Self::V4(Wkv4State {
                numerator: Tensor::cat(vec![a.numerator, b.numerator], 0),
                denominator: Tensor::cat(vec![a.denominator, b.denominator], 0),
                exponent: Tensor::cat(vec![a.exponent, b.exponent], 0),
            }),
            (Self::V6(a), Self::V6(b)) => Self::V6(Tensor::cat(vec![a, b], 0)),
            _ => unreachable!("both states come from the same model"),
        }
    }
}

impl RwkvState {
    /// Keeps only the given rows, in the given order.
    pub fn select_rows(&mut self, rows: &Tensor<1, Int>) {
        let select = |layer: LayerState| LayerState {
            attention_shift: layer.attention_shift.select(0, rows.clone()),
            feed_forward_shift: layer.feed_forward_shift.select(0, rows.clone()),
            mixed: layer.mixed.select(rows),
        };
        self.layers = std::mem::take(&mut self.layers).into_iter().map(select).collect();
    }

    /// The rows of all states, one after the other.
    pub fn concatenated(states: Vec<Self>) -> Self {
        let join = |a: LayerState, b: LayerState| LayerState {
            attention_shift: Tensor::cat(vec![a.attention_shift, b.attention_shift], 0),
            feed_forward_shift: Tensor::cat(vec![a.feed_forward_shift, b.feed_forward_shift], 0),
            mixed: a.mixed.join(b.mixed),
        };
        let both =
            |a: Self, b: Self| Self { layers: a.layers.into_iter().zip(b.layers).map(|(a, b)| join(a, b)).collect() };
        states.into_iter().reduce(both).unwrap_or_default()
    }
}
