//! The change of one weight by training, as a dense matrix or as a product of factors, and its best approximation of lower rank.

use sorsa_files::HostTensor;
use sorsa_linalg::faer::{Mat, MatRef};
use sorsa_linalg::{LinalgError, SvdOptions, product_svd, truncated_svd};

use crate::factors::FactorPair;
use crate::host_tensor::HostTensorExt;
use crate::peft::truncated;

/// The change `[d_in, d_out]` of one weight.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightChange {
    /// The difference itself.
    Dense(HostTensor),
    /// `A B`.
    Product {
        /// `A` `[d_in, k]`.
        a: HostTensor,
        /// `B` `[k, d_out]`.
        b: HostTensor,
    },
}

/// How many singular triplets of a change a LoRA keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KeptRank {
    /// So many.
    Rank(usize),
    /// The fewest whose squared singular values sum up to this part of all.
    Energy(f64),
    /// All that are more than rounding errors of f32.
    All,
}

/// Singular values below this part of the largest are rounding errors of factors in f32.
const ROUNDING: f64 = 1e-6;

/// A change as two factors, and what they keep of it.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptChange {
    /// `A` `[d_in, r]`, with the norm of `B`.
    pub a: HostTensor,
    /// `B` `[r, d_out]`.
    pub b: HostTensor,
    /// `||D||_F^2`.
    pub energy: f64,
    /// `||D - A B||_F^2`.
    pub lost: f64,
}

/// Singular triplets of a change, in f64.
struct Triplets {
    u: Mat<f64>,
    s: Vec<f64>,
    v: Mat<f64>,
}

impl WeightChange {
    /// `[d_in, d_out]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(matrix) => [matrix.shape[0], matrix.shape[1]],
            Self::Product { a, b } => [a.shape[0], b.shape[1]],
        }
    }

    /// The rank that the change has at most.
    pub fn largest_rank(&self) -> usize {
        let [d_in, d_out] = self.shape();
        match self {
            Self::Dense(_) => d_in.min(d_out),
            Self::Product { a, .. } => a.shape[1].min(d_in).min(d_out),
        }
    }

    /// The change times a number.
    pub fn scaled(mut self, factor: f64) -> Self {
        let (Self::Dense(values) | Self::Product { a: values, .. }) = &mut self;
        values.values.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
        self
    }

    /// The sum of two changes of one weight. A product stays one, with the ranks added, as long as that is not above the
    /// smaller side.
    pub fn plus(self, other: Self) -> Self {
        let [d_in, d_out] = self.shape();
        match (self, other) {
            (Self::Product { a, b }, Self::Product { a: a2, b: b2 }) if a.shape[1] + a2.shape[1] <= d_in.min(d_out) => {
                let FactorPair { a, b } = FactorPair { a, b }.beside(&FactorPair { a: a2, b: b2 });
                Self::Product { a, b }
            }
            (one, other) => Self::Dense(HostTensor::from_matrix((one.dense() + other.dense()).as_ref())),
        }
    }

    /// The change as a matrix `[d_in, d_out]`.
    pub fn dense(&self) -> Mat<f32> {
        match self {
            Self::Dense(matrix) => matrix.matrix().to_owned(),
            Self::Product { a, b } => a.matrix() * b.matrix(),
        }
    }

    /// All singular values, descending, in f64. Those of a product take a decomposition of a small matrix alone.
    ///
    /// # Errors
    ///
    /// Entries that are not finite; a decomposition that does not converge.
    pub fn singular_values(&self, name: &str) -> Result<Vec<f64>, LinalgError> {
        match self {
            Self::Product { a, b } => Ok(product_svd(name, a.matrix(), b.matrix())?.s),
            Self::Dense(matrix) => Ok(leading(name, matrix.matrix(), self.largest_rank())?.s),
        }
    }

    /// The best approximation of the change with so many triplets, as factors of equal norm. A rank above the smaller side gives
    /// columns of zeros.
    ///
    /// # Errors
    ///
    /// Entries that are not finite; a decomposition that does not converge.
    pub fn kept(&self, name: &str, rank: KeptRank) -> Result<KeptChange, LinalgError> {
        let (triplets, energy) = match (self, rank) {
            (Self::Product { a, b }, _) => {
                let svd = product_svd(name, a.matrix(), b.matrix())?;
                let energy = svd.s.iter().map(|s| s * s).sum();
                (Triplets { u: svd.u, s: svd.s, v: svd.v }, energy)
            }
            (Self::Dense(matrix), KeptRank::Rank(rank)) => {
                let (FactorPair { a, b }, error) = truncated(name, matrix.matrix(), rank)?;
                let energy = squares(matrix.matrix());
                return Ok(KeptChange { a, b, energy, lost: error * error * energy });
            }
            (Self::Dense(matrix), KeptRank::Energy(part)) => {
                let energy = squares(matrix.matrix());
                (leading_energy(name, matrix.matrix(), part * energy)?, energy)
            }
            (Self::Dense(matrix), KeptRank::All) => {
                (leading(name, matrix.matrix(), self.largest_rank())?, squares(matrix.matrix()))
            }
        };
        let count = match rank {
            KeptRank::Rank(rank) => rank,
            KeptRank::All => numerical_rank(&triplets.s).max(1),
            KeptRank::Energy(part) => fewest(&triplets.s, part * energy).max(1),
        };
        let root = |k: usize| triplets.s.get(k).map_or(0.0, |s| s.sqrt());
        let factor = |vectors: &Mat<f64>, i: usize, k: usize| match triplets.s.get(k) {
            Some(_) => (vectors[(i, k)] * root(k)) as f32,
            None => 0.0,
        };
        let [d_in, d_out] = self.shape();
        let a =
            (0..d_in).flat_map(|i| (0..count).map(move |k| (i, k))).map(|(i, k)| factor(&triplets.u, i, k)).collect();
        let b =
            (0..count).flat_map(|k| (0..d_out).map(move |j| (j, k))).map(|(j, k)| factor(&triplets.v, j, k)).collect();
        let (a, b) = (HostTensor::new([d_in, count], a), HostTensor::new([count, d_out], b));
        let lost = match self {
            Self::Dense(matrix) => squares((matrix.matrix() - a.matrix() * b.matrix()).as_ref()),
            Self::Product { .. } => triplets.s.iter().skip(count).map(|s| s * s).sum(),
        };
        Ok(KeptChange { a, b, energy, lost })
    }
}

impl From<FactorPair> for WeightChange {
    fn from(FactorPair { a, b }: FactorPair) -> Self {
        Self::Product { a, b }
    }
}

/// The leading triplets of a matrix.
fn leading(name: &str, matrix: MatRef<'_, f32>, rank: usize) -> Result<Triplets, LinalgError> {
    let svd = truncated_svd(name, matrix, rank, &SvdOptions::default())?;
    let wide = |x: &Mat<f32>| Mat::from_fn(x.nrows(), x.ncols(), |i, j| f64::from(x[(i, j)]));
    Ok(Triplets { u: wide(&svd.u), s: svd.s.iter().map(|s| f64::from(*s)).collect(), v: wide(&svd.v) })
}

/// The leading triplets that have this much energy at least, found by doubling their number.
fn leading_energy(name: &str, matrix: MatRef<'_, f32>, wanted: f64) -> Result<Triplets, LinalgError> {
    let all = matrix.nrows().min(matrix.ncols());
    let mut rank = 16.min(all);
    loop {
        let triplets = leading(name, matrix, rank)?;
        if rank == all || triplets.s.iter().map(|s| s * s).sum::<f64>() >= wanted {
            return Ok(triplets);
        }
        rank = (2 * rank).min(all);
    }
}

/// How many of the values have this much energy together; all of them if rounding leaves too little.
fn fewest(s: &[f64], wanted: f64) -> usize {
    let mut sum = 0.0;
    let enough = s.iter().position(|s| {
        sum += s * s;
        sum >= wanted
    });
    enough.map_or(numerical_rank(s), |index| index + 1)
}

fn numerical_rank(s: &[f64]) -> usize {
    let largest = s.first().copied().unwrap_or(0.0);
    s.iter().take_while(|s| **s > ROUNDING * largest).count()
}

fn squares(matrix: MatRef<'_, f32>) -> f64 {
    matrix.col_iter().flat_map(|column| column.iter().map(|x| f64::from(*x).powi(2)).collect::<Vec<_>>()).sum()
}

#[cfg(test)]
mod tests {
    use sorsa_linalg::faer::Scale;

    use super::*;

    fn waves(shape: [usize; 2], seed: f32) -> HostTensor {
        let count = shape[0] * shape[1];
        HostTensor::new(shape, (0..count).map(|i| ((i as f32 + seed) * 0.7).sin() + (i as f32 * seed).cos()).collect())
    }

    fn product() -> WeightChange {
        WeightChange::Product { a: waves([9, 3], 1.3), b: waves([3, 7], 2.1) }
    }

    fn distance(kept: &KeptChange, change: &WeightChange) -> f32 {
        (kept.a.matrix() * kept.b.matrix() - change.dense()).norm_max()
    }

    #[test]
    fn a_product_and_its_dense_form_give_the_same_factors_and_errors() {
        let dense = WeightChange::Dense(HostTensor::from_matrix(product().dense().as_ref()));
        for rank in [KeptRank::Rank(1), KeptRank::Rank(2), KeptRank::Rank(5), KeptRank::Energy(0.7), KeptRank::All] {
            let [one, other] = [product(), dense.clone()].map(|change| change.kept("d", rank).unwrap());
            assert_eq!(one.a.shape, other.a.shape, "{rank:?}");
            assert!(
                (one.a.matrix() * one.b.matrix() - other.a.matrix() * other.b.matrix()).norm_max() < 1e-5,
                "{rank:?}"
            );
            assert!(
                (one.lost - other.lost).abs() < 1e-6 * one.energy
                    && (one.energy - other.energy).abs() < 1e-5 * one.energy
            );
        }
        let all = dense.kept("d", KeptRank::All).unwrap();
        assert_eq!(all.a.shape, [9, 3]);
        assert!(distance(&all, &product()) < 1e-5);
    }

    #[test]
    fn an_energy_takes_the_fewest_triplets_that_have_it() {
        let s = product().singular_values("d").unwrap();
        assert_eq!(s.len(), 3);
        let all: f64 = s.iter().map(|s| s * s).sum();
        for count in 1..=3 {
            let part = s[..count].iter().map(|s| s * s).sum::<f64>() / all;
            let kept = product().kept("d", KeptRank::Energy(part - 1e-9)).unwrap();
            assert_eq!(kept.a.shape[1], count);
            assert!((1.0 - kept.lost / kept.energy - part).abs() < 1e-9);
        }
    }

    #[test]
    fn sums_are_those_of_the_dense_matrices_and_become_dense_above_the_smaller_side() {
        let other = WeightChange::Product { a: waves([9, 4], 0.4), b: waves([4, 7], 0.9) };
        let expected = product().dense() * Scale(0.5) - other.dense() * Scale(2.0);
        let sum = product().scaled(0.5).plus(other.clone().scaled(-2.0));
        assert!(matches!(&sum, WeightChange::Product { a, .. } if a.shape == [9, 7]));
        assert!((sum.dense() - &expected).norm_max() < 1e-5);
        let more = sum.plus(other.clone());
        assert!(matches!(more, WeightChange::Dense(_)));
        assert!((more.dense() - expected - other.dense()).norm_max() < 1e-5);
    }

    #[test]
    fn nothing_stays_nothing() {
        let zero = WeightChange::Product { a: waves([9, 2], 1.0), b: HostTensor::new([2, 7], vec![0.0; 14]) };
        for rank in [KeptRank::Rank(2), KeptRank::Energy(0.9), KeptRank::All] {
            let kept = zero.kept("d", rank).unwrap();
            assert_eq!((kept.energy, kept.lost, kept.a.matrix().norm_max()), (0.0, 0.0, 0.0), "{rank:?}");
        }
    }
}
