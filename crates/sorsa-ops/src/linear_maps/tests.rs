use burn::prelude::*;

use super::{LinearMap, linear_maps};
use crate::factored::LowRankFactors;
use crate::testing::{flat, narrowed, packed, run, same, same_to_bf16};
use crate::{PackedFormat, WeightOperand};

const ROWS: usize = 20;
const WIDTH: usize = 32;

/// Maps to 24, 10 and 40 numbers; the second without an adapter, the third without singular values.
fn outputs<const N: usize>(t: &[Tensor<1>], weights: [WeightOperand; N], used: &[usize]) -> Tensor<1> {
    let d_out = [24, 10, 40];
    let matrix = |index: usize, shape: [usize; 2]| t[index].clone().reshape(shape);
    let factors = [
        Some(LowRankFactors { a: matrix(1, [WIDTH, 3]), s: Some(t[2].clone()), b: matrix(3, [3, 24]), scale: 0.5 }),
        None,
        Some(LowRankFactors { a: matrix(4, [WIDTH, 5]), s: None, b: matrix(5, [5, 40]), scale: 2.0 }),
    ];
    let bias = |index: usize| (index == 0).then(|| t[6].clone().detach());
    let mut weights = weights.into_iter();
    let maps = std::array::from_fn::<_, N, _>(|index| LinearMap {
        weight: weights.next().unwrap(),
        bias: bias(index),
        factors: factors[index].clone(),
    });
    let y = linear_maps(t[0].clone().reshape([2, ROWS / 2, WIDTH]), maps);
    assert!(y.iter().zip(d_out).all(|(y, width)| y.dims() == [2, ROWS / 2, width]));
    // The second use of an output adds to its gradient.
    let parts = used.iter().map(|index| flat(y[*index].clone() * (1.0 + *index as f64)));
    Tensor::cat(parts.collect::<Vec<_>>(), 0)
}

const LENGTHS: [usize; 10] =
    [ROWS * WIDTH, WIDTH * 3, 3, 3 * 24, WIDTH * 5, 5 * 40, 24, WIDTH * 24, WIDTH * 10, WIDTH * 40];

fn weight(t: &[Tensor<1>], index: usize) -> Tensor<2> {
    t[7 + index].clone().detach().reshape([WIDTH, [24, 10, 40][index]])
}

#[test]
fn maps_of_one_input_equal_their_plain_forms() {
    let frozen = [false; 4];
    for tracked in [[true; 6], [false, true, true, true, true, true], [true, false, false, true, false, false]] {
        let tracked: Vec<bool> = tracked.into_iter().chain(frozen).collect();
        for used in [&[0, 1, 2][..], &[2, 0, 2]] {
            same("three maps", &LENGTHS, &tracked, |t| {
                outputs(t, [0, 1, 2].map(|index| WeightOperand::from(weight(t, index))), used)
            });
        }
        same("two maps", &LENGTHS, &tracked, |t| {
            outputs(t, [0, 1].map(|index| WeightOperand::from(weight(t, index))), &[1, 0])
        });
    }
}

#[test]
fn an_output_that_is_not_used_gives_its_factors_zeros() {
    let tracked: Vec<bool> = (0..LENGTHS.len()).map(|index| index < 6).collect();
    let of = |used: &[usize]| {
        run(&LENGTHS, &tracked, &|t| outputs(t, [0, 1, 2].map(|index| WeightOperand::from(weight(t, index))), used))
    };
    // The output and the gradients of x and of the factors.
    let found = of(&[1]);
    for (index, values) in found.iter().enumerate().skip(2).take(5) {
        assert!(values.as_ref().unwrap().iter().all(|value| *value == 0.0), "gradient {index}");
    }
    assert!(found[1].as_ref().unwrap().iter().any(|value| *value != 0.0));
}

#[test]
fn maps_with_weights_in_bf16_or_packed_equal_their_plain_forms() {
    let tracked: Vec<bool> = (0..LENGTHS.len()).map(|index| index < 6).collect();
    same_to_bf16("bf16", &LENGTHS, &tracked, |t| {
        let narrow = |index: usize| narrowed(flat(weight(t, index)), [WIDTH, [24, 10, 40][index]]);
        outputs(t, [0, 1, 2].map(|index| WeightOperand::from(narrow(index))), &[0, 1, 2])
    });
    let device = Device::flex();
    let format: PackedFormat = "q8_0".parse().unwrap();
    let weights = [24, 10, 40].map(|d_out| packed(format, [d_out, WIDTH], &device).0);
    same_to_bf16("packed", &LENGTHS, &tracked, |t| outputs(t, weights.clone().map(WeightOperand::from), &[0, 1, 2]));
    // A map with a weight less a product is a sum of three products.
    let less = [0, 2].into_iter().fold(weights, |mut weights, index| {
        let factors = Tensor::<2>::ones([2, WIDTH + [24, 10, 40][index]], &device) * 0.05;
        weights[index] = weights[index].clone().less(factors);
        weights
    });
    same_to_bf16("packed less", &LENGTHS, &tracked, |t| outputs(t, less.clone().map(WeightOperand::from), &[0, 1, 2]));
}
