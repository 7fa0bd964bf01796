use burn::prelude::*;

use super::*;
use crate::testing::{flat, leaf, normal, same, same_forward};

fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_into_vec::<f32>().unwrap()
}

#[test]
fn grouped_heads_equal_repeated_key_heads() {
    let device = Device::flex();
    let random = |shape, seed| normal(shape, 1.0, seed, &device);
    let (q, k, v) = (random([2, 4, 5, 6], 1), random([2, 2, 5, 6], 2), random([2, 2, 5, 6], 3));
    let repeat = |t: &Tensor<4>| t.clone().unsqueeze_dim::<5>(2).repeat_dim(2, 2).reshape([2, 4, 5, 6]);
    let mask = AttentionMask::from_rule([1, 5, 5], |_, query, key| key <= query, &device);
    let grouped = causal_attention(q.clone(), k.clone(), v.clone(), Some(&mask), 0.4);
    let repeated = causal_attention(q, repeat(&k), repeat(&v), Some(&mask), 0.4);
    for (a, b) in values(grouped).iter().zip(values(repeated)) {
        assert!((a - b).abs() < 1e-5);
    }
}

#[test]
fn the_first_query_of_a_causal_mask_returns_the_first_value() {
    let device = Device::flex();
    let x = normal([1, 1, 3, 2], 1.0, 1, &device);
    let mask = AttentionMask::from_rule([1, 3, 3], |_, query, key| key <= query, &device);
    let y = causal_attention(x.clone(), x.clone(), x.clone(), Some(&mask), 1.0);
    assert_eq!(values(y.narrow(2, 0, 1)), values(x.narrow(2, 0, 1)));
}

#[test]
fn a_large_cap_changes_nothing_and_a_small_one_evens_out_the_weights() {
    let device = Device::flex();
    let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 2, 5, 4], 2.0, seed, &device));
    let mask = AttentionMask::from_rule([1, 5, 5], |_, query, key| key <= query, &device);
    let capped = |cap| values(soft_capped_attention(q.clone(), k.clone(), v.clone(), Some(&mask), 0.5, cap));
    let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |worst, (x, y)| worst.max((x - y).abs()));
    let plain = capped(None);
    assert!(difference(&capped(Some(1e3)), &plain) < 1e-3);
    assert!(difference(&capped(Some(1.0)), &plain) > 1e-2);
    // A cap near 0 makes all scores equal: each query takes the mean of the keys that it sees.
    let mean = values(v.clone().narrow(2, 0, 3).mean_dim(2));
    let third = &capped(Some(1e-6))[2 * 4..3 * 4];
    assert!(difference(third, &mean[..4]) < 1e-4, "{third:?} {mean:?}");
}

#[test]
fn a_query_that_sees_nothing_is_finite() {
    let device = Device::flex();
    let x = Tensor::<4>::ones([1, 1, 2, 2], &device);
    let mask = AttentionMask::from_rule([1, 2, 2], |_, _, _| false, &device);
    let y = values(causal_attention(x.clone(), x.clone(), x, Some(&mask), 1.0));
    assert!(y.iter().all(|value| value.is_finite()), "{y:?}");
}

#[derive(Clone, Copy)]
struct AttentionCase {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    seq: usize,
    head_dim: usize,
    /// Whether all planes rotate, or none.
    rotate: bool,
    window: Option<usize>,
    packed: bool,
}

const SMALL: AttentionCase =
    AttentionCase { batch: 2, heads: 4, kv_heads: 2, seq: 7, head_dim: 8, rotate: true, window: None, packed: false };

fn attention_is_the_same(case: AttentionCase) {
    let AttentionCase { batch, heads, kv_heads, seq, head_dim, rotate, window, packed } = case;
    let device = Device::flex();
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
                rotary_attention(q, k, v, &angles, &mask, 0.7)
            } else {
                causal_attention(q, k, v, Some(&mask), 0.7)
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
    let device = Device::flex();
    let segments = [1, 1, 2, 2, 2, 0, 1, 1, 1, 1, 0, 0];
    let causal = AttentionMask::causal(&segments, [2, 6], Some(2), &device);
    let rule = |row: usize, query: usize, key: usize| {
        key <= query && query - key < 2 && segments[row * 6 + query] == segments[row * 6 + key]
    };
    let rule = AttentionMask::from_rule([2, 6, 6], rule, &device);
    let [q, k, v] = [1, 2, 3].map(|seed| leaf(2 * 6 * 4, seed, &device).reshape([2, 1, 6, 4]));
    let by = |mask: &AttentionMask| causal_attention(q.clone(), k.clone(), v.clone(), Some(mask), 1.0);
    assert!((by(&causal) - by(&rule)).abs().max().into_scalar::<f32>() < 1e-6);
}

#[test]
fn attention_of_the_last_position_equals_its_plain_form() {
    let device = Device::flex();
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
                    soft_capped_attention(q.clone(), k.clone(), v.clone(), Some(&mask), 0.7, cap)
                });
            }
        }
    }
}

#[test]
fn a_mask_of_padding_on_the_left_hides_it_from_every_token() {
    let device = Device::flex();
    let padded = AttentionMask::left_padded(&[0, 2], 5, Some(3), &device);
    let rule = |row: usize, query: usize, key: usize| key <= query && query - key < 3 && key >= [0, 2][row];
    let rule = AttentionMask::from_rule([2, 5, 5], rule, &device);
    let [q, k, v] = [1, 2, 3].map(|seed| leaf(2 * 5 * 4, seed, &device).reshape([2, 1, 5, 4]));
    // The output at padding does not matter.
    let by = |mask: &AttentionMask| {
        let y = causal_attention(q.clone(), k.clone(), v.clone(), Some(mask), 1.0);
        (y.clone().narrow(0, 0, 1).narrow(2, 2, 3), y.narrow(2, 2, 3))
    };
    let (found, expected) = (by(&padded), by(&rule));
    assert!((found.1 - expected.1).abs().max().into_scalar::<f32>() < 1e-6);
    assert!((found.0 - expected.0).abs().max().into_scalar::<f32>() < 1e-6);
}
