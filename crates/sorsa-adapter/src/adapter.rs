//! An adapter as burn sees it, and the one call a model makes: [`project`].

use burn::module::{Param, Reparameterization};
use burn::nn::Linear;
use burn::prelude::*;

use crate::Adapter;

impl Reparameterization for Adapter {
    const NAME: &'static str = "adapter";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.shape();
        let weight = base.reshape([shape[0], shape[1]]);
        self.compose(weight).reshape(shape)
    }
}

/// `linear.forward(x)` for a weight that may be narrower than `x`, by the factored route where an adapter is attached to the weight and by the plain one where
/// none is. `x` `[.., d_in]`, result `[.., d_out]`.
///
/// A model that calls this instead of `linear.forward(x)` never forms a dense adapted weight: its step costs what
/// LoRA's costs. A model that does not is still right, at the cost of full fine-tuning, but has no dropout: a dense
/// weight has no input of the adapter's own.
pub fn project<const D: usize>(linear: &Linear, x: Tensor<D>) -> Tensor<D> {
    match linear.weight.reparameterization::<Adapter>() {
        Some(adapter) => adapter.forward(x, linear.weight.base(), linear.bias.as_ref().map(Param::val)),
        None => sorsa_ops::linear(x, linear.weight.val(), linear.bias.as_ref().map(Param::val)),
    }
}
