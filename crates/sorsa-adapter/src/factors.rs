//! Tensors on the host, by name: what is saved, loaded, cached and turned into parameters.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;

/// An f32 tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Axes.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub values: Vec<f32>,
}

/// Tensors by name.
pub type NamedTensors = BTreeMap<String, HostTensor>;

/// The factors of one module, by their short names.
pub(crate) type FactorSet = BTreeMap<&'static str, HostTensor>;

/// The principal triplets of one weight: `u` `[d_in, r]`, `s` `[r]` descending, `vt` `[r, d_out]`.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    pub u: HostTensor,
    pub s: Vec<f32>,
    pub vt: HostTensor,
}

impl HostTensor {
    /// A tensor from its shape and elements.
    ///
    /// # Panics
    ///
    /// Panics where their number differs from the product of the shape.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "elements of a tensor of shape {shape:?}");
        Self { shape, values }
    }

    /// A copy of a burn tensor of any float dtype.
    pub fn from_tensor<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        let values = tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("converted to f32");
        Self { shape, values }
    }

    /// The tensor on a device, f32.
    ///
    /// # Panics
    ///
    /// Panics where `D` is not the number of axes.
    pub fn to_tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new::<f32, _>(self.values.clone(), self.shape.clone()), (device, DType::F32))
    }

    /// A trainable parameter on a device, f32.
    pub(crate) fn param<const D: usize>(&self, device: &Device) -> Param<Tensor<D>> {
        Param::from_tensor(self.to_tensor(device))
    }
}
