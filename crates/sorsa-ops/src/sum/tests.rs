use burn::prelude::*;

use super::{add_product, plain};
use crate::testing::normal;

#[test]
fn both_forms_agree_and_a_sum_that_others_hold_stays_as_it_is() {
    let device = Device::flex();
    let [sum, a, b] =
        [normal([9, 20], 1.0, 1, &device), normal([9, 3], 1.0, 2, &device), normal([3, 20], 1.0, 3, &device)];
    let expected = plain::add_product(sum.clone(), a.clone(), b.clone(), -1.5);
    let before = sum.to_data();
    // Row-major and column-major.
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
