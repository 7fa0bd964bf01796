//! One adapted weight, whatever the method, and the one call a model makes: [`project`].

use burn::module::{Param, Reparameterization};
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_ops::{factored_linear, low_rank_product};

use crate::config::{AdapterConfig, Method};
use crate::factors::{FactorSet, Principal};
use crate::{Lora, Pissa, Sorsa};

/// The adapter of one weight.
#[derive(Module, Debug)]
pub enum Adapter {
    /// Singular values and orthonormal regularized singular vectors.
    Sorsa(Sorsa),
    /// Principal singular values and vectors.
    Pissa(Pissa),
    /// Low-rank adaptation.
    Lora(Lora),
}

/// Where the vectors of an orthonormal factor lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orthonormal {
    Columns,
    Rows,
}

/// Calls one expression on whichever method's state is inside.
macro_rules! each_method {
    ($adapter:expr, $inner:ident => $body:expr) => {
        match $adapter {
            Adapter::Sorsa($inner) => $body,
            Adapter::Pissa($inner) => $body,
            Adapter::Lora($inner) => $body,
        }
    };
}

impl Adapter {
    /// The factors' short names.
    pub(crate) fn factor_names(method: Method) -> &'static [&'static str] {
        match method {
            Method::Sorsa => &Sorsa::FACTORS,
            Method::Pissa => &Pissa::FACTORS,
            Method::Lora => &Lora::FACTORS,
            Method::Partial | Method::Full => &[],
        }
    }

    /// The factors' shapes for a weight `[d_in, d_out]`.
    pub(crate) fn factor_shape(name: &str, [d_in, d_out]: [usize; 2], rank: usize) -> Vec<usize> {
        match name {
            "u" | "a" => vec![d_in, rank],
            "vt" | "b" => vec![rank, d_out],
            _ => vec![rank],
        }
    }

    /// Whether a factor is kept orthonormal by the regularizer, and on which side.
    pub(crate) fn orthonormal(method: Method, factor: &str) -> Option<Orthonormal> {
        match (method, factor) {
            (Method::Sorsa, "u") => Some(Orthonormal::Columns),
            (Method::Sorsa, "vt") => Some(Orthonormal::Rows),
            _ => None,
        }
    }

    /// The factors at the start of training, for the module at `path`. Methods that need the SVD are given it.
    pub(crate) fn start(
        config: &AdapterConfig,
        path: &str,
        shape: [usize; 2],
        rank: usize,
        scale: f64,
        svd: Option<Principal>,
    ) -> FactorSet {
        match (config.method, svd) {
            (Method::Sorsa, Some(svd)) => Sorsa::start(svd, scale, config.alpha_convention),
            (Method::Pissa, Some(svd)) => Pissa::start(svd, scale, config.alpha_convention),
            (Method::Lora, None) => Lora::start(path, shape, rank, config.seed),
            (method, svd) => unreachable!("{method} with an SVD: {}", svd.is_some()),
        }
    }

    /// The adapter with the given factors on a device.
    pub(crate) fn new(method: Method, factors: &FactorSet, scale: f64, dropout: f64, device: &Device) -> Self {
        let dropout = DropoutConfig::new(dropout).init();
        match method {
            Method::Sorsa => Self::Sorsa(Sorsa::new(factors, scale, dropout, device)),
            Method::Pissa => Self::Pissa(Pissa::new(factors, scale, dropout, device)),
            Method::Lora => Self::Lora(Lora::new(factors, scale, dropout, device)),
            Method::Partial | Method::Full => unreachable!("{method} has no factors"),
        }
    }

    /// The scale of the adapter's part of the weight.
    pub fn scale(&self) -> f64 {
        each_method!(self, inner => inner.scale)
    }

    /// `[d_in, r]`, `[r]` where the method has singular values, `[r, d_out]`.
    pub fn parts(&self) -> (Tensor<2>, Option<Tensor<1>>, Tensor<2>) {
        each_method!(self, inner => inner.parts())
    }

    fn dropout(&self) -> &Dropout {
        each_method!(self, inner => &inner.dropout)
    }

    /// The adapter's part of the weight, `scale * A diag(s) B`, `[d_in, d_out]`, f32. Dense: for merging and tests.
    pub fn delta(&self) -> Tensor<2> {
        let (a, s, b) = self.parts();
        let scaled = match s {
            Some(s) => a * (s * self.scale()).unsqueeze(),
            None => a * self.scale(),
        };
        scaled.matmul(b)
    }

    /// The factored forward: `x base + bias + ((x A) * s) B * scale` for `x` `[.., d_in]`. While training, elements of
    /// the adapter's `x` are dropped, never of the base's.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, base: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
        let (a, s, b) = self.parts();
        // burn drops elements of tensors with autodiff alone; the input of a model in training may come without.
        let active = self.dropout().prob > 0.0 && a.is_autodiff();
        let dropped = active.then(|| self.dropout().forward(x.clone().autodiff()));
        factored_linear(x, base, bias, dropped, a, s, b, self.scale())
    }

    /// The adapter's part of the output alone, `((x A) * s) B * scale`, without dropout.
    pub fn forward_delta<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (a, s, b) = self.parts();
        low_rank_product(x, a, s, b, self.scale())
    }
}

impl Reparameterization for Adapter {
    const NAME: &'static str = "adapter";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let dtype = FloatDType::from(base.dtype());
        let shape = base.shape();
        (base.cast(FloatDType::F32) + self.delta().reshape(shape)).cast(dtype)
    }
}

/// `linear.forward(x)`, by the factored route where an adapter is attached to the weight and by the plain one where
/// none is. `x` `[.., d_in]`, result `[.., d_out]`.
///
/// A model that calls this instead of `linear.forward(x)` never forms a dense adapted weight: its step costs what
/// LoRA's costs. A model that does not is still right, at the cost of full fine-tuning, but has no dropout: a dense
/// weight has no input of the adapter's own.
pub fn project<const D: usize>(linear: &Linear, x: Tensor<D>) -> Tensor<D> {
    match linear.weight.reparameterization::<Adapter>() {
        Some(adapter) => adapter.forward(x, linear.weight.base(), linear.bias.as_ref().map(Param::val)),
        None => linear.forward(x),
    }
}
