use burn::prelude::*;
use burn::tensor::FloatDType::{self, BF16, F32};

use super::stored_as;
use crate::testing::{flat, leaf, run, same_to_bf16};
use crate::{AttentionMask, RotaryAngles, linear, rms_norm, rotary_attention};

#[test]
fn the_backward_pass_gets_rounded_values_and_the_forward_pass_exact_ones() {
    let device = Device::flex().autodiff();
    let row = || Tensor::<2>::from_floats([[1.0 + 1.0 / 1024.0, -4.0 - 1.0 / 128.0]], &device).require_grad();
    let weight = Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &device).require_grad();
    let results = |kept: FloatDType| {
        let x = row();
        let y = linear(stored_as(x.clone(), kept), weight.clone(), None);
        let gradients = y.clone().sum().backward();
        [y.inner(), x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap()].map(|t| t.into_data())
    };
    let ([y, dx, dw], [y_rounded, dx_rounded, dw_rounded]) = (results(F32), results(BF16));
    assert_eq!([y, dx], [y_rounded, dx_rounded], "the result, and the gradient that needs no activation");
    assert_ne!(dw, dw_rounded);
    let rounded = Tensor::<2>::from_floats([[1.0; 3], [-4.0; 3]], &Device::flex());
    assert_eq!(dw_rounded, rounded.into_data());
}

#[test]
fn a_whole_layer_whose_activations_are_kept_in_bf16_has_the_gradients_to_its_precision() {
    let (batch, seq, heads, kv_heads, width) = (2, 70, 4, 2, 8);
    let (d, kv) = (heads * width, kv_heads * width);
    let lengths = [batch * seq * d, d, d * d, d * kv, d * kv, d * d];
    let device = Device::flex();
    let positions: Vec<i32> = (0..seq as i32).collect();
    let angles = RotaryAngles::new(&[1.0, 0.3, 0.1, 0.03], 1.0, &positions, [1, seq], &device);
    let mask = AttentionMask::causal(&vec![1; seq], [1, seq], None, &device);
    let layer = |kept: FloatDType, t: &[Tensor<1>]| {
        let x = stored_as(t[0].clone().reshape([batch, seq, d]), kept);
        let x = rms_norm(x, t[1].clone() + 1.0, 1e-5);
        let head = |weight: &Tensor<1>, count: usize| {
            // Small weights: scores of some tens would make the softmax magnify the rounding.
            let y = linear(x.clone(), weight.clone().reshape([d, count * width]) * 0.2, None);
            stored_as(y.reshape([batch, seq, count, width]).swap_dims(1, 2), kept)
        };
        let [q, k, v] =
            [(&t[2], heads), (&t[3], kv_heads), (&t[4], kv_heads)].map(|(weight, count)| head(weight, count));
        let y = rotary_attention(q, k, v, &angles, &mask, 0.35).swap_dims(1, 2).reshape([batch, seq, d]);
        flat(linear(stored_as(y, kept), t[5].clone().reshape([d, d]), None))
    };
    assert_eq!(run(&lengths, &[true; 6], &|t| layer(BF16, t))[0], run(&lengths, &[true; 6], &|t| layer(F32, t))[0]);
    same_to_bf16("a layer", &lengths, &[true; 6], |t| layer(BF16, t) * 0.1);
    same_to_bf16("a layer", &lengths, &[true, false, true, false, false, true], |t| layer(BF16, t) * 0.1);
}

#[test]
fn a_tensor_that_nothing_tracks_stays_as_it_is() {
    let x = leaf(10, 1, &Device::flex());
    assert_eq!(stored_as(x.clone(), BF16).into_data(), x.into_data());
}
