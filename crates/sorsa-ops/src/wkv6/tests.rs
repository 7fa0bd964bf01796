use burn::prelude::*;

use super::*;
use crate::testing::normal;

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_into_vec::<f64>().unwrap()
}

/// Row-major values of r, k, v, log_decay `[heads, seq, width]`, first `[heads, width]`.
type Inputs = [Vec<f64>; 5];

/// The recurrence at the top of the module, number by number in f64, for one row from an empty state.
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
