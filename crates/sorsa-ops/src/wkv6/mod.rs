//! The mixing of RWKV-6 (Peng et al., 2024, arXiv 2404.05892, equations 17 to 19): a matrix-valued state per head
//! whose decay depends on the token.
//!
//! ```text
//! wkv_t    = S_{t-1} + diag(u) k_t^T v_t              out_t = r_t wkv_t
//! S_t      = diag(w_t) S_{t-1} + k_t^T v_t            w_t = exp(log_decay_t), log_decay_t < 0
//! ```
//!
//! A sequence is processed in chunks. Within a chunk, all pairs of tokens are weighed at once, by the product of the decays between
//! them; the tokens before it are the state. All exponents are sums of negative numbers, so none overflows. Each sum is taken by
//! itself and loses no digits; in a difference of running sums, one fast decay would swallow the digits of all that follow. There
//! is no fused form.

#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::{Bool, FloatDType};

use crate::memory::OperationMemory;

/// Tokens of a chunk. The memory of a chunk grows with its square.
const CHUNK: usize = 16;

/// Mixes over time, starting from `state`. `first` is `u`. Returns `out` and the state after the last token, all f32.
///
/// # Shapes
///
/// - `r`, `k`, `log_decay`: `[rows, heads, seq, width]`
/// - `v`, output: `[rows, heads, seq, value_width]`
/// - `first`: `[heads, width]`
/// - `state`: `[rows, heads, width, value_width]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn wkv6(
    r: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    log_decay: Tensor<4>,
    first: Tensor<2>,
    state: Tensor<4>,
) -> (Tensor<4>, Tensor<4>) {
    in_chunks([r, k, v, log_decay], first, state, CHUNK)
}

/// The memory of [`wkv6`] of `k` `[rows, seq, channels]`, all heads together: about eight tensors of that shape, and the decays of all
/// pairs of tokens within a chunk, about six times.
pub fn wkv6_memory([rows, seq, channels]: [usize; 3]) -> OperationMemory {
    OperationMemory::keeping(rows * seq * channels * (8 + 6 * seq.min(CHUNK)))
}

fn in_chunks(
    sequences: [Tensor<4>; 4],
    first: Tensor<2>,
    mut state: Tensor<4>,
    chunk: usize,
) -> (Tensor<4>, Tensor<4>) {
    let seq = sequences[0].dims()[2];
    let sequences = sequences.map(|sequence| sequence.cast(FloatDType::F32));
    let first = first.cast(FloatDType::F32).unsqueeze_dim::<3>(1).unsqueeze::<4>();
    let mut mixed = Vec::with_capacity(seq.div_ceil(chunk));
    for start in (0..seq).step_by(chunk) {
        let length = chunk.min(seq - start);
        let part = sequences.each_ref().map(|sequence| sequence.clone().narrow(2, start, length));
        let (out, next) = one_chunk(part, &first, state);
        mixed.push(out);
        state = next;
    }
    (Tensor::cat(mixed, 2), state)
}

/// `first` is `[1, heads, 1, width]`.
fn one_chunk([r, k, v, log_decay]: [Tensor<4>; 4], first: &Tensor<4>, state: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let [rows, heads, len, width] = r.dims();
    let device = r.device().without_autodiff();
    // One row more than there are tokens: the last row is for the next chunk.
    let none = Tensor::zeros([rows, heads, 1, width], &device);
    let log_decay = Tensor::cat(vec![none, log_decay], 2);

    // The weight of key i < t in row t, channel by channel: the decays of the tokens between them.
    let pairs = |holds: fn(usize, usize) -> bool| {
        let mask: Vec<bool> = (0..=len).flat_map(|t| (0..len).map(move |i| holds(t, i))).collect();
        Tensor::<5, Bool>::from_data(TensorData::new::<bool, _>(mask, [1, 1, len + 1, len, 1]), &device).expand([
            rows,
            heads,
            len + 1,
            len,
            width,
        ])
    };
    let between = log_decay
        .clone()
        .unsqueeze_dim::<5>(3)
        .expand([rows, heads, len + 1, len, width])
        .mask_fill(pairs(|t, i| t <= i + 1), 0.0)
        .cumsum(2)
        .mask_fill(pairs(|t, i| t <= i), -1e38)
        .exp();
    let keys = k.clone().unsqueeze_dim::<5>(2) * between;
    let scores = (r.clone().unsqueeze_dim::<5>(3) * keys.clone().narrow(2, 0, len)).sum_dim(4).squeeze_dim::<4>(4);
    let own = (r.clone() * first.clone() * k).sum_dim(3) * v.clone();

    let state_left = log_decay.cumsum(2).exp();
    let from_state = (r * state_left.clone().narrow(2, 0, len)).matmul(state.clone());
    let out = scores.matmul(v.clone()) + own + from_state;

    let kept = keys.narrow(2, len, 1).squeeze_dim::<4>(2);
    let next = state_left.narrow(2, len, 1).swap_dims(2, 3) * state + kept.swap_dims(2, 3).matmul(v);
    (out, next)
}
