//! Every operation and its gradients against the obvious loops in f64 and their central differences. This oracle shares
//! no code with the plain forms, nor with burn.

use burn::prelude::*;
use burn::tensor::FloatDType::F32;
use sorsa_ops::{
    AttentionMask, LowRankFactors, RotaryAngles, factored_linear, gated_gelu, gated_silu, head_loss_sum, rms_norm,
    rotary_attention, without_fused,
};

/// Numbers around zero, of moderate size, that depend on the seed alone.
fn numbers(length: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x2545_F491_4F6C_DD1D;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Exact in f32, so that both sides start from the same numbers.
        (state >> 45) as f64 / (1u64 << 18) as f64 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

/// `exact` maps the inputs to the outputs in f64, `operation` maps them on tensors. The loss is the sum of the outputs times fixed
/// numbers. Asserts that values and gradients of all inputs agree, for the fused form and for the plain one.
fn agrees(
    name: &str,
    lengths: &[usize],
    exact: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    operation: impl Fn(&[Tensor<1>]) -> Tensor<1>,
) {
    let inputs: Vec<Vec<f64>> = lengths.iter().zip(1..).map(|(length, seed)| numbers(*length, seed)).collect();
    let outputs = exact(&inputs);
    let weights = numbers(outputs.len(), 77);
    let loss = |inputs: &[Vec<f64>]| exact(inputs).iter().zip(&weights).map(|(y, w)| y * w).sum::<f64>();
    let gradients: Vec<Vec<f64>> = (0..inputs.len())
        .map(|index| {
            let slope = |element: usize| {
                let step = 1e-5;
                let at = |by: f64| {
                    let mut moved = inputs.clone();
                    moved[index][element] += by;
                    loss(&moved)
                };
                (at(step) - at(-step)) / (2.0 * step)
            };
            (0..inputs[index].len()).map(slope).collect()
        })
        .collect();

    let check = |form: &str| {
        let device = Device::flex().autodiff();
        let tensor = |values: &[f64]| -> Tensor<1> {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            let length = values.len();
            Tensor::from_data(TensorData::new::<f32, _>(values, [length]), &device)
        };
        let leaves: Vec<Tensor<1>> = inputs.iter().map(|values| tensor(values).require_grad()).collect();
        let output = operation(&leaves);
        near(&format!("{name}, {form}, values"), output.clone(), &outputs);
        let found = (output * tensor(&weights)).sum().backward();
        for (index, (leaf, expected)) in leaves.iter().zip(&gradients).enumerate() {
            let gradient = leaf.grad(&found).unwrap_or_else(|| panic!("{name}, {form}: no gradient of {index}"));
            near(&format!("{name}, {form}, gradient {index}"), gradient, expected);
        }
    };
    check("fused");
    without_fused(|| check("plain"));
}

fn near(what: &str, found: Tensor<1>, expected: &[f64]) {
    let found = found.into_data().try_into_vec::<f32>().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.1f64, |size, value| size.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= 2e-5 * size, "{what}, element {index}: {found} for {expected}");
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let length = tensor.dims().iter().product::<usize>();
    tensor.reshape([length])
}

/// `[n, k]` times `[k, m]`.
fn product(a: &[f64], b: &[f64], [n, k, m]: [usize; 3]) -> Vec<f64> {
    let mut out = vec![0.0; n * m];
    for i in 0..n {
        for j in 0..m {
            out[i * m + j] = (0..k).map(|l| a[i * k + l] * b[l * m + j]).sum();
        }
    }
    out
}

#[test]
fn rms_norm_equals_its_equation() {
    let (rows, width) = (3, 11);
    let exact = |inputs: &[Vec<f64>]| -> Vec<f64> {
        let normalise = |row: &[f64]| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
            row.iter().zip(&inputs[1]).map(|(x, w)| x / (mean + 1e-5).sqrt() * w).collect::<Vec<_>>()
        };
        inputs[0].chunks_exact(width).flat_map(normalise).collect()
    };
    agrees("rms norm", &[rows * width, width], exact, |t| {
        flat(rms_norm(t[0].clone().reshape([rows, width]), t[1].clone(), 1e-5))
    });
}

#[test]
fn gated_units_equal_their_equations() {
    let gate = |inputs: &[Vec<f64>], f: &dyn Fn(f64) -> f64| -> Vec<f64> {
        inputs[0].iter().zip(&inputs[1]).map(|(gate, up)| f(3.0 * gate) * up).collect()
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| 0.5 * x * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x)).tanh());
    agrees("silu", &[37, 37], |inputs| gate(inputs, &silu), |t| gated_silu(t[0].clone() * 3.0, t[1].clone(), F32));
    agrees("gelu", &[37, 37], |inputs| gate(inputs, &gelu), |t| gated_gelu(t[0].clone() * 3.0, t[1].clone(), F32));
}

#[test]
fn the_loss_of_a_head_equals_its_equation() {
    let (rows, width, vocabulary) = (5, 4, 13);
    let targets = [3, -1, 12, 0, 3];
    let exact = |inputs: &[Vec<f64>]| {
        let logits = product(&inputs[0], &inputs[1], [rows, width, vocabulary]);
        let row_loss = |(row, target): (&[f64], i32)| match usize::try_from(target) {
            Ok(target) => row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[target],
            Err(_) => 0.0,
        };
        vec![logits.chunks_exact(vocabulary).zip(targets).map(row_loss).sum::<f64>()]
    };
    agrees("head loss", &[rows * width, width * vocabulary], exact, |t| {
        let ids = Tensor::<1, Int>::from_ints(targets, &Device::flex());
        head_loss_sum(t[0].clone().reshape([rows, width]), t[1].clone().reshape([width, vocabulary]), ids)
    });
}

#[test]
fn attention_equals_its_equation() {
    // Four query heads on two key heads, two packed sequences and padding, a window of four.
    let (batch, heads, kv_heads, seq, width, window, scale) = (2, 4, 2, 9, 6, 4, 0.9);
    let segments = [1, 1, 1, 1, 1, 2, 2, 2, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2];
    let positions: Vec<i32> = (0..batch * seq).map(|i| (i % seq * (1 + i / seq)) as i32).collect();
    let frequencies = [1.0, 0.25, 0.0625];
    let rotate = |row: &[f64], at: usize| -> Vec<f64> {
        let rotated = |i: usize| {
            let angle = f64::from(positions[at]) * frequencies[i % (width / 2)];
            let partner = row[(i + width / 2) % width];
            row[i] * angle.cos() + if i < width / 2 { -partner } else { partner } * angle.sin()
        };
        (0..width).map(rotated).collect()
    };
    let exact = |inputs: &[Vec<f64>]| {
        // All inputs are [batch, seq, heads, width], like the outputs of projections.
        let row = |which: usize, heads: usize, at: usize, head: usize| -> &[f64] {
            &inputs[which][(at * heads + head) * width..][..width]
        };
        let mut out = Vec::new();
        for at in 0..batch * seq {
            let start = at / seq * seq;
            let seen: Vec<usize> =
                (start..=at).filter(|key| at - key < window && segments[at] == segments[*key]).collect();
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let q = rotate(row(0, heads, at, head), at);
                let score = |key: &usize| {
                    let k = rotate(row(1, kv_heads, *key, kv), *key);
                    (q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() * scale).exp()
                };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                let value = |i: usize| {
                    let part = |(key, score): (&usize, &f64)| score / sum * row(2, kv_heads, *key, kv)[i];
                    seen.iter().zip(&scores).map(part).sum::<f64>()
                };
                out.extend((0..width).map(value));
            }
        }
        out
    };
    let lengths = [heads, kv_heads, kv_heads].map(|heads| batch * seq * heads * width);
    agrees("attention", &lengths, exact, |t| {
        let device = Device::flex();
        let mask = AttentionMask::causal(&segments, [batch, seq], Some(window), &device);
        let angles = RotaryAngles::new(&frequencies, 1.0, &positions, [batch, seq], &device);
        let split = |t: &Tensor<1>, heads: usize| t.clone().reshape([batch, seq, heads, width]).swap_dims(1, 2);
        let (q, k, v) = (split(&t[0], heads), split(&t[1], kv_heads), split(&t[2], kv_heads));
        flat(rotary_attention(q, k, v, &angles, &mask, scale).swap_dims(1, 2))
    });
}

#[test]
fn the_factored_linear_map_equals_its_equation() {
    let (rows, d_in, d_out, rank, scale) = (4, 5, 6, 2, 1.25);
    let exact = |inputs: &[Vec<f64>]| -> Vec<f64> {
        let [x, w, bias, x_a, a, s, b] = inputs else { panic!("seven inputs") };
        let mut h = product(x_a, a, [rows, d_in, rank]);
        h.iter_mut().enumerate().for_each(|(i, h)| *h *= s[i % rank] * scale);
        let (dense, adapter) = (product(x, w, [rows, d_in, d_out]), product(&h, b, [rows, rank, d_out]));
        (0..rows * d_out).map(|i| dense[i] + adapter[i] + bias[i % d_out]).collect()
    };
    let lengths = [rows * d_in, d_in * d_out, d_out, rows * d_in, d_in * rank, rank, rank * d_out];
    agrees("factored linear", &lengths, exact, |t| {
        let two = |i: usize, shape: [usize; 2]| t[i].clone().reshape(shape);
        let factors =
            LowRankFactors { a: two(4, [d_in, rank]), s: Some(t[5].clone()), b: two(6, [rank, d_out]), scale };
        let (x, weight, adapter_input) = (two(0, [rows, d_in]), two(1, [d_in, d_out]), two(3, [rows, d_in]));
        flat(factored_linear(x, weight, Some(t[2].clone()), Some(adapter_input), factors))
    });
}

#[test]
fn numbers_that_are_not_finite_are_not_hidden() {
    let device = Device::flex();
    let x = Tensor::<2>::from_floats([[1.0, f32::NAN, 2.0]], &device);
    let any_nan = |t: Tensor<1>| t.into_data().try_into_vec::<f32>().unwrap().iter().any(|x| x.is_nan());
    assert!(any_nan(flat(rms_norm(x.clone(), Tensor::ones([3], &device), 1e-5))));
    assert!(any_nan(flat(gated_silu(x.clone(), x.clone(), F32))));
    let ids = Tensor::<1, Int>::from_ints([0], &device);
    assert!(any_nan(head_loss_sum(x.clone(), Tensor::ones([3, 4], &device), ids)));
    let mask = AttentionMask::causal(&[1], [1, 1], None, &device);
    let angles = RotaryAngles::new(&[1.0], 1.0, &[0], [1, 1], &device);
    let q = x.narrow(1, 0, 2).reshape([1, 1, 1, 2]);
    assert!(any_nan(flat(rotary_attention(q.clone(), q.clone(), q, &angles, &mask, 1.0))));
}
