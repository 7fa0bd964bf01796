//! Causal attention with grouped keys and values: `softmax(q k^T * scale + mask) v`.

use std::sync::{Arc, OnceLock};

use burn::prelude::*;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, FloatDType};

use crate::fused;
use crate::rotary::{RotaryAngles, rotate_half};
use crate::soft_cap::soft_cap;

/// Which keys each query may see.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// `[batch or 1, 1, queries, keys]`, true = hidden.
    Table(Tensor<4, Bool>),
    /// Every query sees a run of keys that ends with its own position.
    Run { first: FirstVisible, device: Device },
    /// One query a row, at the position of the last of `keys` keys, sees a run that ends there.
    Last { first: Arc<[usize]>, keys: usize, device: Device },
}

/// The first key that each query sees; the last is the key of its own position.
#[derive(Debug, Clone)]
pub struct FirstVisible {
    shared: Arc<FirstVisibleOf>,
}

#[derive(Debug)]
struct FirstVisibleOf {
    /// `[rows, seq]`, rows 1 where all are alike.
    first: Vec<u32>,
    rows: usize,
    seq: usize,
    /// The same as a table, made when a plain form first asks for it.
    table: OnceLock<Tensor<4, Bool>>,
}

impl FirstVisible {
    pub(crate) fn first(&self, row: usize, query: usize) -> usize {
        let row = if self.shared.rows == 1 { 0 } else { row };
        self.shared.first[row * self.shared.seq + query] as usize
    }

    fn fits(&self, batch: usize, queries: usize, keys: usize) -> bool {
        queries == keys && queries == self.shared.seq && (self.shared.rows == 1 || self.shared.rows == batch)
    }
}

impl AttentionMask {
    /// A mask from a rule over (row, query, key).
    ///
    /// A query with every key hidden is allowed: its output is the mean of the values, never NaN.
    pub fn from_rule(
        [rows, queries, keys]: [usize; 3],
        visible: impl Fn(usize, usize, usize) -> bool,
        device: &Device,
    ) -> Self {
        Self { kind: Kind::Table(hidden([rows, queries, keys], visible, device)) }
    }

    /// Each token sees itself and what precedes it in its own segment, at most `window` tokens in all. `segments`
    /// `[rows, seq]` numbers the segment of each token; equal numbers that are not neighbours count as two segments.
    ///
    /// Attention under such a mask needs no table of scores where a fused form exists.
    ///
    /// # Panics
    ///
    /// Panics where `segments` has not `rows * seq` elements.
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
        let shared = FirstVisibleOf { first, rows, seq, table: OnceLock::new() };
        let first = FirstVisible { shared: Arc::new(shared) };
        Self { kind: Kind::Run { first, device: device.clone() } }
    }

    /// [`causal`](Self::causal) of rows with `pads[row]` positions before their first token, which no token sees.
    pub fn left_padded(pads: &[usize], seq: usize, window: Option<usize>, device: &Device) -> Self {
        let segments: Vec<i32> =
            pads.iter().flat_map(|pad| (0..seq).map(move |position| i32::from(position >= *pad))).collect();
        Self::causal(&segments, [pads.len(), seq], window, device)
    }

    /// One query for each row, at the position of the last of `keys` keys: it sees those from `first[row]` on.
    pub fn last(first: &[usize], keys: usize, device: &Device) -> Self {
        Self { kind: Kind::Last { first: first.into(), keys, device: device.clone() } }
    }

    /// Whether every query sees every key.
    fn hides_nothing(&self) -> bool {
        matches!(&self.kind, Kind::Last { first, .. } if first.iter().all(|first| *first == 0))
    }

    /// `[batch or 1, 1, queries, keys]`, true = hidden.
    fn table(&self) -> Tensor<4, Bool> {
        match &self.kind {
            Kind::Table(table) => table.clone(),
            Kind::Last { first, keys, device } => {
                hidden([first.len(), 1, *keys], |row, _, key| key >= first[row], device)
            }
            Kind::Run { first, device } => {
                let FirstVisibleOf { rows, seq, .. } = *first.shared;
                let visible = |row, query, key| key <= query && key >= first.first(row, query);
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

/// [`causal_attention`] of `q` and `k` rotated by `angles`, in which they are one operation where a fused form exists.
/// All three are of whole sequences: queries and keys have the same positions.
///
/// # Panics
///
/// Panics where the shapes do not fit each other.
pub fn rotary_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    angles: &RotaryAngles,
    mask: &AttentionMask,
    scale: f64,
) -> Tensor<4> {
    if let Some(first) = fused_mask(&q, &k, &v, Some(mask)).filter(|_| angles.fits(&q)) {
        return fused::rotary_attention([q, k, v], Some(angles.tables()), first, scale);
    }
    causal_attention(rotate_half(q, angles), rotate_half(k, angles), v, Some(mask), scale)
}

/// The mask of the fused form, where that applies.
fn fused_mask(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, mask: Option<&AttentionMask>) -> Option<FirstVisible> {
    let Kind::Run { first, .. } = &mask?.kind else { return None };
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    let fits = first.fits(batch, queries, keys)
        && heads % kv_heads == 0
        && k.dims() == [batch, kv_heads, keys, head_dim]
        && v.dims() == k.dims();
    (fits && fused::applies([fused::kind(q), fused::kind(k), fused::kind(v)])).then(|| first.clone())
}

/// The first visible keys of the fused form of one query a row, where that applies: it has no backward pass.
fn fused_step(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, mask: Option<&AttentionMask>) -> Option<Arc<[usize]>> {
    let Kind::Last { first, keys, .. } = &mask?.kind else { return None };
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, ..] = k.dims();
    let fits = queries == 1
        && first.len() == batch
        && first.iter().all(|first| first < keys)
        && heads % kv_heads == 0
        && k.dims() == [batch, kv_heads, *keys, head_dim]
        && v.dims() == k.dims();
    let tracked = [q, k, v].into_iter().any(|t| t.device().is_autodiff());
    let applies = fits && !tracked && fused::applies([fused::kind(q), fused::kind(k), fused::kind(v)]);
    applies.then(|| first.clone())
}

/// Attention of `q` `[batch, heads, queries, head_dim]` over `k`, `v` `[batch, kv_heads, keys, head_dim]`; `heads` is
/// a multiple of `kv_heads`, and each key head serves `heads / kv_heads` neighbouring query heads without being
/// copied. Scores and softmax are f32. Without a mask every key is visible.
///
/// # Panics
///
/// Panics where the shapes do not fit each other.
pub fn causal_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
) -> Tensor<4> {
    soft_capped_attention(q, k, v, mask, scale, None)
}

/// [`causal_attention`] whose scores, before the mask, go through [`soft_cap`] where `cap` is given (Gemma 2).
///
/// # Panics
///
/// Panics where the shapes do not fit each other.
pub fn soft_capped_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
) -> Tensor<4> {
    if let Some(first) = fused_step(&q, &k, &v, mask) {
        return fused::step_attention([q, k, v], first, scale, cap);
    }
    // The fused form has no cap.
    match fused_mask(&q, &k, &v, mask).filter(|_| cap.is_none()) {
        Some(first) => fused::rotary_attention([q, k, v], None, first, scale),
        None => plain(q, k, v, mask, scale, cap),
    }
}

pub(crate) fn plain(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<&AttentionMask>,
    scale: f64,
    cap: Option<f64>,
) -> Tensor<4> {
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    assert_eq!(heads % kv_heads, 0, "{heads} query heads cannot share {kv_heads} key heads");
    let dtype = FloatDType::from(q.dtype());

    let grouped = (q * scale).reshape([batch, kv_heads, heads / kv_heads * queries, head_dim]);
    let mut scores = grouped.matmul(k.swap_dims(2, 3)).reshape([batch, heads, queries, keys]);
    if scores.dtype() != DType::F32 {
        scores = scores.cast(FloatDType::F32);
    }
    if let Some(cap) = cap {
        scores = soft_cap(scores, cap);
    }
    if let Some(mask) = mask.filter(|mask| !mask.hides_nothing()) {
        // A large finite number, not infinity: a row with nothing visible stays finite.
        scores = scores.mask_fill(mask.table().expand([batch, heads, queries, keys]), -1e30);
    }
    let probabilities = softmax(scores, 3).cast(dtype);
    probabilities
        .reshape([batch, kv_heads, heads / kv_heads * queries, keys])
        .matmul(v)
        .reshape([batch, heads, queries, head_dim])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
        t.into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn grouped_heads_equal_repeated_key_heads() {
        let device = Device::flex();
        let random = |shape, seed| normal(shape, 1.0, seed, &device);
        let (q, k, v) = (random([2, 4, 5, 6], 1), random([2, 2, 5, 6], 2), random([2, 2, 5, 6], 3));
        let repeat = |t: &Tensor<4>| t.clone().unsqueeze_dim::<5>(2).repeat_dim(2, 2).reshape([2, 4, 5, 6]);
        let mask = AttentionMask::from_rule([1, 5, 5], |_, query, key| key <= query, &device);
        let grouped = causal_attention(q.clone(), k.clone(), v.clone(), Some(&mask), 0.4);
        let repeated = causal_attention(q, repeat(&k), repeat(&v), Some(&mask), 0.4);
        for (a, b) in values(grouped).iter().zip(values(repeated)) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn the_first_query_of_a_causal_mask_returns_the_first_value() {
        let device = Device::flex();
        let x = normal([1, 1, 3, 2], 1.0, 1, &device);
        let mask = AttentionMask::from_rule([1, 3, 3], |_, query, key| key <= query, &device);
        let y = causal_attention(x.clone(), x.clone(), x.clone(), Some(&mask), 1.0);
        assert_eq!(values(y.narrow(2, 0, 1)), values(x.narrow(2, 0, 1)));
    }

    #[test]
    fn a_large_cap_changes_nothing_and_a_small_one_evens_out_the_weights() {
        let device = Device::flex();
        let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 2, 5, 4], 2.0, seed, &device));
        let mask = AttentionMask::from_rule([1, 5, 5], |_, query, key| key <= query, &device);
        let capped = |cap| values(soft_capped_attention(q.clone(), k.clone(), v.clone(), Some(&mask), 0.5, cap));
        let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |worst, (x, y)| worst.max((x - y).abs()));
        let plain = capped(None);
        assert!(difference(&capped(Some(1e3)), &plain) < 1e-3);
        assert!(difference(&capped(Some(1.0)), &plain) > 1e-2);
        // Scores that are capped at nothing are all equal: each query takes the mean of what it sees, and no more.
        let mean = values(v.clone().narrow(2, 0, 3).mean_dim(2));
        let third = &capped(Some(1e-6))[2 * 4..3 * 4];
        assert!(difference(third, &mean[..4]) < 1e-4, "{third:?} {mean:?}");
    }

    #[test]
    fn a_query_that_sees_nothing_is_finite() {
        let device = Device::flex();
        let x = Tensor::<4>::ones([1, 1, 2, 2], &device);
        let mask = AttentionMask::from_rule([1, 2, 2], |_, _, _| false, &device);
        let y = values(causal_attention(x.clone(), x.clone(), x, Some(&mask), 1.0));
        assert!(y.iter().all(|value| value.is_finite()), "{y:?}");
    }
}
