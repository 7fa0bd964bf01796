//! Gated linear units (Shazeer, 2020): `f(gate) * up`, between the projections of a feed-forward layer.

use burn::prelude::*;
use burn::tensor::FloatDType;
use burn::tensor::activation::{gelu_approximate, silu};

use crate::fused;

/// The function of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU in its approximation by tanh.
    GeluTanh,
}

/// `silu(gate) * up`, both `[.., d]`. The fused form keeps both for the backward pass, in bf16 where that is `kept` and as they
/// are otherwise: beside weights in bf16, whose products round activations in any case, half of the memory is enough.
/// The result does not depend on it. Plain forms keep what burn keeps.
pub fn gated_silu<const D: usize>(gate: Tensor<D>, up: Tensor<D>, kept: FloatDType) -> Tensor<D> {
    gated(gate, up, Activation::Silu, kept)
}

/// `gelu(gate) * up`, both `[.., d]`, with `gelu(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`; `kept` is
/// that of [`gated_silu`].
pub fn gated_gelu<const D: usize>(gate: Tensor<D>, up: Tensor<D>, kept: FloatDType) -> Tensor<D> {
    gated(gate, up, Activation::GeluTanh, kept)
}

fn gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>, activation: Activation, kept: FloatDType) -> Tensor<D> {
    if gate.dims() == up.dims() && fused::applies([fused::kind(&gate), fused::kind(&up)]) {
        fused::gated(gate, up, activation, kept == FloatDType::BF16)
    } else {
        plain(gate, up, activation)
    }
}

pub(crate) fn plain<const D: usize>(gate: Tensor<D>, up: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Silu => silu(gate) * up,
        Activation::GeluTanh => gelu_approximate(gate) * up,
    }
}
