//! The attention-free mixing of RWKV-4 (Peng et al., 2023, arXiv 2305.13048, equation 16), one number per channel:
//!
//! ```text
//!           sum_{i<t} exp(-(t-1-i) w + k_i) v_i + exp(u + k_t) v_t
//! wkv_t  =  ------------------------------------------------------        w = exp(decay) > 0
//!           sum_{i<t} exp(-(t-1-i) w + k_i)     + exp(u + k_t)
//! ```
//!
//! A sequence is processed in chunks. Within a chunk, all pairs of tokens are weighed at once; the tokens before it are a state of
//! three numbers per channel. Both are a softmax over exponents, and subtracting the largest exponent prevents overflow. There is
//! no fused form.

#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::{Bool, DType, FloatDType};

use crate::memory::OperationMemory;

/// Tokens of a chunk. The memory of a chunk grows with its square.
const CHUNK: usize = 32;

/// The exponent of a term that does not count. It is finite, so that the difference of two of them is finite.
const NOTHING: f64 = -1e38;

/// The sums over the tokens so far: `exp(exponent) * numerator` and `exp(exponent) * denominator`, each `[rows, channels]`, f32.
#[derive(Debug, Clone)]
pub struct Wkv4State {
    /// The weighted sum of values, divided by `exp(exponent)`.
    pub numerator: Tensor<2>,
    /// The sum of weights, divided by `exp(exponent)`.
    pub denominator: Tensor<2>,
    /// The largest exponent in the sums.
    pub exponent: Tensor<2>,
}

impl Wkv4State {
    /// The state before the first token.
    pub fn empty([rows, channels]: [usize; 2], device: &Device) -> Self {
        let zeros = Tensor::zeros([rows, channels], (device, DType::F32));
        let exponent = Tensor::full([rows, channels], NOTHING, (device, DType::F32));
        Self { numerator: zeros.clone(), denominator: zeros, exponent }
    }
}

/// Mixes `k` and `v` over time, starting from `state`. `first` is `u`. Returns `wkv` and the state after the last token, all f32.
///
/// # Shapes
///
/// - `decay`, `first`: `[channels]`
/// - `k`, `v`, output: `[rows, seq, channels]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn wkv4(
    decay: Tensor<1>,
    first: Tensor<1>,
    k: Tensor<3>,
    v: Tensor<3>,
    state: Wkv4State,
) -> (Tensor<3>, Wkv4State) {
    in_chunks(decay, first, k, v, state, CHUNK)
}

/// The memory of [`wkv4`] of `k` `[rows, seq, channels]`: about eight tensors of that shape, and the weights of all pairs of tokens
/// within a chunk, three times.
pub fn wkv4_memory([rows, seq, channels]: [usize; 3]) -> OperationMemory {
    OperationMemory::keeping(rows * seq * channels * (8 + 3 * seq.min(CHUNK)))
}

fn in_chunks(
    decay: Tensor<1>,
    first: Tensor<1>,
    k: Tensor<3>,
    v: Tensor<3>,
    mut state: Wkv4State,
    chunk: usize,
) -> (Tensor<3>, Wkv4State) {
    let seq = k.dims()[1];
    let (k, v) = (k.cast(FloatDType::F32), v.cast(FloatDType::F32));
    let rate = decay.cast(FloatDType::F32).exp();
    let first = first.cast(FloatDType::F32);
    let mut mixed = Vec::with_capacity(seq.div_ceil(chunk));
    for start in (0..seq).step_by(chunk) {
        let length = chunk.min(seq - start);
        let (k, v) = (k.clone().narrow(1, start, length), v.clone().narrow(1, start, length));
        let (out, next) = one_chunk(&rate, &first, k, v, state);
        mixed.push(out);
        state = next;
    }
    (Tensor::cat(mixed, 1), state)
}

/// `rate` is `w`, `[channels]`.
fn one_chunk(
    rate: &Tensor<1>,
    first: &Tensor<1>,
    k: Tensor<3>,
    v: Tensor<3>,
    state: Wkv4State,
) -> (Tensor<3>, Wkv4State) {
    let [rows, len, channels] = k.dims();
    let device = k.device().without_autodiff();
    let steps = |values: Vec<f32>, shape: [usize; 4]| {
        Tensor::<4>::from_data(TensorData::new::<f32, _>(values, shape), (&device, DType::F32))
    };
    let rate: Tensor<4> = rate.clone().unsqueeze();

    // Exponents of key i for query t, [rows, t, i, channels]: decayed by the tokens between them; `first` if i is t.
    let between = (0..len).flat_map(|t| (0..len).map(move |i| (t as f32 - 1.0 - i as f32).max(0.0))).collect();
    let own = (0..len).flat_map(|t| (0..len).map(move |i| f32::from(t == i))).collect();
    let later: Vec<bool> = (0..len).flat_map(|t| (0..len).map(move |i| i > t)).collect();
    let later = Tensor::<4, Bool>::from_data(TensorData::new::<bool, _>(later, [1, len, len, 1]), &device);
    let shape = [1, len, len, 1];
    let exponents = k.clone().unsqueeze_dim::<4>(1) - steps(between, shape) * rate.clone()
        + steps(own, shape) * first.clone().unsqueeze::<4>();
    let exponents = exponents.mask_fill(later.expand([rows, len, len, channels]), NOTHING);
    // Exponents of the state for query t, [rows, t, channels].
    let elapsed = |count: Vec<f32>| {
        let count_len = count.len();
        let count = steps(count, [1, count_len, 1, 1]);
        (count * rate.clone()).squeeze_dim::<3>(2)
    };
    let before = state.exponent.clone().unsqueeze_dim::<3>(1) - elapsed((0..len).map(|t| t as f32).collect());

    // The largest exponent cancels: it needs no gradient.
    let largest = exponents.clone().detach().max_dim(2).squeeze_dim::<3>(2).max_pair(before.clone().detach());
    let weights = (exponents - largest.clone().unsqueeze_dim::<4>(2)).exp();
    let before = (before - largest).exp();
    let numerator = (weights.clone() * v.clone().unsqueeze_dim::<4>(1)).sum_dim(2).squeeze_dim::<3>(2)
        + before.clone() * state.numerator.clone().unsqueeze_dim::<3>(1);
    let denominator = weights.sum_dim(2).squeeze_dim::<3>(2) + before * state.denominator.clone().unsqueeze_dim::<3>(1);
    let out = numerator / denominator;

    // The same sums for the position after the last token.
    let exponents = k - elapsed((0..len).rev().map(|left| left as f32).collect());
    let carried = state.exponent.unsqueeze_dim::<3>(1) - elapsed(vec![len as f32]);
    let largest = exponents.clone().detach().max_dim(1).max_pair(carried.clone().detach());
    let weights = (exponents - largest.clone()).exp();
    let carried = (carried - largest.clone()).exp();
    let next = Wkv4State {
        numerator: ((weights.clone() * v).sum_dim(1) + carried.clone() * state.numerator.unsqueeze_dim::<3>(1))
            .squeeze_dim::<2>(1),
        denominator: (weights.sum_dim(1) + carried * state.denominator.unsqueeze_dim::<3>(1)).squeeze_dim::<2>(1),
        exponent: largest.squeeze_dim::<2>(1),
    };
    (out, next)
}
