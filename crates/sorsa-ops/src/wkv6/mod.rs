//! The mixing of RWKV-6 (Peng et al., 2024, arXiv 2404.05892, equations 17 to 19): a matrix-valued state per head
//! whose decay depends on the token.
//!
//! ```text
//! wkv_t    = S_{t-1} + diag(u) k_t^T v_t              out_t = r_t wkv_t
//! S_t      = diag(w_t) S_{t-1} + k_t^T v_t            w_t = exp(log_decay_t), log_decay_t < 0
//! ```
//!
//! Tokens are taken in chunks: within one, every pair of tokens is weighed at once, by the product of the decays
//! between them; what came before is the state. All exponents are sums of negative numbers, so none overflows; each is
//! summed on its own (not as a difference of running sums, where one fast decay would blur all that follow it), so
//! that none loses digits.

use burn::prelude::*;
use burn::tensor::{Bool, FloatDType};

/// Tokens that are mixed at once: the memory of a chunk grows with its square.
const CHUNK: usize = 16;

/// Mixes over time, from `state` on. `r`, `k` and `log_decay` are `[rows, heads, seq, width]`, `v` is
/// `[rows, heads, seq, value_width]`, `first` (`u`) `[heads, width]`, `state` `[rows, heads, width, value_width]`.
/// Returns `out` `[rows, heads, seq, value_width]` and the state after the last token, all f32.
///
/// # Panics
///
/// Panics where the shapes do not fit each other.
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
    // One row more than tokens: the last is what the next chunk sees.
    let none = Tensor::zeros([rows, heads, 1, width], &device);
    let log_decay = Tensor::cat(vec![none, log_decay], 2);

    // What row t takes of key i < t, channel by channel: the decays of the tokens between them.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
        tensor.into_data().convert::<f64>().try_into_vec::<f64>().unwrap()
    }

    /// Row-major values of r, k, v, log_decay `[heads, seq, width]`, first `[heads, width]`.
    type Inputs = [Vec<f64>; 5];

    /// The recurrence at the top of this file, number by number in f64, for one row from an empty state.
    fn literal([r, k, v, log_decay, first]: &Inputs, [heads, seq, width]: [usize; 3]) -> Vec<f64> {
        let mut out = vec![0.0; r.len()];
        for head in 0..heads {
            let mut state = vec![vec![0.0; width]; width];
            for t in 0..seq {
                let at = (head * seq + t) * width;
                for j in 0..width {
                    for i in 0..width {
                        let product = k[at + i] * v[at + j];
                        out[at + j] += r[at + i] * (state[i][j] + first[head * width + i] * product);
                        state[i][j] = log_decay[at + i].exp() * state[i][j] + product;
                    }
                }
            }
        }
        out
    }

    struct Case {
        sequences: [Tensor<4>; 4],
        first: Tensor<2>,
    }

    impl Case {
        fn new(shape: [usize; 4], device: &Device) -> Self {
            let [r, k, v] = [1, 2, 3].map(|seed| normal(shape, 1.0, seed, device));
            // exp(d) spans slow to very fast decay.
            let log_decay = normal(shape, 2.0, 4, device).exp().neg();
            Self { sequences: [r, k, v, log_decay], first: normal([shape[1], shape[3]], 1.0, 5, device) }
        }

        fn run(&self, chunk: usize) -> Tensor<4> {
            let [rows, heads, _, width] = self.sequences[0].dims();
            let state = Tensor::zeros([rows, heads, width, width], &self.first.device().without_autodiff());
            in_chunks(self.sequences.clone(), self.first.clone(), state, chunk).0
        }

        fn row(&self, row: usize) -> Inputs {
            let [r, k, v, w] = self.sequences.each_ref().map(|t| values(t.clone().narrow(0, row, 1)));
            [r, k, v, w, values(self.first.clone())]
        }
    }

    #[test]
    fn chunks_of_any_length_give_the_recurrence_of_the_paper() {
        let case = Case::new([2, 3, 21, 4], &Device::flex());
        for chunk in [1, 4, 7, 16, 32] {
            let out = case.run(chunk);
            for row in 0..2 {
                let expected = literal(&case.row(row), [3, 21, 4]);
                for (found, expected) in values(out.clone().narrow(0, row, 1)).iter().zip(expected) {
                    assert!(
                        (found - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                        "chunks of {chunk}: {found} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_fastest_decay_forgets_without_overflow() {
        let mut case = Case::new([1, 2, 40, 4], &Device::flex());
        case.sequences[3] = case.sequences[3].ones_like() * -1e4;
        let expected = literal(&case.row(0), [2, 40, 4]);
        for (found, expected) in values(case.run(16)).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn a_sequence_in_two_parts_is_the_sequence() {
        let case = Case::new([2, 2, 50, 4], &Device::flex());
        let run = |from: usize, len: usize, state| {
            let [r, k, v, w] = case.sequences.each_ref().map(|t| t.clone().narrow(2, from, len));
            wkv6(r, k, v, w, case.first.clone(), state)
        };
        let empty = || Tensor::zeros([2, 2, 4, 4], &Device::flex());
        let (whole, _) = run(0, 50, empty());
        let (head, state) = run(0, 37, empty());
        let (tail, _) = run(37, 13, state);
        assert!((whole - Tensor::cat(vec![head, tail], 2)).abs().max().into_scalar::<f32>() < 1e-4);
    }

    #[test]
    fn gradients_are_the_differences_of_the_recurrence() {
        let shape = [1, 2, 9, 3];
        let mut case = Case::new(shape, &Device::flex().autodiff());
        case.sequences = case.sequences.map(|sequence| sequence.detach().require_grad());
        case.first = case.first.require_grad();
        let target: Tensor<4> = normal(shape, 1.0, 6, &Device::flex());
        let gradients = (case.run(4) * target.clone()).sum().backward();
        let target = values(target);
        let mut found: Vec<Vec<f64>> =
            case.sequences.iter().map(|sequence| values(sequence.grad(&gradients).unwrap())).collect();
        found.push(values(case.first.grad(&gradients).unwrap()));
        let mut inputs = case.row(0);
        let loss = |inputs: &Inputs| -> f64 {
            literal(inputs, [2, 9, 3]).iter().zip(&target).map(|(out, target)| out * target).sum()
        };
        for input in 0..5 {
            for at in 0..inputs[input].len() {
                let mut at_offset = |offset: f64| {
                    let kept = inputs[input][at];
                    inputs[input][at] = kept + offset;
                    let loss = loss(&inputs);
                    inputs[input][at] = kept;
                    loss
                };
                let expected = (at_offset(1e-5) - at_offset(-1e-5)) / 2e-5;
                let difference = (found[input][at] - expected).abs();
                assert!(difference < 2e-5 * (1.0 + expected.abs()), "{input}, {at}: {} {expected}", found[input][at]);
            }
        }
    }
}
