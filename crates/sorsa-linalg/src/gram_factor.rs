//! What makes the columns of a matrix `Y` orthonormal, from their Gram matrix `G = Y^T Y [r, r]` alone: the factor of the polar
//! decomposition and that of the QR decomposition. Both are small, so that `Y` may stay on its device.

use faer::{Mat, MatRef, Scale, Side};

/// Ratio of the smallest to the largest eigenvalue of `G` below which its columns are taken as dependent.
const DEPENDENT: f64 = 1e-6;

/// `G^{-1/2}`, symmetric: `Y G^{-1/2}` is the orthonormal factor of the polar decomposition of `Y`, which is the nearest matrix with
/// orthonormal columns. Absent if `G` is not finite or columns depend on each other.
pub fn inverse_square_root(gram: MatRef<'_, f64>) -> Option<Mat<f64>> {
    if !is_finite(gram) {
        return None;
    }
    if let Some(root) = inverse_square_root_near_identity(gram) {
        return Some(root);
    }
    let eigen = gram.self_adjoint_eigen(Side::Lower).ok()?;
    let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
    let (smallest, largest) = (*values.first()?, *values.last()?);
    if smallest <= DEPENDENT * largest {
        return None;
    }
    let u = eigen.U();
    let scaled = Mat::from_fn(u.nrows(), u.ncols(), |i, j| u[(i, j)] / values[j].sqrt());
    Some(scaled * u.transpose())
}

/// `G^{-1/2}` by its binomial series in `E = G - I`, if `G` is so near to the identity that a few products suffice, as after one step of
/// an optimizer: a third of the time of the eigendecomposition or less, and the same to the rounding of f64.
fn inverse_square_root_near_identity(gram: MatRef<'_, f64>) -> Option<Mat<f64>> {
    /// The largest `||E||_F`, which bounds the ratio of a term to the one before.
    const NEAR: f64 = 0.03;
    let r = gram.nrows();
    let e = Mat::from_fn(r, r, |i, j| gram[(i, j)] - if i == j { 1.0 } else { 0.0 });
    let norm = e.norm_l2();
    if norm > NEAR {
        return None;
    }
    let mut sum = Mat::<f64>::identity(r, r);
    // `binomial(-1/2, k) E^k`.
    let (mut term, mut size) = (Mat::<f64>::identity(r, r), 1.0);
    for k in 1.. {
        size *= norm;
        if size < f64::EPSILON / 4.0 {
            break;
        }
        let factor = Scale((0.5 - f64::from(k)) / f64::from(k));
        term = if k == 1 { &e * factor } else { &term * &e * factor };
        sum += &term;
    }
    Some(sum)
}

/// `R^{-1}` of the Cholesky factor `G = R^T R`, upper triangular: `Y R^{-1}` is the orthonormal factor of the QR decomposition of `Y`
/// with a positive diagonal of `R`. Absent like [`inverse_square_root`].
pub fn inverse_cholesky_factor(gram: MatRef<'_, f64>) -> Option<Mat<f64>> {
    if !is_finite(gram) {
        return None;
    }
    let r = gram.nrows();
    let mut upper = Mat::<f64>::zeros(r, r);
    for j in 0..r {
        for i in 0..=j {
            let (x, y) = (&upper.col_as_slice(i)[..i], &upper.col_as_slice(j)[..i]);
            let rest = gram[(i, j)] - x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            upper[(i, j)] = match i == j {
                false => rest / upper[(i, i)],
                true if rest > DEPENDENT * gram[(j, j)] => rest.sqrt(),
                true => return None,
            };
        }
    }
    let mut inverse = Mat::<f64>::zeros(r, r);
    for j in 0..r {
        inverse[(j, j)] = 1.0 / upper[(j, j)];
        for i in (0..j).rev() {
            let sum: f64 = (i + 1..=j).map(|k| upper[(i, k)] * inverse[(k, j)]).sum();
            inverse[(i, j)] = -sum / upper[(i, i)];
        }
    }
    Some(inverse)
}

fn is_finite(gram: MatRef<'_, f64>) -> bool {
    gram.col_iter().all(|column| column.iter().all(|x| x.is_finite()))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::basis::gaussian;
    use crate::exact::thin_svd;
    use crate::leading_qr;
    use crate::spectral::orthonormality_defect;

    #[test]
    fn the_factors_are_those_of_the_polar_and_of_the_qr_decomposition() {
        for (rows, cols) in [(30, 7), (5, 5), (9, 1)] {
            let y = gaussian::<f64>(rows, cols, &mut ChaCha8Rng::seed_from_u64(9));
            let gram = y.transpose() * &y;
            let polar = &y * inverse_square_root(gram.as_ref()).unwrap();
            let svd = thin_svd(y.as_ref()).unwrap();
            assert!((&polar - svd.u * svd.v.transpose()).norm_max() < 1e-10, "{rows} x {cols}");
            let q = &y * inverse_cholesky_factor(gram.as_ref()).unwrap();
            assert!((&q - leading_qr("y", y.as_ref(), cols).unwrap().q).norm_max() < 1e-10, "{rows} x {cols}");
            assert!(orthonormality_defect(polar.as_ref()) < 1e-10 && orthonormality_defect(q.as_ref()) < 1e-10);
        }
    }

    #[test]
    fn near_the_identity_the_series_is_the_root_of_the_eigenvalues() {
        for (r, size) in [(1, 1e-3), (6, 4e-3), (40, 4e-4), (40, 1e-9), (40, 0.0)] {
            let e = gaussian::<f64>(r, r, &mut ChaCha8Rng::seed_from_u64(3));
            let one = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
            let gram = Mat::from_fn(r, r, |i, j| one(i, j) + size * (e[(i, j)] + e[(j, i)]) / 2.0);
            let root = inverse_square_root_near_identity(gram.as_ref()).unwrap();
            let difference = &root * &gram * &root - Mat::<f64>::identity(r, r);
            assert!(difference.norm_max() < 1e-14, "{r} {size}: {}", difference.norm_max());
            let eigen = gram.self_adjoint_eigen(Side::Lower).unwrap();
            let scaled = Mat::from_fn(r, r, |i, j| eigen.U()[(i, j)] / eigen.S().column_vector()[j].sqrt());
            assert!((root - scaled * eigen.U().transpose()).norm_max() < 1e-14);
        }
        let far = Mat::from_fn(3, 3, |i, j| if i == j { 1.02 } else { 0.0 });
        assert!(inverse_square_root_near_identity(far.as_ref()).is_none());
    }

    #[test]
    fn dependent_columns_and_numbers_that_are_not_finite_have_no_factor() {
        let dependent = Mat::<f64>::from_fn(3, 3, |_, _| 1.0);
        let broken = Mat::<f64>::from_fn(2, 2, |i, _| if i == 0 { f64::NAN } else { 1.0 });
        for gram in [dependent, broken, Mat::zeros(2, 2)] {
            assert!(inverse_square_root(gram.as_ref()).is_none());
            assert!(inverse_cholesky_factor(gram.as_ref()).is_none());
        }
    }
}
