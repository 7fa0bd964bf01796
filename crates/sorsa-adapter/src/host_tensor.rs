//! Tensors of files as burn and faer see them.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use sorsa_files::HostTensor;
use sorsa_linalg::faer::MatRef;

/// Converts a [`HostTensor`] from and to tensors of burn and matrices of faer.
pub trait HostTensorExt: Sized {
    /// A copy of a burn tensor of any float dtype.
    fn from_tensor<const D: usize>(tensor: Tensor<D>) -> Self;

    /// A copy of a matrix of faer's.
    fn from_matrix(matrix: MatRef<'_, f32>) -> Self;

    /// A tensor of two axes as faer sees it, without a copy.
    ///
    /// # Panics
    ///
    /// Panics for any other number of axes.
    fn matrix(&self) -> MatRef<'_, f32>;

    /// The tensor on a device, f32.
    ///
    /// # Panics
    ///
    /// Panics if `D` is not the number of axes.
    fn to_tensor<const D: usize>(&self, device: &Device) -> Tensor<D>;

    /// A trainable parameter on a device, f32.
    ///
    /// # Panics
    ///
    /// Panics if `D` is not the number of axes.
    fn param<const D: usize>(&self, device: &Device) -> Param<Tensor<D>> {
        Param::from_tensor(self.to_tensor(device))
    }
}

impl HostTensorExt for HostTensor {
    fn from_tensor<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        let values = tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("converted to f32");
        Self { shape, values }
    }

    fn from_matrix(matrix: MatRef<'_, f32>) -> Self {
        let mut values = Vec::with_capacity(matrix.nrows() * matrix.ncols());
        matrix.row_iter().for_each(|row| values.extend(row.iter()));
        Self::new([matrix.nrows(), matrix.ncols()], values)
    }

    fn matrix(&self) -> MatRef<'_, f32> {
        let [rows, cols] = self.shape[..] else { panic!("a matrix has two axes, not {:?}", self.shape) };
        MatRef::from_row_major_slice(&self.values, rows, cols)
    }

    fn to_tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new::<f32, _>(self.values.clone(), self.shape.clone()), (device, DType::F32))
    }
}
