//! Causal attention with its rotation inside, by blocks of queries (the backward pass after Dao et al., 2022): scores
//! exist for one block of one head at a time; of each row only the logarithm of its normaliser is kept, and the
//! probabilities are formed again in the backward pass. With `P = softmax(S)`, `S = scale Q K^T` of rotated q, k:
//!
//! ```text
//! O = P V      dV = P^T dO      dS = P * (dO V^T - rowsum(dO * O))      dQ = scale dS K      dK = scale dS^T Q
//! ```

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use rayon::prelude::*;

use super::product::{Matrix, Threads, multiply};
use super::simd::{add_scaled, dot, exp_in_place, largest, scale, wide};
use super::storage::{Tracked, Values, contiguous, floats, shape, tensor};
use crate::attention::FirstVisible;

/// Queries of one block. A block's scores of some thousand keys stay in a core's cache.
const BLOCK: usize = 64;

/// What both passes read. q, k, v are `[batch, heads, seq, head_dim]`, of any strides but the last.
#[derive(Debug, Clone)]
pub(super) struct Inputs {
    q: Values,
    k: Values,
    v: Values,
    /// `[batch or 1, 1, seq, planes]`, or nothing.
    cos: Values,
    sin: Values,
    visible: FirstVisible,
    scale: f32,
}

/// One head of one sequence: rows of `width` elements, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    data: &'a [f32],
    seq: usize,
    width: usize,
    stride: usize,
}

impl<'a> Head<'a> {
    pub fn of(tensor: &'a Values, batch: usize, head: usize) -> Self {
        let (shape, strides) = (tensor.layout().shape(), tensor.layout().strides());
        let start = tensor.layout().start_offset() + batch * strides[0] as usize + head * strides[1] as usize;
        let data = &tensor.storage::<f32>()[start..];
        Self { data, seq: shape[2], width: shape[3], stride: strides[2] as usize }
    }

    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..index * self.stride + self.width]
    }

    fn rows(&self, start: usize, end: usize) -> Matrix<'a> {
        Matrix::with_stride(&self.data[start * self.stride..], end - start, self.width, self.stride)
    }
}

/// Rows contiguous, strides not negative: what [`Head`] relies on.
pub(super) fn with_contiguous_rows(tensor: Values) -> Values {
    let strides = tensor.layout().strides();
    let rows = strides.iter().all(|stride| *stride >= 0) && (strides[3] == 1 || shape(&tensor)[3] == 1);
    if rows { tensor } else { tensor.to_contiguous() }
}

impl Inputs {
    pub fn new(q: Values, k: Values, v: Values, cos: Values, sin: Values, visible: FirstVisible, scale: f64) -> Self {
        let [q, k, v] = [q, k, v].map(with_contiguous_rows);
        Self { q, k, v, cos: contiguous(cos), sin: contiguous(sin), visible, scale: scale as f32 }
    }

    /// Batch, query heads, key heads, length, width of a head.
    fn sizes(&self) -> [usize; 5] {
        let q = shape(&self.q);
        [q[0], q[1], shape(&self.k)[1], q[2], q[3]]
    }

    /// The head's rows rotated and multiplied by `factor`.
    fn rotated(&self, head: Head<'_>, batch: usize, factor: f32) -> Vec<f32> {
        let mut rows = Vec::with_capacity(head.seq * head.width);
        (0..head.seq).for_each(|index| rows.extend_from_slice(head.row(index)));
        self.rotate(&mut rows, head.width, batch, factor, 1.0);
        rows
    }

    /// Rotates rows in place, by the angles (`direction` 1) or back (-1, the transposed rotation, which is that of
    /// gradients). What lies beyond the planes is only multiplied by `factor`.
    fn rotate(&self, rows: &mut [f32], width: usize, batch: usize, factor: f32, direction: f32) {
        let angles = shape(&self.cos);
        let (cos, sin, planes) = (floats(&self.cos), floats(&self.sin), angles[3]);
        let start = if angles[0] > 1 { batch * angles[2] * planes } else { 0 };
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

    /// Blocks of queries `(first query, end, first key)`: a block sees keys from there to its end.
    fn blocks(&self, batch: usize, seq: usize) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..seq).step_by(BLOCK).map(move |start| {
            let end = (start + BLOCK).min(seq);
            let first = (start..end).map(|query| self.visible.first(batch, query)).min().unwrap_or(0);
            (start, end, first)
        })
    }
}

/// The output `[batch, heads, seq, head_dim]`, and of each of its rows the logarithm of the sum of exponentials.
pub(super) fn forward(inputs: &Inputs) -> (Values, Vec<f32>) {
    let [batch, heads, _, seq, width] = inputs.sizes();
    let results: Vec<(Vec<f32>, Vec<f32>)> =
        (0..batch * heads).into_par_iter().map(|task| forward_head(inputs, task / heads, task % heads)).collect();
    let (outputs, normalisers): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    (by_position(&outputs, [batch, heads, seq, width], 1), normalisers.concat())
}

fn forward_head(inputs: &Inputs, batch: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
    let [_, heads, key_heads, seq, width] = inputs.sizes();
    let key_head = head / (heads / key_heads);
    let q = inputs.rotated(Head::of(&inputs.q, batch, head), batch, inputs.scale);
    let k = inputs.rotated(Head::of(&inputs.k, batch, key_head), batch, 1.0);
    let v = Head::of(&inputs.v, batch, key_head);
    let mut output = vec![0.0; seq * width];
    let mut normalisers = vec![0.0; seq];
    let mut scores = vec![0.0; BLOCK.min(seq) * seq];
    for (start, end, first) in inputs.blocks(batch, seq) {
        let keys = end - first;
        let scores = &mut scores[..(end - start) * keys];
        let queries = Matrix::new(&q[start * width..end * width], end - start, width);
        let block_keys = Matrix::new(&k[first * width..end * width], keys, width);
        multiply(scores, queries, block_keys.transposed(), 1.0, false, Threads::One);
        for (query, row) in (start..end).zip(scores.chunks_exact_mut(keys)) {
            let seen = inputs.visible.first(batch, query) - first..query + 1 - first;
            let largest = largest(&row[seen.clone()]);
            let sum = exp_in_place(&mut row[seen.clone()], largest);
            scale(&mut row[seen.clone()], sum.recip());
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            normalisers[query] = largest + sum.ln();
        }
        let scores = Matrix::new(scores, end - start, keys);
        multiply(&mut output[start * width..end * width], scores, v.rows(first, end), 1.0, false, Threads::One);
    }
    (output, normalisers)
}

/// Gradients of q, k, v of one head; those of k and v are this query head's part.
fn backward_head(
    inputs: &Inputs,
    output: &Values,
    normalisers: &[f32],
    d_output: &Values,
    batch: usize,
    head: usize,
) -> [Vec<f32>; 3] {
    let [_, heads, key_heads, seq, width] = inputs.sizes();
    let key_head = head / (heads / key_heads);
    let q = inputs.rotated(Head::of(&inputs.q, batch, head), batch, inputs.scale);
    let k = inputs.rotated(Head::of(&inputs.k, batch, key_head), batch, 1.0);
    let v = Head::of(&inputs.v, batch, key_head);
    let (output, d_output) = (Head::of(output, batch, head), Head::of(d_output, batch, head));
    let normalisers = &normalisers[(batch * heads + head) * seq..][..seq];

    let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0.0; seq * width]);
    let [mut scores, mut d_scores] = [(); 2].map(|()| vec![0.0; BLOCK.min(seq) * seq]);
    for (start, end, first) in inputs.blocks(batch, seq) {
        let keys = end - first;
        let (scores, d_scores) = (&mut scores[..(end - start) * keys], &mut d_scores[..(end - start) * keys]);
        let queries = Matrix::new(&q[start * width..end * width], end - start, width);
        let block_keys = Matrix::new(&k[first * width..end * width], keys, width);
        multiply(scores, queries, block_keys.transposed(), 1.0, false, Threads::One);
        for (query, row) in (start..end).zip(scores.chunks_exact_mut(keys)) {
            let seen = inputs.visible.first(batch, query) - first..query + 1 - first;
            exp_in_place(&mut row[seen.clone()], normalisers[query]);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
        }
        let d_block = d_output.rows(start, end);
        let probabilities = Matrix::new(scores, end - start, keys);
        let d_values = &mut dv[first * width..end * width];
        multiply(d_values, probabilities.transposed(), d_block, 1.0, true, Threads::One);
        multiply(d_scores, d_block, v.rows(first, end).transposed(), 1.0, false, Threads::One);
        wide(
            #[inline(always)]
            || {
                let rows = d_scores.chunks_exact_mut(keys).zip(scores.chunks_exact(keys));
                for (query, (d_row, row)) in (start..end).zip(rows) {
                    let mean = dot(d_output.row(query), output.row(query));
                    for (d_score, probability) in d_row.iter_mut().zip(row) {
                        *d_score = probability * (*d_score - mean);
                    }
                }
            },
        );
        let d_scores = Matrix::new(d_scores, end - start, keys);
        multiply(&mut dq[start * width..end * width], d_scores, block_keys, inputs.scale, false, Threads::One);
        multiply(&mut dk[first * width..end * width], d_scores.transposed(), queries, 1.0, true, Threads::One);
    }
    inputs.rotate(&mut dq, width, batch, 1.0, -1.0);
    inputs.rotate(&mut dk, width, batch, 1.0, -1.0);
    [dq, dk, dv]
}

/// Rows of each head, `[seq, width]` in the order (batch, head), as one tensor `[batch, heads / group, seq, width]` whose
/// memory is in the order (batch, position, head), which is that of the projections. Neighbouring heads of a group are
/// summed.
fn by_position(parts: &[Vec<f32>], [batch, heads, seq, width]: [usize; 4], group: usize) -> Values {
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
    Flex::float_swap_dims(tensor(all, [batch, seq, heads / group, width]), 1, 2)
}

#[derive(Debug)]
struct Attention;

impl Backward<Flex, 3> for Attention {
    /// The inputs, the output, the normalisers.
    type State = (Inputs, Values, Vec<f32>);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_output = with_contiguous_rows(gradients.consume::<Flex>(&ops.node));
        let (inputs, output, normalisers) = ops.state;
        let [batch, heads, key_heads, seq, width] = inputs.sizes();
        let parts: Vec<[Vec<f32>; 3]> = (0..batch * heads)
            .into_par_iter()
            .map(|task| backward_head(&inputs, &output, &normalisers, &d_output, task / heads, task % heads))
            .collect();
        let mut each: [Vec<Vec<f32>>; 3] = Default::default();
        for part in parts {
            each.iter_mut().zip(part).for_each(|(all, part)| all.push(part));
        }
        let groups = [1, heads / key_heads, heads / key_heads];
        for ((node, parts), group) in ops.parents.into_iter().zip(each).zip(groups) {
            if let Some(node) = node {
                gradients.register::<Flex>(node.id, by_position(&parts, [batch, heads, seq, width], group));
            }
        }
    }
}

pub(super) fn tracked<C: CheckpointStrategy>(
    [q, k, v]: [Tracked; 3],
    cos: Values,
    sin: Values,
    visible: FirstVisible,
    scale: f64,
) -> Tracked {
    let prepared = Attention.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful();
    let (q, k, v) = (q.into_primitive(), k.into_primitive(), v.into_primitive());
    let inputs = Inputs::new(q, k, v, cos, sin, visible, scale);
    let (output, normalisers) = forward(&inputs);
    match prepared {
        OpsKind::Tracked(prepared) => prepared.finish((inputs, output.clone(), normalisers), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}
