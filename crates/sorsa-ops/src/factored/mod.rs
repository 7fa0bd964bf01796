//! The linear map of an adapted weight in factored form, without ever forming the dense sum:
//!
//! ```text
//! y = x W + ((x_a A) * s) B * scale        x [.., d_in]  W [d_in, d_out]  A [d_in, r]  s [r]  B [r, d_out]
//! ```
//!
//! Two narrow products replace one of size `d_in * d_out`, and nothing of that size is kept for the backward pass.

use burn::prelude::*;
use burn::tensor::FloatDType;
use burn::tensor::module::linear;

use crate::{fused, linear as mixed};

/// `((x A) * s) B * scale` for `x` `[.., d_in]`, `a` `[d_in, r]`, `s` `[r]` (absent: ones), `b` `[r, d_out]`.
///
/// The factors are cast to the dtype of `x`; gradients come back in the factors' own dtype.
pub fn low_rank_product<const D: usize>(
    x: Tensor<D>,
    a: Tensor<2>,
    s: Option<Tensor<1>>,
    b: Tensor<2>,
    scale: f64,
) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    let mut h = linear(x, a.cast(dtype), None);
    // The scale goes to whatever is smallest.
    match s {
        Some(s) => h = h * (s * scale).cast(dtype).unsqueeze(),
        None if scale != 1.0 => h = h * scale,
        None => {}
    }
    linear(h, b.cast(dtype), None)
}

/// `x W + bias + low_rank_product(x_a, ..)`. `adapter_input` is `x` after the adapter's dropout; absent, `x` itself.
#[allow(clippy::too_many_arguments, reason = "the terms of one equation")]
pub fn factored_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter_input: Option<Tensor<D>>,
    a: Tensor<2>,
    s: Option<Tensor<1>>,
    b: Tensor<2>,
    scale: f64,
) -> Tensor<D> {
    let kind = |t: &Option<Tensor<D>>| fused::kind(t.as_ref().unwrap_or(&x));
    let vector = |t: &Option<Tensor<1>>| t.as_ref().map_or_else(|| fused::kind(&x), fused::kind);
    let operands = [fused::kind(&x), vector(&bias), kind(&adapter_input), fused::kind(&a), vector(&s), fused::kind(&b)];
    if fused::applies(operands) && fused::takes_weight(&weight) {
        fused::factored_linear(x, weight, bias, adapter_input, a, s, b, scale)
    } else {
        plain(x, weight, bias, adapter_input, a, s, b, scale)
    }
}

#[allow(clippy::too_many_arguments, reason = "the terms of one equation")]
pub(crate) fn plain<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter_input: Option<Tensor<D>>,
    a: Tensor<2>,
    s: Option<Tensor<1>>,
    b: Tensor<2>,
    scale: f64,
) -> Tensor<D> {
    let adapter_input = adapter_input.unwrap_or_else(|| x.clone());
    mixed::plain(x, weight, bias) + low_rank_product(adapter_input, a, s, b, scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    #[test]
    fn the_factored_form_equals_the_dense_one_with_its_gradients() {
        let device = Device::flex().autodiff();
        let random = |shape, seed| normal::<2>(shape, 1.0, seed, &device);
        let x = random([5, 7], 1).reshape([1, 5, 7]);
        let w = random([7, 3], 2);
        let (a, b) = (random([7, 2], 3).require_grad(), random([2, 3], 4).require_grad());
        let s = Tensor::<1>::from_floats([0.5, -2.0], &device).require_grad();

        let factored = factored_linear(x.clone(), w.clone(), None, None, a.clone(), Some(s.clone()), b.clone(), 1.5);
        let dense = x.matmul((w + (a.clone() * s.clone().unsqueeze()).matmul(b.clone()) * 1.5).unsqueeze());
        let difference = (factored.clone() - dense.clone()).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-5, "{difference}");

        let (f, d) = (factored.square().sum().backward(), dense.square().sum().backward());
        let near = |p: Option<Tensor<2>>, q: Option<Tensor<2>>| {
            (p.unwrap() - q.unwrap()).abs().max().into_scalar::<f32>() < 1e-3
        };
        assert!(near(a.grad(&f), a.grad(&d)));
        assert!(near(b.grad(&f), b.grad(&d)));
        assert!(near(s.grad(&f).map(Tensor::unsqueeze), s.grad(&d).map(Tensor::unsqueeze)));
    }
}
