//! Causal attention with its rotation inside, by blocks of queries (the backward pass after Dao et al., 2022). Scores exist for
//! one block of one head at a time. The forward pass keeps the logarithm of each row's normalizer, and the backward pass forms
//! the probabilities again. With `P = softmax(S)`, `S = scale Q K^T` of rotated q, k:
//!
//! ```text
//! O = P V      dV = P^T dO      dS = P * (dO V^T - rowsum(dO * O))      dQ = scale dS K      dK = scale dS^T Q
//! ```

mod decode;
mod heads;

use rayon::prelude::*;

use crate::matrix::Matrix;
use crate::product::{Product, Update};
use crate::simd::{add_scaled, dot, exp_in_place, largest, scale, wide};

pub use decode::Decode;
pub(crate) use heads::Head;
pub use heads::{Angles, Heads, VisibleKeys};

/// Queries of one block. A block's scores of some thousand keys stay in a core's cache.
const BLOCK: usize = 64;

/// The operands of both passes. Each key head serves `heads / kv_heads` neighbouring query heads.
///
/// # Shapes
///
/// - `q`: `[batch, heads, seq, width]`
/// - `k`, `v`: `[batch, kv_heads, seq, width]`
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Queries, before the rotation.
    pub q: Heads<'a>,
    /// Keys, before the rotation.
    pub k: Heads<'a>,
    /// Values.
    pub v: Heads<'a>,
    /// The rotation of queries and keys.
    pub angles: Angles<'a>,
    /// The mask.
    pub visible: VisibleKeys<'a>,
    /// Multiplies the scores.
    pub scale: f32,
}

/// The result of the forward pass.
#[derive(Debug)]
pub struct Output {
    /// The attended values, in the order (batch, position, head, width).
    pub values: Vec<f32>,
    /// The logarithm of the sum of exponentials of each row `[batch, heads, seq]`; the backward pass needs it.
    pub normalizers: Vec<f32>,
}

/// The gradients of the operands, each in the order (batch, position, head, width); `None` if not wanted.
#[derive(Debug)]
pub struct Gradients {
    /// The gradient of the queries.
    pub q: Option<Vec<f32>>,
    /// The gradient of the keys.
    pub k: Option<Vec<f32>>,
    /// The gradient of the values.
    pub v: Option<Vec<f32>>,
}

/// What the backward pass needs of the forward pass beside its operands, and the gradient of its output.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The normalizers of the forward pass.
    pub normalizers: &'a [f32],
    /// The gradient of the output, `[batch, heads, seq, width]`.
    pub d_output: Heads<'a>,
    /// Whether the gradients of q, k and v are wanted.
    pub wanted: [bool; 3],
}

impl Attention<'_> {
    /// The forward pass.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn forward(&self) -> Output {
        let [batch, heads, _, seq, width] = self.sizes();
        let results: Vec<(Vec<f32>, Vec<f32>)> =
            (0..batch * heads).into_par_iter().map(|task| self.forward_head(task / heads, task % heads)).collect();
        let (outputs, normalizers): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        Output { values: by_position(&outputs, [batch, heads, seq, width], 1), normalizers: normalizers.concat() }
    }

    /// The backward pass.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn backward(&self, backward: &Backward<'_>) -> Gradients {
        let [batch, heads, key_heads, seq, width] = self.sizes();
        let parts: Vec<[Vec<f32>; 3]> = (0..batch * heads)
            .into_par_iter()
            .map(|task| self.backward_head(backward, task / heads, task % heads))
            .collect();
        let mut each: [Vec<Vec<f32>>; 3] = Default::default();
        for part in parts {
            each.iter_mut().zip(part).for_each(|(all, part)| all.push(part));
        }
        let gradient = |parts: Vec<Vec<f32>>, group: usize, wanted: bool| {
            wanted.then(|| by_position(&parts, [batch, heads, seq, width], group))
        };
        let ([q, k, v], group) = (each, heads / key_heads);
        Gradients {
            q: gradient(q, 1, backward.wanted[0]),
            k: gradient(k, group, backward.wanted[1]),
            v: gradient(v, group, backward.wanted[2]),
        }
    }

    /// Batch, query heads, key heads, length, width of a head.
    fn sizes(&self) -> [usize; 5] {
        let [batch, heads, seq, width] = self.q.shape();
        [batch, heads, self.k.shape()[1], seq, width]
    }

    fn forward_head(&self, batch: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
        let [_, heads, key_heads, seq, width] = self.sizes();
        let key_head = head / (heads / key_heads);
        let q = self.rotated(self.q.head(batch, head), batch, self.scale);
        let k = self.rotated(self.k.head(batch, key_head), batch, 1.0);
        let v = self.v.head(batch, key_head);
        let mut output = vec![0.0; seq * width];
        let mut normalizers = vec![0.0; seq];
        let mut scores = vec![0.0; BLOCK.min(seq) * seq];
        for (start, end, first) in self.blocks(batch, seq) {
            let keys = end - first;
            let scores = &mut scores[..(end - start) * keys];
            let queries = Matrix::new(&q[start * width..end * width], end - start, width);
            let block_keys = Matrix::new(&k[first * width..end * width], keys, width);
            Product::new(queries, block_keys.transposed()).on_one_thread().compute(scores, Update::Overwrite);
            for (query, row) in (start..end).zip(scores.chunks_exact_mut(keys)) {
                let seen = self.visible.first(batch, query) - first..query + 1 - first;
                let largest = largest(&row[seen.clone()]);
                let sum = exp_in_place(&mut row[seen.clone()], largest);
                scale(&mut row[seen.clone()], sum.recip());
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                normalizers[query] = largest + sum.ln();
            }
            let scores = Matrix::new(scores, end - start, keys);
            let output = &mut output[start * width..end * width];
            Product::new(scores, v.rows(first, end)).on_one_thread().compute(output, Update::Overwrite);
        }
        (output, normalizers)
    }

    /// The gradients of q, k and v of one query head; those of k and v are this head's share.
    fn backward_head(&self, backward: &Backward<'_>, batch: usize, head: usize) -> [Vec<f32>; 3] {
        let [_, heads, key_heads, seq, width] = self.sizes();
        let key_head = head / (heads / key_heads);
        let q = self.rotated(self.q.head(batch, head), batch, self.scale);
        let k = self.rotated(self.k.head(batch, key_head), batch, 1.0);
        let v = self.v.head(batch, key_head);
        let d_output = backward.d_output.head(batch, head);
        let normalizers = &backward.normalizers[(batch * heads + head) * seq..][..seq];

        let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0.0; seq * width]);
        let [mut scores, mut d_scores] = [(); 2].map(|()| vec![0.0; BLOCK.min(seq) * seq]);
        for (start, end, first) in self.blocks(batch, seq) {
            let keys = end - first;
            let (scores, d_scores) = (&mut scores[..(end - start) * keys], &mut d_scores[..(end - start) * keys]);
            let queries = Matrix::new(&q[start * width..end * width], end - start, width);
            let block_keys = Matrix::new(&k[first * width..end * width], keys, width);
            Product::new(queries, block_keys.transposed()).on_one_thread().compute(scores, Update::Overwrite);
            for (query, row) in (start..end).zip(scores.chunks_exact_mut(keys)) {
                let seen = self.visible.first(batch, query) - first..query + 1 - first;
                exp_in_place(&mut row[seen.clone()], normalizers[query]);
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
            let d_block = d_output.rows(start, end);
            let probabilities = Matrix::new(scores, end - start, keys);
            let d_values = &mut dv[first * width..end * width];
            Product::new(probabilities.transposed(), d_block).on_one_thread().compute(d_values, Update::Add);
            let values = v.rows(first, end);
            Product::new(d_block, values.transposed()).on_one_thread().compute(d_scores, Update::Overwrite);
            wide(
                #[inline(always)]
                || {
                    for (d_row, row) in d_scores.chunks_exact_mut(keys).zip(scores.chunks_exact(keys)) {
                        // The inner product of the output and its gradient, without the output.
                        let mean = dot(d_row, row);
                        for (d_score, probability) in d_row.iter_mut().zip(row) {
                            *d_score = probability * (*d_score - mean);
                        }
                    }
                },
            );
            let d_scores = Matrix::new(d_scores, end - start, keys);
            let (d_queries, d_keys) = (&mut dq[start * width..end * width], &mut dk[first * width..end * width]);
            let d_query_block = Product::new(d_scores, block_keys).with_factor(self.scale).on_one_thread();
            d_query_block.compute(d_queries, Update::Overwrite);
            Product::new(d_scores.transposed(), queries).on_one_thread().compute(d_keys, Update::Add);
        }
        self.rotate(&mut dq, width, batch, 1.0, -1.0);
        self.rotate(&mut dk, width, batch, 1.0, -1.0);
        [dq, dk, dv]
    }

    /// The head's rows, rotated and multiplied by `factor`.
    fn rotated(&self, head: Head<'_>, batch: usize, factor: f32) -> Vec<f32> {
        let mut rows = Vec::with_capacity(head.seq * head.width);
        (0..head.seq).for_each(|index| rows.extend_from_slice(head.row(index)));
        self.rotate(&mut rows, head.width, batch, factor, 1.0);
        rows
    }

    /// Rotates rows in place: by the angles if `direction` is 1, by the opposite angles if it is -1. The opposite rotation is
    /// the transposed one, that of gradients. Elements beyond the planes are only multiplied by `factor`.
    fn rotate(&self, rows: &mut [f32], width: usize, batch: usize, factor: f32, direction: f32) {
        let Angles { cos, sin, planes, .. } = self.angles;
        let start = self.angles.start(batch);
        wide(
            #[inline(always)]
            || {
                for (index, row) in rows.chunks_exact_mut(width).enumerate() {
                    scale(row, factor);
                    if planes == 0 {
                        continue;
                    }
                    let at = start + index * planes..start + (index + 1) * planes;
                    let (first, rest) = row.split_at_mut(planes);
                    for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(&cos[at.clone()]).zip(&sin[at]) {
                        let sin = direction * sin;
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            },
        );
    }

    /// Blocks of queries `(first query, end, first key)`. A block sees the keys from its first key to its end.
    fn blocks(&self, batch: usize, seq: usize) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..seq).step_by(BLOCK).map(move |start| {
            let end = (start + BLOCK).min(seq);
            let first = (start..end).map(|query| self.visible.first(batch, query)).min().unwrap_or(0);
            (start, end, first)
        })
    }
}

/// Gathers the rows of each head `[seq, width]`, in the order (batch, head), into one slice in the order (batch, position, head),
/// the order of projections. Sums the `group` neighbouring heads that share a key head.
fn by_position(parts: &[Vec<f32>], [batch, heads, seq, width]: [usize; 4], group: usize) -> Vec<f32> {
    let mut all = vec![0.0; batch * seq * heads / group * width];
    if !all.is_empty() {
        all.par_chunks_exact_mut(heads / group * width).enumerate().for_each(|(position, row)| {
            let (batch, index) = (position / seq, position % seq);
            for (head, part) in parts[batch * heads..(batch + 1) * heads].iter().enumerate() {
                let out = &mut row[head / group * width..][..width];
                add_scaled(out, &part[index * width..][..width], 1.0);
            }
        });
    }
    all
}
