//! Gated linear units (Shazeer, 2020): `f(gate) * up`, between the projections of a feed-forward layer.

mod flex;
mod plain;
#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_kernels::gated::Activation;

use crate::form::{Form, fused_form_applies, operand};
use crate::memory::OperationMemory;

/// `silu(gate) * up`.
///
/// The fused form keeps both operands for the backward pass, in bf16 if `kept` is bf16, otherwise in f32. Beside bf16 weights,
/// whose products round activations anyway, bf16 loses nothing and takes half of the memory. The result does not depend on `kept`,
/// and the plain form ignores it.
///
/// # Shapes
///
/// - `gate`, `up`, output: `[.., d]`
pub fn gated_silu<const D: usize>(gate: Tensor<D>, up: Tensor<D>, kept: FloatDType) -> Tensor<D> {
    gated(gate, up, Activation::Silu, kept)
}

/// `gelu(gate) * up` with `gelu(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`; see [`gated_silu`] for `kept`.
///
/// # Shapes
///
/// - `gate`, `up`, output: `[.., d]`
pub fn gated_gelu<const D: usize>(gate: Tensor<D>, up: Tensor<D>, kept: FloatDType) -> Tensor<D> {
    gated(gate, up, Activation::GeluTanh, kept)
}

/// The memory of [`gated_silu`] or [`gated_gelu`] of so many elements. The fused form keeps both operands in the dtype `kept`;
/// operations that need its result compute it again. The plain form keeps about five tensors of their size.
pub fn gated_memory(form: Form, elements: usize, kept: FloatDType) -> OperationMemory {
    match (form, kept) {
        (Form::Fused, FloatDType::BF16) => OperationMemory::keeping(elements),
        (Form::Fused, _) => OperationMemory::keeping(2 * elements),
        (Form::Plain, _) => OperationMemory::keeping(5 * elements),
    }
}

fn gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>, activation: Activation, kept: FloatDType) -> Tensor<D> {
    if gate.dims() == up.dims() && fused_form_applies([operand(&gate), operand(&up)]) {
        flex::gated(gate, up, activation, kept)
    } else {
        plain::gated(gate, up, activation)
    }
}
