//! The leading part of a QR decomposition.
//!
//! The first `k` columns of `Q` depend only on the first `k` columns of the matrix, and `R[:k] = Q[:, :k]^T A`. So a
//! decomposition of `k` columns and one product replace the full decomposition of `A [m, n]`, at `k / n` of its cost.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::basis::norms;
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

/// The first `k` columns of `Q` and rows of `R` in the thin QR decomposition of `a [m, n]`, up to the sign of each column
/// and its row. Errors call the matrix `name`. `Q` is orthonormal even if leading columns depend on each other.
///
/// # Errors
///
/// An empty matrix, one with entries that are not finite, and a `k` of 0 or above `min(m, n)`.
pub fn leading_qr<T: Scalar>(name: &str, a: MatRef<'_, T>, k: usize) -> Result<LeadingQr<T>, LinalgError> {
    check_rank(name, a.shape(), k)?;
    check_finite(name, a)?;
    let q = orthonormal(a.subcols(0, k));
    let mut r = product(q.transpose(), a);
    for j in 0..k {
        // These entries are rounding errors: the leading columns of A lie in the span of as many columns of Q.
        (j + 1..k).for_each(|i| r[(i, j)] = T::from_f64(0.0));
    }
    Ok(LeadingQr { q, r })
}

/// Gram-Schmidt by columns, twice for each, always in f64. faer's QR takes a column of f32 numbers for dependent if the
/// others leave a hundredth of it, and then stops.
fn orthonormal<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
    let (rows, width) = a.shape();
    let mut q = Mat::<f64>::zeros(rows, width);
    for j in 0..width {
        let given = Mat::from_fn(rows, 1, |i, _| a[(i, j)].into());
        let floor = 16.0 * f64::EPSILON * norms(given.as_ref())[0];
        let before = q.subcols(0, j);
        let mut column = outside(before, given);
        let mut norm = norms(column.as_ref())[0];
        if norm <= floor {
            // Any direction serves. This takes the axis that the other columns contain least.
            let held = |i: usize| before.row(i).iter().map(|x| x * x).sum::<f64>();
            let axis = (0..rows).min_by(|i, j| held(*i).total_cmp(&held(*j))).expect("a matrix with rows");
            column = outside(before, Mat::from_fn(rows, 1, |i, _| f64::from(i == axis)));
            norm = norms(column.as_ref())[0];
        }
        q.col_as_slice_mut(j).iter_mut().zip(column.col_as_slice(0)).for_each(|(x, rest)| *x = rest / norm);
    }
    Mat::from_fn(rows, width, |i, j| T::from_f64(q[(i, j)]))
}

/// Projects a column onto the complement of orthonormal columns.
fn outside(columns: MatRef<'_, f64>, mut column: Mat<f64>) -> Mat<f64> {
    for _ in 0..2 {
        let mut part = Mat::zeros(columns.ncols(), 1);
        matmul(&mut part, Accum::Replace, columns.transpose(), &column, 1.0, Par::Seq);
        matmul(&mut column, Accum::Add, columns, &part, -1.0, Par::Seq);
    }
    column
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
    fn columns_that_nearly_depend_on_others_and_those_after_them_are_kept() {
        // All columns differ, each from the first by a thousandth.
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let (first, other) = (gaussian::<f32>(20, 1, &mut rng), gaussian::<f32>(20, 6, &mut rng));
        let a = Mat::from_fn(20, 6, |i, j| first[(i, 0)] + 1e-3 * other[(i, j)]);
        let qr = leading_qr("a", a.as_ref(), 5).unwrap();
        assert!(orthonormality_defect(qr.q.as_ref()) < 1e-5);
        let rebuilt = product(qr.q.as_ref(), qr.r.as_ref());
        assert!((rebuilt.subcols(0, 5) - a.subcols(0, 5)).norm_max() < 1e-6);
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
