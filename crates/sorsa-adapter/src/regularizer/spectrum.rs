//! Spectral and nuclear norm of `G`, which is symmetric: its singular values are the magnitudes of its eigenvalues. Each is the
//! inner product of `G` with a matrix `S` (module documentation of the parent), which the eigenvectors give. `S` is constant to
//! first order, so that the gradient is `2 U S`; free lengths take the diagonal out of `S` too.

use burn::prelude::*;
use burn::tensor::FloatDType;
use rayon::prelude::*;
use sorsa_linalg::dominant_eigenpair;
use sorsa_linalg::faer::{Mat, Side};

use super::exact::{Gram, combined, gram};
use super::{FLOOR, Lengths, Regularized, RegularizerForm, Term};
use crate::host_tensor::HostTensorExt;
use sorsa_files::HostTensor;

/// What the eigenvalues of one factor's `G` give.
pub(super) struct Spectrum {
    /// The norm.
    pub value: f64,
    frobenius: f64,
    size: Option<f64>,
    /// `S` `[r, r]`, row-major.
    direction: HostTensor,
}

/// The norm of every factor, on all threads. Reads each `G` from the device.
pub(super) fn spectra(factors: &[(Tensor<2>, Regularized)], form: RegularizerForm) -> Vec<Spectrum> {
    let read = |(factor, regularized): &(Tensor<2>, Regularized)| {
        let Gram { defect, size } = gram(&factor.clone().cast(FloatDType::F32), *regularized);
        (HostTensor::from_tensor(defect), size.map(|size| f64::from(size.into_scalar::<f32>())))
    };
    let read: Vec<(HostTensor, Option<f64>)> = factors.iter().map(read).collect();
    read.into_par_iter().map(|(defect, size)| spectrum(&defect, size, form)).collect()
}

fn spectrum(defect: &HostTensor, size: Option<f64>, form: RegularizerForm) -> Spectrum {
    let rank = defect.shape[0];
    let g = Mat::from_fn(rank, rank, |i, j| f64::from(defect.values[i * rank + j]));
    let frobenius = g.norm_l2();
    let zeros = || HostTensor::new([rank, rank], vec![0.0; rank * rank]);
    let nothing = |value| Spectrum { value, frobenius, size, direction: zeros() };
    if !frobenius.is_finite() {
        // The update that follows is found not to be finite.
        return nothing(f64::NAN);
    }
    let floor = FLOOR * size.unwrap_or((rank as f64).sqrt());
    let sign = |value: f64| if value.abs() > floor { value.signum() } else { 0.0 };
    let found = match form {
        RegularizerForm::Spectral => largest(&g, sign),
        _ => all(&g, sign),
    };
    let Some((value, direction)) = found else { return nothing(f64::NAN) };
    let element = |index: usize| match size {
        Some(_) if index / rank == index % rank => 0.0,
        _ => direction[(index / rank, index % rank)] as f32,
    };
    let direction = HostTensor::new([rank, rank], (0..rank * rank).map(element).collect());
    Spectrum { value, frobenius, size, direction }
}

/// The largest magnitude of the eigenvalues, and `sign q q^T` of its eigenvector.
fn largest(g: &Mat<f64>, sign: impl Fn(f64) -> f64) -> Option<(f64, Mat<f64>)> {
    // The error of the value is the square of this.
    const TOLERANCE: f64 = 1e-5;
    /// Up to this rank all eigenpairs take less time.
    const SMALL: usize = 32;
    let rank = g.nrows();
    let (value, q) = if rank > SMALL {
        dominant_eigenpair(g.as_ref(), TOLERANCE)?
    } else {
        let eigen = g.self_adjoint_eigen(Side::Lower).ok()?;
        let values = eigen.S().column_vector();
        let index = if values[rank - 1].abs() > values[0].abs() { rank - 1 } else { 0 };
        (values[index], eigen.U().col(index).iter().copied().collect())
    };
    Some((value.abs(), Mat::from_fn(q.len(), q.len(), |i, j| sign(value) * q[i] * q[j])))
}

/// The sum of the magnitudes of the eigenvalues, and the sum of `sign q q^T` over all eigenvectors.
fn all(g: &Mat<f64>, sign: impl Fn(f64) -> f64) -> Option<(f64, Mat<f64>)> {
    let eigen = g.self_adjoint_eigen(Side::Lower).ok()?;
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    let scaled = Mat::from_fn(g.nrows(), g.ncols(), |i, j| vectors[(i, j)] * sign(values[j]));
    Some((values.iter().map(|value| value.abs()).sum(), &scaled * vectors.transpose()))
}

impl Spectrum {
    /// The term of the factor that this is the spectrum of.
    pub fn term(self, factor: Tensor<2>, regularized: Regularized) -> Term {
        let device = factor.device();
        let number = |value: f64| Tensor::<1>::from_floats([value as f32], &device);
        debug_assert_eq!(regularized.lengths == Lengths::Free, self.size.is_some());
        let direction = self.direction.to_tensor::<2>(&device);
        let gradient = combined(factor.cast(FloatDType::F32), regularized.vectors, direction) * 2.0;
        Term { norm: number(self.frobenius), size: self.size.map(number), gradient }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{drawn, every_side};
    use super::*;
    use crate::factors::Vectors;

    fn value_and_gradient(factor: &Tensor<2>, regularized: Regularized, form: RegularizerForm) -> (f64, Tensor<2>) {
        let spectrum = spectra(&[(factor.clone(), regularized)], form).remove(0);
        (spectrum.value, spectrum.term(factor.clone(), regularized).gradient)
    }

    /// `<S, G>` on burn's tape, whose gradient is that of the norm.
    fn by_tape(factor: &Tensor<2>, regularized: Regularized, form: RegularizerForm) -> (f64, Tensor<2>) {
        let spectrum = spectra(&[(factor.clone(), regularized)], form).remove(0);
        let factor = Tensor::from_inner(factor.clone()).require_grad();
        let direction = Tensor::from_inner(spectrum.direction.to_tensor::<2>(&Device::flex()));
        let columns = match regularized.vectors {
            Vectors::Columns => factor.clone(),
            Vectors::Rows => factor.clone().transpose(),
        };
        let gram = columns.clone().transpose().matmul(columns);
        let identity = Tensor::<2>::eye(gram.dims()[0], &factor.device());
        let g = match regularized.lengths {
            Lengths::One => gram - identity,
            Lengths::Free => gram * (identity.ones_like() - identity),
        };
        let loss = (g * direction).sum();
        let gradient = factor.grad(&loss.backward()).unwrap();
        (f64::from(loss.inner().into_scalar::<f32>()), gradient)
    }

    #[test]
    fn the_gradient_of_both_norms_equals_the_tape() {
        for (shape, regularized) in every_side() {
            let factor = drawn(shape, 7) * 0.5;
            for form in [RegularizerForm::Spectral, RegularizerForm::Nuclear] {
                let (value, gradient) = value_and_gradient(&factor, regularized, form);
                let (expected, tape) = by_tape(&factor, regularized, form);
                assert!((value - expected).abs() < 1e-4 * value, "{regularized:?} {form:?}: {value}, {expected}");
                let difference = (gradient - tape).abs().max().into_scalar::<f32>();
                assert!(difference < 1e-5, "{regularized:?} {form:?}: {difference}");
            }
        }
    }

    #[test]
    fn the_gradient_of_both_norms_is_the_slope_of_their_value() {
        for (shape, regularized) in every_side() {
            let (factor, way) = (drawn(shape, 8) * 0.5, drawn(shape, 9));
            for form in [RegularizerForm::Spectral, RegularizerForm::Nuclear] {
                let (_, gradient) = value_and_gradient(&factor, regularized, form);
                let expected = f64::from((gradient * way.clone()).sum().into_scalar::<f32>());
                let at = |step: f64| value_and_gradient(&(factor.clone() + way.clone() * step), regularized, form).0;
                let slope = (at(1e-3) - at(-1e-3)) / 2e-3;
                assert!((slope - expected).abs() < 1e-2 * expected.abs().max(1.0), "{form:?}: {slope}, {expected}");
            }
        }
    }

    #[test]
    fn one_eigenpair_of_many_gives_the_norm_that_all_give() {
        let factor = drawn([90, 60], 10) * 0.2;
        let regularized = Regularized { vectors: Vectors::Columns, lengths: Lengths::One };
        let (value, gradient) = value_and_gradient(&factor, regularized, RegularizerForm::Spectral);
        let g = HostTensor::from_tensor(gram(&factor, regularized).defect);
        let g = Mat::from_fn(60, 60, |i, j| f64::from(g.values[i * 60 + j]));
        let eigen = g.self_adjoint_eigen(Side::Lower).unwrap();
        let (largest, q) = (eigen.S().column_vector()[59], eigen.U().col(59));
        assert!((value - largest).abs() < 1e-6 * largest, "{value}, {largest}");
        // The gradient is 2 U q q^T.
        let direction = HostTensor::new([60, 60], (0..3600).map(|i| (q[i / 60] * q[i % 60]) as f32).collect());
        let expected = factor.matmul(direction.to_tensor(&Device::flex())) * 2.0;
        assert!((gradient - expected).abs().max().into_scalar::<f32>() < 1e-4);
    }

    #[test]
    fn rounding_noise_has_no_gradient() {
        let u = Tensor::<2>::eye(5, &Device::flex()).narrow(1, 0, 3) * (1.0 + 1e-7);
        let regularized = Regularized { vectors: Vectors::Columns, lengths: Lengths::One };
        for form in [RegularizerForm::Spectral, RegularizerForm::Nuclear] {
            let (value, gradient) = value_and_gradient(&u, regularized, form);
            assert!(value < 1e-5);
            assert_eq!(gradient.abs().max().into_scalar::<f32>(), 0.0);
        }
    }
}
