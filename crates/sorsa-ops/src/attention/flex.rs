//! Attention on flex: of whole sequences with its rotation inside, and of one query a row over cached keys.

use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, Flex, backend_extension};
use burn::prelude::*;
use sorsa_kernels::attention::{Attention as Kernel, Backward as KernelBackward, Decode, Output};

use super::FirstVisible;
use crate::flex::tensors::{
    FlexTensor, Tracked, absent, angles, contiguous, heads, shape_of_four, tensor, with_contiguous_rows,
};
use crate::form::count_fused_call;

/// The operands of one call. `q` is `[batch, heads, seq, width]`, `k` and `v` are `[batch, kv_heads, seq, width]`; `cos` and `sin`
/// are `[batch or 1, 1, seq, planes]`, or absent.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct Operands<B: Backend> {
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    visible: FirstVisible,
    scale: f64,
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait AttentionExtension: Backend {
    fn fused_attention(#[extension_type] operands: Operands<Self>) -> FloatTensor<Self>;

    /// Without a backward pass.
    fn fused_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: Arc<[usize]>,
        scale: f64,
        cap: Option<f64>,
    ) -> FloatTensor<Self>;
}

impl AttentionExtension for Flex {
    fn fused_attention(operands: Operands<Self>) -> FloatTensor<Self> {
        forward(&operands.with_kernel_strides()).0
    }

    fn fused_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: Arc<[usize]>,
        scale: f64,
        cap: Option<f64>,
    ) -> FloatTensor<Self> {
        forward_decode([q, k, v], &first, scale, cap)
    }
}

impl<C: CheckpointStrategy> AttentionExtension for Autodiff<Flex, C> {
    fn fused_attention(operands: Operands<Self>) -> FloatTensor<Self> {
        tracked::<C>(operands)
    }

    fn fused_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first: Arc<[usize]>,
        scale: f64,
        cap: Option<f64>,
    ) -> FloatTensor<Self> {
        Self::from_inner(forward_decode([q, k, v].map(|t| t.into_primitive()), &first, scale, cap))
    }
}

/// `rotation` is the tables of [`crate::RotaryAngles`].
pub(super) fn rotary_attention(
    [q, k, v]: [Tensor<4>; 3],
    rotation: Option<(Tensor<4>, Tensor<4>)>,
    visible: FirstVisible,
    scale: f64,
) -> Tensor<4> {
    count_fused_call();
    let device = q.device().without_autodiff();
    let (cos, sin) = rotation.unwrap_or_else(|| (absent(&device), absent(&device)));
    Tensor::from_dispatch(Dispatch::fused_attention(Operands {
        q: q.into_dispatch(),
        k: k.into_dispatch(),
        v: v.into_dispatch(),
        cos: cos.into_dispatch(),
        sin: sin.into_dispatch(),
        visible,
        scale,
    }))
}

/// Attention of one query a row over the keys from `first[row]` on.
pub(super) fn decode([q, k, v]: [Tensor<4>; 3], first: Arc<[usize]>, scale: f64, cap: Option<f64>) -> Tensor<4> {
    count_fused_call();
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_decode(q, k, v, first, scale, cap))
}

impl Operands<Flex> {
    fn with_kernel_strides(self) -> Self {
        Self {
            q: with_contiguous_rows(self.q),
            k: with_contiguous_rows(self.k),
            v: with_contiguous_rows(self.v),
            cos: contiguous(self.cos),
            sin: contiguous(self.sin),
            visible: self.visible,
            scale: self.scale,
        }
    }

    fn kernel(&self) -> Kernel<'_> {
        Kernel {
            q: heads(&self.q),
            k: heads(&self.k),
            v: heads(&self.v),
            angles: angles(&self.cos, &self.sin),
            visible: self.visible.kernel(),
            scale: self.scale as f32,
        }
    }
}

/// The output `[batch, heads, seq, width]`, and the normalizers of its rows for the backward pass.
fn forward(operands: &Operands<Flex>) -> (FlexTensor, Vec<f32>) {
    let Output { values, normalizers } = operands.kernel().forward();
    (by_head(values, shape_of_four(&operands.q)), normalizers)
}

fn forward_decode(qkv: [FlexTensor; 3], first: &[usize], scale: f64, cap: Option<f64>) -> FlexTensor {
    let [q, k, v] = qkv.map(with_contiguous_rows);
    let values = Decode { q: heads(&q), k: heads(&k), v: heads(&v), first, scale, cap }.compute();
    tensor(values, shape_of_four(&q))
}

/// A tensor `[batch, heads, seq, width]` of values in the order (batch, position, head, width), which is that of projections.
fn by_head(values: Vec<f32>, [batch, heads, seq, width]: [usize; 4]) -> FlexTensor {
    Flex::float_swap_dims(tensor(values, [batch, seq, heads, width]), 1, 2)
}

fn tracked<C: CheckpointStrategy>(operands: Operands<Autodiff<Flex, C>>) -> Tracked {
    let Operands { q, k, v, cos, sin, visible, scale } = operands;
    let prepared = Attention.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful();
    let inputs = [q, k, v];
    let [q, k, v] = inputs.clone().map(|input| input.into_primitive());
    let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
    let operands = Operands::<Flex> { q, k, v, cos, sin, visible, scale }.with_kernel_strides();
    let (output, normalizers) = forward(&operands);
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let nodes = inputs.each_ref().map(|input| prepared.checkpoint(input));
            let Operands { cos, sin, visible, .. } = operands;
            prepared.finish(State { nodes, cos, sin, visible, scale, normalizers }, output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

#[derive(Debug)]
struct Attention;

#[derive(Debug, Clone)]
struct State {
    /// The graph keeps q, k and v at these nodes, or computes them again.
    nodes: [NodeId; 3],
    cos: FlexTensor,
    sin: FlexTensor,
    visible: FirstVisible,
    scale: f64,
    normalizers: Vec<f32>,
}

impl Backward<Flex, 3> for Attention {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let d_output = with_contiguous_rows(gradients.consume::<Flex>(&ops.node));
        let State { nodes, cos, sin, visible, scale, normalizers } = ops.state;
        let [q, k, v] = nodes.map(|node| checkpointer.retrieve_node_output(node));
        let operands = Operands::<Flex> { q, k, v, cos, sin, visible, scale }.with_kernel_strides();
        let backward = KernelBackward {
            normalizers: &normalizers,
            d_output: heads(&d_output),
            wanted: ops.parents.each_ref().map(Option::is_some),
        };
        let d = operands.kernel().backward(&backward);
        let operands = [(d.q, &operands.q), (d.k, &operands.k), (d.v, &operands.v)];
        for (node, (gradient, operand)) in ops.parents.into_iter().zip(operands) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                gradients.register::<Flex>(node.id, by_head(gradient, shape_of_four(operand)));
            }
        }
    }
}
