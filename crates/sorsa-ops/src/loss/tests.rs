use burn::prelude::*;
use burn::tensor::DType;

use super::*;
use crate::packed::PackedFormat;
use crate::testing::{leaf, narrowed, normal, packed, same, same_to_bf16};

#[test]
fn large_logits_do_not_overflow() {
    let device = Device::flex();
    let logits = Tensor::<2>::from_floats([[1e4, 0.0], [0.0, 1e4]], &device);
    let loss = cross_entropy_sum(logits, Tensor::from_ints([0, 0], &device)).into_scalar::<f32>();
    assert!((loss - 1e4).abs() < 1e-2, "{loss}");
}

#[test]
fn the_gradient_is_softmax_minus_one_hot() {
    let device = Device::flex().autodiff();
    let logits = Tensor::<2>::from_floats([[0.5, -1.0, 2.0]], &device).require_grad();
    let loss = cross_entropy_sum(logits.clone(), Tensor::from_ints([1], &device));
    let gradient = logits.grad(&loss.backward()).unwrap().into_data().try_into_vec::<f32>().unwrap();
    let exp: Vec<f32> = [0.5f32, -1.0, 2.0].map(f32::exp).to_vec();
    let sum: f32 = exp.iter().sum();
    for (i, value) in gradient.iter().enumerate() {
        let expected = exp[i] / sum - f32::from(i == 1);
        assert!((value - expected).abs() < 1e-6);
    }
}

#[test]
fn chunks_sum_to_the_whole() {
    let device = Device::flex();
    let rows = CHUNK_ROWS + 7;
    let hidden = normal([rows, 3], 1.0, 1, &device);
    let weight = normal([3, 5], 1.0, 2, &device);
    let targets = Tensor::<1, Int>::zeros([rows], &device);
    let whole = cross_entropy_sum(hidden.clone().matmul(weight.clone()), targets.clone()).into_scalar::<f32>();
    let chunked = head_loss_sum(hidden, weight, targets).into_scalar::<f32>();
    assert!((whole - chunked).abs() < 1e-3 * whole, "{whole} {chunked}");
}

#[test]
fn the_head_and_its_loss_equal_their_plain_form() {
    let targets = |rows: usize, vocabulary: usize| -> Vec<i32> {
        (0..rows).map(|row| if row % 5 == 3 { -1 } else { (row * 7 % vocabulary) as i32 }).collect()
    };
    for (rows, width, vocabulary) in [(1, 3, 5), (4, 8, 1), (9, 5, 37), (300, 3, 70_001), (2100, 2, 9)] {
        for tracked in [[true, true], [true, false], [false, true]] {
            let device = Device::flex();
            let ids = Tensor::<1, Int>::from_ints(targets(rows, vocabulary).as_slice(), &device);
            same("head loss", &[rows * width, width * vocabulary], &tracked, |t| {
                let hidden = t[0].clone().reshape([rows, width]);
                head_loss_sum(hidden, t[1].clone().reshape([width, vocabulary]), ids.clone()) * 0.25
            });
            same("tied head loss", &[rows * width, width * vocabulary], &tracked, |t| {
                let hidden = t[0].clone().reshape([rows, width]);
                head_loss_sum(hidden, t[1].clone().reshape([vocabulary, width]).transpose(), ids.clone())
            });
        }
    }
}

#[test]
fn targets_may_be_of_64_bits_and_all_masked() {
    let device = Device::flex();
    let loss = |targets: TensorData| {
        let targets = Tensor::<1, Int>::from_data(targets, (&device, DType::I64));
        let hidden = leaf(6, 1, &device).reshape([2, 3]);
        flex::head_loss_sum(hidden, leaf(12, 2, &device).reshape([3, 4]).into(), targets).into_scalar::<f32>()
    };
    assert_eq!(loss(TensorData::new::<i64, _>(vec![-1, -100], [2])), 0.0);
    assert!(loss(TensorData::new::<i64, _>(vec![-1, 3], [2])) > 0.0);
}

#[test]
fn a_head_in_bf16_and_its_loss_equal_their_plain_form_to_its_precision() {
    let device = Device::flex();
    for (rows, width, vocabulary) in [(1, 3, 5), (9, 40, 37), (2100, 6, 9), (300, 3, 20_001)] {
        let targets: Vec<i32> = (0..rows).map(|row| if row % 5 == 3 { -1 } else { row * 7 % vocabulary }).collect();
        let ids = Tensor::<1, Int>::from_ints(targets.as_slice(), &device);
        let [rows, vocabulary] = [rows as usize, vocabulary as usize];
        for tracked in [[true, false], [true, true]] {
            same_to_bf16("head loss", &[rows * width, width * vocabulary], &tracked, |t| {
                let weight = narrowed(t[1].clone(), [vocabulary, width]).transpose();
                head_loss_sum(t[0].clone().reshape([rows, width]), weight, ids.clone())
            });
        }
    }
}

#[test]
fn the_memory_of_a_fused_head_does_not_grow_with_its_vocabulary() {
    let shape = HeadLossShape { rows: 1024, width: 288, vocabulary: 32_000, trained: false };
    let memory = head_loss_memory(Form::Fused, shape);
    assert_eq!(memory, OperationMemory { kept: 4 * 1024 * 288, workspace: 4 << 20 });
    assert_eq!(memory, head_loss_memory(Form::Fused, HeadLossShape { vocabulary: 256_000, ..shape }));
    let plain = head_loss_memory(Form::Plain, shape);
    assert_eq!(plain, OperationMemory { kept: 3 * 4 * 1024 * 32_000, workspace: 4 * 1024 * 32_000 });
}

#[test]
fn a_packed_head_and_its_loss_equal_their_plain_form() {
    let (weight, _) = packed(PackedFormat::NF4, [137, 64], &Device::flex());
    let ids = Tensor::<1, Int>::from_ints([5, -1, 136, 0, 77], &Device::flex());
    same("packed head loss", &[5 * 64], &[true], |t| {
        head_loss_sum(t[0].clone().reshape([5, 64]), weight.clone(), ids.clone()) * 0.25
    });
}
