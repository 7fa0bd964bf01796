//! Spectral and nuclear norm of `G`, which is symmetric: its singular values are the magnitudes of its eigenvalues. Each is the
//! inner product of `G` with a matrix `S` (module documentation of the parent), which the eigenvectors give. `S` is constant to
//! first order, so that the gradient is `2 U S`; free lengths take the diagonal out of `S` too.

use burn::prelude::*;
use burn::tensor::FloatDType;
use rayon::prelude::*;
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
    let Ok(eigen) = g.self_adjoint_eigen(Side::Lower) else { return nothing(f64::NAN) };
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    let floor = FLOOR * size.unwrap_or((rank as f64).sqrt());
    // The weight of each eigenvector's `q q^T` in `S`.
    let sign = |i: usize| if values[i].abs() > floor { values[i].signum() } else { 0.0 };
    let weights: Vec<f64> = match form {
        RegularizerForm::Spectral => {
            let largest = (0..rank).max_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
            (0..rank).map(|i| if Some(i) == largest { sign(i) } else { 0.0 }).collect()
        }
        _ => (0..rank).map(sign).collect(),
    };
    let value = match form {
        RegularizerForm::Spectral => (0..rank).map(|i| values[i].abs()).fold(0.0, f64::max),
        _ => (0..rank).map(|i| values[i].abs()).sum(),
    };
    let scaled = Mat::from_fn(rank, rank, |i, j| vectors[(i, j)] * weights[j]);
    let direction = &scaled * vectors.transpose();
    let element = |index: usize| match size {
        Some(_) if index / rank == index % rank => 0.0,
        _ => direction[(index / rank, index % rank)] as f32,
    };
    let direction = HostTensor::new([rank, rank], (0..rank * rank).map(element).collect());
    Spectrum { value, frobenius, size, direction }
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
