//! The linear map `Y = X W + bias` of f32 activations and a weight in any storage format.

use crate::matmul_precision::MatmulPrecision;
use crate::matrix::Matrix;
use crate::product::{Product, Update};
use crate::simd::{add_scaled, wide};
use crate::weight::Weight;

/// `X W + bias`.
///
/// # Shapes
///
/// - `x`: `[rows, d_in]`
/// - `weight`: `[d_in, d_out]`
/// - `bias`: `[d_out]`
/// - output: `[rows, d_out]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn forward(x: &[f32], rows: usize, weight: Weight<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![0.0; rows * weight.columns()];
    weight.multiply(&mut y, x, Update::Overwrite);
    if let Some(bias) = bias {
        add_bias(&mut y, bias, weight.columns());
    }
    y
}

/// `dY W^T`, the gradient of the input.
///
/// # Shapes
///
/// - `d_y`: `[rows, d_out]`
/// - `weight`: `[d_in, d_out]`
/// - output: `[rows, d_in]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn input_gradient(d_y: &[f32], rows: usize, weight: Weight<'_>) -> Vec<f32> {
    let mut d_x = vec![0.0; rows * weight.rows()];
    weight.transposed().multiply(&mut d_x, d_y, Update::Overwrite);
    d_x
}

/// `X^T dY`, the gradient of a weight.
///
/// # Shapes
///
/// - `x`: `[rows, d_in]`
/// - `d_y`: `[rows, d_out]`
/// - output: `[d_in, d_out]`
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub fn weight_gradient(x: Matrix<'_>, d_y: Matrix<'_>) -> Vec<f32> {
    let mut d_weight = vec![0.0; x.columns() * d_y.columns()];
    let product = Product::new(x.transposed(), d_y).at_precision(MatmulPrecision::used());
    product.compute(&mut d_weight, Update::Overwrite);
    d_weight
}

/// The sum of all rows, the gradient of a bias.
///
/// # Shapes
///
/// - `rows`: `[.., width]`
/// - output: `[width]`
pub fn column_sums(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    wide(
        #[inline(always)]
        || rows.chunks_exact(width.max(1)).for_each(|row| add_scaled(&mut sums, row, 1.0)),
    );
    sums
}

/// Adds `bias` to each row of `y`.
pub(crate) fn add_bias(y: &mut [f32], bias: &[f32], width: usize) {
    assert_eq!(bias.len(), width, "the bias has another width than the output");
    y.chunks_exact_mut(width).for_each(|row| add_scaled(row, bias, 1.0));
}
