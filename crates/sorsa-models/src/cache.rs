//! Keys and values of the tokens seen so far, so that each new token costs one row of attention.

use burn::prelude::*;

/// The cache of a transformer, whose rows are padded on the left.
#[derive(Debug, Clone)]
pub(crate) struct KvCache {
    pub layers: Vec<LayerCache>,
    /// Positions at the start of each row that hold no token.
    pub pads: Vec<usize>,
    /// The tokens of each row, from which keys are made anew where their frequencies change.
    pub ids: Vec<Vec<u32>>,
    /// Whether keys were made with the frequencies of long sequences; nothing where some were and some were not.
    pub long: Option<bool>,
}

/// Keys and values of one block, `[rows, kv_heads, capacity, head_dim]`, the first `len` positions in use.
#[derive(Debug, Clone)]
pub(crate) struct LayerCache {
    /// Taken out while it is written, so that it has one owner and is written in place.
    stored: Option<(Tensor<4>, Tensor<4>)>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// A cache for `prompts`, with room for `room` more tokens.
    pub fn new(layers: usize, prompts: &[Vec<u32>], room: usize, long: bool) -> Self {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let layer = LayerCache { stored: None, len: 0, capacity: longest + room };
        Self {
            layers: vec![layer; layers],
            pads: prompts.iter().map(|prompt| longest - prompt.len()).collect(),
            ids: prompts.to_vec(),
            long: Some(long),
        }
    }

    /// Positions that are free.
    pub fn room(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.capacity - layer.len)
    }

    /// Positions in use, those without a token included.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Keeps only the given rows; `indices` holds them on the device.
    pub fn select_rows(&mut self, rows: &[usize], indices: &Tensor<1, Int>) {
        self.pads = rows.iter().map(|row| self.pads[*row]).collect();
        self.ids = rows.iter().map(|row| std::mem::take(&mut self.ids[*row])).collect();
        for layer in &mut self.layers {
            layer.stored =
                layer.stored.take().map(|(k, v)| (k.select(0, indices.clone()), v.select(0, indices.clone())));
        }
    }

    /// The rows of both, one after the other, with room for `room` more tokens. Rows stay aligned on the right, and
    /// positions at the start that hold no token in any row are gone.
    pub fn joined(self, other: Self, room: usize) -> Self {
        let longest = |cache: &Self| cache.pads.iter().map(|pad| cache.len() - pad).max().unwrap_or(0);
        let length = longest(&self).max(longest(&other));
        let (len_a, len_b) = (self.len(), other.len());
        let moved = |pads: Vec<usize>, len: usize| pads.into_iter().map(move |pad| pad + length - len);
        let pads = moved(self.pads, len_a).chain(moved(other.pads, len_b)).collect();
        let layers = self.layers.into_iter().zip(other.layers);
        Self {
            layers: layers.map(|(a, b)| a.joined(b, length, length + room)).collect(),
            pads,
            ids: self.ids.into_iter().chain(other.ids).collect(),
            long: self.long.filter(|long| other.long == Some(*long)),
        }
    }
}

impl LayerCache {
    /// The rows of both with their last `len` positions, in room for `capacity`.
    fn joined(self, other: Self, len: usize, capacity: usize) -> Self {
        let placed = |tensor: Tensor<4>, used: usize| {
            let [rows, heads, _, width] = tensor.dims();
            let kept = used.min(len);
            let room = Tensor::<4>::zeros([rows, heads, capacity, width], (&tensor.device(), tensor.dtype()));
            room.slice_assign([0..rows, 0..heads, len - kept..len, 0..width], tensor.narrow(2, used - kept, kept))
        };
        let rows = |a, b| Tensor::cat(vec![placed(a, self.len), placed(b, other.len)], 0);
        let stored = match (self.stored, other.stored) {
            (Some((k_a, v_a)), Some((k_b, v_b))) => Some((rows(k_a, k_b), rows(v_a, v_b))),
            (one, other) => one.or(other),
        };
        Self { stored, len, capacity }
    }

    /// Appends keys and values `[rows, kv_heads, new, head_dim]` and returns all of them.
    pub fn append(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [rows, heads, new, width] = k.dims();
        let empty =
            |like: &Tensor<4>| Tensor::<4>::zeros([rows, heads, self.capacity, width], (&like.device(), like.dtype()));
        let (keys, values) = self.stored.take().unwrap_or_else(|| (empty(&k), empty(&v)));
        let at = [0..rows, 0..heads, self.len..self.len + new, 0..width];
        let (keys, values) = (keys.slice_assign(at.clone(), k), values.slice_assign(at, v));
        self.len += new;
        let seen = (keys.clone().narrow(2, 0, self.len), values.clone().narrow(2, 0, self.len));
        self.stored = Some((keys, values));
        seen
    }
}
