//! flex tensors as slices, and back.

use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, TensorData};

/// A float tensor of flex.
pub(super) type Values = FloatTensor<Flex>;
/// A float tensor of flex with its place in the graph of gradients.
pub(super) type Tracked = FloatTensor<burn::backend::Autodiff<Flex>>;

/// The same values in row-major order.
pub(super) fn contiguous(tensor: Values) -> Values {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The elements of a contiguous tensor.
pub(super) fn floats(tensor: &Values) -> &[f32] {
    tensor.as_slice().expect("f32 and made contiguous")
}

pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Vec<usize>>) -> Values {
    Values::from_data(TensorData::new::<f32, _>(values, shape.into()))
}

/// The elements of a contiguous tensor, to be overwritten: its own buffer where nothing else holds it, else a copy.
pub(super) fn into_vec(tensor: Values) -> Vec<f32> {
    let data = tensor.into_data();
    data.try_into_vec::<f32>().expect("f32")
}

/// The values in another dtype; the tensor itself where it has that already.
pub(super) fn of_dtype(tensor: Values, dtype: DType) -> Values {
    if tensor.dtype() == dtype { tensor } else { Flex::float_cast(tensor, FloatDType::from(dtype)) }
}

/// Shape of a tensor.
pub(super) fn shape(tensor: &Values) -> Vec<usize> {
    tensor.layout().shape().to_vec()
}

/// `[rows, columns]` with all axes but the last as rows.
pub(super) fn rows_and_width(tensor: &Values) -> [usize; 2] {
    let shape = shape(tensor);
    let width = shape.last().copied().unwrap_or(1);
    [shape.iter().product::<usize>() / width.max(1), width]
}

/// Target tokens of 32 or 64 bits; negative ones are no targets.
pub(super) fn tokens(tensor: IntTensor<Flex>) -> Vec<Option<usize>> {
    let tensor = tensor.to_contiguous();
    if tensor.dtype() == DType::I32 {
        let values: &[i32] = tensor.as_slice().expect("i32 and made contiguous");
        values.iter().map(|token| usize::try_from(*token).ok()).collect()
    } else {
        let values: &[i64] = tensor.as_slice().expect("tokens are of 32 or 64 bits");
        values.iter().map(|token| usize::try_from(*token).ok()).collect()
    }
}
