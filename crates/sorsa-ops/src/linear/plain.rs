//! The linear map in burn's operations.

use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::packed::{StoredMatrix, WeightOperand, narrow_factors};

/// A packed weight is widened a part at a time; what is subtracted from it stays in factors. If `x` has gradients, the graph keeps the parts.
pub(crate) fn linear<const D: usize>(x: Tensor<D>, weight: WeightOperand, bias: Option<Tensor<1>>) -> Tensor<D> {
    match weight {
        WeightOperand::Dense(weight) => dense_linear(x, weight, bias),
        WeightOperand::Packed(weight) => {
            let stored = StoredMatrix::new(&weight);
            let products = stored.parts().map(|rows| dense_linear(x.clone(), stored.rows(rows).transpose(), None));
            let y = Tensor::cat(products.collect(), D - 1);
            let y = match weight.subtracted() {
                None => y,
                Some(factors) => {
                    let [a, b] = narrow_factors(factors, x.dims()[D - 1]);
                    y - dense_linear(dense_linear(x.clone(), a, None), b, None)
                }
            };
            match bias {
                Some(bias) => y + bias.cast(FloatDType::from(x.dtype())).unsqueeze(),
                None => y,
            }
        }
    }
}

fn dense_linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let dtype = x.dtype();
    let weight = if weight.dtype() == dtype { weight } else { weight.cast(FloatDType::from(dtype)) };
    burn::tensor::module::linear(x, weight, bias.map(|bias| bias.cast(FloatDType::from(dtype))))
}
