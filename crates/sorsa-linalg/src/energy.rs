//! Ranks by the energy of a spectrum: the share of the squared Frobenius norm that the leading singular values hold.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef};

use crate::exact::all_singular_values;
use crate::operator::parallelism;
use crate::svd::check_finite;
use crate::{LinalgError, Scalar};

/// The squares of all singular values of `a`, descending: the eigenvalues of the smaller of `A A^T` and `A^T A`, in f64. This costs a
/// part of a decomposition with vectors. Errors call the matrix `name`. On one of rayon's workers, the function uses only that
/// thread, otherwise all threads.
///
/// # Errors
///
/// [`LinalgError::NotFinite`], and [`LinalgError::NotConverged`] if the computation overflows.
pub fn squared_singular_values<T: Scalar>(name: &str, a: MatRef<'_, T>) -> Result<Vec<f64>, LinalgError> {
    check_finite(name, a)?;
    let a = if a.nrows() > a.ncols() { a.transpose() } else { a };
    let wide = Mat::from_fn(a.nrows(), a.ncols(), |i, j| -> f64 { a[(i, j)].into() });
    let mut gram = Mat::zeros(a.nrows(), a.nrows());
    matmul(&mut gram, Accum::Replace, &wide, wide.transpose(), 1.0, parallelism());
    all_singular_values(gram.as_ref()).ok_or_else(|| LinalgError::NotConverged {
        name: name.to_owned(),
        residual: f64::NAN,
        tolerance: f64::EPSILON,
        blocks: 0,
    })
}

/// The smallest rank whose leading values hold at least `share` of the sum of `squares`, which descend. It is at least 1.
pub fn rank_of_energy(squares: &[f64], share: f64) -> usize {
    let total: f64 = squares.iter().sum();
    // The last values of a whole spectrum are rounding errors of the first.
    let wanted = share * total * (1.0 - 1e-12);
    let mut held = 0.0;
    let smaller = squares.iter().position(|square| {
        held += square;
        held >= wanted
    });
    smaller.map_or(squares.len(), |index| index + 1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exact::thin_svd;

    #[test]
    fn squares_are_those_of_the_svd_for_tall_and_wide_matrices() {
        for (rows, cols) in [(9, 5), (5, 9), (7, 7)] {
            let a =
                Mat::<f32>::from_fn(rows, cols, |i, j| ((i * 5 + j * 3) as f32 * 0.7).sin() + (i == j) as u8 as f32);
            let squares = squared_singular_values("a", a.as_ref()).unwrap();
            let exact = thin_svd(Mat::from_fn(rows, cols, |i, j| f64::from(a[(i, j)])).as_ref()).unwrap().s;
            assert_eq!(squares.len(), exact.len());
            for (found, s) in squares.iter().zip(&exact) {
                assert!((found - s * s).abs() < 1e-12 * exact[0] * exact[0], "{found} for {s}");
            }
        }
        let broken = Mat::<f32>::from_fn(2, 2, |i, _| if i == 1 { f32::NAN } else { 1.0 });
        assert!(matches!(squared_singular_values("b", broken.as_ref()), Err(LinalgError::NotFinite { .. })));
    }

    #[test]
    fn the_rank_is_the_smallest_that_holds_the_share() {
        // Shares of 16/21, 20/21 and 1.
        let squares = [16.0, 4.0, 1.0, 0.0];
        let ranks = [0.1, 16.0 / 21.0, 0.77, 0.95, 0.953, 1.0].map(|share| rank_of_energy(&squares, share));
        assert_eq!(ranks, [1, 1, 2, 2, 3, 3]);
        assert_eq!(rank_of_energy(&[0.0, 0.0], 0.9), 1, "a weight of zeros");
    }
}
