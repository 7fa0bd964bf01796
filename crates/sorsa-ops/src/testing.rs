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
