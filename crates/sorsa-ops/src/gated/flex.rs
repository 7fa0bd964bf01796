//! Gated units on flex. The graph keeps the operands alone, in f32 or bf16; the backward pass computes the result again.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_kernels::gated::{self as kernel, Activation};

use crate::flex::recomputation::{Recompute, prepare};
use crate::flex::rounding::kept_in_bf16;
use crate::flex::tensors::{FlexTensor, Tracked, contiguous, float_slice, into_vec, shape, tensor};
use crate::form::count_fused_call;

#[backend_extension(Flex, Autodiff)]
pub(crate) trait GatedExtension: Backend {
    fn fused_gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        kept: FloatDType,
    ) -> FloatTensor<Self>;
}

impl GatedExtension for Flex {
    fn fused_gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        _kept: FloatDType,
    ) -> FloatTensor<Self> {
        forward(gate, up, activation)
    }
}

impl<C: CheckpointStrategy> GatedExtension for Autodiff<Flex, C> {
    fn fused_gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        kept: FloatDType,
    ) -> FloatTensor<Self> {
        tracked(gate, up, activation, kept)
    }
}

pub(super) fn gated<const D: usize>(
    gate: Tensor<D>,
    up: Tensor<D>,
    activation: Activation,
    kept: FloatDType,
) -> Tensor<D> {
    count_fused_call();
    Tensor::from_dispatch(Dispatch::fused_gated(gate.into_dispatch(), up.into_dispatch(), activation, kept))
}

fn forward(gate: FlexTensor, up: FlexTensor, activation: Activation) -> FlexTensor {
    let (gate, up) = (contiguous(gate), contiguous(up));
    tensor(kernel::forward(float_slice(&gate), float_slice(&up), activation), shape(&gate))
}

fn tracked(gate: Tracked, up: Tracked, activation: Activation, kept: FloatDType) -> Tracked {
    let y = forward(gate.primitive().clone(), up.primitive().clone(), activation);
    let operands = if kept == FloatDType::BF16 { [gate, up].map(kept_in_bf16) } else { [gate, up] };
    match prepare(Gated, operands.each_ref(), Recomputed { activation }) {
        OpsKind::Tracked(prepared) => {
            let [gate, up] = operands.map(|operand| operand.into_primitive());
            prepared.finish(State { gate, up, activation }, y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    }
}

#[derive(Debug)]
struct Recomputed {
    activation: Activation,
}

impl Recompute<2> for Recomputed {
    fn forward(&self, [gate, up]: [FlexTensor; 2]) -> FlexTensor {
        forward(gate, up, self.activation)
    }
}

#[derive(Debug)]
struct Gated;

#[derive(Debug, Clone)]
struct State {
    gate: FlexTensor,
    up: FlexTensor,
    activation: Activation,
}

impl Backward<Flex, 2> for Gated {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_y = into_vec(gradients.consume::<Flex>(&ops.node));
        let State { gate, up, activation } = ops.state;
        let (gate, up) = (contiguous(gate), contiguous(up));
        let d = kernel::backward(float_slice(&gate), float_slice(&up), d_y, activation);
        let [gate_node, up_node] = ops.parents;
        if let Some(node) = gate_node {
            gradients.register::<Flex>(node.id, tensor(d.gate, shape(&gate)));
        }
        if let Some(node) = up_node {
            gradients.register::<Flex>(node.id, tensor(d.up, shape(&gate)));
        }
    }
}
