//! The change of one weight, approximated by two factors.

use sorsa_files::HostTensor;
use sorsa_linalg::faer::{Mat, MatRef};
use sorsa_linalg::{LinalgError, SvdOptions, truncated_svd};

use crate::factors::FactorPair;

/// The best approximation of rank `rank` of a difference `[d_in, d_out]`, with factors of equal norm, and its error
/// `||D - A B||_F / ||D||_F`. A rank above the smaller side of the difference has no error.
pub(crate) fn truncated(
    name: &str,
    difference: MatRef<'_, f32>,
    rank: usize,
) -> Result<(FactorPair, f64), LinalgError> {
    let (d_in, d_out) = difference.shape();
    let svd = truncated_svd(name, difference, rank.min(d_in).min(d_out), &SvdOptions::default())?;
    let factor = |vectors: &Mat<f32>, i: usize, k: usize| match svd.s.get(k) {
        Some(s) => vectors[(i, k)] * s.sqrt(),
        // All modules get the same rank: triplets beyond the smaller side are zero.
        None => 0.0,
    };
    let a = (0..d_in).flat_map(|i| (0..rank).map(move |k| (i, k))).map(|(i, k)| factor(&svd.u, i, k)).collect();
    let b = (0..rank).flat_map(|k| (0..d_out).map(move |j| (j, k))).map(|(j, k)| factor(&svd.v, j, k)).collect();
    let pair = FactorPair { a: HostTensor::new([d_in, rank], a), b: HostTensor::new([rank, d_out], b) };
    let whole = f64::from(difference.norm_l2());
    let left = f64::from((difference - pair.dense(1.0)).norm_l2());
    Ok((pair, if whole == 0.0 { 0.0 } else { left / whole }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(shape: [usize; 2], seed: f32) -> HostTensor {
        let count = shape[0] * shape[1];
        HostTensor::new(shape, (0..count).map(|i| ((i as f32 + seed) * 0.7).sin()).collect())
    }

    #[test]
    fn the_difference_of_two_products_has_twice_the_rank() {
        let now = FactorPair { a: waves([5, 2], 1.0), b: waves([2, 4], 2.0) };
        let before = FactorPair { a: waves([5, 2], 3.0), b: waves([2, 4], 4.0) };
        let pair = now.minus(&before);
        assert_eq!((pair.a.shape.as_slice(), pair.b.shape.as_slice()), (&[5, 4][..], &[4, 4][..]));
        let expected = now.dense(1.5) - before.dense(1.5);
        assert!((pair.dense(1.5) - expected).norm_max() < 1e-6);
    }

    #[test]
    fn truncation_to_the_whole_rank_loses_nothing_and_below_it_says_what() {
        let dense = FactorPair { a: waves([6, 3], 1.0), b: waves([3, 4], 2.0) }.dense(1.0);
        for rank in [3, 4, 7] {
            let (again, lost) = truncated("d", dense.as_ref(), rank).unwrap();
            assert_eq!(again.a.shape, [6, rank]);
            assert!(lost < 1e-5, "{lost}");
            assert!((again.dense(1.0) - &dense).norm_max() < 1e-5);
        }
        let (_, lost) = truncated("d", dense.as_ref(), 1).unwrap();
        assert!(lost > 0.01 && lost < 1.0, "{lost}");
        let (pair, lost) = truncated("nothing", Mat::zeros(6, 4).as_ref(), 2).unwrap();
        assert_eq!((pair.dense(1.0).norm_max(), lost), (0.0, 0.0));
    }
}
