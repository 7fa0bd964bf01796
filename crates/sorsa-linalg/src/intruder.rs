//! Intruder dimensions (Shuttleworth et al. 2024, arXiv 2410.21228, algorithm 1): leading singular vectors of a fine-tuned weight
//! that are unlike every singular vector of the weight before:
//!
//! ```text
//! u_j(W) is an intruder if   max_i |<u_i(W_0), u_j(W)>| < threshold        j = 1 .. k
//! ```
//!
//! The paper's `u` are the vectors of the output side, the left ones of PyTorch's `[d_out, d_in]`; of a weight `[d_in, d_out]` they are
//! the right ones.

use faer::{Mat, MatRef};

use crate::operator::product;
use crate::{Algorithm, LinalgError, SvdOptions, truncated_svd};

/// The output side of a weight before training, to which tuned weights are compared.
#[derive(Debug)]
pub struct OutputVectors {
    name: String,
    /// `[d_out, min(d_in, d_out)]`.
    v: Mat<f32>,
}

/// A leading singular triplet of a tuned weight.
#[derive(Debug, Clone)]
pub struct ComparedTriplet {
    /// The largest cosine with a singular vector of the weight before training, from 0 to 1.
    pub cosine: f64,
    /// Vector of the input side `[d_in]`.
    pub u: Vec<f32>,
    /// Singular value.
    pub s: f32,
    /// Vector of the output side `[d_out]`.
    pub v: Vec<f32>,
}

impl OutputVectors {
    /// Decomposes the weight `[d_in, d_out]`. Errors call it `name`.
    ///
    /// # Errors
    ///
    /// Those of [`truncated_svd`].
    pub fn of(name: &str, weight: MatRef<'_, f32>) -> Result<Self, LinalgError> {
        let options = SvdOptions { algorithm: Algorithm::Exact, ..SvdOptions::default() };
        let svd = truncated_svd(name, weight, weight.nrows().min(weight.ncols()), &options)?;
        Ok(Self { name: name.to_owned(), v: svd.v })
    }

    /// The `k` leading triplets of the tuned weight `[d_in, d_out]`, descending by their values; fewer if it has fewer.
    ///
    /// # Errors
    ///
    /// Those of [`truncated_svd`]; [`LinalgError::RowsDiffer`] for a weight of another shape.
    pub fn compare(&self, tuned: MatRef<'_, f32>, k: usize) -> Result<Vec<ComparedTriplet>, LinalgError> {
        if tuned.ncols() != self.v.nrows() {
            return Err(LinalgError::RowsDiffer { left: self.v.nrows(), right: tuned.ncols() });
        }
        let k = k.min(tuned.nrows()).min(tuned.ncols());
        let svd = truncated_svd(&self.name, tuned, k, &SvdOptions::default())?;
        let cosines = product(self.v.transpose(), svd.v.as_ref());
        let largest = |j: usize| cosines.col(j).iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
        let triplet = |j: usize| ComparedTriplet {
            cosine: largest(j).min(1.0),
            u: svd.u.col(j).iter().copied().collect(),
            s: svd.s[j],
            v: svd.v.col(j).iter().copied().collect(),
        };
        Ok((0..k).map(triplet).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A diagonal weight `[4, 5]`, whose vectors are the axes, plus `size` times an outer product with `v`.
    fn tuned(size: f32, v: [f32; 5]) -> Mat<f32> {
        let u = [0.0, 0.0, 0.0, 1.0];
        Mat::from_fn(4, 5, |i, j| if i == j { [4.0, 3.0, 2.0, 0.0][i] } else { 0.0 } + size * u[i] * v[j])
    }

    #[test]
    fn a_vector_between_the_others_is_an_intruder_and_its_cosine_is_told() {
        let before = OutputVectors::of("w", tuned(0.0, [0.0; 5]).as_ref()).unwrap();
        let half = 1.0 / 5f32.sqrt();
        let found = before.compare(tuned(50.0, [half; 5]).as_ref(), 2).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[0].s > 49.0 && found[0].cosine < 0.5, "{found:?}");
        let same = before.compare(tuned(0.0, [0.0; 5]).as_ref(), 3).unwrap();
        assert!(same.iter().all(|triplet| triplet.cosine > 0.999), "{same:?}");
    }

    #[test]
    fn a_weight_of_another_width_is_refused() {
        let before = OutputVectors::of("w", tuned(0.0, [0.0; 5]).as_ref()).unwrap();
        assert!(before.compare(Mat::zeros(4, 4).as_ref(), 1).is_err());
    }
}
