//! RMSNorm on flex. The graph does not keep the result; the backward pass computes it again.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;
use sorsa_kernels::rms_norm as kernel;

use crate::flex::recomputation::{Recompute, prepare};
use crate::flex::tensors::{FlexTensor, Tracked, contiguous, floats, gradient_of, rows_and_width, shape, tensor};
use crate::form::count_fused_call;

#[backend_extension(Flex, Autodiff)]
pub(crate) trait RmsNormExtension: Backend {
    fn fused_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self>;
}

impl RmsNormExtension for Flex {
    fn fused_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        forward(x, weight, epsilon).0
    }
}

impl<C: CheckpointStrategy> RmsNormExtension for Autodiff<Flex, C> {
    fn fused_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        tracked(x, weight, epsilon)
    }
}

pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    count_fused_call();
    Tensor::from_dispatch(Dispatch::fused_rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon))
}

/// The normalized rows, and the scale of each for the backward pass.
fn forward(x: FlexTensor, weight: FlexTensor, epsilon: f64) -> (FlexTensor, Vec<f32>) {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let kernel::Output { y, scales } = kernel::forward(floats(&x), rows_and_width(&x), floats(&weight), epsilon);
    (tensor(y, shape(&x)), scales)
}

fn tracked(x: Tracked, weight: Tracked, epsilon: f64) -> Tracked {
    let prepared = prepare(RmsNorm, [&x, &weight], Recomputed { epsilon });
    let weight = weight.into_primitive();
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let x_node = prepared.checkpoint(&x);
            let (y, scales) = forward(x.into_primitive(), weight.clone(), epsilon);
            prepared.finish(State { x_node, weight, scales }, y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(forward(x.into_primitive(), weight, epsilon).0),
    }
}

#[derive(Debug)]
struct Recomputed {
    epsilon: f64,
}

impl Recompute<2> for Recomputed {
    fn forward(&self, [x, weight]: [FlexTensor; 2]) -> FlexTensor {
        forward(x, weight, self.epsilon).0
    }
}

#[derive(Debug)]
struct RmsNorm;

#[derive(Debug, Clone)]
struct State {
    /// The graph keeps the input at this node, or computes it again.
    x_node: NodeId,
    weight: FlexTensor,
    scales: Vec<f32>,
}

impl Backward<Flex, 2> for RmsNorm {
    type State = State;

    fn backward(self, ops: Ops<State, 2>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let d_y = contiguous(gradients.consume::<Flex>(&ops.node));
        let State { x_node, weight, scales } = ops.state;
        let (x, weight) = (contiguous(checkpointer.retrieve_node_output(x_node)), contiguous(weight));
        let backward = kernel::Backward { x: floats(&x), weight: floats(&weight), scales: &scales, d_y: floats(&d_y) };
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            gradients.register::<Flex>(node.id, gradient_of(backward.input(), &x));
        }
        if let Some(node) = weight_node {
            gradients.register::<Flex>(node.id, gradient_of(backward.weight(), &weight));
        }
    }
}
