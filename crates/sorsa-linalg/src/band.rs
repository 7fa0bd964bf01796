//! A band of singular triplets: `count` consecutive ones after the `first` largest.
//!
//! No iteration finds small or middle triplets of a matrix for less than all of them cost. So the whole matrix is decomposed, in
//! f64: in f32 the rounding errors of the decomposition are as large as the last singular values of many weights.

use faer::{Mat, MatRef};

use crate::exact::thin_svd;
use crate::operator::product;
use crate::svd::{check_finite, check_rank, largest_of, not_converged, sign_of_largest};
use crate::{Algorithm, LinalgError, Scalar, Svd, SvdOptions, SvdReport};

/// The singular triplets `first .. first + count` of `a`, counted from the largest. Of `options` only the tolerance is used; the
/// residual is relative to the largest singular value of `a`.
///
/// ```
/// use sorsa_linalg::{SvdOptions, faer::Mat, svd_band};
///
/// let a = Mat::<f32>::from_fn(3, 4, |i, j| if i == j { 3.0 - i as f32 } else { 0.0 });
/// let svd = svd_band("a", a.as_ref(), 1, 2, &SvdOptions::default())?;
/// assert!((svd.s[0] - 2.0).abs() < 1e-6 && (svd.s[1] - 1.0).abs() < 1e-6);
/// # Ok::<(), sorsa_linalg::LinalgError>(())
/// ```
///
/// # Errors
///
/// [`LinalgError::RankTooLarge`] if the band ends beyond the smaller side, [`LinalgError::NotFinite`],
/// [`LinalgError::NotConverged`], and those of an empty matrix or band.
pub fn svd_band<T: Scalar>(
    name: &str,
    a: MatRef<'_, T>,
    first: usize,
    count: usize,
    options: &SvdOptions,
) -> Result<Svd<T>, LinalgError> {
    check_rank(name, a.shape(), count)?;
    check_rank(name, a.shape(), first.saturating_add(count))?;
    check_finite(name, a)?;
    let a = Mat::from_fn(a.nrows(), a.ncols(), |i, j| -> f64 { a[(i, j)].into() });
    let Some(all) = thin_svd(a.as_ref()) else { return Err(not_converged(name, f64::NAN, options, 0)) };
    let (s, largest) = (&all.s[first..first + count], all.s[0]);
    let (u, v) = (all.u.subcols(first, count), all.v.subcols(first, count));
    let image = product(a.as_ref(), v);
    let of_column = |j: usize| {
        let squares = image.col(j).iter().zip(u.col(j).iter()).map(|(image, u)| (image - s[j] * u).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let worst = largest_of((0..count).map(of_column));
    let residual = if worst == 0.0 { 0.0 } else { worst / largest };
    if !residual.is_finite() || residual > options.tolerance {
        return Err(not_converged(name, residual, options, 0));
    }
    let signs: Vec<f64> = u.col_iter().map(|column| sign_of_largest(column.iter())).collect();
    let signed = |x: MatRef<'_, f64>| Mat::from_fn(x.nrows(), count, |i, j| T::from_f64(x[(i, j)] * signs[j]));
    Ok(Svd {
        u: signed(u),
        s: s.iter().map(|&s| T::from_f64(s)).collect(),
        v: signed(v),
        report: SvdReport { algorithm: Algorithm::Exact, residual, products: 1, columns: count },
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::basis::gaussian;
    use crate::truncated_svd;

    #[test]
    fn bands_side_by_side_are_the_whole_decomposition() {
        let options = SvdOptions::default();
        for (rows, cols) in [(20, 9), (9, 20), (12, 12)] {
            let a = gaussian::<f64>(rows, cols, &mut ChaCha8Rng::seed_from_u64(3));
            let side = rows.min(cols);
            let mut sum = Mat::<f64>::zeros(rows, cols);
            let mut last = f64::INFINITY;
            for first in (0..side).step_by(3) {
                let band = svd_band("a", a.as_ref(), first, 3, &options).unwrap();
                for (j, &s) in band.s.iter().enumerate() {
                    assert!(s <= last, "{rows} x {cols}");
                    last = s;
                    sum += Mat::from_fn(rows, cols, |i, k| band.u[(i, j)] * s * band.v[(k, j)]);
                }
            }
            assert!((sum - &a).norm_max() < 1e-12, "{rows} x {cols}");
            let (lead, band) = (
                truncated_svd("a", a.as_ref(), 3, &options).unwrap(),
                svd_band("a", a.as_ref(), 0, 3, &options).unwrap(),
            );
            assert!((lead.u - band.u).norm_max() < 1e-10 && (lead.v - band.v).norm_max() < 1e-10);
        }
    }

    #[test]
    fn a_band_beyond_the_smaller_side_is_an_error_that_names_the_matrix() {
        let a = Mat::<f32>::zeros(4, 6);
        let error = svd_band("layer", a.as_ref(), 3, 2, &SvdOptions::default()).unwrap_err().to_string();
        assert_eq!(error, "rank 5 was asked for matrix `layer`, a 4 x 6 matrix has at most 4");
        assert!(svd_band("layer", a.as_ref(), 2, 0, &SvdOptions::default()).is_err());
        // A matrix of zeros has triplets of zeros.
        let svd = svd_band("layer", a.as_ref(), 2, 2, &SvdOptions::default()).unwrap();
        assert_eq!((svd.s, svd.report.residual), (vec![0.0, 0.0], 0.0));
    }
}
