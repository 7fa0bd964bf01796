//! Every fused form against its plain one, values and gradients, on awkward shapes.

use burn::tensor::FloatDType::{BF16, F32};
use rayon::prelude::*;

use super::*;
use crate::{AttentionMask, RotaryAngles};

/// Numbers around zero that depend on the seed alone.
fn numbers(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next() + 0.5 * next()).collect()
}

fn leaf(length: usize, seed: u64, device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new::<f32, _>(numbers(length, seed), [length]), device)
}

/// The output and the gradients of all leaves, of a sum of the output's elements with random weights.
fn run(lengths: &[usize], tracked: &[bool], f: &dyn Fn(&[Tensor<1>]) -> Tensor<1>) -> Vec<Option<Vec<f32>>> {
    let device = burn::tensor::Device::flex().autodiff();
    let leaves: Vec<Tensor<1>> = lengths
        .iter()
        .zip(tracked)
        .zip(1..)
        .map(|((length, tracked), seed)| leaf(*length, seed, &device).set_require_grad(*tracked))
        .collect();
    let output = f(&leaves);
    let weights = leaf(output.dims()[0], 99, &device);
    let gradients = (output.clone() * weights).sum().backward();
    let values = |t: Tensor<1>| t.into_data().try_into_vec::<f32>().unwrap();
    let of_leaves = leaves.iter().map(|leaf| leaf.grad(&gradients).map(values));
    std::iter::once(Some(values(output))).chain(of_leaves).collect()
}

/// Asserts that `f` goes the fused way by the public function, and that the plain way gives the same.
fn same(name: &str, lengths: &[usize], tracked: &[bool], f: impl Fn(&[Tensor<1>]) -> Tensor<1>) {
    let before = CALLS.get();
    let fused = run(lengths, tracked, &f);
    assert!(CALLS.get() > before, "{name}: the fused form did not run");
    let before = CALLS.get();
    let plain = without_fused(|| run(lengths, tracked, &f));
    assert_eq!(CALLS.get(), before, "{name}: the plain form did not run");
    for (index, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
        match (fused, plain) {
            (Some(fused), Some(plain)) => {
                assert_eq!(fused.len(), plain.len());
                let size = plain.iter().fold(0.1f32, |size, value| size.max(value.abs()));
                for (a, b) in fused.iter().zip(plain) {
                    assert!((a - b).abs() <= 2e-5 * size, "{name}, tensor {index}: {a} and {b} of {size}");
                }
            }
            (fused, plain) => assert_eq!(fused.is_some(), plain.is_some(), "{name}: gradient {index}"),
        }
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let length = tensor.dims().iter().product::<usize>();
    tensor.reshape([length])
}

#[test]
fn rms_norm_equals_its_plain_form() {
    for (rows, width) in [(1, 1), (1, 7), (3, 16), (70, 33)] {
        for tracked in [[true, true], [true, false], [false, true]] {
            same("rms norm", &[rows * width, width], &tracked, |t| {
                flat(crate::rms_norm(t[0].clone().reshape([1, rows, width]), t[1].clone(), 1e-5))
            });
        }
    }
}

#[test]
fn rms_norm_takes_strided_rows() {
    same("rms norm of a transposed tensor", &[5 * 6, 5], &[true, true], |t| {
        flat(crate::rms_norm(t[0].clone().reshape([5, 6]).transpose(), t[1].clone() + 1.0, 1e-6))
    });
}

#[test]
fn gated_units_equal_their_plain_forms() {
    for length in [1, 15, 40_000] {
        for tracked in [[true, true], [true, false], [false, true]] {
            same("silu", &[length, length], &tracked, |t| crate::gated_silu(t[0].clone() * 4.0, t[1].clone(), F32));
            same("gelu", &[length, length], &tracked, |t| crate::gated_gelu(t[0].clone() * 4.0, t[1].clone(), F32));
        }
    }
    same("silu of views", &[12, 12], &[true, true], |t| {
        let view = |t: &Tensor<1>| t.clone().reshape([3, 4]).transpose();
        flat(crate::gated_silu(view(&t[0]), view(&t[1]), F32))
    });
}

#[test]
fn a_gradient_that_is_used_twice_is_not_overwritten() {
    same("silu beside a sum", &[24, 24], &[true, true], |t| {
        crate::gated_silu(t[0].clone(), t[1].clone(), F32) + t[0].clone() + t[1].clone()
    });
}

#[test]
fn the_head_and_its_loss_equal_their_plain_form() {
    let targets = |rows: usize, vocabulary: usize| -> Vec<i32> {
        (0..rows).map(|row| if row % 5 == 3 { -1 } else { (row * 7 % vocabulary) as i32 }).collect()
    };
    for (rows, width, vocabulary) in [(1, 3, 5), (4, 8, 1), (9, 5, 37), (300, 3, 70_001), (2100, 2, 9)] {
        for tracked in [[true, true], [true, false], [false, true]] {
            let device = burn::tensor::Device::flex();
            let ids = Tensor::<1, Int>::from_ints(targets(rows, vocabulary).as_slice(), &device);
            same("head loss", &[rows * width, width * vocabulary], &tracked, |t| {
                let hidden = t[0].clone().reshape([rows, width]);
                crate::head_loss_sum(hidden, t[1].clone().reshape([width, vocabulary]), ids.clone()) * 0.25
            });
            same("tied head loss", &[rows * width, width * vocabulary], &tracked, |t| {
                let hidden = t[0].clone().reshape([rows, width]);
                crate::head_loss_sum(hidden, t[1].clone().reshape([vocabulary, width]).transpose(), ids.clone())
            });
        }
    }
}

#[test]
fn targets_may_be_of_64_bits_and_all_masked() {
    let device = burn::tensor::Device::flex();
    let loss = |targets: TensorData| {
        let targets = Tensor::<1, Int>::from_data(targets, (&device, DType::I64));
        let hidden = leaf(6, 1, &device).reshape([2, 3]);
        super::head_loss_sum(hidden, leaf(12, 2, &device).reshape([3, 4]), targets).into_scalar::<f32>()
    };
    assert_eq!(loss(TensorData::new::<i64, _>(vec![-1, -100], [2])), 0.0);
    assert!(loss(TensorData::new::<i64, _>(vec![-1, 3], [2])) > 0.0);
}

#[derive(Clone, Copy)]
struct AttentionCase {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    seq: usize,
    head_dim: usize,
    /// Planes that rotate; the plain form rotates all or none.
    rotate: bool,
    window: Option<usize>,
    packed: bool,
}

const SMALL: AttentionCase =
    AttentionCase { batch: 2, heads: 4, kv_heads: 2, seq: 7, head_dim: 8, rotate: true, window: None, packed: false };

fn attention_is_the_same(case: AttentionCase) {
    let AttentionCase { batch, heads, kv_heads, seq, head_dim, rotate, window, packed } = case;
    let device = burn::tensor::Device::flex();
    let segments: Vec<i32> = (0..batch * seq)
        .map(|i| {
            let (row, position) = (i / seq, i % seq);
            // A second segment in each row, and padding behind it.
            if position < seq / 3 + row {
                1
            } else if position + 2 < seq {
                2
            } else {
                0
            }
        })
        .collect();
    let mask = if packed {
        AttentionMask::causal(&segments, [batch, seq], window, &device)
    } else {
        AttentionMask::causal(&vec![1; seq], [1, seq], window, &device)
    };
    let frequencies: Vec<f64> = (0..head_dim / 2).map(|plane| 0.5f64.powi(plane as i32)).collect();
    let rows = if packed { batch } else { 1 };
    let positions: Vec<i32> = (0..rows * seq).map(|i| (i % seq + i / seq) as i32).collect();
    let angles = RotaryAngles::new(&frequencies, 1.1, &positions, [rows, seq], &device);
    let (queries, keys) = (batch * heads * seq * head_dim, batch * kv_heads * seq * head_dim);
    for tracked in [[true, true, true], [false, false, true], [true, false, false]] {
        same("attention", &[queries, keys, keys], &tracked, |t| {
            let split = |t: &Tensor<1>, heads: usize| t.clone().reshape([batch, seq, heads, head_dim]).swap_dims(1, 2);
            let (q, k, v) = (split(&t[0], heads), split(&t[1], kv_heads), split(&t[2], kv_heads));
            let y = if rotate {
                crate::rotary_attention(q, k, v, &angles, &mask, 0.7)
            } else {
                crate::causal_attention(q, k, v, Some(&mask), 0.7)
            };
            flat(y.swap_dims(1, 2))
        });
    }
}

#[test]
fn attention_equals_its_plain_form() {
    attention_is_the_same(SMALL);
    attention_is_the_same(AttentionCase { rotate: false, ..SMALL });
    attention_is_the_same(AttentionCase { batch: 1, heads: 1, kv_heads: 1, seq: 1, head_dim: 2, ..SMALL });
    attention_is_the_same(AttentionCase { seq: 64, head_dim: 24, heads: 3, kv_heads: 1, ..SMALL });
    attention_is_the_same(AttentionCase { seq: 65, head_dim: 64, kv_heads: 4, ..SMALL });
}

#[test]
fn attention_within_windows_and_segments_equals_its_plain_form() {
    attention_is_the_same(AttentionCase { window: Some(1), ..SMALL });
    attention_is_the_same(AttentionCase { window: Some(3), packed: true, ..SMALL });
    attention_is_the_same(AttentionCase { packed: true, seq: 150, ..SMALL });
    attention_is_the_same(AttentionCase { packed: true, seq: 200, window: Some(70), batch: 3, ..SMALL });
}

#[test]
fn the_causal_mask_equals_its_rule() {
    let device = burn::tensor::Device::flex();
    let segments = [1, 1, 2, 2, 2, 0, 1, 1, 1, 1, 0, 0];
    let causal = AttentionMask::causal(&segments, [2, 6], Some(2), &device);
    let rule = |row: usize, query: usize, key: usize| {
        key <= query && query - key < 2 && segments[row * 6 + query] == segments[row * 6 + key]
    };
    let rule = AttentionMask::from_rule([2, 6, 6], rule, &device);
    let [q, k, v] = [1, 2, 3].map(|seed| leaf(2 * 6 * 4, seed, &device).reshape([2, 1, 6, 4]));
    let by = |mask: &AttentionMask| crate::causal_attention(q.clone(), k.clone(), v.clone(), Some(mask), 1.0);
    assert!((by(&causal) - by(&rule)).abs().max().into_scalar::<f32>() < 1e-6);
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
                    flat(crate::factored_linear(
                        x,
                        two(1, [d_in, d_out]),
                        bias.then(|| t[2].clone()),
                        dropout.then(|| two(3, [rows, d_in]).reshape([1, rows, d_in])),
                        two(4, [rank, d_in]).transpose(),
                        s.then(|| t[5].clone()),
                        two(6, [rank, d_out]),
                        1.5,
                    ))
                });
            }
        }
    }
}

#[test]
fn a_gated_unit_that_keeps_bf16_has_the_same_result_and_gradients_to_its_precision() {
    for length in [1, 33, 40_000] {
        for tracked in [[true, true], [true, false], [false, true]] {
            for gated in [crate::gated_silu::<1>, crate::gated_gelu::<1>] {
                let with = |kept| run(&[length, length], &tracked, &|t| gated(t[0].clone(), t[1].clone(), kept));
                assert_eq!(with(BF16)[0], with(F32)[0]);
                same_to_bf16("gated unit", &[length, length], &tracked, |t| gated(t[0].clone(), t[1].clone(), BF16));
            }
        }
    }
    // The map that follows is given the unit of the rounded numbers: its gradient is exact where they are.
    let device = Device::flex().autodiff();
    let row = |values: [f32; 2]| Tensor::<2>::from_floats([values], &device).require_grad();
    let weight = Tensor::<2>::ones([2, 3], &device).require_grad();
    let (gate, up) = (row([1.0 + 1.0 / 1024.0, 0.5]), row([2.0, -4.0 - 1.0 / 128.0]));
    let gradients = crate::linear(crate::gated_silu(gate, up, BF16), weight.clone(), None).sum().backward();
    let found = weight.grad(&gradients).unwrap();
    let exact = crate::gated_silu(row([1.0, 0.5]), row([2.0, -4.0]), F32).inner().reshape([2, 1]).repeat_dim(1, 3);
    assert_eq!(found.into_data(), exact.into_data());
}

#[test]
fn norms_and_gated_units_are_computed_once_more_for_the_maps_that_follow() {
    const SIZES: [usize; 3] = [5, 6, 7];
    let [rows, width, inner] = SIZES;
    let (up, rank) = (width * inner, 2);
    let lengths = [rows * width, width, up, width * rank, rank * inner, up, inner * rank, rank * width];
    // Input, weight of the norm, first map with its factors, second map with its factors.
    let adapters = [false, false, false, true, true, false, true, true];
    let weights = [false, true, true, false, false, true, false, false];
    for (name, mut tracked) in [("adapters", adapters), ("weights", weights), ("all", [true; 8])] {
        for input in [false, true] {
            tracked[0] = input;
            let before = again::COUNT.get();
            let block = |t: &[Tensor<1>]| {
                let matrix = |i: usize, shape: [usize; 2]| t[i].clone().reshape(shape);
                let x = crate::rms_norm(t[0].clone().reshape([1, rows, width]), t[1].clone(), 1e-5);
                let factored = |x: Tensor<3>, first: usize, [d_in, d_out]: [usize; 2]| {
                    let (a, b) = (matrix(first + 1, [d_in, rank]), matrix(first + 2, [rank, d_out]));
                    crate::factored_linear(x, matrix(first, [d_in, d_out]), None, None, a, None, b, 0.5)
                };
                let (gate, up) = (factored(x.clone(), 2, [width, inner]), factored(x, 2, [width, inner]));
                flat(factored(crate::gated_silu(gate, up, F32), 5, [inner, width]))
            };
            same(name, &lengths, &tracked, block);
            // The gated unit always is in the graph, the norm with its input or its weight. Both maps share one.
            let expected = 1 + usize::from(tracked[0] || tracked[1]);
            assert_eq!(again::COUNT.get() - before, expected, "{name}, input {input}");
        }
    }
}

/// Asserts that `f`, which has no backward pass, goes the fused way and gives what the plain way gives.
fn same_forward(name: &str, f: impl Fn() -> Tensor<4>) {
    let before = CALLS.get();
    let fused = f();
    assert!(CALLS.get() > before, "{name}: the fused form did not run");
    let plain = without_fused(&f);
    assert_eq!(fused.dims(), plain.dims());
    let difference = (fused - plain).abs().max().into_scalar::<f32>();
    assert!(difference < 1e-5, "{name}: {difference}");
}

#[test]
fn attention_of_the_last_position_equals_its_plain_form() {
    let device = burn::tensor::Device::flex();
    for (batch, heads, kv_heads, keys, width) in
        [(1, 1, 1, 1, 2), (3, 4, 2, 9, 6), (2, 6, 6, 33, 16), (2, 8, 1, 700, 128)]
    {
        // Room for more keys than there are, as in a cache.
        let part = |heads: usize, room: usize, seed| {
            leaf(batch * heads * room * width, seed, &device).reshape([batch, heads, room, width])
        };
        let (q, k, v) = (part(heads, 1, 1), part(kv_heads, keys + 5, 2), part(kv_heads, keys + 5, 3));
        let (k, v) = (k.narrow(2, 0, keys), v.narrow(2, 0, keys));
        for first in [vec![0; batch], (0..batch).map(|row| (row * 3).min(keys - 1)).collect()] {
            for cap in [None, Some(2.0)] {
                let mask = AttentionMask::last(&first, keys, &device);
                same_forward("attention of the last position", || {
                    crate::soft_capped_attention(q.clone(), k.clone(), v.clone(), Some(&mask), 0.7, cap)
                });
            }
        }
    }
}

#[test]
fn rotation_alone_equals_its_plain_form() {
    let device = burn::tensor::Device::flex();
    for (batch, heads, seq, width, rows) in [(1, 1, 1, 2, 1), (2, 3, 1, 8, 2), (2, 2, 5, 6, 1)] {
        let frequencies: Vec<f64> = (0..width / 2).map(|plane| 0.5f64.powi(plane)).collect();
        let positions: Vec<i32> = (0..rows * seq).map(|i| 3 + 2 * i as i32).collect();
        let angles = RotaryAngles::new(&frequencies, 1.1, &positions, [rows, seq], &device);
        let x = leaf(batch * heads * seq * width as usize, 1, &device).reshape([batch, seq, heads, width as usize]);
        same_forward("rotation", || crate::rotate_half(x.clone().swap_dims(1, 2), &angles));
    }
}

#[test]
fn a_mask_of_padding_on_the_left_hides_it_from_every_token() {
    let device = burn::tensor::Device::flex();
    let padded = AttentionMask::left_padded(&[0, 2], 5, Some(3), &device);
    let rule = |row: usize, query: usize, key: usize| key <= query && query - key < 3 && key >= [0, 2][row];
    let rule = AttentionMask::from_rule([2, 5, 5], rule, &device);
    let [q, k, v] = [1, 2, 3].map(|seed| leaf(2 * 5 * 4, seed, &device).reshape([2, 1, 5, 4]));
    // What padding itself becomes does not matter.
    let by = |mask: &AttentionMask| {
        let y = crate::causal_attention(q.clone(), k.clone(), v.clone(), Some(mask), 1.0);
        (y.clone().narrow(0, 0, 1).narrow(2, 2, 3), y.narrow(2, 2, 3))
    };
    let (found, expected) = (by(&padded), by(&rule));
    assert!((found.1 - expected.1).abs().max().into_scalar::<f32>() < 1e-6);
    assert!((found.0 - expected.0).abs().max().into_scalar::<f32>() < 1e-6);
}

/// Asserts that `f`, some of whose products are with weights in bf16, goes the fused way and gives what the plain way
/// gives, values and gradients, to the rounding of activations to bf16.
fn same_to_bf16(name: &str, lengths: &[usize], tracked: &[bool], f: impl Fn(&[Tensor<1>]) -> Tensor<1>) {
    let before = CALLS.get();
    let fused = run(lengths, tracked, &f);
    assert!(CALLS.get() > before, "{name}: the fused form did not run");
    let plain = without_fused(|| run(lengths, tracked, &f));
    let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    for (index, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
        let (Some(fused), Some(plain)) = (fused, plain) else {
            assert_eq!(fused.is_some(), plain.is_some(), "{name}: gradient {index}");
            continue;
        };
        let difference: Vec<f32> = fused.iter().zip(plain).map(|(a, b)| a - b).collect();
        let relative = norm(&difference) / norm(plain).max(1e-3);
        assert!(relative < 1e-2, "{name}, tensor {index}: {relative}");
    }
}

fn narrowed(weight: Tensor<1>, shape: [usize; 2]) -> Tensor<2> {
    weight.reshape(shape).cast(BF16)
}

#[test]
fn linear_maps_beside_weights_in_bf16_equal_their_plain_form_to_its_precision() {
    for (rows, d_in, d_out) in [(1, 7, 5), (3, 33, 70), (40, 96, 65)] {
        for (weight, bias) in [(false, true), (true, false)] {
            same_to_bf16("linear", &[rows * d_in, d_in * d_out, d_out], &[true, weight, bias], |t| {
                let x = t[0].clone().reshape([1, rows, d_in]);
                flat(crate::linear(x, narrowed(t[1].clone(), [d_in, d_out]), bias.then(|| t[2].clone())))
            });
        }
        let rank = 3;
        let lengths = [rows * d_in, d_in * d_out, d_in * rank, rank, rank * d_out];
        for tracked in [[true, false, true, true, true], [false, true, true, true, true]] {
            same_to_bf16("factored linear", &lengths, &tracked, |t| {
                let two = |i: usize, shape: [usize; 2]| t[i].clone().reshape(shape);
                // The weight of a tied layer is a transposed view.
                let weight = narrowed(t[1].clone(), [d_out, d_in]).transpose();
                let (a, b) = (two(2, [d_in, rank]), two(4, [rank, d_out]));
                flat(crate::factored_linear(two(0, [rows, d_in]), weight, None, None, a, Some(t[3].clone()), b, 0.5))
            });
        }
    }
}

#[test]
fn a_head_in_bf16_and_its_loss_equal_their_plain_form_to_its_precision() {
    let device = burn::tensor::Device::flex();
    for (rows, width, vocabulary) in [(1, 3, 5), (9, 40, 37), (2100, 6, 9), (300, 3, 20_001)] {
        let targets: Vec<i32> = (0..rows).map(|row| if row % 5 == 3 { -1 } else { row * 7 % vocabulary }).collect();
        let ids = Tensor::<1, Int>::from_ints(targets.as_slice(), &device);
        let [rows, vocabulary] = [rows as usize, vocabulary as usize];
        for tracked in [[true, false], [true, true]] {
            same_to_bf16("head loss", &[rows * width, width * vocabulary], &tracked, |t| {
                let weight = narrowed(t[1].clone(), [vocabulary, width]).transpose();
                crate::head_loss_sum(t[0].clone().reshape([rows, width]), weight, ids.clone())
            });
        }
    }
}

#[test]
fn a_product_of_few_rows_equals_burns() {
    let device = burn::tensor::Device::flex();
    for (rows, d_in, d_out) in [(1, 40, 90), (8, 33, 17), (2, 300, 600)] {
        let x = leaf(rows * d_in, 1, &device).reshape([rows, d_in]);
        let (w, bias) = (leaf(d_in * d_out, 2, &device), leaf(d_out, 3, &device));
        for weight in [w.clone().reshape([d_in, d_out]), w.clone().reshape([d_out, d_in]).transpose()] {
            let before = CALLS.get();
            let fused = crate::linear(x.clone(), weight.clone(), Some(bias.clone()));
            assert_eq!(CALLS.get(), before + 1, "the fused form did not run");
            let plain = without_fused(|| crate::linear(x.clone(), weight, Some(bias.clone())));
            assert!((fused - plain).abs().max().into_scalar::<f32>() < 1e-5 * d_in as f32);
        }
    }
}

#[test]
fn half_precision_and_other_devices_keep_the_plain_form() {
    let flex = burn::tensor::Device::flex();
    assert!(applies([(flex.clone(), DType::F32), (flex.clone().autodiff(), DType::F32)]));
    assert!(!applies([(flex.clone(), DType::F32), (flex.clone(), DType::BF16)]));
    let narrow = Tensor::<2>::ones([2, 2], &flex).cast(BF16);
    assert!(takes_weight(&narrow) && !linear_applies(&narrow, &narrow, &None));
    without_fused(|| assert!(!takes_weight(&narrow)));
    without_fused(|| assert!(!applies([(flex.clone(), DType::F32)])));
    assert!(applies([(flex, DType::F32)]));
}

#[test]
fn a_pass_runs_on_the_first_thread_of_the_pool_with_the_form_that_was_asked_for() {
    let flex = Device::flex();
    let here = || (rayon::current_thread_index(), PLAIN.get());
    assert_eq!(on_pool(&flex, here), (Some(0), false));
    assert_eq!(without_fused(|| on_pool(&flex, here)), (Some(0), true));
    // From within it stays where it is.
    assert_eq!(on_pool(&flex, || on_pool(&flex, here)), (Some(0), false));
    // Passes from several threads, each of which waits for the pool, take turns.
    let pass = |_: usize| on_pool(&flex, || (0..1000u64).into_par_iter().map(|i| i % 7).sum::<u64>());
    let sums = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..50).map(pass).sum::<u64>())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(sums.iter().all(|sum| *sum == sums[0]));
    // A panic is the caller's, and the next pass runs.
    assert!(std::panic::catch_unwind(|| on_pool(&Device::flex(), || -> () { panic!("meant") })).is_err());
    assert_eq!(on_pool(&flex, here), (Some(0), false));
}

fn ones<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::ones(shape, &Device::flex())
}

#[test]
#[should_panic(expected = "another width than the weight has rows")]
fn rows_that_are_wider_than_the_weight_are_no_more_or_fewer_rows() {
    crate::linear(ones([4, 7]), ones([6, 3]), None);
}

#[test]
#[should_panic(expected = "the bias has another width")]
fn a_bias_of_another_width_is_not_cut() {
    crate::linear(ones([4, 6]), ones([6, 3]), Some(ones([1])));
}

#[test]
#[should_panic(expected = "the weight has another width than x")]
fn a_norm_of_another_width_is_not_cut() {
    crate::rms_norm(ones([4, 6]), ones([1]), 1e-6);
}
