//! Keys and values of the tokens seen so far, so that each new token costs one row of attention.

use burn::prelude::*;

/// The cache of a transformer, whose rows are padded on the left.
#[derive(Debug, Clone)]
pub(crate) struct KvCache {
    pub layers: Vec<LayerCache>,
    /// Positions at the start of each row that hold no token.
    pub pads: Vec<usize>,
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
    pub fn new(layers: usize, capacity: usize, pads: Vec<usize>) -> Self {
        Self { layers: vec![LayerCache { stored: None, len: 0, capacity }; layers], pads }
    }

    /// Positions in use, those without a token included.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Keeps only the given rows; `indices` holds them on the device.
    pub fn select_rows(&mut self, rows: &[usize], indices: &Tensor<1, Int>) {
        self.pads = rows.iter().map(|row| self.pads[*row]).collect();
        for layer in &mut self.layers {
            layer.stored =
                layer.stored.take().map(|(k, v)| (k.select(0, indices.clone()), v.select(0, indices.clone())));
        }
    }
}

impl LayerCache {
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
