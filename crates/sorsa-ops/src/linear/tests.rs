use burn::prelude::*;

use super::linear;
use crate::form::{FUSED_CALLS, without_fused};
use crate::packed::PackedFormat;
use crate::testing::{flat, leaf, narrowed, ones, packed, same, same_to_bf16};

#[test]
fn linear_maps_beside_weights_in_bf16_equal_their_plain_form_to_its_precision() {
    for (rows, d_in, d_out) in [(1, 7, 5), (3, 33, 70), (40, 96, 65)] {
        for (weight, bias) in [(false, true), (true, false)] {
            same_to_bf16("linear", &[rows * d_in, d_in * d_out, d_out], &[true, weight, bias], |t| {
                let x = t[0].clone().reshape([1, rows, d_in]);
                flat(linear(x, narrowed(t[1].clone(), [d_in, d_out]), bias.then(|| t[2].clone())))
            });
        }
    }
}

#[test]
fn a_product_of_few_rows_equals_burns() {
    let device = Device::flex();
    for (rows, d_in, d_out) in [(1, 40, 90), (8, 33, 17), (2, 300, 600)] {
        let x = leaf(rows * d_in, 1, &device).reshape([rows, d_in]);
        let (w, bias) = (leaf(d_in * d_out, 2, &device), leaf(d_out, 3, &device));
        for weight in [w.clone().reshape([d_in, d_out]), w.clone().reshape([d_out, d_in]).transpose()] {
            let before = FUSED_CALLS.get();
            let fused = linear(x.clone(), weight.clone(), Some(bias.clone()));
            assert_eq!(FUSED_CALLS.get(), before + 1, "the fused form did not run");
            let plain = without_fused(|| linear(x.clone(), weight, Some(bias.clone())));
            assert!((fused - plain).abs().max().into_scalar::<f32>() < 1e-5 * d_in as f32);
        }
    }
}

#[test]
fn an_activation_in_bf16_keeps_the_plain_form() {
    let narrow = Tensor::<2>::ones([2, 2], &Device::flex()).cast(burn::tensor::FloatDType::BF16);
    let before = FUSED_CALLS.get();
    linear(narrow.clone(), narrow, None);
    assert_eq!(FUSED_CALLS.get(), before);
}

#[test]
#[should_panic(expected = "another width than the weight has rows")]
fn rows_that_are_wider_than_the_weight_are_no_more_or_fewer_rows() {
    linear(ones([4, 7]), ones([6, 3]), None);
}

#[test]
#[should_panic(expected = "the bias has another width")]
fn a_bias_of_another_width_is_not_cut() {
    linear(ones([4, 6]), ones([6, 3]), Some(ones([1])));
}

#[test]
fn a_packed_weight_is_its_widened_values_with_the_same_gradients() {
    let device = Device::flex();
    for format in PackedFormat::packable() {
        let (weight, dense) = packed(format, [70, 256], &device);
        assert_eq!(weight.to_dense().to_data(), dense.to_data());
        for rows in [1, 20] {
            same("packed linear", &[rows * 256, 70], &[true, true], |t| {
                flat(linear(t[0].clone().reshape([1, rows, 256]), weight.clone(), Some(t[1].clone())))
            });
            let x = leaf(rows * 256, 1, &device).reshape([rows, 256]);
            let difference = linear(x.clone(), weight.clone(), None) - linear(x, dense.clone(), None);
            assert!(difference.abs().max().into_scalar::<f32>() < 1e-4, "{format}");
        }
    }
}

#[test]
fn a_packed_weight_less_a_product_is_the_difference_with_the_same_gradients_and_the_products_factors_get_none() {
    let device = Device::flex();
    for (format, rank) in [(PackedFormat::NF4, 1), ("q4_1".parse().unwrap(), 16)] {
        let (weight, dense) = packed(format, [96, 256], &device);
        let factors = leaf(rank * (256 + 96), 8, &device).reshape([rank, 256 + 96]);
        let product = factors.clone().narrow(1, 0, 256).transpose().matmul(factors.clone().narrow(1, 256, 96));
        let (less, dense) = (weight.less(factors), dense - product);
        let far = (less.to_dense() - dense.clone()).abs().max().into_scalar::<f32>();
        assert!(far < 1e-4, "{far}");
        for rows in [1, 20] {
            same("packed linear less a product", &[rows * 256, 96], &[true, true], |t| {
                flat(linear(t[0].clone().reshape([1, rows, 256]), less.clone(), Some(t[1].clone())))
            });
            let x = leaf(rows * 256, 1, &device).reshape([rows, 256]);
            let difference = linear(x.clone(), less.clone(), None) - linear(x, dense.clone(), None);
            assert!(difference.abs().max().into_scalar::<f32>() < 1e-3, "{format}");
        }
    }
}
