//! Linear layers: what an adapter needs of one, and a layer whose weight may be packed.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::DType;
use sorsa_ops::{PackedMatrix, PackedWeight, Precision, WeightOperand};

/// A linear layer `y = x W + bias` that [`project`](crate::project) takes.
pub trait LinearLayer {
    /// The weight `[d_in, d_out]`, to which an adapter attaches. If the weight is packed, its values are those of
    /// [`placeholder`].
    fn weight(&self) -> &Param<Tensor<2>>;

    /// The bias `[d_out]`.
    fn bias(&self) -> Option<Tensor<1>>;

    /// The weight, if it is packed.
    fn packed(&self) -> Option<PackedWeight>;

    /// The frozen weight, without the adapter.
    fn frozen_weight(&self) -> WeightOperand {
        match self.packed() {
            Some(packed) => packed.into(),
            None => self.weight().base().into(),
        }
    }

    /// The weight of a layer without an adapter of this crate.
    fn whole_weight(&self) -> WeightOperand {
        match self.packed() {
            Some(packed) => packed.into(),
            None => self.weight().val().into(),
        }
    }
}

impl LinearLayer for burn::nn::Linear {
    fn weight(&self) -> &Param<Tensor<2>> {
        &self.weight
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }

    fn packed(&self) -> Option<PackedWeight> {
        None
    }
}

/// burn's linear layer, whose weight may also be packed: then it takes a part of the memory, and is frozen.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`. If the weight is packed, a [`placeholder`].
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The words of a [`PackedWeight`]; absent or empty if the weight is not packed.
    pub packed: Option<Param<Tensor<1, Int>>>,
}

impl Linear {
    /// The same layer with its weight packed as the matrix `[d_out, d_in]`.
    ///
    /// # Panics
    ///
    /// Panics if the matrix has another shape than the weight.
    pub fn with_packed(self, matrix: &PackedMatrix) -> Self {
        let [d_out, d_in] = matrix.shape();
        assert_eq!(self.weight.lazy_shape().to_vec(), [d_in, d_out], "a packed weight of another shape");
        let device = self.weight.lazy_device();
        let words = PackedWeight::new(matrix, &device).words();
        let weight = Param::initialized(self.weight.id, placeholder([d_in, d_out], matrix.precision(), &device));
        Self { weight, packed: Some(Param::initialized(ParamId::new(), words)), ..self }
    }
}

impl From<burn::nn::Linear> for Linear {
    fn from(linear: burn::nn::Linear) -> Self {
        Self { weight: linear.weight, bias: linear.bias, packed: None }
    }
}

impl LinearLayer for Linear {
    fn weight(&self) -> &Param<Tensor<2>> {
        &self.weight
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }

    fn packed(&self) -> Option<PackedWeight> {
        PackedWeight::from_words(self.packed.as_ref()?.val())
    }
}

/// What stands in a parameter `[rows, columns]` whose values are packed elsewhere: one NaN that is seen at every place, in the dtype that
/// products widen the values to. Code that takes it for the weight computes NaN, and nothing that looks right. A reshape would copy it to
/// its whole size.
pub fn placeholder<const D: usize>(shape: [usize; D], precision: Precision, device: &Device) -> Tensor<D> {
    let (device, dtype) = match precision {
        Precision::F32 => (device.clone().without_autodiff(), DType::F32),
        Precision::Bf16 => (device.clone().without_autodiff(), DType::BF16),
    };
    Tensor::<D>::full([1; D], f32::NAN, (&device, dtype)).expand(shape)
}
