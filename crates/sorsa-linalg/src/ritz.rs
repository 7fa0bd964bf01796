//! The leading triplets of the projected matrix of a Krylov iteration.

use faer::{Mat, MatRef};

use crate::Scalar;
use crate::eigen::{self, Eigen};
use crate::exact::thin_svd;
use crate::operator::{lower_product_with_itself, product};

/// The leading triplets of `R [k, k]`: `R ≈ x diag(s) y^T`.
pub(crate) struct Ritz<T> {
    /// `[k, rank]`.
    pub x: Mat<T>,
    /// `[rank]`, descending.
    pub s: Vec<f64>,
    /// `[k, rank]`.
    pub y: Mat<T>,
}

/// Computes the `rank` leading triplets. Eigenvectors of `R R^T` in f64 cost a fraction of an SVD. They are used if the
/// squares of the requested values exceed the rounding of f64 by as much as the values exceed the rounding of `T`;
/// otherwise the SVD is used. `None` if faer does not converge.
pub(crate) fn leading<T: Scalar>(r: MatRef<'_, T>, rank: usize) -> Option<Ritz<T>> {
    if let Some(ritz) = by_squares(r, rank) {
        return Some(ritz);
    }
    let svd = thin_svd(r)?;
    let first = |vectors: Mat<T>| vectors.subcols(0, rank).to_owned();
    Some(Ritz { x: first(svd.u), s: svd.s[..rank].to_vec(), y: first(svd.v) })
}

fn by_squares<T: Scalar>(r: MatRef<'_, T>, rank: usize) -> Option<Ritz<T>> {
    let clear = (f64::EPSILON / T::EPSILON).sqrt();
    if clear >= 1.0 {
        return None;
    }
    let k = r.nrows();
    let r = Mat::from_fn(k, k, |i, j| r[(i, j)].into());
    let square = lower_product_with_itself(r.as_ref());
    let Eigen { values, vectors: x } = eigen::largest(square, rank, T::EPSILON)?;
    let s: Vec<f64> = values.into_iter().map(|square| square.max(0.0).sqrt()).collect();
    if s[rank - 1].is_nan() || s[rank - 1] <= clear * s[0] {
        return None;
    }
    let y = product(r.transpose(), x.as_ref());
    let narrow =
        |a: &Mat<f64>, scale: &dyn Fn(usize) -> f64| Mat::from_fn(k, rank, |i, j| T::from_f64(a[(i, j)] * scale(j)));
    Some(Ritz { x: narrow(&x, &|_| 1.0), y: narrow(&y, &|j| 1.0 / s[j]), s })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::basis::gaussian;
    use crate::spectral::orthonormality_defect;

    fn assert_triplets(r: &Mat<f32>, rank: usize) {
        let ritz = leading(r.as_ref(), rank).unwrap();
        let exact = thin_svd(Mat::<f64>::from_fn(r.nrows(), r.ncols(), |i, j| r[(i, j)].into()).as_ref()).unwrap();
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * exact.s[0];
        assert!(ritz.s.iter().zip(&exact.s).all(close), "{:?}", ritz.s);
        assert!(orthonormality_defect(ritz.x.as_ref()) < 1e-5 && orthonormality_defect(ritz.y.as_ref()) < 1e-5);
        let scaled = Mat::from_fn(r.nrows(), rank, |i, j| ritz.x[(i, j)] * ritz.s[j] as f32);
        assert!((product(r.as_ref(), ritz.y.as_ref()) - scaled).norm_max() < 1e-5 * exact.s[0] as f32);
    }

    #[test]
    fn the_triplets_are_those_of_the_svd_whatever_the_spectrum() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let full = gaussian::<f32>(40, 40, &mut rng);
        assert_triplets(&full, 12);
        // A matrix of rank 5: the other squares are rounding errors.
        let thin = product(full.subcols(0, 5), full.subrows(0, 5));
        assert_triplets(&thin, 12);
        assert!(by_squares(thin.as_ref(), 12).is_none() && by_squares(full.as_ref(), 12).is_some());
        assert_triplets(&Mat::identity(9, 9), 9);
        assert!(leading(Mat::<f32>::zeros(6, 6).as_ref(), 2).unwrap().s.iter().all(|&s| s == 0.0));
    }
}
