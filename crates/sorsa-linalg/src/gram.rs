//! Leading singular triplets from the leading eigenvectors of `A A^T`. This is the cheapest way for a flat spectrum, in
//! which an iteration needs many steps to separate singular values. The squared singular values are exact to the rounding
//! of the largest square. So a singular value `s` and its vectors are exact to rounding times `s_1 / s`, which is useless
//! if the values differ much.

use faer::Mat;

use crate::cholesky::{orthonormalize_rows, row_squares};
use crate::eigen;
use crate::operator::{Operator, product};
use crate::ritz;
use crate::svd::Vectors;
use crate::{LinalgError, Scalar};

/// The singular vectors of the `rank` leading triplets of `a [rows, cols]`, `rows <= cols`. `None` if columns of `A^T U`
/// depend on each other, or if a number is not finite.
pub(crate) fn triplets<T: Scalar>(a: &impl Operator<T>, rank: usize) -> Result<Option<Vectors<T>>, LinalgError> {
    let Some(eigen) = eigen::largest(a.gram(false)?, rank, T::EPSILON) else { return Ok(None) };
    let mut image = a.apply_transpose(eigen.vectors.transpose())?;
    Ok(turn(&eigen.vectors, &mut image))
}

/// The Rayleigh-Ritz step that also ends an iteration: the SVD of `R` in `A^T U = P R`, with orthonormal `P`.
fn turn<T: Scalar>(u: &Mat<T>, image: &mut Mat<T>) -> Option<Vectors<T>> {
    let squares = row_squares(image);
    let first = orthonormalize_rows(image, &squares)?;
    let second = orthonormalize_rows(image, &vec![1.0; squares.len()])?;
    let r = product(first.as_ref(), second.as_ref());
    let ritz = ritz::leading(r.transpose(), squares.len())?;
    Some(Vectors { u: product(u.as_ref(), ritz.y.as_ref()), v: product(image.transpose(), ritz.x.as_ref()) })
}

/// Whether the eigenvectors of `A A^T` cost less than an iteration on `a [rows, cols]`, `rows <= cols`, with a flat
/// spectrum. The unit is one multiplication of a matrix product; `examples/svd_speed.rs` measured the factors.
pub(crate) fn is_cheaper<T>((rows, cols): (usize, usize), rank: usize) -> bool {
    /// Bytes of a second-level or shared cache.
    const CACHE_BYTES: usize = 20 << 20;
    // Half of the work of the tridiagonal reduction reads the whole matrix once for each row.
    let reading = if rows * rows * size_of::<T>() <= CACHE_BYTES { 1.7 } else { 3.3 };
    let basis = (10 * rank).min(2 * rows / 3);
    let [rows, cols, basis] = [rows, cols, basis].map(|n| n as f64);
    rows * rows * (0.5 * cols + reading * rows) < 7.0 * rows * cols * basis
}
