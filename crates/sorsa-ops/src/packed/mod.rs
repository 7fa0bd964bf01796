//! A weight in a packed format as a tensor of integers, which moves between devices like every other tensor.

mod blocks;
mod numbers;
#[cfg(test)]
mod tests;
mod widen;

use burn::prelude::*;
use burn::tensor::DType;
pub use numbers::rounded;
pub use sorsa_kernels::packed::{PackedFormat, PackedMatrix, Precision};

pub(crate) use widen::StoredMatrix;

/// A frozen weight `[d_in, d_out]` in a packed format, or such a weight less the product `A B` of two narrow factors. A clone shares its
/// memory.
#[derive(Debug, Clone)]
pub struct PackedWeight {
    words: Tensor<1, Int>,
    /// The factors of the product that is subtracted, `[r, d_in + d_out]`: the columns of `A`, and beside them the rows of `B`.
    less: Option<Tensor<2>>,
}

impl PackedWeight {
    /// The weight whose transpose `[d_out, d_in]` is `matrix`, on `device`.
    pub fn new(matrix: &PackedMatrix, device: &Device) -> Self {
        let words = matrix.to_words();
        let count = words.len();
        let device = device.clone().without_autodiff();
        let words = Tensor::from_data(TensorData::new::<i32, _>(words, [count]), (&device, DType::I32));
        Self { words, less: None }
    }

    /// The same weight less the product of `A` `[d_in, r]` and `B` `[r, d_out]`, which is never formed. `factors` `[r, d_in + d_out]` are
    /// the columns of `A`, and beside them the rows of `B`.
    pub fn less(self, factors: Tensor<2>) -> Self {
        Self { less: Some(factors.without_autodiff()), ..self }
    }

    /// The factors of the product that is subtracted, `[r, d_in + d_out]`, if there is one.
    pub(crate) fn subtracted(&self) -> Option<&Tensor<2>> {
        self.less.as_ref()
    }

    /// The weight that these words are; absent if there are none.
    pub fn from_words(words: Tensor<1, Int>) -> Option<Self> {
        if words.dims()[0] == 0 {
            return None;
        }
        Some(Self { words: words.without_autodiff(), less: None })
    }

    /// The words of the packed matrix, for a parameter of a module.
    pub fn words(&self) -> Tensor<1, Int> {
        self.words.clone()
    }

    /// The transpose `[d_out, d_in]` of the packed matrix, on the host. Nothing is subtracted from it.
    pub fn matrix(&self) -> PackedMatrix {
        let data = self.words.to_data().convert::<i32>();
        PackedMatrix::from_words(HostWords(data)).expect("words that a packed matrix became")
    }

    /// The values `[d_in, d_out]`, f32. This is the dense form, for attaching, merging and tests.
    pub fn to_dense(&self) -> Tensor<2> {
        let matrix = self.matrix();
        let data = TensorData::new::<f32, _>(matrix.to_f32(), matrix.shape());
        let widened = Tensor::from_data(data, (&self.device(), DType::F32)).transpose();
        match &self.less {
            None => widened,
            Some(factors) => {
                let [a, b] = narrow_factors(factors, matrix.shape()[1]);
                widened - a.matmul(b)
            }
        }
    }

    /// The device, without autodiff.
    pub fn device(&self) -> Device {
        self.words.device()
    }
}

/// `A` `[d_in, r]` and `B` `[r, d_out]` of `factors` `[r, d_in + d_out]`.
pub fn narrow_factors(factors: &Tensor<2>, d_in: usize) -> [Tensor<2>; 2] {
    let d_out = factors.dims()[1] - d_in;
    [factors.clone().narrow(1, 0, d_in).transpose(), factors.clone().narrow(1, d_in, d_out)]
}

struct HostWords(TensorData);

impl AsRef<[u8]> for HostWords {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A weight `[d_in, d_out]` as the operand of a linear map.
#[derive(Debug, Clone)]
pub enum WeightOperand {
    /// A tensor.
    Dense(Tensor<2>),
    /// A packed weight, which is frozen.
    Packed(PackedWeight),
}

impl WeightOperand {
    /// The values in a tensor. A packed weight is widened to f32.
    pub fn into_dense(self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight,
            Self::Packed(weight) => weight.to_dense(),
        }
    }
}

impl From<Tensor<2>> for WeightOperand {
    fn from(weight: Tensor<2>) -> Self {
        Self::Dense(weight)
    }
}

impl From<PackedWeight> for WeightOperand {
    fn from(weight: PackedWeight) -> Self {
        Self::Packed(weight)
    }
}
