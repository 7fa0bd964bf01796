//! A matrix plus a product.

use burn::prelude::*;

use crate::fused;

/// `sum + factor a b` for `sum` `[m, n]`, `a` `[m, k]`, `b` `[k, n]`. On the CPU backend `flex`, without autodiff, in the
/// memory of `sum` where nothing else holds it.
pub fn add_product(sum: Tensor<2>, a: Tensor<2>, b: Tensor<2>, factor: f64) -> Tensor<2> {
    let operands = [&sum, &a, &b];
    if operands.iter().all(|t| !t.is_autodiff()) && fused::applies(operands.map(fused::kind)) {
        return fused::add_product(sum, a, b, factor);
    }
    plain(sum, a, b, factor)
}

fn plain(sum: Tensor<2>, a: Tensor<2>, b: Tensor<2>, factor: f64) -> Tensor<2> {
    sum + a.matmul(b) * factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::normal;

    #[test]
    fn both_forms_agree_and_what_others_hold_stays_as_it_is() {
        let device = Device::flex();
        let [sum, a, b] =
            [normal([9, 20], 1.0, 1, &device), normal([9, 3], 1.0, 2, &device), normal([3, 20], 1.0, 3, &device)];
        let expected = plain(sum.clone(), a.clone(), b.clone(), -1.5);
        let before = sum.to_data();
        // Row by row, and column by column.
        let turned = Tensor::from_data(sum.clone().transpose().to_data(), &device).transpose();
        for sum in [sum.clone(), turned] {
            let found = add_product(sum, a.clone(), b.clone(), -1.5);
            assert!((found - expected.clone()).abs().max().into_scalar::<f32>() < 1e-6);
        }
        assert_eq!(sum.to_data(), before);
        let tracked = sum.autodiff().require_grad();
        let found = add_product(tracked.clone(), a.autodiff(), b.autodiff(), -1.5);
        assert!((found.clone().inner() - expected).abs().max().into_scalar::<f32>() < 1e-6);
        let gradient = tracked.grad(&found.sum().backward()).expect("tracked");
        assert_eq!(gradient.min().into_scalar::<f32>(), 1.0);
    }
}
