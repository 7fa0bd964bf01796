use burn::prelude::*;

use super::*;
use crate::testing::normal;

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_into_vec::<f64>().unwrap()
}

/// The equation at the top of the module, term by term in f64, for one row.
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
