//! The operations that are checked, with their inputs, their values in f64 and their sizes.

use std::time::Duration;

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use sorsa_kernels::{Instructions, MatmulPrecision};

use super::{reference, seconds};
use crate::form::is_flex;
use crate::packed::{PackedFormat, PackedMatrix, PackedWeight, Precision, WeightOperand};
use crate::{AttentionMask, causal_attention, gated_silu, head_loss_sum, linear, rms_norm};

/// The widest head of an attention that is checked.
const HEAD: usize = 64;
const EPSILON: f64 = 1e-5;

/// An operation that is checked.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The operation and the format of its weight.
    pub name: &'static str,
    pub(super) kind: Kind,
    /// Sizes at which its error is measured.
    pub(super) small: [usize; 3],
    /// Sizes at which it is timed.
    pub(super) large: [usize; 3],
}

/// What an operation computes, and what its sizes are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// A linear map: rows, `d_in`, `d_out`.
    Linear(Storage),
    /// The head and its loss: rows, width, vocabulary.
    Head(Storage),
    /// Attention: heads, tokens, width of a head.
    Attention,
    /// RMSNorm: rows, width, 1.
    Norm,
    /// The gated unit: rows, width, 1.
    Gated,
}

/// How a weight is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Storage {
    F32,
    Bf16,
    Packed(&'static str, Precision),
}

/// The list of all that is checked.
pub fn operations() -> Vec<Case> {
    use Storage::{Bf16, F32, Packed};
    let map = |name, storage, large| Case { name, kind: Kind::Linear(storage), small: [40, 288, 160], large };
    let step = |name, storage| Case { small: [1, 288, 160], ..map(name, storage, [1, 576, 1536]) };
    vec![
        map("linear f32", F32, [512, 576, 1536]),
        map("linear bf16", Bf16, [512, 576, 1536]),
        map("linear q8_0", Packed("q8_0", Precision::F32), [512, 576, 1536]),
        map("linear q8_0 in bf16", Packed("q8_0", Precision::Bf16), [512, 576, 1536]),
        map("linear q4_1 in bf16", Packed("q4_1", Precision::Bf16), [512, 576, 1536]),
        map("linear nf4 in bf16", Packed("nf4", Precision::Bf16), [512, 576, 1536]),
        step("linear f32, one row", F32),
        step("linear bf16, one row", Bf16),
        step("linear q8_0 in bf16, one row", Packed("q8_0", Precision::Bf16)),
        step("linear q4_1 in bf16, one row", Packed("q4_1", Precision::Bf16)),
        step("linear nf4 in bf16, one row", Packed("nf4", Precision::Bf16)),
        Case { name: "head and loss f32", kind: Kind::Head(F32), small: [30, 96, 250], large: [512, 576, 8192] },
        Case { name: "head and loss bf16", kind: Kind::Head(Bf16), small: [30, 96, 250], large: [512, 576, 8192] },
        Case { name: "attention", kind: Kind::Attention, small: [3, 33, HEAD], large: [9, 512, HEAD] },
        Case { name: "RMSNorm", kind: Kind::Norm, small: [20, 96, 1], large: [1024, 576, 1] },
        Case { name: "gated unit", kind: Kind::Gated, small: [20, 96, 1], large: [1024, 1536, 1] },
    ]
}

/// The operands of an operation.
struct Operands {
    /// The operands that have gradients, in the order of the results.
    tracked: Vec<Vec<f32>>,
    /// The weight `[d_in, d_out]` with the values of its format, or that of a norm.
    weight: Vec<f32>,
    packed: Option<PackedMatrix>,
    /// The gradient of the output.
    d_y: Vec<f32>,
}

/// Numbers between -1 and 1 without a pattern.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

impl Case {
    /// The largest error that is right on a device: a few roundings of f32, or of 8 bits where operands are rounded to bf16.
    pub(super) fn bound(&self, device: &Device) -> f64 {
        let multiplies_bf16 = is_flex(device) && Instructions::used() >= Instructions::Avx512Bf16;
        let rounds = match self.kind {
            Kind::Linear(storage) | Kind::Head(storage) => match storage {
                Storage::F32 => multiplies_bf16 && MatmulPrecision::used() == MatmulPrecision::Medium,
                Storage::Bf16 => multiplies_bf16,
                // The values are rounded everywhere.
                Storage::Packed(_, precision) => precision == Precision::Bf16,
            },
            Kind::Attention | Kind::Norm | Kind::Gated => false,
        };
        if rounds { 6e-3 } else { 5e-6 }
    }

    fn operands(&self, [a, b, c]: [usize; 3]) -> Operands {
        let tracked = |counts: &[usize]| counts.iter().zip(1..).map(|(count, seed)| values(*count, seed)).collect();
        match self.kind {
            Kind::Linear(storage) | Kind::Head(storage) => {
                let (weight, packed) = storage.stored(values(b * c, 11), [b, c]);
                let outputs = if matches!(self.kind, Kind::Head(_)) { 1 } else { a * c };
                Operands { tracked: tracked(&[a * b]), weight, packed, d_y: values(outputs, 12) }
            }
            Kind::Attention => {
                Operands { tracked: tracked(&[a * b * c; 3]), weight: vec![], packed: None, d_y: values(a * b * c, 12) }
            }
            Kind::Norm => {
                Operands { tracked: tracked(&[a * b]), weight: values(b, 11), packed: None, d_y: values(a * b, 12) }
            }
            Kind::Gated => {
                Operands { tracked: tracked(&[a * b; 2]), weight: vec![], packed: None, d_y: values(a * b, 12) }
            }
        }
    }

    /// The output and the gradients in f64, at the small sizes.
    pub(super) fn exact(&self) -> Vec<Vec<f64>> {
        let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
        let Operands { tracked, weight, d_y, .. } = self.operands(self.small);
        let (x, w, d_y): (Vec<Vec<f64>>, _, _) = (tracked.iter().map(|x| wide(x)).collect(), wide(&weight), wide(&d_y));
        let [rows, d_in, d_out] = self.small;
        match self.kind {
            Kind::Linear(_) => reference::linear(&x[0], &w, &d_y, self.small),
            Kind::Head(_) => reference::head_loss(&x[0], &w, &targets(rows, d_out), d_y[0], [d_in, d_out]),
            Kind::Attention => reference::attention([&x[0], &x[1], &x[2]], &d_y, self.small, scale()),
            Kind::Norm => reference::rms_norm(&x[0], &w, &d_y, EPSILON),
            Kind::Gated => reference::gated(&x[0], &x[1], &d_y),
        }
    }

    /// The output and the gradients on a device.
    pub(super) fn run(&self, device: &Device, sizes: [usize; 3]) -> Vec<Vec<f32>> {
        let device = device.clone().autodiff();
        let operands = self.operands(sizes);
        let weight = self.weight(&operands, sizes, &device);
        let x: Vec<Tensor<1>> = operands.tracked.iter().map(|x| vector(x.clone(), &device).require_grad()).collect();
        let y = self.forward(&x, weight, sizes);
        let gradients = (y.clone() * vector(operands.d_y, &device)).sum().backward();
        let numbers = |tensor: Tensor<1>| tensor.into_data().try_into_vec::<f32>().expect("f32");
        let of_operands = x.iter().map(|x| x.grad(&gradients).map_or_else(Vec::new, numbers));
        std::iter::once(numbers(y)).chain(of_operands).collect()
    }

    /// The speeds of the forward and of the backward pass, in 10^9 operations a second.
    pub(super) fn speeds(&self, device: &Device, duration: Duration) -> [f64; 2] {
        let sizes = self.large;
        let operands = self.operands(sizes);
        let plain = device.clone().without_autodiff();
        let done = |tensor: Tensor<1>| {
            // Reading one number waits for a device that computes in the background.
            let _ = tensor.narrow(0, 0, 1).into_data();
        };
        let inputs = |device: &Device| -> Vec<Tensor<1>> {
            operands.tracked.iter().map(|x| vector(x.clone(), device)).collect()
        };
        let (x, weight) = (inputs(&plain), self.weight(&operands, sizes, &plain));
        let forward = crate::on_pool(&plain, || seconds(duration, || done(self.forward(&x, weight.clone(), sizes))));
        let tracked = plain.clone().autodiff();
        let weight = self.weight(&operands, sizes, &tracked);
        let d_y = vector(operands.d_y.clone(), &tracked);
        let both = crate::on_pool(&plain, || {
            seconds(duration, || {
                let x: Vec<Tensor<1>> = inputs(&tracked).into_iter().map(Tensor::require_grad).collect();
                let y = self.forward(&x, weight.clone(), sizes);
                let gradients = (y * d_y.clone()).sum().backward();
                if let Some(gradient) = x[0].grad(&gradients) {
                    done(gradient);
                }
            })
        });
        let [forward_operations, backward_operations] = self.operation_counts(sizes);
        // A head forms its gradient in the forward pass, so that the two passes are one.
        let backward = if matches!(self.kind, Kind::Head(_)) { both } else { (both - forward).max(1e-9) };
        let backward_operations = if matches!(self.kind, Kind::Head(_)) {
            forward_operations + backward_operations
        } else {
            backward_operations
        };
        [forward_operations / forward * 1e-9, backward_operations / backward * 1e-9]
    }

    /// Floating point operations of the forward and the backward pass: those of products; of norms and units one for each number that is read or
    /// written.
    fn operation_counts(&self, [a, b, c]: [usize; 3]) -> [f64; 2] {
        let (numbers, product) = ((a * b) as f64, 2.0 * (a * b * c) as f64);
        match self.kind {
            Kind::Linear(_) | Kind::Head(_) => [product, product],
            // Half of all pairs of tokens.
            Kind::Attention => [product * b as f64, 2.5 * product * b as f64],
            Kind::Norm => [2.0 * numbers, 3.0 * numbers],
            Kind::Gated => [3.0 * numbers, 5.0 * numbers],
        }
    }

    fn weight(&self, operands: &Operands, [_, b, c]: [usize; 3], device: &Device) -> Option<WeightOperand> {
        let Operands { weight, packed, .. } = operands;
        match (self.kind, packed) {
            (Kind::Attention | Kind::Gated, _) => None,
            (_, Some(matrix)) => Some(PackedWeight::new(matrix, device).into()),
            (Kind::Norm, None) => Some(WeightOperand::Dense(vector(weight.clone(), device).reshape([1, b]))),
            (Kind::Linear(storage) | Kind::Head(storage), None) => {
                let dense: Tensor<2> = vector(weight.clone(), device).reshape([b, c]);
                Some(WeightOperand::Dense(match storage {
                    Storage::Bf16 => dense.cast(FloatDType::BF16),
                    Storage::F32 | Storage::Packed(..) => dense,
                }))
            }
        }
    }

    /// The output as a vector.
    fn forward(&self, x: &[Tensor<1>], weight: Option<WeightOperand>, [a, b, c]: [usize; 3]) -> Tensor<1> {
        let device = x[0].device();
        let matrix = |index: usize| x[index].clone().reshape([a, b]);
        match (self.kind, weight) {
            (Kind::Linear(_), Some(weight)) => linear(matrix(0), weight, None).reshape([a * c]),
            (Kind::Head(_), Some(weight)) => {
                let targets: Vec<i32> = targets(a, c).into_iter().map(|target| target as i32).collect();
                let device = device.without_autodiff();
                head_loss_sum(matrix(0), weight, Tensor::from_data(TensorData::new::<i32, _>(targets, [a]), &device))
            }
            (Kind::Norm, Some(WeightOperand::Dense(weight))) => {
                rms_norm(matrix(0), weight.reshape([b]), EPSILON).reshape([a * b])
            }
            (Kind::Gated, _) => gated_silu(matrix(0), matrix(1), FloatDType::F32).reshape([a * b]),
            (Kind::Attention, _) => {
                let heads = |index: usize| x[index].clone().reshape([1, a, b, c]);
                let mask = AttentionMask::causal(&vec![0; b], [1, b], None, &device.without_autodiff());
                causal_attention(heads(0), heads(1), heads(2), Some(&mask), scale()).reshape([a * b * c])
            }
            (Kind::Linear(_) | Kind::Head(_) | Kind::Norm, _) => unreachable!("{} has a weight", self.name),
        }
    }
}

impl Storage {
    /// The values of a weight `[d_in, d_out]` in this format, and the weight if it is packed.
    fn stored(self, weight: Vec<f32>, [d_in, d_out]: [usize; 2]) -> (Vec<f32>, Option<PackedMatrix>) {
        match self {
            Self::F32 => (weight, None),
            Self::Bf16 => {
                let rounded = sorsa_kernels::rounding::rounded_to_bf16(&weight);
                (rounded.into_iter().map(|value| value.to_f32()).collect(), None)
            }
            Self::Packed(name, precision) => {
                let format: PackedFormat = name.parse().expect("a packed format");
                let matrix = PackedMatrix::pack(format, [d_out, d_in], &weight).expect("whole blocks");
                let values = matrix.to_f32();
                let turned = (0..d_in * d_out).map(|at| values[at % d_out * d_in + at / d_out]).collect();
                (turned, Some(matrix.with_precision(precision)))
            }
        }
    }
}

fn scale() -> f64 {
    (HEAD as f64).sqrt().recip()
}

fn targets(rows: usize, vocabulary: usize) -> Vec<usize> {
    (0..rows).map(|row| row * 7919 % vocabulary).collect()
}

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new::<f32, _>(values, [count]), (device, DType::F32))
}
