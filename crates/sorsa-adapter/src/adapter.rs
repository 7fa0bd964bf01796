//! An adapter as burn's [`Reparameterization`], and the one function that a model calls: [`project`].

use burn::module::Reparameterization;
use burn::prelude::*;
use sorsa_ops::{LinearMap, LowRankFactors, linear_maps};

use crate::Adapter;
use crate::linear::LinearLayer;
use crate::method::LowRank;

impl Reparameterization for Adapter {
    const NAME: &'static str = "adapter";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.shape();
        let weight = base.reshape([shape[0], shape[1]]);
        self.compose(weight).reshape(shape)
    }
}

/// `linear.forward(x)`, by the factored route if an adapter is attached to the weight and by the plain route otherwise. The
/// dtype of the weight may be narrower than that of `x`, or the weight may be packed.
///
/// A model that calls this function instead of `linear.forward(x)` never forms a dense adapted weight: its step costs as
/// much as LoRA's. A model that calls `linear.forward(x)` gets the same output at the cost of full fine-tuning, but without
/// dropout, because a dense weight has no separate input for the adapter.
///
/// # Shapes
///
/// - x: `[.., d_in]`
/// - result: `[.., d_out]`
pub fn project<const D: usize>(linear: &impl LinearLayer, x: Tensor<D>) -> Tensor<D> {
    match linear.weight().reparameterization::<Adapter>() {
        Some(adapter) => adapter.forward(x, linear.frozen_weight(), linear.bias()),
        None => sorsa_ops::linear(x, linear.whole_weight(), linear.bias()),
    }
}

/// [`project`] of several layers with one input, which are one operation where they may be: see [`sorsa_ops::linear_maps`].
///
/// # Shapes
///
/// - x: `[.., d_in]`
/// - results: `[.., d_out]` each
pub fn project_each<L: LinearLayer, const D: usize, const N: usize>(layers: [&L; N], x: Tensor<D>) -> [Tensor<D>; N] {
    let maps = layers.iter().map(|layer| map_of(*layer)).collect::<Option<Vec<_>>>();
    match maps.map(<[LinearMap; N]>::try_from) {
        Some(Ok(maps)) => linear_maps(x, maps),
        _ => layers.map(|layer| project(layer, x.clone())),
    }
}

/// The layer as a map of its input; none if its adapter does more, or to another input.
fn map_of(layer: &impl LinearLayer) -> Option<LinearMap> {
    let bias = layer.bias();
    let Some(adapter) = layer.weight().reparameterization::<Adapter>() else {
        return Some(LinearMap { weight: layer.whole_weight(), bias, factors: None });
    };
    let LowRank { a, s, b, scale } = adapter.low_rank_of_same_input()?;
    Some(LinearMap { weight: layer.frozen_weight(), bias, factors: Some(LowRankFactors { a, s, b, scale }) })
}
