//! Speed of the products of a linear layer: f32, and f32 with a weight kept in bf16; forward, and back to the input.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release --workspace --example product_speed
//! ```
//!
//! The best of some runs: on a machine that is busy the others say how busy. For few rows, read GB/s: what counts is how
//! fast the weight is read.

use std::time::Instant;

use burn::prelude::*;
use burn::tensor::{Distribution, FloatDType};

/// What the binary allocates with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let device = Device::flex();
    println!("rows x d_in x d_out               f32 GFLOP/s (GB/s)     bf16 GFLOP/s (GB/s)");
    for [rows, d_in, d_out] in [
        [256, 768, 2048],
        [256, 768, 768],
        [256, 2048, 768],
        [1024, 288, 768],
        [8, 288, 32_000],
        [1, 288, 32_000],
        [1, 768, 2048],
        [1, 288, 768],
    ] {
        let weight = Tensor::<2>::random([d_in, d_out], Distribution::Normal(0.0, 0.02), &device);
        let narrow = weight.clone().cast(FloatDType::BF16);
        for (name, back) in [("forward", false), ("back", true)] {
            let width = if back { d_out } else { d_in };
            let x = Tensor::<2>::random([rows, width], Distribution::Normal(0.0, 1.0), &device);
            let speed = |weight: &Tensor<2>, size: usize| {
                let weight = if back { weight.clone().transpose() } else { weight.clone() };
                let best = (0..30)
                    .map(|_| {
                        let start = Instant::now();
                        drop(sorsa_ops::linear(x.clone(), weight.clone(), None));
                        start.elapsed().as_secs_f64()
                    })
                    .fold(f64::INFINITY, f64::min);
                let product = (rows * d_in * d_out) as f64;
                (2e-9 * product / best, 1e-9 * (size * d_in * d_out) as f64 / best)
            };
            let ((wide, wide_read), (bf16, bf16_read)) = (speed(&weight, 4), speed(&narrow, 2));
            println!(
                "{rows:5} x {d_in:5} x {d_out:5} {name:8} {wide:8.1} ({wide_read:6.1}) {bf16:8.1} ({bf16_read:6.1})"
            );
        }
    }
}
