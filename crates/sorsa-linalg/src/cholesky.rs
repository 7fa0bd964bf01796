//! Cholesky QR: orthonormalizes rows by the Cholesky factor of their Gram matrix. It takes two matrix products, while
//! reflections go row by row. One pass leaves an error of the machine precision times the squared condition number of the
//! rows; two passes leave none (Yamamoto, Nakatsukasa, Yanagisawa and Fukaya 2015).

use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Mat, Par};

use crate::Scalar;
use crate::operator::product;

/// Replaces `panel [width, n]` by `Q` with nearly orthonormal rows and returns the lower triangular `L` of
/// `panel = L Q`. Returns `None` and leaves the panel unchanged if a row depends so much on the rows before it that the
/// square of its rest is rounding error, compared with its entry in `squares [width]`.
pub(crate) fn orthonormalize_rows<T: Scalar>(panel: &mut Mat<T>, squares: &[f64]) -> Option<Mat<T>> {
    let width = panel.nrows();
    let gram = product(panel.as_ref(), panel.transpose());
    // The loop computes L^T, so that inner loops run along columns.
    let mut upper = Mat::<f64>::zeros(width, width);
    for j in 0..width {
        for i in 0..=j {
            let (x, y) = (&upper.col_as_slice(i)[..i], &upper.col_as_slice(j)[..i]);
            let rest = gram[(i, j)].into() - x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            upper[(i, j)] = match i == j {
                false => rest / upper[(i, i)],
                true if rest > 64.0 * T::EPSILON * squares[j] => rest.sqrt(),
                true => return None,
            };
        }
    }
    let lower = Mat::from_fn(width, width, |i, j| T::from_f64(upper[(j, i)]));
    // Panels are too narrow to gain from threads.
    solve_lower_triangular_in_place(lower.as_ref(), panel.as_mut(), Par::Seq);
    Some(lower)
}

/// Squared norms of the rows, with sums in f64.
pub(crate) fn row_squares<T: Scalar>(panel: &Mat<T>) -> Vec<f64> {
    let mut squares = vec![0.0; panel.nrows()];
    for j in 0..panel.ncols() {
        let column = panel.col_as_slice(j);
        squares.iter_mut().zip(column).for_each(|(sum, &x)| *sum += x.into().powi(2));
    }
    squares
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::basis::gaussian;
    use crate::spectral::orthonormality_defect;

    /// Rows with norms from 1 to 1000. Each differs from the row before by a tenth.
    fn ill_conditioned() -> Mat<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut panel = gaussian::<f32>(6, 400, &mut rng);
        for i in 1..6 {
            for j in 0..400 {
                panel[(i, j)] = panel[(i - 1, j)] * 4.0 + panel[(i, j)] * 0.1 * 4f32.powi(i as i32);
            }
        }
        panel
    }

    #[test]
    fn two_rounds_are_orthonormal_and_their_factors_rebuild_the_panel() {
        let panel = ill_conditioned();
        let mut q = panel.clone();
        let first = orthonormalize_rows(&mut q, &row_squares(&panel)).unwrap();
        let second = orthonormalize_rows(&mut q, &[1.0; 6]).unwrap();
        assert!(orthonormality_defect(q.transpose()) < 1e-6);
        let rebuilt = product(product(first.as_ref(), second.as_ref()).as_ref(), q.as_ref());
        assert!((rebuilt - &panel).norm_max() < 1e-6 * panel.norm_max());
        assert!((0..6).all(|j| (0..j).all(|i| first[(i, j)] == 0.0)));
    }

    #[test]
    fn a_row_within_the_others_is_left_to_someone_else() {
        let mut panel = ill_conditioned();
        for j in 0..400 {
            panel[(4, j)] = panel[(1, j)] - 2.0 * panel[(3, j)];
        }
        let squares = row_squares(&panel);
        let before = panel.clone();
        assert!(orthonormalize_rows(&mut panel, &squares).is_none());
        assert_eq!(panel, before);
        // A row that is small compared with its `squares` fails too, and so does a row that is not finite.
        let mut panel = ill_conditioned();
        assert!(orthonormalize_rows(&mut panel, &squares.iter().map(|x| x * 1e6).collect::<Vec<_>>()).is_none());
        panel[(2, 2)] = f32::NAN;
        assert!(orthonormalize_rows(&mut panel, &squares).is_none());
    }
}
