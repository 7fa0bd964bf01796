//! What an adapter changed in one weight, as two factors.

use sorsa_linalg::faer::{Mat, MatRef, Scale};
use sorsa_linalg::{LinalgError, SvdOptions, truncated_svd};

use crate::factors::HostTensor;

/// `scale * A diag(s) B` of one weight: `A` `[d_in, r]`, `s` `[r]` or ones, `B` `[r, d_out]`.
pub(super) struct Product<'a> {
    pub a: &'a HostTensor,
    pub s: Option<&'a HostTensor>,
    pub b: &'a HostTensor,
}

/// Two factors in this crate's layout, with the scale left out.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pair {
    /// `[d_in, r]`.
    pub a: HostTensor,
    /// `[r, d_out]`.
    pub b: HostTensor,
}

impl Product<'_> {
    /// `A diag(s)` and `B`.
    pub fn pair(&self) -> Pair {
        let mut a = self.a.clone();
        if let Some(s) = self.s {
            for row in a.values.chunks_exact_mut(s.values.len()) {
                row.iter_mut().zip(&s.values).for_each(|(value, s)| *value *= s);
            }
        }
        Pair { a, b: self.b.clone() }
    }

    /// `[A diag(s), A_0 diag(s_0)]` and `[B; -B_0]`, of rank `2 r`, whose product is this one less `start`.
    pub fn less(&self, start: &Product<'_>) -> Pair {
        let (now, before) = (self.pair(), start.pair());
        let (rank, d_in) = (now.a.shape[1], now.a.shape[0]);
        let rows = now.a.values.chunks_exact(rank).zip(before.a.values.chunks_exact(rank));
        let a = rows.flat_map(|(now, before)| now.iter().chain(before).copied()).collect();
        let b = now.b.values.iter().copied().chain(before.b.values.iter().map(|value| -value)).collect();
        Pair { a: HostTensor::new([d_in, 2 * rank], a), b: HostTensor::new([2 * rank, now.b.shape[1]], b) }
    }
}

impl Pair {
    /// The product times `scale`, `[d_in, d_out]`.
    pub fn dense(&self, scale: f64) -> Mat<f32> {
        self.a.matrix() * self.b.matrix() * Scale(scale as f32)
    }
}

/// The best approximation of rank `rank` of a difference `[d_in, d_out]`, its factors of equal size, and what it leaves
/// out: `||D - A B||_F / ||D||_F`. A rank above the smaller side of the difference leaves nothing out.
pub(super) fn truncated(name: &str, difference: MatRef<'_, f32>, rank: usize) -> Result<(Pair, f64), LinalgError> {
    let (d_in, d_out) = difference.shape();
    let svd = truncated_svd(name, difference, rank.min(d_in).min(d_out), &SvdOptions::default())?;
    let factor = |vectors: &Mat<f32>, i: usize, k: usize| match svd.s.get(k) {
        Some(s) => vectors[(i, k)] * s.sqrt(),
        // All modules have one rank: what is past the smaller side is zero.
        None => 0.0,
    };
    let a = (0..d_in).flat_map(|i| (0..rank).map(move |k| (i, k))).map(|(i, k)| factor(&svd.u, i, k)).collect();
    let b = (0..rank).flat_map(|k| (0..d_out).map(move |j| (j, k))).map(|(j, k)| factor(&svd.v, j, k)).collect();
    let pair = Pair { a: HostTensor::new([d_in, rank], a), b: HostTensor::new([rank, d_out], b) };
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
        let (a, b, s) = (waves([5, 2], 1.0), waves([2, 4], 2.0), HostTensor::new([2], vec![2.0, -0.5]));
        let (a0, b0, s0) = (waves([5, 2], 3.0), waves([2, 4], 4.0), HostTensor::new([2], vec![1.0, 3.0]));
        let now = Product { a: &a, s: Some(&s), b: &b };
        let before = Product { a: &a0, s: Some(&s0), b: &b0 };
        let pair = now.less(&before);
        assert_eq!((pair.a.shape.as_slice(), pair.b.shape.as_slice()), (&[5, 4][..], &[4, 4][..]));
        let expected = now.pair().dense(1.5) - before.pair().dense(1.5);
        assert!((pair.dense(1.5) - expected).norm_max() < 1e-6);
    }

    #[test]
    fn truncation_to_the_whole_rank_loses_nothing_and_below_it_says_what() {
        let dense = Pair { a: waves([6, 3], 1.0), b: waves([3, 4], 2.0) }.dense(1.0);
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
