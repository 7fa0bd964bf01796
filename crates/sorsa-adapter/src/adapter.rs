//! An adapter as burn's [`Reparameterization`], and the one function that a model calls: [`project`].

use burn::module::Reparameterization;
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_ops::{LinearMap, LowRankFactors, WeightOperand, add_product, linear_maps, narrow_factors};

use crate::AdapterFactors;
use crate::factors::{FactorPair, FactorSet};
use crate::host_tensor::HostTensorExt;
use crate::linear::LinearLayer;
use crate::method::LowRank;

/// The adapter of one weight. Beside a packed weight that stays as it is, it subtracts the part that a method has taken out of the weight:
///
/// ```text
/// y = x (W - A_0 B_0) + ((x A) * s) B * scale        W [d_in, d_out] as it is in its file
/// ```
#[derive(Module, Debug)]
pub struct Adapter {
    factors: AdapterFactors,
    /// The columns of `A_0`, and beside them the rows of `B_0`: `[r, d_in + d_out]`, frozen.
    subtracted: Option<Tensor<2>>,
}

impl From<AdapterFactors> for Adapter {
    fn from(factors: AdapterFactors) -> Self {
        Self { factors, subtracted: None }
    }
}

impl Adapter {
    /// The same adapter, which subtracts this product from the frozen weight.
    pub(crate) fn subtracting(self, pair: &FactorPair, device: &Device) -> Self {
        let factors = pair.side_by_side().to_tensor(&device.clone().without_autodiff());
        Self { subtracted: Some(factors), ..self }
    }

    /// The factors of the method.
    pub fn factors(&self) -> &AdapterFactors {
        &self.factors
    }

    /// The scale of the adapter's part of the weight.
    pub fn scale(&self) -> f64 {
        self.low_rank().scale
    }

    /// `A` `[d_in, r]`, `s` `[r]` if the method has singular values, `B` `[r, d_out]`.
    pub fn parts(&self) -> (Tensor<2>, Option<Tensor<1>>, Tensor<2>) {
        let LowRank { a, s, b, .. } = self.low_rank();
        (a, s, b)
    }

    pub(crate) fn low_rank(&self) -> LowRank {
        self.factors.low_rank()
    }

    /// The factored forward: for most methods `x base + bias + ((x A) * s) B * scale`. In training, elements
    /// of the adapter's `x` are dropped, never those of the base's.
    ///
    /// # Shapes
    ///
    /// - x: `[.., d_in]`
    /// - base, the frozen weight: `[d_in, d_out]`
    /// - bias: `[d_out]`
    /// - result: `[.., d_out]`
    pub fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        base: impl Into<WeightOperand>,
        bias: Option<Tensor<1>>,
    ) -> Tensor<D> {
        self.factors.forward(x, self.less(base.into()), bias)
    }

    /// The adapted weight from the frozen one, computed in f32. This is the dense form, for merging and tests.
    ///
    /// # Shapes
    ///
    /// - base: `[d_in, d_out]`
    /// - result: `[d_in, d_out]`
    pub fn compose(&self, base: Tensor<2>) -> Tensor<2> {
        let dtype = FloatDType::from(base.dtype());
        self.factors.compose(self.with_subtracted(base.cast(FloatDType::F32), -1.0)).cast(dtype)
    }

    pub(crate) fn with_frozen_weight(self, base: impl FnOnce() -> Tensor<2>) -> Self {
        let subtracted = self.subtracted.clone();
        let without = |base: Tensor<2>| with_product(base, subtracted.as_ref(), -1.0);
        Self { factors: self.factors.with_frozen_weight(|| without(base())), ..self }
    }

    pub(crate) fn unmerge_factors(&self, base: Tensor<2>) -> FactorSet {
        self.factors.unmerge_factors(self.with_subtracted(base, -1.0))
    }

    pub(crate) fn unmerge(&self, weight: Tensor<2>, saved: &FactorSet) -> Tensor<2> {
        self.with_subtracted(self.factors.unmerge(weight, saved), 1.0)
    }

    /// The frozen weight without what is subtracted from it.
    fn less(&self, base: WeightOperand) -> WeightOperand {
        match (base, &self.subtracted) {
            (base, None) => base,
            (WeightOperand::Packed(packed), Some(factors)) => packed.less(factors.clone()).into(),
            (WeightOperand::Dense(base), Some(_)) => self.with_subtracted(base.cast(FloatDType::F32), -1.0).into(),
        }
    }

    fn with_subtracted(&self, weight: Tensor<2>, sign: f64) -> Tensor<2> {
        with_product(weight, self.subtracted.as_ref(), sign)
    }
}

/// `weight + sign A_0 B_0`.
fn with_product(weight: Tensor<2>, factors: Option<&Tensor<2>>, sign: f64) -> Tensor<2> {
    let Some(factors) = factors else { return weight };
    let factors = factors.clone().without_autodiff();
    let factors = if weight.is_autodiff() { Tensor::from_inner(factors) } else { factors };
    let [a, b] = narrow_factors(&factors, weight.dims()[0]);
    add_product(weight, a, b, sign)
}

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
    let LowRank { a, s, b, scale } = adapter.factors.low_rank_of_same_input()?;
    Some(LinearMap {
        weight: adapter.less(layer.frozen_weight()),
        bias,
        factors: Some(LowRankFactors { a, s, b, scale }),
    })
}
