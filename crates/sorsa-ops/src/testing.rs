//! Tensors of tests, and the comparison of fused and plain forms.

use burn::prelude::*;
use burn::tensor::FloatDType::BF16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use crate::form::{FUSED_CALLS, without_fused};
use crate::packed::{PackedFormat, PackedMatrix, PackedWeight};

/// Normal numbers that are the same in every run. ([`Tensor::random`] has one generator for all tests of the process, so its
/// numbers depend on which test draws first.)
pub(crate) fn normal<const D: usize>(shape: [usize; D], deviation: f32, seed: u64, device: &Device) -> Tensor<D> {
    let drawn = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
    let values = drawn.take(shape.iter().product()).map(|value: f32| deviation * value).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, shape), device)
}

/// A vector of numbers around zero that depend on the seed alone.
pub(crate) fn leaf(length: usize, seed: u64, device: &Device) -> Tensor<1> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values = (0..length).map(|_| next() + 0.5 * next()).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, [length]), device)
}

/// A tensor of ones on the CPU backend.
#[cfg(test)]
pub(crate) fn ones<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::ones(shape, &Device::flex())
}

/// The elements as a vector.
pub(crate) fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let length = tensor.dims().iter().product::<usize>();
    tensor.reshape([length])
}

/// A packed weight of the stored shape `[d_out, d_in]`, and its values `[d_in, d_out]`.
pub(crate) fn packed(format: PackedFormat, stored: [usize; 2], device: &Device) -> (PackedWeight, Tensor<2>) {
    let values = leaf(stored[0] * stored[1], 77, device).into_data().try_into_vec::<f32>().unwrap();
    let matrix = PackedMatrix::pack(format, stored, &values).unwrap();
    let dense = Tensor::from_data(TensorData::new::<f32, _>(matrix.to_f32(), stored), device);
    (PackedWeight::new(&matrix, device), dense.transpose())
}

/// A weight in bf16.
pub(crate) fn narrowed(weight: Tensor<1>, shape: [usize; 2]) -> Tensor<2> {
    weight.reshape(shape).cast(BF16)
}

/// Asserts that the public function takes the fused form, and that the plain form gives the same values and gradients.
pub(crate) fn same(name: &str, lengths: &[usize], tracked: &[bool], f: impl Fn(&[Tensor<1>]) -> Tensor<1>) {
    let (fused, plain) = both_forms(name, lengths, tracked, f);
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

/// [`same`] to the precision of bf16, for operations with operands in bf16.
pub(crate) fn same_to_bf16(name: &str, lengths: &[usize], tracked: &[bool], f: impl Fn(&[Tensor<1>]) -> Tensor<1>) {
    let (fused, plain) = both_forms(name, lengths, tracked, f);
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

/// Asserts that an operation without a backward pass takes the fused form, and that the plain form gives the same values.
pub(crate) fn same_forward(name: &str, f: impl Fn() -> Tensor<4>) {
    let before = FUSED_CALLS.get();
    let fused = f();
    assert!(FUSED_CALLS.get() > before, "{name}: the fused form did not run");
    let plain = without_fused(&f);
    assert_eq!(fused.dims(), plain.dims());
    let difference = (fused - plain).abs().max().into_scalar::<f32>();
    assert!(difference < 1e-5, "{name}: {difference}");
}

/// Values and gradients.
pub(crate) type Results = Vec<Option<Vec<f32>>>;

/// The output, and the gradients of all leaves for a random gradient of the output.
#[cfg(test)]
pub(crate) fn run(lengths: &[usize], tracked: &[bool], f: &dyn Fn(&[Tensor<1>]) -> Tensor<1>) -> Results {
    let device = Device::flex().autodiff();
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

fn both_forms(
    name: &str,
    lengths: &[usize],
    tracked: &[bool],
    f: impl Fn(&[Tensor<1>]) -> Tensor<1>,
) -> (Results, Results) {
    let before = FUSED_CALLS.get();
    let fused = run(lengths, tracked, &f);
    assert!(FUSED_CALLS.get() > before, "{name}: the fused form did not run");
    let before = FUSED_CALLS.get();
    let plain = without_fused(|| run(lengths, tracked, &f));
    assert_eq!(FUSED_CALLS.get(), before, "{name}: the plain form did not run");
    (fused, plain)
}
