//! Gated units in burn's operations.

use burn::prelude::*;
use burn::tensor::activation::{gelu_approximate, silu};
use sorsa_kernels::gated::Activation;

pub(super) fn gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Silu => silu(gate) * up,
        Activation::GeluTanh => gelu_approximate(gate) * up,
    }
}
