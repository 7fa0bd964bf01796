//! Tensors that the graph keeps in bf16, at half of the memory, while their gradients stay f32.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, TensorData, bf16};
use sorsa_kernels::rounding::{rounded_to_bf16, widened_from_bf16};

use super::tensors::{FlexTensor, Tracked, contiguous, floats, shape, tensor};

/// The values rounded to bf16; their gradients pass unchanged to `values`.
pub(crate) fn kept_in_bf16(values: Tracked) -> Tracked {
    if !values.is_tracked() {
        return values;
    }
    let prepared = Rounding.prepare::<NoCheckpointing>([values.node()]).compute_bound();
    prepared.stateless(rounded(values.into_primitive()))
}

fn rounded(values: FlexTensor) -> FlexTensor {
    // Heads come as a view of projections; the rounded ones are that, too.
    if !values.is_contiguous() && shape(&values).len() == 4 {
        let by_position = Flex::float_swap_dims(values.clone(), 1, 2);
        if by_position.is_contiguous() {
            return Flex::float_swap_dims(rounded(by_position), 1, 2);
        }
    }
    let values = contiguous(values);
    FlexTensor::from_data(TensorData::new::<bf16, _>(rounded_to_bf16(floats(&values)), shape(&values)))
}

/// The values in f32, with the same strides.
pub(crate) fn widened(values: FlexTensor) -> FlexTensor {
    if values.dtype() != DType::BF16 {
        return values;
    }
    if !values.is_contiguous() && shape(&values).len() == 4 {
        let by_position = Flex::float_swap_dims(values.clone(), 1, 2);
        if by_position.is_contiguous() {
            return Flex::float_swap_dims(widened(by_position), 1, 2);
        }
    }
    let values = contiguous(values);
    tensor(widened_from_bf16(values.as_slice().expect("a contiguous bf16 tensor")), shape(&values))
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
