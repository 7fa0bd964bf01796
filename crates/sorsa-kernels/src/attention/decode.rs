//! Attention of one query a row over cached keys and values, read in place: a step of generation. It has no backward pass.

use rayon::prelude::*;

use super::Heads;
use crate::simd::{add_scaled, dot, exp_in_place, largest, scale as scale_all, wide};

/// Elements of keys from which heads run on all threads.
const PARALLEL: usize = 1 << 17;

/// The operands.
///
/// # Shapes
///
/// - `q`: `[batch, heads, 1, width]`
/// - `k`, `v`: `[batch, kv_heads, keys, width]`
/// - `first`: `[batch]`
#[derive(Debug, Clone, Copy)]
pub struct Decode<'a> {
    /// One query for each row.
    pub q: Heads<'a>,
    /// The cached keys.
    pub k: Heads<'a>,
    /// The cached values.
    pub v: Heads<'a>,
    /// The first key that each row sees.
    pub first: &'a [usize],
    /// Multiplies the scores.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)`; no cap if absent.
    pub cap: Option<f64>,
}

impl Decode<'_> {
    /// The attended values, `[batch, heads, 1, width]`.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn compute(&self) -> Vec<f32> {
        let Self { q, k, v, first, scale, cap } = *self;
        let [batch, heads, _, width] = q.shape();
        let [_, kv_heads, keys, _] = k.shape();
        let group = heads / kv_heads;
        let mut output = vec![0.0; batch * heads * width];
        let one = |(task, out): (usize, &mut [f32])| {
            let (row, kv_head) = (task / kv_heads, task % kv_heads);
            let (keys_of, values_of) = (k.head(row, kv_head), v.head(row, kv_head));
            let mut scores = vec![0.0; keys - first[row]];
            wide(
                #[inline(always)]
                || {
                    for (index, out) in out.chunks_exact_mut(width).enumerate() {
                        let query = q.head(row, kv_head * group + index).row(0);
                        for (key, score) in (first[row]..).zip(&mut scores) {
                            *score = dot(query, keys_of.row(key)) * scale as f32;
                        }
                        if let Some(cap) = cap {
                            scores.iter_mut().for_each(|score| *score = cap as f32 * (*score / cap as f32).tanh());
                        }
                        let largest = largest(&scores);
                        let sum = exp_in_place(&mut scores, largest);
                        for (key, probability) in (first[row]..).zip(&scores) {
                            add_scaled(out, values_of.row(key), *probability);
                        }
                        scale_all(out, sum.recip());
                    }
                },
            );
        };
        let tasks = output.par_chunks_exact_mut((group * width).max(1)).enumerate();
        if batch * kv_heads * keys * width < PARALLEL {
            tasks.with_min_len(usize::MAX).for_each(one);
        } else {
            tasks.for_each(one);
        }
        output
    }
}
