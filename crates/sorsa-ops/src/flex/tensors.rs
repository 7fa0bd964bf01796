//! flex tensors as slices and views of the kernels, and back.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Flex};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType, bf16};
use sorsa_kernels::attention::{Angles, Heads};
use sorsa_kernels::packed::{PackedMatrix, PackedView};
use sorsa_kernels::rounding::FloatSlice;
use sorsa_kernels::{Bf16Matrix, Matrix, PackedLess, Weight};

use crate::packed::WeightOperand;
use crate::weight::WeightStorage;

/// A float tensor of flex.
pub(crate) type FlexTensor = FloatTensor<Flex>;
/// A float tensor of flex with its node in the autodiff graph.
pub(crate) type Tracked = FloatTensor<Autodiff<Flex>>;

/// The same values in row-major order.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The elements of a contiguous f32 tensor.
pub(crate) fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor")
}

/// The elements of a contiguous f32 tensor; `None` if the operand is [`absent`].
pub(crate) fn optional_floats(tensor: &FlexTensor) -> Option<&[f32]> {
    if is_absent(tensor) { None } else { Some(floats(tensor)) }
}

/// The elements of a contiguous tensor in f32 or bf16.
pub(crate) fn float_slice(tensor: &FlexTensor) -> FloatSlice<'_> {
    match tensor.dtype() {
        DType::BF16 => FloatSlice::Bf16(tensor.as_slice().expect("a contiguous bf16 tensor")),
        _ => FloatSlice::F32(floats(tensor)),
    }
}

/// A contiguous f32 tensor.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Vec<usize>>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new::<f32, _>(values, shape.into()))
}

/// The elements of a contiguous f32 tensor, to be overwritten: its own buffer if nothing else holds it, otherwise a copy.
pub(crate) fn into_vec(tensor: FlexTensor) -> Vec<f32> {
    let data = tensor.into_data();
    data.try_into_vec::<f32>().expect("f32")
}

/// The values in another dtype; the tensor itself if it has that dtype.
pub(crate) fn of_dtype(tensor: FlexTensor, dtype: DType) -> FlexTensor {
    if tensor.dtype() == dtype { tensor } else { Flex::float_cast(tensor, FloatDType::from(dtype)) }
}

/// A gradient in shape and dtype of its operand.
pub(crate) fn gradient_of(values: Vec<f32>, operand: &FlexTensor) -> FlexTensor {
    of_dtype(tensor(values, shape(operand)), operand.dtype())
}

/// The shape of a tensor.
pub(crate) fn shape(tensor: &FlexTensor) -> Vec<usize> {
    tensor.layout().shape().to_vec()
}

/// The shape of a tensor of four axes.
pub(crate) fn shape_of_four(tensor: &FlexTensor) -> [usize; 4] {
    shape(tensor).try_into().expect("four axes")
}

/// `[rows, columns]`, counting all axes but the last as rows.
pub(crate) fn rows_and_width(tensor: &FlexTensor) -> [usize; 2] {
    let shape = shape(tensor);
    let width = shape.last().copied().unwrap_or(1);
    [shape.iter().product::<usize>() / width.max(1), width]
}

/// A contiguous tensor `[.., width]` as rows.
pub(crate) fn rows(tensor: &FlexTensor) -> Matrix<'_> {
    let [rows, width] = rows_and_width(tensor);
    Matrix::new(floats(tensor), rows, width)
}

/// The shape of a tensor with its last axis replaced.
pub(crate) fn shape_with_last(tensor: &FlexTensor, width: usize) -> Vec<usize> {
    let mut shape = shape(tensor);
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    shape
}

/// The tensor itself if its strides are those of a [`Matrix`], otherwise a copy.
pub(crate) fn with_matrix_strides(tensor: FlexTensor) -> FlexTensor {
    if matrix_view(&tensor).is_some() { tensor } else { tensor.to_contiguous() }
}

/// The view of an f32 tensor that went through [`with_matrix_strides`].
pub(crate) fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    matrix_view(tensor).expect("two axes, strides of zero or more")
}

/// The two tensors by which an operation of a backend takes a weight: its values, and the words of a packed weight. One of them is
/// [`absent`], unless a product is subtracted from the packed weight: then the first one holds its factors.
pub(crate) fn weight_operands(weight: WeightOperand, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
    match weight {
        WeightOperand::Dense(weight) => (weight, Tensor::empty([0], (device, DType::I32))),
        WeightOperand::Packed(weight) => {
            let factors = weight.subtracted().cloned();
            (factors.unwrap_or_else(|| absent(device)), weight.words())
        }
    }
}

/// A weight of the kernels, in any storage format.
#[derive(Debug, Clone)]
pub(crate) enum KernelWeight {
    /// A tensor with the strides of a [`Weight`].
    Dense(FlexTensor),
    /// A packed matrix that shares the memory of its words.
    Packed(PackedMatrix),
    /// Such a matrix, and the factors `[r, d_in + d_out]` of the product that is subtracted from it.
    PackedLess(PackedMatrix, FlexTensor),
}

impl KernelWeight {
    /// The weight of the [`weight_operands`] `values` and `words`.
    pub(crate) fn new(values: FlexTensor, words: IntTensor<Flex>) -> Self {
        if words.layout().num_elements() > 0 {
            let matrix = packed_matrix(words);
            return match is_absent(&values) {
                true => Self::Packed(matrix),
                false => Self::PackedLess(matrix, contiguous(values)),
            };
        }
        let has_strides = weight_view(&values).is_some();
        Self::Dense(if has_strides { values } else { values.to_contiguous() })
    }

    /// The view of the kernels.
    pub(crate) fn view(&self) -> Weight<'_> {
        match self {
            Self::Dense(tensor) => weight_view(tensor).expect("two axes, strides of zero or more"),
            Self::Packed(matrix) => Weight::Packed(PackedView::new(matrix)),
            Self::PackedLess(matrix, factors) => {
                let [rank, width] = rows_and_width(factors);
                let ([d_out, d_in], values) = (matrix.shape(), floats(factors));
                let a = Matrix::with_strides(values, [d_in, rank], [1, width]);
                let b = Matrix::with_row_stride(&values[d_in..], rank, d_out, width);
                Weight::PackedLess(PackedLess::new(PackedView::new(matrix), a, b))
            }
        }
    }

    /// A gradient in the dtype of the weight.
    ///
    /// # Panics
    ///
    /// Panics for a packed weight, which is frozen.
    pub(crate) fn gradient(&self, values: Vec<f32>) -> FlexTensor {
        match self {
            Self::Dense(tensor) => gradient_of(values, tensor),
            Self::Packed(_) | Self::PackedLess(..) => unreachable!("a packed weight is no node of a graph"),
        }
    }
}

/// The packed matrix of its words, which it shares.
pub(crate) fn packed_matrix(words: IntTensor<Flex>) -> PackedMatrix {
    PackedMatrix::from_words(Words(words.to_contiguous())).expect("words that a packed matrix became")
}

/// Words that a [`PackedMatrix`] shares.
struct Words(IntTensor<Flex>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// The tensor itself if its last axis is contiguous and no stride is negative, otherwise a copy.
pub(crate) fn with_contiguous_rows(tensor: FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    let rows = strides.iter().all(|stride| *stride >= 0) && (strides[3] == 1 || shape(&tensor)[3] == 1);
    if rows { tensor } else { tensor.to_contiguous() }
}

/// The view of a tensor `[batch, heads, seq, width]` that went through [`with_contiguous_rows`].
pub(crate) fn heads(tensor: &FlexTensor) -> Heads<'_> {
    let strides = tensor.layout().strides();
    let data = &tensor.storage::<f32>()[tensor.layout().start_offset()..];
    Heads::new(data, shape_of_four(tensor), [0, 1, 2].map(|axis| strides[axis] as usize))
}

/// The view of contiguous tables `[rows, 1, seq, planes]`; no rotation if they are [`absent`].
pub(crate) fn angles<'a>(cos: &'a FlexTensor, sin: &'a FlexTensor) -> Angles<'a> {
    if is_absent(cos) {
        return Angles::NONE;
    }
    let [rows, _, seq, planes] = shape_of_four(cos);
    Angles { cos: floats(cos), sin: floats(sin), rows, seq, planes }
}

/// Target tokens of 32 or 64 bits; a negative token is no target.
pub(crate) fn tokens(tensor: IntTensor<Flex>) -> Vec<Option<usize>> {
    let tensor = tensor.to_contiguous();
    if tensor.dtype() == DType::I32 {
        let values: &[i32] = tensor.as_slice().expect("a contiguous i32 tensor");
        values.iter().map(|token| usize::try_from(*token).ok()).collect()
    } else {
        let values: &[i64] = tensor.as_slice().expect("tokens of 32 or 64 bits");
        values.iter().map(|token| usize::try_from(*token).ok()).collect()
    }
}

/// An operand without elements, which stands for no operand: a backend's operation has no optional tensors.
pub(crate) fn absent<const D: usize>(device: &Device) -> Tensor<D> {
    Tensor::empty([0; D], (device, DType::F32))
}

/// Whether an operand is [`absent`].
pub(crate) fn is_absent(tensor: &FlexTensor) -> bool {
    tensor.layout().num_elements() == 0
}

fn matrix_view(tensor: &FlexTensor) -> Option<Matrix<'_>> {
    let (shape, strides) = two_axes(tensor)?;
    Some(Matrix::with_strides(&tensor.storage::<f32>()[tensor.layout().start_offset()..], shape, strides))
}

/// The one place where a tensor's storage format becomes a view of the kernels.
fn weight_view(tensor: &FlexTensor) -> Option<Weight<'_>> {
    match WeightStorage::from_dtype(tensor.dtype())? {
        WeightStorage::F32 => matrix_view(tensor).map(Weight::F32),
        WeightStorage::Bf16 => {
            let (shape, strides) = two_axes(tensor)?;
            let data = &tensor.storage::<bf16>()[tensor.layout().start_offset()..];
            Bf16Matrix::with_strides(data, shape, strides).map(Weight::Bf16)
        }
    }
}

/// Shape and strides of a tensor of two axes; `None` if a stride is negative.
fn two_axes(tensor: &FlexTensor) -> Option<([usize; 2], [usize; 2])> {
    let layout = tensor.layout();
    let (&[rows, columns], &[row_stride, column_stride]) = (&layout.shape()[..], layout.strides()) else {
        return None;
    };
    Some(([rows, columns], [usize::try_from(row_stride).ok()?, usize::try_from(column_stride).ok()?]))
}
