//! The arithmetic of a transformer's operations on the CPU, forward and backward. Slices go in, slices come out; nothing here
//! knows tensors, graphs or burn. Callers need no `unsafe`: shapes are asserted, instructions are detected at run time.
//!
//! ```
//! use sorsa_kernels::{Matrix, Product, Update};
//!
//! let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 1.0, 1.0]);
//! let mut out = [10.0; 4];
//! Product::new(Matrix::new(&a, 2, 2), Matrix::new(&b, 2, 2)).compute(&mut out, Update::Add);
//! assert_eq!(out, [13.0, 12.0, 17.0, 14.0]);
//! ```

pub mod attention;
pub mod factored;
pub mod four_bit;
pub mod gated;
pub mod head_loss;
pub mod linear;
pub mod linear_maps;
pub mod rms_norm;
pub mod rotary;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod blocks;
#[cfg(target_arch = "x86_64")]
mod f32_panels;
mod few_rows;
mod instructions;
mod matmul_precision;
mod matrix;
pub mod packed;
mod packed_less;
#[cfg(target_arch = "x86_64")]
mod panels;
pub mod peak;
pub mod processor;
mod product;
pub mod rounding;
mod simd;
mod sums;
#[cfg(test)]
mod testing;
mod weight;
mod widened;

pub use bf16::Bf16Matrix;
pub use blocks::BlockFormat;
pub use instructions::{Instructions, InstructionsError};
pub use matmul_precision::{Arithmetic, MatmulPrecision, UnknownMatmulPrecision};
pub use matrix::Matrix;
pub use packed_less::PackedLess;
pub use product::{Product, Threads, Update};
pub use weight::Weight;
