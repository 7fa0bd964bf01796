//! A matrix plus a product in burn's operations.

use burn::prelude::*;

pub(super) fn add_product(sum: Tensor<2>, a: Tensor<2>, b: Tensor<2>, factor: f64) -> Tensor<2> {
    sum + a.matmul(b) * factor
}
