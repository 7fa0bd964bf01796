use burn::prelude::*;

use super::{LowRankFactors, factored_linear};
use crate::packed::{PackedFormat, WeightOperand};
use crate::testing::{flat, narrowed, normal, packed, run, same, same_to_bf16};

#[test]
fn the_factored_form_equals_the_dense_one_with_its_gradients() {
    let device = Device::flex().autodiff();
    let random = |shape, seed| normal::<2>(shape, 1.0, seed, &device);
    let x = random([5, 7], 1).reshape([1, 5, 7]);
    let w = random([7, 3], 2);
    let (a, b) = (random([7, 2], 3).require_grad(), random([2, 3], 4).require_grad());
    let s = Tensor::<1>::from_floats([0.5, -2.0], &device).require_grad();

    let factors = LowRankFactors { a: a.clone(), s: Some(s.clone()), b: b.clone(), scale: 1.5 };
    let factored = factored_linear(x.clone(), w.clone(), None, None, factors);
    let dense = x.matmul((w + (a.clone() * s.clone().unsqueeze()).matmul(b.clone()) * 1.5).unsqueeze());
    let difference = (factored.clone() - dense.clone()).abs().max().into_scalar::<f32>();
    assert!(difference < 1e-5, "{difference}");

    let (f, d) = (factored.square().sum().backward(), dense.square().sum().backward());
    let near =
        |p: Option<Tensor<2>>, q: Option<Tensor<2>>| (p.unwrap() - q.unwrap()).abs().max().into_scalar::<f32>() < 1e-3;
    assert!(near(a.grad(&f), a.grad(&d)));
    assert!(near(b.grad(&f), b.grad(&d)));
    assert!(near(s.grad(&f).map(Tensor::unsqueeze), s.grad(&d).map(Tensor::unsqueeze)));
}

#[test]
fn the_factored_linear_map_equals_its_plain_form() {
    let all = [true; 7];
    let adapter = [true, false, false, true, true, true, true];
    let first_layer = [false, false, false, false, true, true, true];
    for (rows, d_in, d_out, rank) in [(1, 1, 1, 1), (5, 7, 3, 2), (40, 33, 65, 1), (70, 96, 80, 16)] {
        let lengths = [rows * d_in, d_in * d_out, d_out, rows * d_in, d_in * rank, rank, rank * d_out];
        for tracked in [all, adapter, first_layer] {
            for (bias, dropout, s) in [(false, false, true), (true, true, true), (true, false, false)] {
                let mut tracked = tracked;
                tracked[2] &= bias;
                tracked[3] &= dropout;
                tracked[5] &= s;
                same("factored linear", &lengths, &tracked, |t| {
                    let two = |i: usize, shape: [usize; 2]| t[i].clone().reshape(shape);
                    let x = two(0, [rows, d_in]).reshape([1, rows, d_in]);
                    let factors = LowRankFactors {
                        a: two(4, [rank, d_in]).transpose(),
                        s: s.then(|| t[5].clone()),
                        b: two(6, [rank, d_out]),
                        scale: 1.5,
                    };
                    let adapter_input = dropout.then(|| two(3, [rows, d_in]).reshape([1, rows, d_in]));
                    flat(factored_linear(x, two(1, [d_in, d_out]), bias.then(|| t[2].clone()), adapter_input, factors))
                });
            }
        }
    }
}

#[test]
fn the_factored_linear_map_beside_a_weight_in_bf16_equals_its_plain_form_to_its_precision() {
    for (rows, d_in, d_out) in [(1, 7, 5), (3, 33, 70), (40, 96, 65)] {
        let rank = 3;
        let lengths = [rows * d_in, d_in * d_out, d_in * rank, rank, rank * d_out];
        for tracked in [[true, false, true, true, true], [false, true, true, true, true]] {
            same_to_bf16("factored linear", &lengths, &tracked, |t| {
                let two = |i: usize, shape: [usize; 2]| t[i].clone().reshape(shape);
                // The weight of a tied layer is a transposed view.
                let weight = narrowed(t[1].clone(), [d_out, d_in]).transpose();
                let factors = LowRankFactors {
                    a: two(2, [d_in, rank]),
                    s: Some(t[3].clone()),
                    b: two(4, [rank, d_out]),
                    scale: 0.5,
                };
                flat(factored_linear(two(0, [rows, d_in]), weight, None, None, factors))
            });
        }
    }
}

#[test]
fn the_factored_linear_map_of_a_packed_weight_equals_its_plain_form() {
    let (weight, _) = packed(PackedFormat::NF4, [65, 33], &Device::flex());
    let lengths = [40 * 33, 33 * 4, 4, 4 * 65, 65];
    for tracked in [[true; 5], [false, true, true, true, false]] {
        same("factored linear, packed", &lengths, &tracked, |t| {
            let two = |i: usize, shape: [usize; 2]| t[i].clone().reshape(shape);
            let factors = LowRankFactors { a: two(1, [33, 4]), s: Some(t[2].clone()), b: two(3, [4, 65]), scale: 1.5 };
            flat(factored_linear(two(0, [40, 33]), weight.clone(), Some(t[4].clone()), None, factors))
        });
    }
}

#[test]
fn factors_beside_a_packed_weight_less_a_product_equal_their_plain_form() {
    let device = Device::flex();
    let (weight, dense) = packed(PackedFormat::NF4, [80, 128], &device);
    let subtracted = normal::<2>([4, 128 + 80], 0.3, 5, &device);
    let product = subtracted.clone().narrow(1, 0, 128).transpose().matmul(subtracted.clone().narrow(1, 128, 80));
    let (less, dense) = (weight.less(subtracted), dense - product);
    for rows in [1, 30] {
        let lengths = [rows * 128, 80, 128 * 6, 6, 6 * 80];
        let output = |t: &[Tensor<1>], weight: WeightOperand| {
            let factors = LowRankFactors {
                a: t[2].clone().reshape([128, 6]),
                s: Some(t[3].clone()),
                b: t[4].clone().reshape([6, 80]),
                scale: 0.5,
            };
            flat(factored_linear(t[0].clone().reshape([1, rows, 128]), weight, Some(t[1].clone()), None, factors))
        };
        same("factored linear less a product", &lengths, &[true; 5], |t| output(t, less.clone().into()));
        let (found, expected) = (
            run(&lengths, &[true; 5], &|t| output(t, less.clone().into())),
            run(&lengths, &[true; 5], &|t| {
                let device = t[0].device();
                output(t, Tensor::from_data(dense.to_data(), &device).into())
            }),
        );
        for (found, expected) in found.into_iter().flatten().zip(expected.into_iter().flatten()) {
            let size = expected.iter().fold(0.1f32, |size, value| size.max(value.abs()));
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 5e-5 * size), "{rows} rows");
        }
    }
}
