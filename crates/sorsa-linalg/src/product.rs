//! The SVD of a product of two thin matrices. It never forms the product: with `A = Q_A R_A` and `B^T = Q_B R_B`, the SVD
//! `R_A R_B^T = X diag(s) Y^T` of a small matrix gives `A B = (Q_A X) diag(s) (Q_B Y)^T`.

use faer::{Mat, MatRef};

use crate::exact::thin_svd;
use crate::operator::product;
use crate::qr::leading_qr;
use crate::svd::check_finite;
use crate::{LinalgError, Scalar};

/// All singular triplets of a product `[m, n]` of rank `r` at most, in f64.
#[derive(Debug, Clone)]
pub struct ProductSvd {
    /// Left singular vectors `[m, r]`, orthonormal.
    pub u: Mat<f64>,
    /// Singular values `[r]`, descending.
    pub s: Vec<f64>,
    /// Right singular vectors `[n, r]`, orthonormal.
    pub v: Mat<f64>,
}

/// The singular triplets of `A B` for `A [m, k]` and `B [k, n]`: `r = min(k, m, n)` of them. Errors call the product `name`.
///
/// # Errors
///
/// An empty matrix, entries that are not finite, and [`LinalgError::NotConverged`] if the product overflows.
pub fn product_svd<T: Scalar>(name: &str, a: MatRef<'_, T>, b: MatRef<'_, T>) -> Result<ProductSvd, LinalgError> {
    let (left, right) = (basis_and_rest(name, a)?, basis_and_rest(name, b.transpose())?);
    let core = product(left.1.as_ref(), right.1.transpose());
    check_finite(name, core.as_ref())?;
    let failed =
        || LinalgError::NotConverged { name: name.to_owned(), residual: f64::NAN, tolerance: f64::EPSILON, blocks: 0 };
    let svd = thin_svd(core.as_ref()).ok_or_else(failed)?;
    Ok(ProductSvd {
        u: product(left.0.as_ref(), svd.u.as_ref()),
        s: svd.s,
        v: product(right.0.as_ref(), svd.v.as_ref()),
    })
}

/// `Q` with orthonormal columns and `R` with `Q R = x`. A matrix that is wider than high is its own `R`.
fn basis_and_rest<T: Scalar>(name: &str, x: MatRef<'_, T>) -> Result<(Mat<f64>, Mat<f64>), LinalgError> {
    let wide = Mat::from_fn(x.nrows(), x.ncols(), |i, j| -> f64 { x[(i, j)].into() });
    if x.ncols() > x.nrows() {
        check_finite(name, wide.as_ref())?;
        return Ok((Mat::identity(x.nrows(), x.nrows()), wide));
    }
    let qr = leading_qr::<f64>(name, wide.as_ref(), x.ncols())?;
    Ok((qr.q, qr.r))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spectral::orthonormality_defect;

    fn noise(rows: usize, cols: usize, seed: f64) -> Mat<f64> {
        Mat::from_fn(rows, cols, |i, j| (seed + 12.9898 * i as f64 + 78.233 * j as f64).sin() * 43.5453 % 1.0)
    }

    #[test]
    fn triplets_multiply_to_the_product_whatever_the_rank() {
        for (m, k, n) in [(9, 3, 7), (5, 8, 7), (7, 6, 4), (4, 1, 4)] {
            let (a, b) = (noise(m, k, 0.5), noise(k, n, 1.5));
            let svd = product_svd("ab", a.as_ref(), b.as_ref()).unwrap();
            assert_eq!(svd.s.len(), k.min(m).min(n));
            let scaled = Mat::from_fn(m, svd.s.len(), |i, j| svd.u[(i, j)] * svd.s[j]);
            assert!((scaled * svd.v.transpose() - &a * &b).norm_max() < 1e-12, "{m} {k} {n}");
            assert!(orthonormality_defect(svd.u.as_ref()) < 1e-12 && orthonormality_defect(svd.v.as_ref()) < 1e-12);
        }
    }

    #[test]
    fn a_product_of_zeros_has_no_values_and_nan_is_an_error() {
        let svd = product_svd("ab", Mat::<f64>::zeros(5, 2).as_ref(), noise(2, 4, 0.1).as_ref()).unwrap();
        assert_eq!(svd.s, [0.0, 0.0]);
        let broken = Mat::from_fn(5, 2, |_, _| f64::NAN);
        assert!(matches!(
            product_svd("ab", broken.as_ref(), noise(2, 4, 0.1).as_ref()),
            Err(LinalgError::NotFinite { .. })
        ));
    }
}
