//! The factored linear map on flex.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, ExtensionType, Flex, backend_extension};
use burn::prelude::*;
use burn::tensor::DType;
use sorsa_kernels::factored::{FactoredLinear as Kernel, Output};

use super::LowRankFactors;
use crate::flex::tensors::{
    FlexTensor, KernelWeight, Tracked, absent, contiguous, floats, gradient_of, is_absent, matrix, optional_floats,
    rows, shape_with_last, tensor, weight_operands, with_matrix_strides,
};
use crate::form::count_fused_call;
use crate::packed::WeightOperand;

/// The operands of one call. `weight` or `words` is absent; `bias`, `adapter_input` and `s` may be.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct Operands<B: Backend> {
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    words: IntTensor<B>,
    bias: FloatTensor<B>,
    adapter_input: FloatTensor<B>,
    a: FloatTensor<B>,
    s: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f64,
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait FactoredLinearExtension: Backend {
    fn fused_factored_linear(#[extension_type] operands: Operands<Self>) -> FloatTensor<Self>;
}

impl FactoredLinearExtension for Flex {
    fn fused_factored_linear(operands: Operands<Self>) -> FloatTensor<Self> {
        let (operands, weight) = operands.with_kernel_strides();
        forward(&operands, &weight).0
    }
}

impl<C: CheckpointStrategy> FactoredLinearExtension for Autodiff<Flex, C> {
    fn fused_factored_linear(operands: Operands<Self>) -> FloatTensor<Self> {
        tracked::<C>(operands)
    }
}

pub(super) fn factored_linear<const D: usize>(
    x: Tensor<D>,
    weight: WeightOperand,
    bias: Option<Tensor<1>>,
    adapter_input: Option<Tensor<D>>,
    factors: LowRankFactors,
) -> Tensor<D> {
    count_fused_call();
    let LowRankFactors { a, s, b, scale } = factors;
    let device = x.device().without_autodiff();
    let (weight, words) = weight_operands(weight, &device);
    Tensor::from_dispatch(Dispatch::fused_factored_linear(Operands {
        x: x.into_dispatch(),
        weight: weight.into_dispatch(),
        words: words.into_dispatch(),
        bias: bias.unwrap_or_else(|| absent(&device)).into_dispatch(),
        adapter_input: adapter_input.unwrap_or_else(|| absent(&device)).into_dispatch(),
        a: a.into_dispatch(),
        s: s.unwrap_or_else(|| absent(&device)).into_dispatch(),
        b: b.into_dispatch(),
        scale,
    }))
}

impl Operands<Flex> {
    /// The operands, and apart from them the weight.
    fn with_kernel_strides(self) -> (Self, KernelWeight) {
        let weight = KernelWeight::new(self.weight, self.words);
        let operands = Self {
            x: contiguous(self.x),
            weight: tensor(Vec::new(), [0, 0]),
            words: FlexTensor::empty([0].into(), DType::I32),
            bias: contiguous(self.bias),
            adapter_input: contiguous(self.adapter_input),
            a: with_matrix_strides(self.a),
            s: contiguous(self.s),
            b: with_matrix_strides(self.b),
            scale: self.scale,
        };
        (operands, weight)
    }

    fn kernel<'a>(&'a self, weight: &'a KernelWeight) -> Kernel<'a> {
        Kernel {
            x: rows(&self.x),
            weight: weight.view(),
            bias: optional_floats(&self.bias),
            adapter_input: if is_absent(&self.adapter_input) { None } else { Some(rows(&self.adapter_input)) },
            a: matrix(&self.a),
            s: optional_floats(&self.s),
            b: matrix(&self.b),
            scale: self.scale as f32,
        }
    }
}

/// The output `[.., d_out]`, and `h` for the backward pass.
fn forward(operands: &Operands<Flex>, weight: &KernelWeight) -> (FlexTensor, Vec<f32>) {
    let kernel = operands.kernel(weight);
    let Output { y, h } = kernel.forward();
    (tensor(y, shape_with_last(&operands.x, kernel.weight.columns())), h)
}

fn tracked<C: CheckpointStrategy>(operands: Operands<Autodiff<Flex, C>>) -> Tracked {
    let Operands { x, weight, words, bias, adapter_input, a, s, b, scale } = operands;
    let nodes = [&x, &weight, &bias, &adapter_input, &a, &s, &b].map(|operand| operand.node());
    let prepared = FactoredLinear.prepare::<C>(nodes).compute_bound().stateful();
    let input = x.clone();
    let in_graph = input.primitive().is_contiguous();
    let operands = Operands::<Flex> {
        x: x.into_primitive(),
        weight: weight.into_primitive(),
        words,
        bias: bias.into_primitive(),
        adapter_input: adapter_input.into_primitive(),
        a: a.into_primitive(),
        s: s.into_primitive(),
        b: b.into_primitive(),
        scale,
    };
    let (mut operands, weight) = operands.with_kernel_strides();
    let (y, h) = forward(&operands, &weight);
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let mut x_node = None;
            if in_graph {
                x_node = Some(prepared.checkpoint(&input));
                operands.x = tensor(Vec::new(), [0]);
            }
            prepared.finish(State { operands, weight, h, x_node }, y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    }
}

#[derive(Debug)]
struct FactoredLinear;

#[derive(Debug, Clone)]
struct State {
    operands: Operands<Flex>,
    weight: KernelWeight,
    h: Vec<f32>,
    /// The graph keeps the input at this node, or computes it again; if absent, the operands hold it.
    x_node: Option<NodeId>,
}

impl Backward<Flex, 7> for FactoredLinear {
    type State = State;

    fn backward(self, ops: Ops<State, 7>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let d_y = contiguous(gradients.consume::<Flex>(&ops.node));
        let State { mut operands, weight: frozen, h, x_node } = ops.state;
        if let Some(node) = x_node {
            operands.x = contiguous(checkpointer.retrieve_node_output(node));
        }
        let operands = operands;
        let backward = operands.kernel(&frozen).backward(&h, floats(&d_y));
        let [x, weight, bias, adapter_input, a, s, b] = ops.parents;
        if let Some(node) = b {
            gradients.register::<Flex>(node.id, gradient_of(backward.b(), &operands.b));
        }
        if let Some(node) = s {
            gradients.register::<Flex>(node.id, gradient_of(backward.s(), &operands.s));
        }
        if let Some(node) = a {
            gradients.register::<Flex>(node.id, gradient_of(backward.a(), &operands.a));
        }
        if let Some(node) = adapter_input {
            gradients.register::<Flex>(node.id, gradient_of(backward.adapter_input(), &operands.adapter_input));
        }
        if let Some(node) = x {
            gradients.register::<Flex>(node.id, gradient_of(backward.x(), &operands.x));
        }
        if let Some(node) = weight {
            gradients.register::<Flex>(node.id, frozen.gradient(backward.weight()));
        }
        if let Some(node) = bias {
            gradients.register::<Flex>(node.id, gradient_of(backward.bias(), &operands.bias));
        }
    }
}
