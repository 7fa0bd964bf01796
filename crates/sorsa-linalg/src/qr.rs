//! The leading part of a QR decomposition, by Householder reflections.
//!
//! The first `k` columns of `Q` depend on the first `k` columns of the matrix only, and `R[:k] = Q[:, :k]^T A`: a
//! decomposition of `k` columns and one product give what a full one of `A [m, n]` would, at `k / n` of its cost.

use faer::{Mat, MatRef};

use crate::basis::householder;
use crate::operator::product;
use crate::svd::{check_finite, check_rank};
use crate::{LinalgError, Scalar};

/// The first columns of `Q` and the first rows of `R` in `A = Q R`.
#[derive(Debug, Clone)]
pub struct LeadingQr<T> {
    /// Orthonormal columns `[m, k]`.
    pub q: Mat<T>,
    /// `[k, n]`, zero below the diagonal.
    pub r: Mat<T>,
}

/// The first `k` columns of `Q` and rows of `R` in the thin QR decomposition of `a [m, n]`, up to the sign of each
/// column and its row. `name` stands for the matrix in errors. Where leading columns depend on each other, `Q` is
/// orthonormal all the same.
///
/// # Errors
///
/// An empty matrix, one with entries that are not finite, and a `k` of 0 or above `min(m, n)`.
pub fn leading_qr<T: Scalar>(name: &str, a: MatRef<'_, T>, k: usize) -> Result<LeadingQr<T>, LinalgError> {
    check_rank(name, a.shape(), k)?;
    check_finite(name, a)?;
    let (q, _) = householder(&a.subcols(0, k).to_owned());
    let mut r = product(q.transpose(), a);
    for j in 0..k {
        // Rounding noise: these columns of A lie within as many columns of Q.
        (j + 1..k).for_each(|i| r[(i, j)] = T::from_f64(0.0));
    }
    Ok(LeadingQr { q, r })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::basis::gaussian;
    use crate::spectral::orthonormality_defect;

    #[test]
    fn the_leading_part_is_that_of_the_full_decomposition() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for (rows, cols) in [(12, 7), (7, 12), (9, 9)] {
            let a = gaussian::<f64>(rows, cols, &mut rng);
            let full = leading_qr("a", a.as_ref(), rows.min(cols)).unwrap();
            assert!((product(full.q.as_ref(), full.r.as_ref()) - &a).norm_max() < 1e-13, "{rows} x {cols}");
            for k in [1, 4] {
                let part = leading_qr("a", a.as_ref(), k).unwrap();
                assert!(orthonormality_defect(part.q.as_ref()) < 1e-14);
                let head = product(part.q.as_ref(), part.r.as_ref());
                let expected = product(full.q.subcols(0, k), full.r.subrows(0, k));
                assert!((head - expected).norm_max() < 1e-13, "{rows} x {cols}, {k}");
                assert!((0..k).all(|j| (j + 1..k).all(|i| part.r[(i, j)] == 0.0)));
            }
        }
    }

    #[test]
    fn dependent_columns_still_give_an_orthonormal_factor() {
        let a = Mat::<f32>::from_fn(8, 6, |i, j| if j == 0 { 0.0 } else { (i as f32 - 3.0) * j as f32 });
        let qr = leading_qr("a", a.as_ref(), 4).unwrap();
        assert!(orthonormality_defect(qr.q.as_ref()) < 1e-5);
        assert!((product(qr.q.as_ref(), qr.r.as_ref()) - &a).norm_max() < 1e-4);
    }

    #[test]
    fn what_cannot_be_decomposed_is_an_error_that_names_the_matrix() {
        let mut a = Mat::<f32>::zeros(3, 2);
        assert!(matches!(leading_qr("w", a.as_ref(), 3), Err(LinalgError::RankTooLarge { rank: 3, .. })));
        a[(2, 1)] = f32::NAN;
        let error = leading_qr("w", a.as_ref(), 1).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("not finite"), "{error}");
    }
}
