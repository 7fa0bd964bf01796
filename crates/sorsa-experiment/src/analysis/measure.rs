//! The measures of one weight.

use sorsa_adapter::{HostTensor, HostTensorExt, TrainedFactors, WeightSnapshot};
use sorsa_linalg::drift::{drift, product_singular_values};
use sorsa_linalg::faer::{Mat, MatRef};
use sorsa_linalg::spectral::{condition_number, effective_rank, principal_angles, relative_orthonormality_defect};
use sorsa_linalg::{Algorithm, LinalgError, Svd, SvdOptions, leading_qr, truncated_svd};
use sorsa_report::analysis::{Measure, Measures};

/// A weight before training, decomposed once for all checkpoints. In f64: the drift of a short run is near the rounding of
/// f32.
pub struct StartingWeight {
    name: String,
    svd: Svd<f64>,
    rank: usize,
    count: usize,
    /// Bases of the initial factors, if the method splits the weight.
    factors: Option<[Mat<f64>; 2]>,
}

/// Measures of a weight at one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The measures.
    pub measures: Measures,
    /// Singular values of the merged weight, descending.
    pub spectrum: Vec<f64>,
}

impl StartingWeight {
    /// Decomposes the weight `[d_in, d_out]` called `name`. Subspaces are compared at `rank`, dSigma and dD over the
    /// `count` leading triplets, or all; both are cut at the weight's smaller side. `factors` are the initial factors, if the
    /// method splits the weight.
    ///
    /// # Errors
    ///
    /// [`LinalgError`] for entries that are not finite.
    pub fn new(
        name: &str,
        weight: &HostTensor,
        factors: Option<&TrainedFactors>,
        rank: usize,
        count: Option<usize>,
    ) -> Result<Self, LinalgError> {
        let svd = decompose(name, weight)?;
        let rank = rank.min(svd.s.len());
        let count = count.unwrap_or(svd.s.len());
        let factors = factors.map(|factors| bases(name, factors)).transpose()?;
        Ok(Self { name: name.to_owned(), svd, rank, count, factors })
    }

    /// Singular values of the weight, descending.
    pub fn spectrum(&self) -> &[f64] {
        &self.svd.s
    }

    /// Compares the weight at a checkpoint with its start.
    ///
    /// # Errors
    ///
    /// [`LinalgError`] for entries that are not finite, and for another shape.
    pub fn measure(&self, snapshot: &WeightSnapshot) -> Result<Measured, LinalgError> {
        let after = decompose(&self.name, &snapshot.merged)?;
        let mut measures = Measures::default();
        let moved = drift(&self.svd, &after, self.count)?;
        measures.set(Measure::DSigma, moved.values);
        measures.set(Measure::DD, moved.directions);
        measures.set(Measure::DDMatched, moved.directions_matched);
        measures.set(Measure::Kappa, condition_number(&after.s));
        measures.set(Measure::EffectiveRank, effective_rank(&after.s));
        for (before, after, mean, largest) in [
            (&self.svd.u, &after.u, Measure::AngleU, Measure::LargestAngleU),
            (&self.svd.v, &after.v, Measure::AngleV, Measure::LargestAngleV),
        ] {
            let angles = degrees(principal_angles(before.subcols(0, self.rank), after.subcols(0, self.rank))?);
            measures.set(mean, average(&angles));
            measures.set(largest, angles.last().copied().unwrap_or(0.0));
        }
        if let Some(factors) = &snapshot.factors {
            self.measure_part(factors, &mut measures)?;
        }
        Ok(Measured { measures, spectrum: after.s })
    }

    /// Measures of the trained part alone.
    fn measure_part(&self, factors: &TrainedFactors, measures: &mut Measures) -> Result<(), LinalgError> {
        let (a, b) = (factors.a.matrix(), factors.b.matrix());
        let values = product_singular_values(&self.name, a, factors.s.as_deref(), b)?;
        // LoRA's part is zero at the start, and has no condition number.
        if values.first().is_some_and(|first| *first > 0.0) {
            measures.set(Measure::KappaPart, condition_number(&values));
            measures.set(Measure::EffectiveRankPart, effective_rank(&values));
        }
        if factors.orthonormal {
            measures.set(Measure::DefectU, relative_orthonormality_defect(a));
            measures.set(Measure::DefectV, relative_orthonormality_defect(b.transpose()));
        }
        if let Some([start_a, start_b]) = &self.factors {
            let [a, b] = bases(&self.name, factors)?;
            for (start, now, measure) in [(start_a, &a, Measure::TrainedAngleU), (start_b, &b, Measure::TrainedAngleV)]
            {
                measures.set(measure, average(&degrees(principal_angles(start.as_ref(), now.as_ref())?)));
            }
        }
        Ok(())
    }
}

/// Orthonormal bases of the columns of `A` and the rows of `B`.
fn bases(name: &str, factors: &TrainedFactors) -> Result<[Mat<f64>; 2], LinalgError> {
    let basis = |x: MatRef<'_, f32>| -> Result<Mat<f64>, LinalgError> {
        let wide = widened(x);
        Ok(leading_qr(name, wide.as_ref(), wide.ncols())?.q)
    };
    Ok([basis(factors.a.matrix())?, basis(factors.b.matrix().transpose())?])
}

fn decompose(name: &str, weight: &HostTensor) -> Result<Svd<f64>, LinalgError> {
    let weight = widened(weight.matrix());
    let options = SvdOptions { algorithm: Algorithm::Exact, ..SvdOptions::default() };
    truncated_svd(name, weight.as_ref(), weight.nrows().min(weight.ncols()), &options)
}

fn widened(x: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(x.nrows(), x.ncols(), |i, j| f64::from(x[(i, j)]))
}

fn degrees(angles: Vec<f64>) -> Vec<f64> {
    angles.into_iter().map(f64::to_degrees).collect()
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
