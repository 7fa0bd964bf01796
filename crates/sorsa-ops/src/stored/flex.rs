//! Activations on flex that the graph keeps in bf16.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;

use crate::flex::recomputation::{Recompute, prepare};
use crate::flex::rounding::{kept_in_bf16, widened};
use crate::flex::tensors::{FlexTensor, Tracked};
use crate::form::count_fused_call;

#[backend_extension(Flex, Autodiff)]
pub(crate) trait StoredExtension: Backend {
    fn fused_stored_in_bf16(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl StoredExtension for Flex {
    fn fused_stored_in_bf16(x: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }
}

impl<C: CheckpointStrategy> StoredExtension for Autodiff<Flex, C> {
    fn fused_stored_in_bf16(x: FloatTensor<Self>) -> FloatTensor<Self> {
        tracked(x)
    }
}

pub(super) fn stored_in_bf16<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    count_fused_call();
    Tensor::from_dispatch(Dispatch::fused_stored_in_bf16(x.into_dispatch()))
}

fn tracked(x: Tracked) -> Tracked {
    if !x.is_tracked() {
        return x;
    }
    let exact = x.clone().into_primitive();
    match prepare(Stored, [&kept_in_bf16(x)], Widened) {
        OpsKind::Tracked(prepared) => prepared.finish((), exact),
        OpsKind::UnTracked(prepared) => prepared.finish(exact),
    }
}

#[derive(Debug)]
struct Widened;

impl Recompute<1> for Widened {
    fn forward(&self, [rounded]: [FlexTensor; 1]) -> FlexTensor {
        widened(rounded)
    }
}

#[derive(Debug)]
struct Stored;

impl Backward<Flex, 1> for Stored {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            gradients.register::<Flex>(node.id, gradient);
        }
    }
}
