//! Drift of a weight: the change of its singular values and vectors since the start of training (Cao 2024, arXiv
//! 2409.00055, section 3, after DoRA's analysis):
//!
//! ```text
//! dSigma = mean_i |sigma_i(W_t) - sigma_i(W_0)|
//! dD     = 1 - 1/2 mean_i (|<u_i(W_t), u_i(W_0)>| + |<v_i(W_t), v_i(W_0)>|)
//! ```

use faer::{Mat, MatRef};

use crate::assignment::best_assignment;
use crate::exact::thin_svd;
use crate::operator::product;
use crate::qr::leading_qr;
use crate::svd::check_finite;
use crate::{LinalgError, Scalar, Svd};

/// Drift of the leading singular triplets of a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// dSigma, in the unit of the weight.
    pub values: f64,
    /// dD of vectors with the same index: 0 if no vector turned, 1 if all are orthogonal to their start.
    pub directions: f64,
    /// dD with the one-to-one matching of vectors that minimizes it. If close singular values swap their order,
    /// [`directions`](Self::directions) counts the swap and this does not.
    pub directions_matched: f64,
}

/// Compares the `count` leading triplets of `after` with those of `before`; fewer if one of them has fewer.
///
/// # Errors
///
/// [`LinalgError::RowsDiffer`] if the two matrices differ in shape.
pub fn drift<T: Scalar>(before: &Svd<T>, after: &Svd<T>, count: usize) -> Result<Drift, LinalgError> {
    for (left, right) in [(&before.u, &after.u), (&before.v, &after.v)] {
        if left.nrows() != right.nrows() {
            return Err(LinalgError::RowsDiffer { left: left.nrows(), right: right.nrows() });
        }
    }
    let count = count.min(before.s.len()).min(after.s.len());
    let moved = |i: usize| (Into::<f64>::into(after.s[i]) - Into::<f64>::into(before.s[i])).abs();
    let leading = |x: &Mat<T>| Mat::from_fn(x.nrows(), count, |i, j| x[(i, j)].into());
    let [cosines_u, cosines_v] = [(&after.u, &before.u), (&after.v, &before.v)].map(|(after, before)| {
        let (after, before): (Mat<f64>, Mat<f64>) = (leading(after), leading(before));
        product(after.transpose(), before.as_ref())
    });
    let agreement = Mat::from_fn(count, count, |i, j| 0.5 * (cosines_u[(i, j)].abs() + cosines_v[(i, j)].abs()));
    let mean = |of: &dyn Fn(usize) -> f64| (0..count).map(of).sum::<f64>() / count.max(1) as f64;
    let matched = best_assignment(agreement.as_ref());
    Ok(Drift {
        values: mean(&moved),
        // Rounding can take a cosine beyond 1.
        directions: (1.0 - mean(&|i| agreement[(i, i)])).max(0.0),
        directions_matched: (1.0 - mean(&|i| agreement[(i, matched[i])])).max(0.0),
    })
}

/// The `r` singular values of `A diag(s) B`, descending, for `A [m, r]`, `s [r]` (`None`: ones) and `B [r, n]`. It does not
/// form the product, but takes the singular values of `R_A diag(s) R_B^T` with `A = Q_A R_A` and `B^T = Q_B R_B`.
///
/// # Errors
///
/// Those of [`leading_qr`]: `r` must be at most `m` and `n`, and entries must be finite. [`LinalgError::NotConverged`] if
/// the product overflows.
pub fn product_singular_values<T: Scalar>(
    name: &str,
    a: MatRef<'_, T>,
    s: Option<&[T]>,
    b: MatRef<'_, T>,
) -> Result<Vec<f64>, LinalgError> {
    let rank = a.ncols();
    let [left, right] = [a, b.transpose()].map(|x| {
        let wide = Mat::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, j)].into());
        leading_qr::<f64>(name, wide.as_ref(), rank)
    });
    let (left, right) = (left?.r, right?.r);
    let scaled = Mat::from_fn(rank, rank, |i, j| left[(i, j)] * s.map_or(1.0, |s| s[j].into()));
    let core = product(scaled.as_ref(), right.transpose());
    check_finite(name, core.as_ref())?;
    let failed =
        || LinalgError::NotConverged { name: name.to_owned(), residual: f64::NAN, tolerance: f64::EPSILON, blocks: 0 };
    Ok(thin_svd(core.as_ref()).ok_or_else(failed)?.s)
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::{Algorithm, SvdOptions, truncated_svd};

    fn svd(a: &Mat<f64>) -> Svd<f64> {
        let options = SvdOptions { algorithm: Algorithm::Exact, ..SvdOptions::default() };
        truncated_svd("a", a.as_ref(), a.nrows().min(a.ncols()), &options).unwrap()
    }

    /// Deterministic entries that look random.
    fn noise(rows: usize, cols: usize, seed: f64) -> Mat<f64> {
        Mat::from_fn(rows, cols, |i, j| (seed + 12.9898 * i as f64 + 78.233 * j as f64).sin() * 43.5453 % 1.0)
    }

    /// `U diag(s) V^T` with `turn` applied to the columns of `U` and `V` of an orthonormal pair.
    fn with_triplets(s: &[f64], turn: impl Fn(&mut Mat<f64>)) -> Mat<f64> {
        let basis = svd(&noise(9, 6, 0.3));
        let (mut u, mut v) = (basis.u.clone(), basis.v.clone());
        turn(&mut u);
        turn(&mut v);
        let scaled = Mat::from_fn(9, 6, |i, j| u[(i, j)] * s[j]);
        product(scaled.as_ref(), v.transpose())
    }

    const VALUES: [f64; 6] = [9.0, 7.0, 5.0, 3.0, 2.0, 1.0];

    #[test]
    fn a_weight_that_did_not_move_has_no_drift() {
        let a = svd(&noise(12, 7, 1.0));
        let same = drift(&a, &a, 7).unwrap();
        assert!(same.values == 0.0 && same.directions < 1e-12 && same.directions_matched < 1e-12, "{same:?}");
    }

    #[test]
    fn scaling_moves_values_and_no_direction() {
        let (before, c) = (noise(12, 7, 1.0), 1.25);
        let after = Mat::from_fn(12, 7, |i, j| c * before[(i, j)]);
        let (before, after) = (svd(&before), svd(&after));
        let found = drift(&before, &after, 7).unwrap();
        let mean = before.s.iter().sum::<f64>() / 7.0;
        assert_relative_eq!(found.values, (c - 1.0) * mean, max_relative = 1e-10);
        assert!(found.directions < 1e-12);
    }

    #[test]
    fn turning_two_of_six_vectors_by_an_angle_has_a_closed_form() {
        let angle = 0.3f64;
        let turned = with_triplets(&VALUES, |x| {
            for i in 0..x.nrows() {
                let (a, b) = (x[(i, 1)], x[(i, 2)]);
                x[(i, 1)] = angle.cos() * a + angle.sin() * b;
                x[(i, 2)] = angle.cos() * b - angle.sin() * a;
            }
        });
        let found = drift(&svd(&with_triplets(&VALUES, |_| {})), &svd(&turned), 6).unwrap();
        let expected = 2.0 / 6.0 * (1.0 - angle.cos());
        assert_relative_eq!(found.directions, expected, max_relative = 1e-9);
        assert_relative_eq!(found.directions_matched, expected, max_relative = 1e-9);
        assert!(found.values < 1e-12);
        // Only the leading triplet is compared, which did not turn.
        let leading = drift(&svd(&with_triplets(&VALUES, |_| {})), &svd(&turned), 1).unwrap();
        assert!(leading.directions < 1e-12);
    }

    #[test]
    fn neighbours_that_change_places_are_matched_again() {
        // The second and third triplet keep their vectors, and their values swap order.
        let before = svd(&with_triplets(&[9.0, 5.1, 5.0, 3.0, 2.0, 1.0], |_| {}));
        let after = svd(&with_triplets(&[9.0, 5.0, 5.1, 3.0, 2.0, 1.0], |_| {}));
        let found = drift(&before, &after, 6).unwrap();
        assert_relative_eq!(found.directions, 2.0 / 6.0, max_relative = 1e-9);
        assert!(found.directions_matched < 1e-12 && found.values < 1e-12, "{found:?}");
    }

    #[test]
    fn drift_equals_its_equation_written_out() {
        let (before, after) = (svd(&noise(8, 5, 0.1)), svd(&noise(8, 5, 2.7)));
        let found = drift(&before, &after, 5).unwrap();
        let (mut values, mut directions) = (0.0, 0.0);
        for i in 0..5 {
            values += (after.s[i] - before.s[i]).abs() / 5.0;
            let dot = |a: &Mat<f64>, b: &Mat<f64>| (0..a.nrows()).map(|k| a[(k, i)] * b[(k, i)]).sum::<f64>().abs();
            directions += (dot(&after.u, &before.u) + dot(&after.v, &before.v)) / 5.0;
        }
        assert_relative_eq!(found.values, values, max_relative = 1e-12);
        assert_relative_eq!(found.directions, 1.0 - 0.5 * directions, max_relative = 1e-12);
        assert!(found.directions_matched <= found.directions);
    }

    #[test]
    fn weights_of_different_shapes_are_refused() {
        let error = drift(&svd(&noise(8, 5, 0.0)), &svd(&noise(7, 5, 0.0)), 5).unwrap_err();
        assert!(matches!(error, LinalgError::RowsDiffer { left: 8, right: 7 }));
    }

    #[test]
    fn values_of_a_product_are_those_of_the_dense_product() {
        let (a, b, s) = (noise(11, 3, 0.5), noise(3, 8, 1.5), [2.0, 0.5, -1.0]);
        let scaled = Mat::from_fn(11, 3, |i, j| a[(i, j)] * s[j]);
        let dense = svd(&product(scaled.as_ref(), b.as_ref()));
        let found = product_singular_values("ab", a.as_ref(), Some(&s), b.as_ref()).unwrap();
        for (found, dense) in found.iter().zip(&dense.s) {
            assert_relative_eq!(found, dense, max_relative = 1e-10);
        }
        let zero = Mat::<f64>::zeros(3, 8);
        assert_eq!(product_singular_values("ab", a.as_ref(), None, zero.as_ref()).unwrap(), [0.0; 3]);
    }
}
