//! The attention-free mixing of RWKV-4 (Peng et al., 2023, arXiv 2305.13048, equation 16), one number per channel:
//!
//! ```text
//!           sum_{i<t} exp(-(t-1-i) w + k_i) v_i + exp(u + k_t) v_t
//! wkv_t  =  ------------------------------------------------------        w = exp(decay) > 0
//!           sum_{i<t} exp(-(t-1-i) w + k_i)     + exp(u + k_t)
//! ```
//!
//! Tokens are taken in chunks: within one, every pair of tokens is weighed at once; what came before is a state of
//! three numbers per channel. Both are a softmax over exponents, kept from overflowing by their largest one.

use burn::prelude::*;
use burn::tensor::{Bool, DType, FloatDType};

/// Tokens that are mixed at once: the memory of a chunk grows with its square.
const CHUNK: usize = 32;

/// What an exponent that counts for nothing is: finite, so that differences of two of them are.
const NOTHING: f64 = -1e38;

/// What the tokens so far sum to: `exp(exponent) * numerator` and `exp(exponent) * denominator`, each
/// `[rows, channels]`, f32.
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

/// Mixes `k` and `v` `[rows, seq, channels]` over time, from `state` on. `decay` and `first` (`u`) are `[channels]`.
/// Returns `wkv` `[rows, seq, channels]` and the state after the last token, all f32.
///
/// # Panics
///
/// Panics where the shapes do not fit each other.
pub fn wkv4(
    decay: Tensor<1>,
    first: Tensor<1>,
    k: Tensor<3>,
    v: Tensor<3>,
    state: Wkv4State,
) -> (Tensor<3>, Wkv4State) {
    in_chunks(decay, first, k, v, state, CHUNK)
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

    // Exponents of key i for query t, [rows, t, i, channels]: decayed by the tokens between, `first` for its own.
    let between = (0..len).flat_map(|t| (0..len).map(move |i| (t as f32 - 1.0 - i as f32).max(0.0))).collect();
    let own = (0..len).flat_map(|t| (0..len).map(move |i| f32::from(t == i))).collect();
    let later: Vec<bool> = (0..len).flat_map(|t| (0..len).map(move |i| i > t)).collect();
    let later = Tensor::<4, Bool>::from_data(TensorData::new::<bool, _>(later, [1, len, len, 1]), &device);
    let shape = [1, len, len, 1];
    let exponents = k.clone().unsqueeze_dim::<4>(1) - steps(between, shape) * rate.clone()
        + steps(own, shape) * first.clone().unsqueeze::<4>();
    let exponents = exponents.mask_fill(later.expand([rows, len, len, channels]), NOTHING);
    // Of the state for query t, [rows, t, channels].
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

    // The same sums as seen from after the last token.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
        tensor.into_data().convert::<f64>().try_into_vec::<f64>().unwrap()
    }

    /// The equation at the top of this file, term by term in f64, for one row.
    fn literal(decay: &[f64], first: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let channels = decay.len();
        let mut out = vec![0.0; k.len()];
        for t in 0..k.len() / channels {
            for c in 0..channels {
                let (mut above, mut below) = (0.0, 0.0);
                for i in 0..=t {
                    let at = i * channels + c;
                    let weight = if i == t { first[c] } else { -((t - 1 - i) as f64) * decay[c].exp() } + k[at];
                    above += weight.exp() * v[at];
                    below += weight.exp();
                }
                out[t * channels + c] = above / below;
            }
        }
        out
    }

    struct Case {
        decay: Tensor<1>,
        first: Tensor<1>,
        k: Tensor<3>,
        v: Tensor<3>,
    }

    fn case(shape: [usize; 3], device: &Device) -> Case {
        Case {
            decay: normal([shape[2]], 1.5, 1, device),
            first: normal([shape[2]], 1.0, 2, device),
            k: normal(shape, 2.0, 3, device),
            v: normal(shape, 1.0, 4, device),
        }
    }

    impl Case {
        fn run(&self, chunk: usize) -> (Tensor<3>, Wkv4State) {
            let [rows, _, channels] = self.k.dims();
            let state = Wkv4State::empty([rows, channels], &self.k.device().without_autodiff());
            let Self { decay, first, k, v } = self;
            in_chunks(decay.clone(), first.clone(), k.clone(), v.clone(), state, chunk)
        }
    }

    #[test]
    fn chunks_of_any_length_give_the_sums_of_the_equation() {
        let device = Device::flex();
        let case = case([2, 21, 5], &device);
        let row = |t: &Tensor<3>, row| values(t.clone().narrow(0, row, 1));
        let vectors = (values(case.decay.clone()), values(case.first.clone()));
        for chunk in [1, 4, 7, 32] {
            let (out, _) = case.run(chunk);
            for index in 0..2 {
                let expected = literal(&vectors.0, &vectors.1, &row(&case.k, index), &row(&case.v, index));
                for (found, expected) in row(&out, index).iter().zip(expected) {
                    assert!((found - expected).abs() < 2e-6, "chunks of {chunk}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn keys_far_outside_the_range_of_exp_do_not_overflow() {
        let device = Device::flex();
        let mut case = case([1, 40, 3], &device);
        case.k = case.k * 200.0;
        for chunk in [1, 32] {
            let out = values(case.run(chunk).0);
            // Each is a mean of values.
            let largest = values(case.v.clone()).iter().fold(0f64, |largest, v| largest.max(v.abs()));
            assert!(out.iter().all(|value| value.abs() <= largest * 1.0001), "{out:?}");
        }
    }

    #[test]
    fn a_sequence_in_two_parts_is_the_sequence() {
        let device = Device::flex();
        let Case { decay, first, k, v } = case([2, 50, 4], &device);
        let run = |from: usize, len: usize, state| {
            wkv4(decay.clone(), first.clone(), k.clone().narrow(1, from, len), v.clone().narrow(1, from, len), state)
        };
        let empty = || Wkv4State::empty([2, 4], &device);
        let (whole, _) = run(0, 50, empty());
        let (head, state) = run(0, 37, empty());
        let (tail, _) = run(37, 13, state);
        assert!((whole - Tensor::cat(vec![head, tail], 1)).abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn gradients_are_the_differences_of_the_equation() {
        let device = Device::flex().autodiff();
        let mut case = case([1, 9, 2], &device);
        let target = normal([1, 9, 2], 1.0, 5, &device);
        (case.decay, case.first) = (case.decay.require_grad(), case.first.require_grad());
        (case.k, case.v) = (case.k.require_grad(), case.v.require_grad());
        let gradients = (case.run(4).0 * target.clone()).sum().backward();
        let target = values(target);
        let mut inputs =
            [values(case.decay.clone()), values(case.first.clone()), values(case.k.clone()), values(case.v.clone())];
        let found = [
            values(case.decay.grad(&gradients).unwrap()),
            values(case.first.grad(&gradients).unwrap()),
            values(case.k.grad(&gradients).unwrap()),
            values(case.v.grad(&gradients).unwrap()),
        ];
        let loss = |x: &[Vec<f64>; 4]| -> f64 {
            literal(&x[0], &x[1], &x[2], &x[3]).iter().zip(&target).map(|(out, target)| out * target).sum()
        };
        for input in 0..4 {
            for at in 0..inputs[input].len() {
                let mut at_offset = |offset: f64| {
                    let kept = inputs[input][at];
                    inputs[input][at] = kept + offset;
                    let loss = loss(&inputs);
                    inputs[input][at] = kept;
                    loss
                };
                let expected = (at_offset(1e-5) - at_offset(-1e-5)) / 2e-5;
                assert!((found[input][at] - expected).abs() < 1e-5, "{input}, {at}: {} {expected}", found[input][at]);
            }
        }
    }
}
