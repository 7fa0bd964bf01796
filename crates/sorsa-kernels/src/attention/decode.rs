//! What a step of generation needs, without a backward pass: attention of one query a row over cached keys and values,
//! which are read where they lie, and the rotation of new queries and keys.

use rayon::prelude::*;

use super::attention::{Head, with_contiguous_rows};
use super::simd::{add_scaled, dot, exp_in_place, largest, scale as scale_all, wide};
use super::storage::{Values, contiguous, floats, shape, tensor};

/// Elements of keys from which heads are shared out among threads.
const PARALLEL: usize = 1 << 17;

/// Attention of `q` `[batch, heads, 1, width]` over `k`, `v` `[batch, kv_heads, keys, width]`, of which row `i` sees keys
/// from `first[i]` on. Scores go through `cap * tanh(score / cap)` where the cap is not 0.
pub(super) fn attention(qkv: [Values; 3], first: &[usize], scale: f64, cap: f64) -> Values {
    let [q, k, v] = qkv.map(with_contiguous_rows);
    let [batch, heads, _, width] = shape(&q)[..] else { unreachable!("four axes") };
    let [_, kv_heads, keys, _] = shape(&k)[..] else { unreachable!("four axes") };
    let group = heads / kv_heads;
    let mut output = vec![0.0; batch * heads * width];
    let one = |(task, out): (usize, &mut [f32])| {
        let (row, kv_head) = (task / kv_heads, task % kv_heads);
        let (keys_of, values_of) = (Head::of(&k, row, kv_head), Head::of(&v, row, kv_head));
        let mut scores = vec![0.0; keys - first[row]];
        wide(
            #[inline(always)]
            || {
                for (index, out) in out.chunks_exact_mut(width).enumerate() {
                    let query = Head::of(&q, row, kv_head * group + index).row(0);
                    for (key, score) in (first[row]..).zip(&mut scores) {
                        *score = dot(query, keys_of.row(key)) * scale as f32;
                    }
                    if cap != 0.0 {
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
    tensor(output, [batch, heads, 1, width])
}

/// `x` `[batch, heads, seq, width]` rotated by `cos`, `sin` `[batch or 1, 1, seq, planes]`; what lies beyond the planes stays.
pub(super) fn rotate(x: Values, cos: Values, sin: Values) -> Values {
    let (x, cos, sin) = (with_contiguous_rows(x), contiguous(cos), contiguous(sin));
    let [batch, heads, seq, width] = shape(&x)[..] else { unreachable!("four axes") };
    let [rows, _, _, planes] = shape(&cos)[..] else { unreachable!("four axes") };
    let (cos, sin) = (floats(&cos), floats(&sin));
    let mut output = Vec::with_capacity(batch * heads * seq * width);
    for row in 0..batch {
        for head in 0..heads {
            let head = Head::of(&x, row, head);
            for index in 0..seq {
                let at = ((if rows > 1 { row * seq } else { 0 }) + index) * planes;
                let (cos, sin) = (&cos[at..at + planes], &sin[at..at + planes]);
                let (first, rest) = head.row(index).split_at(planes);
                let angles = || cos.iter().zip(sin);
                output.extend(first.iter().zip(rest).zip(angles()).map(|((a, b), (cos, sin))| a * cos - b * sin));
                output.extend(first.iter().zip(rest).zip(angles()).map(|((a, b), (cos, sin))| b * cos + a * sin));
                output.extend(&rest[planes..]);
            }
        }
    }
    tensor(output, [batch, heads, seq, width])
}
