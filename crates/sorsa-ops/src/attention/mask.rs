//! Which keys each query sees.

use std::sync::{Arc, OnceLock};

use burn::prelude::*;

/// Which keys each query sees.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    pub(super) visibility: Visibility,
}

#[derive(Debug, Clone)]
pub(super) enum Visibility {
    /// `[batch or 1, 1, queries, keys]`, true = hidden.
    Table(Tensor<4, Bool>),
    /// Every query sees a range of keys that ends with its own position.
    Causal { first: FirstVisible, device: Device },
    /// One query a row, at the position of the last of `keys` keys, sees a range that ends there.
    Last { first: Arc<[usize]>, keys: usize, device: Device },
}

/// The first key that each query sees; the last is the key of its own position. Clones share one table.
#[derive(Debug, Clone)]
pub(crate) struct FirstVisible {
    shared: Arc<FirstVisibleTable>,
}

#[derive(Debug)]
struct FirstVisibleTable {
    /// `[rows, seq]`; `rows` is 1 if all rows are alike.
    first: Vec<u32>,
    rows: usize,
    seq: usize,
    /// The same mask as a table, made on the first use of a plain form.
    table: OnceLock<Tensor<4, Bool>>,
}

impl FirstVisible {
    /// The view of the kernels.
    pub(super) fn kernel(&self) -> sorsa_kernels::attention::VisibleKeys<'_> {
        let FirstVisibleTable { first, rows, seq, .. } = &*self.shared;
        sorsa_kernels::attention::VisibleKeys { first, rows: *rows, seq: *seq }
    }

    pub(super) fn fits(&self, batch: usize, queries: usize, keys: usize) -> bool {
        queries == keys && queries == self.shared.seq && (self.shared.rows == 1 || self.shared.rows == batch)
    }
}

impl AttentionMask {
    /// A mask from a rule over (row, query, key).
    ///
    /// If a query sees no key, its output is the mean of the values, never NaN.
    pub fn from_rule(
        [rows, queries, keys]: [usize; 3],
        visible: impl Fn(usize, usize, usize) -> bool,
        device: &Device,
    ) -> Self {
        Self { visibility: Visibility::Table(hidden([rows, queries, keys], visible, device)) }
    }

    /// Each token sees itself and the tokens before it in its own segment, at most `window` tokens in all. `segments` numbers the
    /// segment of each token; equal numbers that are not neighbours are two segments.
    ///
    /// The fused form of attention needs no table of scores under such a mask.
    ///
    /// # Shapes
    ///
    /// - `segments`: `[rows, seq]`
    ///
    /// # Panics
    ///
    /// Panics if `segments` does not have `rows * seq` elements.
    pub fn causal(segments: &[i32], [rows, seq]: [usize; 2], window: Option<usize>, device: &Device) -> Self {
        assert_eq!(segments.len(), rows * seq, "segments of {rows} rows of {seq}");
        let mut first = Vec::with_capacity(rows * seq);
        for row in segments.chunks_exact(seq.max(1)) {
            let mut start = 0;
            for (query, segment) in row.iter().enumerate() {
                if query > 0 && row[query - 1] != *segment {
                    start = query;
                }
                let near = window.map_or(0, |window| (query + 1).saturating_sub(window.max(1)));
                first.push(start.max(near) as u32);
            }
        }
        let shared = FirstVisibleTable { first, rows, seq, table: OnceLock::new() };
        let first = FirstVisible { shared: Arc::new(shared) };
        Self { visibility: Visibility::Causal { first, device: device.clone() } }
    }

    /// [`causal`](Self::causal) of rows with `pads[row]` positions of padding before their first token; no token sees the padding.
    pub fn left_padded(pads: &[usize], seq: usize, window: Option<usize>, device: &Device) -> Self {
        let segments: Vec<i32> =
            pads.iter().flat_map(|pad| (0..seq).map(move |position| i32::from(position >= *pad))).collect();
        Self::causal(&segments, [pads.len(), seq], window, device)
    }

    /// One query for each row, at the position of the last of `keys` keys. It sees the keys from `first[row]` on.
    pub fn last(first: &[usize], keys: usize, device: &Device) -> Self {
        Self { visibility: Visibility::Last { first: first.into(), keys, device: device.clone() } }
    }

    /// Whether every query sees every key.
    pub(super) fn hides_nothing(&self) -> bool {
        matches!(&self.visibility, Visibility::Last { first, .. } if first.iter().all(|first| *first == 0))
    }

    /// `[batch or 1, 1, queries, keys]`, true = hidden.
    pub(super) fn table(&self) -> Tensor<4, Bool> {
        match &self.visibility {
            Visibility::Table(table) => table.clone(),
            Visibility::Last { first, keys, device } => {
                hidden([first.len(), 1, *keys], |row, _, key| key >= first[row], device)
            }
            Visibility::Causal { first, device } => {
                let FirstVisibleTable { rows, seq, .. } = *first.shared;
                let visible = |row, query, key| key <= query && key >= first.kernel().first(row, query);
                first.shared.table.get_or_init(|| hidden([rows, seq, seq], visible, device)).clone()
            }
        }
    }
}

fn hidden(
    [rows, queries, keys]: [usize; 3],
    visible: impl Fn(usize, usize, usize) -> bool,
    device: &Device,
) -> Tensor<4, Bool> {
    let mut hidden = Vec::with_capacity(rows * queries * keys);
    for row in 0..rows {
        for query in 0..queries {
            hidden.extend((0..keys).map(|key| !visible(row, query, key)));
        }
    }
    Tensor::from_data(TensorData::new::<bool, _>(hidden, [rows, 1, queries, keys]), device)
}
