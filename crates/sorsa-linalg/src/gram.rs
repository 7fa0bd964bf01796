//! Leading singular triplets from the leading eigenvectors of `A A^T`: the cheapest way where singular values lie so
//! close together that an iteration needs many steps to tell them apart. Their squares are exact to the rounding of the
//! largest square, so a value `s` and its vectors are exact to rounding times `s_1 / s`: of no use where values differ
//! by much.

use faer::Mat;

use crate::cholesky::{orthonormalize_rows, row_squares};
use crate::eigen;
use crate::operator::{Operator, product};
use crate::ritz;
use crate::svd::Vectors;
use crate::{LinalgError, Scalar};

/// The vectors of the `rank` leading triplets of `a [rows, cols]`, `rows <= cols`. `None` where columns of `A^T U` depend on
/// each other, or numbers are not finite.
pub(crate) fn triplets<T: Scalar>(a: &impl Operator<T>, rank: usize) -> Result<Option<Vectors<T>>, LinalgError> {
    let Some(eigen) = eigen::largest(a.gram(false)?, rank, T::EPSILON) else { return Ok(None) };
    let mut image = a.apply_transpose(eigen.vectors.transpose())?;
    Ok(turn(&eigen.vectors, &mut image))
}

/// The Rayleigh-Ritz step: from `A^T U = P R` with orthonormal `P` and the SVD of `R`, as an iteration ends.
fn turn<T: Scalar>(u: &Mat<T>, image: &mut Mat<T>) -> Option<Vectors<T>> {
    let squares = row_squares(image);
    let first = orthonormalize_rows(image, &squares)?;
    let second = orthonormalize_rows(image, &vec![1.0; squares.len()])?;
    let r = product(first.as_ref(), second.as_ref());
    let ritz = ritz::leading(r.transpose(), squares.len())?;
    Some(Vectors { u: product(u.as_ref(), ritz.y.as_ref()), v: product(image.transpose(), ritz.x.as_ref()) })
}

/// Whether eigenvectors of `A A^T` cost less than iterating on `a [rows, cols]`, `rows <= cols`, where its singular values lie
/// close together; in units of a product's multiplications, as measured by `examples/svd_speed.rs`.
pub(crate) fn is_cheaper<T>((rows, cols): (usize, usize), rank: usize) -> bool {
    /// Of a second-level or shared cache.
    const CACHE_BYTES: usize = 20 << 20;
    // Half of the work of making a matrix tridiagonal reads all of it once a row.
    let reading = if rows * rows * size_of::<T>() <= CACHE_BYTES { 1.7 } else { 3.3 };
    let basis = (10 * rank).min(2 * rows / 3);
    let [rows, cols, basis] = [rows, cols, basis].map(|n| n as f64);
    rows * rows * (0.5 * cols + reading * rows) < 7.0 * rows * cols * basis
}
