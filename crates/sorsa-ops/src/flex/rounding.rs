//! Tensors that the graph keeps in bf16, at half of the memory, while their gradients stay f32.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::{TensorData, bf16};
use sorsa_kernels::rounding::rounded_to_bf16;

use super::tensors::{FlexTensor, Tracked, contiguous, floats, shape};

/// The values rounded to bf16; their gradients pass unchanged to `values`.
pub(crate) fn kept_in_bf16(values: Tracked) -> Tracked {
    if !values.is_tracked() {
        return values;
    }
    let prepared = Rounding.prepare::<NoCheckpointing>([values.node()]).compute_bound();
    let values = contiguous(values.into_primitive());
    let data = TensorData::new::<bf16, _>(rounded_to_bf16(floats(&values)), shape(&values));
    prepared.stateless(FlexTensor::from_data(data))
}

#[derive(Debug)]
struct Rounding;

impl Backward<Flex, 1> for Rounding {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            gradients.register::<Flex>(node.id, gradient);
        }
    }
}
