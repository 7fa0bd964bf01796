//! Output head and cross-entropy on flex. The forward pass forms the gradients; the backward pass scales them.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;
use burn::tensor::DType;
use sorsa_kernels::head_loss::{HeadLoss as Kernel, Output, WantedGradients, scale_gradient};

use crate::flex::tensors::{
    FlexTensor, KernelWeight, Tracked, contiguous, floats, into_vec, of_dtype, rows_and_width, shape, tensor, tokens,
    weight_operands,
};
use crate::form::count_fused_call;
use crate::packed::WeightOperand;

#[backend_extension(Flex, Autodiff)]
pub(crate) trait HeadLossExtension: Backend {
    fn fused_head_loss(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        words: IntTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl HeadLossExtension for Flex {
    fn fused_head_loss(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        words: IntTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        scalar(forward(hidden, weight, words, targets, WantedGradients::default()).loss)
    }
}

impl<C: CheckpointStrategy> HeadLossExtension for Autodiff<Flex, C> {
    fn fused_head_loss(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        words: IntTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        tracked::<C>(hidden, weight, words, targets)
    }
}

pub(super) fn head_loss_sum(hidden: Tensor<2>, weight: WeightOperand, targets: Tensor<1, Int>) -> Tensor<1> {
    count_fused_call();
    let (weight, words) = weight_operands(weight, &hidden.device().without_autodiff());
    Tensor::from_dispatch(Dispatch::fused_head_loss(
        hidden.into_dispatch(),
        weight.into_dispatch(),
        words.into_dispatch(),
        targets.into_dispatch(),
    ))
}

fn forward(
    hidden: FlexTensor,
    weight: FlexTensor,
    words: IntTensor<Flex>,
    targets: IntTensor<Flex>,
    wanted: WantedGradients,
) -> Output {
    let targets = tokens(targets);
    let hidden = contiguous(hidden);
    assert_eq!(targets.len(), rows_and_width(&hidden)[0], "one target for each row");
    // The kernel forms the gradient of a trained head in f32, so it multiplies in f32.
    let weight = if wanted.weight { of_dtype(weight, DType::F32) } else { weight };
    let weight = KernelWeight::new(weight, words);
    Kernel { hidden: floats(&hidden), weight: weight.view(), targets: &targets }.compute(wanted)
}

fn tracked<C: CheckpointStrategy>(
    hidden: Tracked,
    weight: Tracked,
    words: IntTensor<Flex>,
    targets: IntTensor<Flex>,
) -> Tracked {
    let wanted = WantedGradients { hidden: hidden.is_tracked(), weight: weight.is_tracked() };
    let prepared = HeadLoss.prepare::<C>([hidden.node(), weight.node()]).compute_bound().stateful();
    let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
    let (hidden_shape, weight_shape, weight_dtype) = (shape(&hidden), shape(&weight), weight.dtype());
    let Output { loss, d_hidden, d_weight } = forward(hidden, weight, words, targets, wanted);
    match prepared {
        OpsKind::Tracked(prepared) => {
            let d_hidden = wanted.hidden.then(|| tensor(d_hidden, hidden_shape));
            let d_weight = wanted.weight.then(|| of_dtype(tensor(d_weight, weight_shape), weight_dtype));
            prepared.finish([d_hidden, d_weight], scalar(loss))
        }
        OpsKind::UnTracked(prepared) => prepared.finish(scalar(loss)),
    }
}

fn scalar(loss: f64) -> FlexTensor {
    tensor(vec![loss as f32], [1])
}

#[derive(Debug)]
struct HeadLoss;

impl Backward<Flex, 2> for HeadLoss {
    /// The gradients of the hidden states and of the weight for a gradient of 1 on the loss.
    type State = [Option<FlexTensor>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_loss = floats(&contiguous(gradients.consume::<Flex>(&ops.node)))[0];
        for (node, gradient) in ops.parents.into_iter().zip(ops.state) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                let (shape, dtype) = (shape(&gradient), gradient.dtype());
                let mut gradient = into_vec(of_dtype(gradient, DType::F32));
                scale_gradient(&mut gradient, d_loss);
                gradients.register::<Flex>(node.id, of_dtype(tensor(gradient, shape), dtype));
            }
        }
    }
}
