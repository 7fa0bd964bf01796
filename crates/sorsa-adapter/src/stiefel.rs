//! Factors on the Stiefel manifold, the matrices `X [d, r]` with orthonormal columns: a hard constraint in the place of SORSA's
//! regularizer. Any optimizer of free matrices steps on it (StelLA, arXiv 2510.01938):
//!
//! ```text
//! G  = gradient of the loss at X             g = G - X sym(X^T G)      or  G - X G^T X
//! X' = the optimizer's step from X by g      D = c (X' - X)            the step, scaled
//! D <- D - X sym(X^T D)                      tangent at X again: Adam divides each number by its own root
//! X <- retract(X + D)                        orthonormal again
//! ```
//!
//! `G - X sym(X^T G)` is the projection to the tangent space, the gradient by the metric of the space around; `G - X G^T X` is the
//! gradient by the canonical metric, which StelLA takes. As `D` is tangent, `(X + D)^T (X + D) = I + D^T D`: columns are never
//! dependent, and each retraction below differs from `X + D` in the second order of the step alone.
//!
//! The running mean of gradients that an optimizer keeps is a direction at the old `X`. [`Stiefel::transport`] projects it to the
//! tangent space of the new one, so that no part of it that leaves the manifold piles up.

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sorsa_files::HostTensor;
use sorsa_linalg::faer::{Mat, MatRef};
use sorsa_linalg::{inverse_cholesky_factor, inverse_square_root, leading_qr};

use crate::factors::Vectors;
use crate::host_tensor::HostTensorExt;
use crate::parameters::Trainable;

/// How the vectors of a factor become orthonormal again after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retraction {
    /// They do not: nothing holds them, or a regularizer does.
    #[default]
    None,
    /// `Y (Y^T Y)^{-1/2}`, the nearest matrix with orthonormal columns. The root of the small Gram matrix is computed on the host
    /// in f64.
    Polar,
    /// `Q` of `Y = Q R` with a positive diagonal of `R`, by the Cholesky factor of the Gram matrix: the first columns turn least.
    Qr,
    /// The polar factor by the iteration `Y <- Y (3 I - Y^T Y) / 2`: products alone, on the factor's device.
    NewtonSchulz,
}

impl Retraction {
    /// Whether it is the one that files do not mention.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// The metric that makes a gradient of the derivatives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    /// `G - X sym(X^T G)`.
    Embedded,
    /// `G - X G^T X`.
    Canonical,
}

/// Whether the running means of an optimizer follow a factor along the manifold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// They are projected to the tangent space of the new point.
    Projected,
    /// They stay as they are.
    Left,
}

/// How a method keeps its orthonormal factors so, under its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OrthonormalSteps {
    pub retraction: Retraction,
    pub every: u64,
    pub metric: Metric,
    pub transport: Transport,
    /// Whether the steps of a factor `[d, r]` are scaled by `sqrt(width / d)`, with the width that most targets have on a side.
    pub scaled_by_width: bool,
}

impl OrthonormalSteps {
    /// Steps whose gradients, directions and running means are projected to the tangent space, with a retraction in every `every`-th.
    pub fn projected(retraction: Retraction, every: u64) -> Self {
        Self { retraction, every, metric: Metric::Embedded, transport: Transport::Projected, scaled_by_width: false }
    }
}

/// The manifold of one trained factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stiefel {
    pub(crate) vectors: Vectors,
    pub(crate) steps: OrthonormalSteps,
    /// What the steps are multiplied by.
    pub(crate) step_factor: f64,
}

impl Stiefel {
    /// The gradient on the manifold at `point`, made of the derivatives of the loss.
    ///
    /// # Shapes
    ///
    /// - point, derivatives: those of the factor, f32
    /// - result: the same
    pub fn gradient(&self, point: &Tensor<2>, derivatives: Tensor<2>) -> Tensor<2> {
        let (x, g) = (self.columns(point.clone()), self.columns(derivatives));
        let tangent = match self.steps.metric {
            Metric::Embedded => tangent(&x, g),
            Metric::Canonical => {
                let product = g.clone().transpose().matmul(x.clone());
                g - x.matmul(product)
            }
        };
        self.columns(tangent)
    }

    /// The factor after the optimizer has moved it from `point` to `moved` in its step number `step`, counted from 1. Without a
    /// retraction in this step, only the part of the move that leaves the manifold in the first order is taken away.
    ///
    /// # Shapes
    ///
    /// - point, moved: those of the factor, f32
    /// - result: the same
    pub fn step(&self, point: &Tensor<2>, moved: Tensor<2>, step: u64) -> Tensor<2> {
        let x = self.columns(point.clone());
        let mut direction = self.columns(moved) - x.clone();
        if self.step_factor != 1.0 {
            direction = direction * self.step_factor;
        }
        let moved = x.clone() + tangent(&x, direction);
        let retracted = match step % self.steps.every {
            0 => retracted(moved, self.steps.retraction),
            _ => moved,
        };
        self.columns(retracted)
    }

    /// A direction that an optimizer keeps, in the tangent space at `point`; absent if it stays as it is.
    ///
    /// # Shapes
    ///
    /// - point, direction: those of the factor, f32
    /// - result: the same
    pub fn transport(&self, point: &Tensor<2>, direction: Tensor<2>) -> Option<Tensor<2>> {
        match self.steps.transport {
            Transport::Projected => Some(self.columns(tangent(&self.columns(point.clone()), self.columns(direction)))),
            Transport::Left => None,
        }
    }

    /// Turns a factor so that its vectors are columns, or back.
    fn columns(&self, factor: Tensor<2>) -> Tensor<2> {
        match self.vectors {
            Vectors::Columns => factor,
            Vectors::Rows => factor.transpose(),
        }
    }
}

/// The mean over the factors on the manifold of `||X^T X - I||_F / sqrt(r)`; absent if there is none. Reads from the device once.
pub fn orthonormality_defect<M: Module>(model: &M, trainable: &[Trainable]) -> Option<f64> {
    struct Defects<'a> {
        trainable: &'a [Trainable],
        found: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Defects<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(stiefel) = stiefel_of(self.trainable, param.id) else { return };
            let shape = param.lazy_shape();
            let factor: Tensor<2> = param.base().without_autodiff().reshape([shape[0], shape[1]]);
            let x = stiefel.columns(factor.cast(FloatDType::F32));
            let rank = x.dims()[1] as f64;
            self.found.push(missing(&x).square().sum().sqrt() / rank.sqrt());
        }
    }
    fn stiefel_of(trainable: &[Trainable], id: ParamId) -> Option<&Stiefel> {
        trainable.iter().find(|parameter| parameter.id == id)?.stiefel()
    }
    if trainable.iter().all(|parameter| parameter.stiefel().is_none()) {
        return None;
    }
    let mut defects = Defects { trainable, found: Vec::new() };
    model.visit(&mut defects);
    let mean = Tensor::cat(defects.found, 0).mean();
    Some(f64::from(mean.into_scalar::<f32>()))
}

/// `D - X sym(X^T D)`.
fn tangent(x: &Tensor<2>, direction: Tensor<2>) -> Tensor<2> {
    let product = x.clone().transpose().matmul(direction.clone());
    let symmetric = (product.clone() + product.transpose()) * 0.5;
    direction - x.clone().matmul(symmetric)
}

/// `Y^T Y`.
fn gram(y: &Tensor<2>) -> Tensor<2> {
    y.clone().transpose().matmul(y.clone())
}

/// `I - Y^T Y`.
fn missing(y: &Tensor<2>) -> Tensor<2> {
    let gram = gram(y);
    Tensor::<2>::eye(gram.dims()[0], &gram.device()) - gram
}

fn retracted(y: Tensor<2>, retraction: Retraction) -> Tensor<2> {
    match retraction {
        Retraction::None => y,
        Retraction::Polar => {
            let x = by_gram(y, inverse_square_root);
            // What f32 left of the Gram matrix's error, to the first order.
            let correction = x.clone().matmul(missing(&x)) * 0.5;
            x + correction
        }
        // Twice, as Cholesky QR is exact only for columns that are nearly orthonormal.
        Retraction::Qr => by_gram(by_gram(y, inverse_cholesky_factor), inverse_cholesky_factor),
        Retraction::NewtonSchulz => newton_schulz(y),
    }
}

/// `Y M`, with `M` made of the Gram matrix of `Y` on the host. If the columns of `Y` depend on each other, they become any orthonormal
/// ones that span at least the same space; numbers that are not finite stay as they are.
fn by_gram(y: Tensor<2>, factor: fn(MatRef<'_, f64>) -> Option<Mat<f64>>) -> Tensor<2> {
    let small = HostTensor::from_tensor(gram(&y));
    let rank = small.shape[0];
    let small = Mat::from_fn(rank, rank, |i, j| {
        (f64::from(small.values[i * rank + j]) + f64::from(small.values[j * rank + i])) / 2.0
    });
    let device = y.device();
    let Some(factor) = factor(small.as_ref()) else {
        let host = HostTensor::from_tensor(y.clone());
        return match leading_qr("a factor", host.matrix(), rank) {
            Ok(qr) => HostTensor::from_matrix(qr.q.as_ref()).to_tensor(&device),
            Err(_) => y,
        };
    };
    let factor = Mat::from_fn(rank, rank, |i, j| factor[(i, j)] as f32);
    y.matmul(HostTensor::from_matrix(factor.as_ref()).to_tensor(&device))
}

fn newton_schulz(mut y: Tensor<2>) -> Tensor<2> {
    /// A step squares the error: from below this one, it ends below the rounding errors of f32.
    const LAST: f32 = 3e-4;
    /// Each step multiplies a small singular value by 1.5.
    const STEPS: usize = 60;
    for step in 0..STEPS {
        let mut missing = missing(&y);
        let mut norm = missing.clone().square().sum().sqrt().into_scalar::<f32>();
        if step == 0 && norm > 0.5 {
            // The iteration is sure to converge if no singular value is larger than 1.
            let largest = gram(&y).square().sum().sqrt().sqrt().into_scalar::<f32>();
            if !(largest.is_finite() && largest > 0.0) {
                return y;
            }
            y = y / largest;
            missing = self::missing(&y);
            norm = f32::INFINITY;
        }
        if norm.is_nan() {
            return y;
        }
        y = y.clone() + y.matmul(missing) * 0.5;
        if norm < LAST {
            break;
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    const FORMS: [Retraction; 3] = [Retraction::Polar, Retraction::Qr, Retraction::NewtonSchulz];

    fn manifold(vectors: Vectors, retraction: Retraction, metric: Metric) -> Stiefel {
        let steps =
            OrthonormalSteps { retraction, every: 1, metric, transport: Transport::Projected, scaled_by_width: false };
        Stiefel { vectors, steps, step_factor: 1.0 }
    }

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    /// `||X^T X - I||_F / sqrt(r)` in f64.
    fn defect(x: &Tensor<2>) -> f64 {
        let host = HostTensor::from_tensor(x.clone());
        sorsa_linalg::spectral::relative_orthonormality_defect(host.matrix())
    }

    fn difference(a: &Tensor<2>, b: &Tensor<2>) -> f32 {
        (a.clone() - b.clone()).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn every_retraction_ends_on_the_manifold_from_near_and_from_far() {
        for [d, r] in [[40, 8], [8, 8], [576, 128], [300, 16], [9, 1]] {
            let start = retracted(random([d, r]), Retraction::Qr);
            for size in [0.0, 1e-3, 0.05, 3.0] {
                for retraction in FORMS {
                    for vectors in [Vectors::Columns, Vectors::Rows] {
                        let stiefel = manifold(vectors, retraction, Metric::Embedded);
                        let (point, moved) = (start.clone(), start.clone() + random([d, r]) * size);
                        let after = stiefel.step(&stiefel.columns(point), stiefel.columns(moved), 1);
                        let found = defect(&stiefel.columns(after));
                        assert!(found <= 1e-6, "{retraction:?} {vectors:?} [{d}, {r}] size {size}: {found}");
                    }
                }
            }
        }
    }

    #[test]
    fn polar_and_newton_schulz_are_the_orthonormal_factor_of_the_svd_and_qr_is_q() {
        let y = random([30, 6]);
        let host = HostTensor::from_tensor(y.clone());
        let wide = Mat::from_fn(30, 6, |i, j| f64::from(host.matrix()[(i, j)]));
        let svd = wide.thin_svd().unwrap();
        let expected = svd.U() * svd.V().transpose();
        for retraction in [Retraction::Polar, Retraction::NewtonSchulz] {
            let found = HostTensor::from_tensor(retracted(y.clone(), retraction));
            let worst = (0..30).flat_map(|i| (0..6).map(move |j| (i, j)));
            let worst =
                worst.map(|(i, j)| (f64::from(found.matrix()[(i, j)]) - expected[(i, j)]).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-5, "{retraction:?}: {worst}");
        }
        let q = leading_qr("y", host.matrix(), 6).unwrap().q;
        let q = HostTensor::from_matrix(q.as_ref()).to_tensor::<2>(&Device::flex());
        assert!(difference(&retracted(y, Retraction::Qr), &q) < 1e-5);
    }

    #[test]
    fn gradients_are_tangent_and_retractions_agree_with_the_step_to_first_order() {
        let x = retracted(random([20, 5]), Retraction::Polar);
        for metric in [Metric::Embedded, Metric::Canonical] {
            let stiefel = manifold(Vectors::Columns, Retraction::Polar, metric);
            let g = stiefel.gradient(&x, random([20, 5]));
            let product = x.clone().transpose().matmul(g.clone());
            let normal = product.clone() + product.transpose();
            assert!(normal.abs().max().into_scalar::<f32>() < 1e-5, "{metric:?}");
            // A tangent direction is its own projection.
            let again = stiefel.transport(&x, g.clone()).unwrap();
            assert!(difference(&again, &g) < 1e-5, "{metric:?}");
            for retraction in FORMS {
                let after = manifold(Vectors::Columns, retraction, metric).step(&x, x.clone() - g.clone() * 1e-3, 1);
                let first_order = x.clone() - g.clone() * 1e-3;
                assert!(difference(&after, &first_order) < 1e-4, "{retraction:?}");
            }
        }
    }

    #[test]
    fn between_retractions_a_step_is_tangent_and_the_next_retraction_repairs_what_is_left() {
        let mut stiefel = manifold(Vectors::Columns, Retraction::NewtonSchulz, Metric::Embedded);
        stiefel.steps.every = 3;
        let mut x = retracted(random([50, 4]), Retraction::Polar);
        for step in 1..=3 {
            x = stiefel.step(&x, x.clone() + random([50, 4]) * 0.01, step);
            assert_eq!(defect(&x) <= 1e-6, step == 3, "step {step}: {}", defect(&x));
        }
    }

    #[test]
    fn dependent_columns_are_repaired_and_what_is_not_finite_stays_so() {
        let dependent = random([12, 1]).repeat_dim(1, 3);
        for retraction in [Retraction::Polar, Retraction::Qr] {
            assert!(defect(&retracted(dependent.clone(), retraction)) < 1e-6, "{retraction:?}");
        }
        let broken = dependent.mask_fill(random([12, 3]).greater_elem(1.0), f32::NAN);
        for retraction in FORMS {
            assert!(retracted(broken.clone(), retraction).sum().into_scalar::<f32>().is_nan(), "{retraction:?}");
        }
    }
}
