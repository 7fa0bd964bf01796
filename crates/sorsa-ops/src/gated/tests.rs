use burn::prelude::*;
use burn::tensor::FloatDType::{BF16, F32};

use super::{gated_gelu, gated_silu};
use crate::testing::{flat, run, same, same_to_bf16};

#[test]
fn gated_units_equal_their_plain_forms() {
    for length in [1, 15, 40_000] {
        for tracked in [[true, true], [true, false], [false, true]] {
            same("silu", &[length, length], &tracked, |t| gated_silu(t[0].clone() * 4.0, t[1].clone(), F32));
            same("gelu", &[length, length], &tracked, |t| gated_gelu(t[0].clone() * 4.0, t[1].clone(), F32));
        }
    }
    same("silu of views", &[12, 12], &[true, true], |t| {
        let view = |t: &Tensor<1>| t.clone().reshape([3, 4]).transpose();
        flat(gated_silu(view(&t[0]), view(&t[1]), F32))
    });
}

#[test]
fn a_gradient_that_is_used_twice_is_not_overwritten() {
    same("silu beside a sum", &[24, 24], &[true, true], |t| {
        gated_silu(t[0].clone(), t[1].clone(), F32) + t[0].clone() + t[1].clone()
    });
}

#[test]
fn a_gated_unit_that_keeps_bf16_has_the_same_result_and_gradients_to_its_precision() {
    for length in [1, 33, 40_000] {
        for tracked in [[true, true], [true, false], [false, true]] {
            for gated in [gated_silu::<1>, gated_gelu::<1>] {
                let with = |kept| run(&[length, length], &tracked, &|t| gated(t[0].clone(), t[1].clone(), kept));
                assert_eq!(with(BF16)[0], with(F32)[0]);
                same_to_bf16("gated unit", &[length, length], &tracked, |t| gated(t[0].clone(), t[1].clone(), BF16));
            }
        }
    }
    // The map that follows gets the unit of the rounded numbers; its gradient is exact for numbers that bf16 holds.
    let device = Device::flex().autodiff();
    let row = |values: [f32; 2]| Tensor::<2>::from_floats([values], &device).require_grad();
    let weight = Tensor::<2>::ones([2, 3], &device).require_grad();
    let (gate, up) = (row([1.0 + 1.0 / 1024.0, 0.5]), row([2.0, -4.0 - 1.0 / 128.0]));
    let gradients = crate::linear(gated_silu(gate, up, BF16), weight.clone(), None).sum().backward();
    let found = weight.grad(&gradients).unwrap();
    let exact = gated_silu(row([1.0, 0.5]), row([2.0, -4.0]), F32).inner().reshape([2, 1]).repeat_dim(1, 3);
    assert_eq!(found.into_data(), exact.into_data());
}
