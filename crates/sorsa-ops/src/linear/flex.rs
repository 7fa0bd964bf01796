//! The linear map on flex.
//!
//! ```text
//! dX = dY W^T        dW = X^T dY if W is trained        dbias = colsum(dY)
//! ```

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;
use sorsa_kernels::linear as kernel;

use crate::flex::tensors::{
    FlexTensor, KernelWeight, Tracked, absent, contiguous, floats, optional_floats, rows, rows_and_width, shape,
    shape_with_last, tensor, weight_operands,
};
use crate::form::count_fused_call;
use crate::packed::WeightOperand;

#[backend_extension(Flex, Autodiff)]
pub(crate) trait LinearExtension: Backend {
    /// `weight` or `words` is absent; `bias` may be.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        words: IntTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl LinearExtension for Flex {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        words: IntTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        forward(&contiguous(x), &KernelWeight::new(weight, words), &contiguous(bias))
    }
}

impl<C: CheckpointStrategy> LinearExtension for Autodiff<Flex, C> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        words: IntTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        tracked::<C>(x, weight, words, bias)
    }
}

pub(super) fn linear<const D: usize>(x: Tensor<D>, weight: WeightOperand, bias: Option<Tensor<1>>) -> Tensor<D> {
    count_fused_call();
    let device = x.device().without_autodiff();
    let bias = bias.unwrap_or_else(|| absent(&device));
    let (weight, words) = weight_operands(weight, &device);
    Tensor::from_dispatch(Dispatch::fused_linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        words.into_dispatch(),
        bias.into_dispatch(),
    ))
}

fn forward(x: &FlexTensor, w: &KernelWeight, bias: &FlexTensor) -> FlexTensor {
    let (w, [count, _]) = (w.view(), rows_and_width(x));
    tensor(kernel::forward(floats(x), count, w, optional_floats(bias)), shape_with_last(x, w.columns()))
}

fn tracked<C: CheckpointStrategy>(x: Tracked, weight: Tracked, words: IntTensor<Flex>, bias: Tracked) -> Tracked {
    let trained = weight.is_tracked();
    let prepared = Linear.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
    let input = x.clone();
    let in_graph = input.primitive().is_contiguous();
    let (x, bias) = (contiguous(x.into_primitive()), contiguous(bias.into_primitive()));
    let weight = KernelWeight::new(weight.into_primitive(), words);
    let y = forward(&x, &weight, &bias);
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let (x_shape, bias_shape) = (shape(&x), shape(&bias));
            let x = match (trained, in_graph) {
                (false, _) => Input::NotNeeded,
                (true, true) => Input::Node(prepared.checkpoint(&input)),
                (true, false) => Input::Copy(x),
            };
            prepared.finish(State { x, weight, x_shape, bias_shape }, y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    }
}

#[derive(Debug)]
struct Linear;

#[derive(Debug, Clone)]
struct State {
    x: Input,
    weight: KernelWeight,
    x_shape: Vec<usize>,
    bias_shape: Vec<usize>,
}

/// The input in the backward pass.
#[derive(Debug, Clone)]
enum Input {
    /// The weight is frozen.
    NotNeeded,
    /// The graph keeps the input at this node, or computes it again.
    Node(NodeId),
    /// The input was not contiguous; this copy is.
    Copy(FlexTensor),
}

impl Backward<Flex, 3> for Linear {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let d_y = contiguous(gradients.consume::<Flex>(&ops.node));
        let State { x, weight: w, x_shape, bias_shape } = ops.state;
        let x = match x {
            Input::NotNeeded => None,
            Input::Node(node) => Some(contiguous(checkpointer.retrieve_node_output(node))),
            Input::Copy(x) => Some(x),
        };
        let [x_node, weight_node, bias_node] = ops.parents;
        let [count, d_out] = rows_and_width(&d_y);
        if let Some(node) = x_node {
            let d_x = kernel::input_gradient(floats(&d_y), count, w.view());
            gradients.register::<Flex>(node.id, tensor(d_x, x_shape));
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let d_weight = kernel::weight_gradient(rows(&x), rows(&d_y));
            gradients.register::<Flex>(node.id, w.gradient(d_weight));
        }
        if let Some(node) = bias_node {
            gradients.register::<Flex>(node.id, tensor(kernel::column_sums(floats(&d_y), d_out), bias_shape));
        }
    }
}
