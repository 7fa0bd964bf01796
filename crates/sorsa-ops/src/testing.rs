//! What the tests of several operations share.

use burn::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// Normal numbers that are the same in every run. (Those of [`Tensor::random`] are not: its generator is one for all
/// tests of the process, and which of them draws first is chance.)
pub fn normal<const D: usize>(shape: [usize; D], deviation: f32, seed: u64, device: &Device) -> Tensor<D> {
    let drawn = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
    let values = drawn.take(shape.iter().product()).map(|value: f32| deviation * value).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, shape), device)
}

/// Numbers of about unit size that no regular pattern would balance.
pub(crate) fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
