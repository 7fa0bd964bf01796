//! LoRA (arXiv 2106.09685): `y = x W + (x A) B * scale` with `A` random and `B = 0` at the start; the base is
//! untouched. rsLoRA is the same with another scale.

use burn::module::Param;
use burn::nn::Dropout;
use burn::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::factors::{FactorSet, HostTensor};

/// The trained factors of one weight.
#[derive(Module, Debug)]
pub struct Lora {
    /// `A` `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `B` `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    pub(crate) dropout: Dropout,
    #[module(skip)]
    pub(crate) scale: f64,
}

impl Lora {
    pub(crate) const FACTORS: [&'static str; 2] = ["a", "b"];

    /// Kaiming-uniform `A` with `a = sqrt(5)`, as PEFT: uniform within `1 / sqrt(d_in)`. The draw depends on the seed
    /// and the module's path only, not on the backend or on the other modules.
    pub(crate) fn start(path: &str, [d_in, d_out]: [usize; 2], rank: usize, seed: u64) -> FactorSet {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(path.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        let bound = 1.0 / (d_in as f32).sqrt();
        let a = (0..d_in * rank).map(|_| rng.random_range(-bound..bound)).collect();
        FactorSet::from([
            ("a", HostTensor::new([d_in, rank], a)),
            ("b", HostTensor::new([rank, d_out], vec![0.0; rank * d_out])),
        ])
    }

    pub(crate) fn new(factors: &FactorSet, scale: f64, dropout: Dropout, device: &Device) -> Self {
        Self { a: factors["a"].param(device), b: factors["b"].param(device), dropout, scale }
    }

    /// `(A, none, B)`.
    pub(crate) fn parts(&self) -> (Tensor<2>, Option<Tensor<1>>, Tensor<2>) {
        (self.a.val(), None, self.b.val())
    }
}
