//! The orthonormal regularizer of SORSA, with its gradient in closed form.
//!
//! For a factor with orthonormal columns `U [d, r]` and `G = U^T U - I`:
//!
//! ```text
//! paper, author   ||G||_F      gradient 2 U G / ||G||_F   (0 where ||G||_F is below the rounding floor)
//! squared         ||G||_F^2    gradient 4 U G
//! ```
//!
//! The paper sums over all factors, the author's code takes their mean. Rows of `V^T` are treated like columns of `U`. It
//! costs two small products per factor and needs no tape.

use std::collections::BTreeMap;

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

use crate::factors::Orthonormal;
use crate::parameters::Trainable;

/// The form of the regularizer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegularizerForm {
    /// `sum_k ||G_k||_F`, the paper's equation.
    #[default]
    Paper,
    /// `mean_k ||G_k||_F`, the author's code.
    Author,
    /// `sum_k ||G_k||_F^2`.
    Squared,
}

/// The regularizer's value and the defects of the factors in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RegularizerStats {
    /// `L_reg` in the chosen form.
    pub value: f64,
    /// Mean over the factors of `||G||_F / sqrt(r)`.
    pub mean_defect: f64,
    /// The largest `||G||_F / sqrt(r)`.
    pub max_defect: f64,
}

/// `||G||_F / sqrt(r)` below which the gradient of the norm is rounding noise and taken as 0: some thirty units in
/// the last place of f32, which is what an SVD in f32 leaves.
const FLOOR: f64 = 32.0 * f32::EPSILON as f64;

/// `||G||_F` as a tensor of one element, and the gradient of the form's term for one factor, both f32.
fn term(factor: Tensor<2>, side: Orthonormal, form: RegularizerForm) -> (Tensor<1>, Tensor<2>) {
    let factor = factor.cast(FloatDType::F32);
    let rank = match side {
        Orthonormal::Columns => factor.dims()[1],
        Orthonormal::Rows => factor.dims()[0],
    };
    let identity = Tensor::<2>::eye(rank, &factor.device());
    let (defect, product) = match side {
        Orthonormal::Columns => {
            let g = factor.clone().transpose().matmul(factor.clone()) - identity;
            (g.clone(), factor.matmul(g))
        }
        Orthonormal::Rows => {
            let g = factor.clone().matmul(factor.clone().transpose()) - identity;
            (g.clone(), g.matmul(factor))
        }
    };
    let norm = defect.square().sum().sqrt();
    let gradient = match form {
        RegularizerForm::Squared => product * 4.0,
        RegularizerForm::Paper | RegularizerForm::Author => {
            let floor = FLOOR * (rank as f64).sqrt();
            let below = norm.clone().lower_equal_elem(floor);
            let factor = (norm.clone().clamp_min(floor).recip() * 2.0).mask_fill(below, 0.0);
            product * factor.unsqueeze()
        }
    };
    (norm, gradient)
}

/// Visits the orthonormal factors of a model with their gradients from the form.
struct Terms<'a, F> {
    sides: BTreeMap<ParamId, Orthonormal>,
    form: RegularizerForm,
    norms: Vec<(Tensor<1>, usize)>,
    receive: &'a mut F,
}

impl<F: FnMut(ParamId, Tensor<2>)> ModuleVisitor for Terms<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(side) = self.sides.get(&param.id) else { return };
        let shape = param.lazy_shape();
        let factor: Tensor<2> = param.base().without_autodiff().reshape([shape[0], shape[1]]);
        let rank = if *side == Orthonormal::Columns { shape[1] } else { shape[0] };
        let (norm, gradient) = term(factor, *side, self.form);
        self.norms.push((norm, rank));
        (self.receive)(param.id, gradient);
    }
}

/// Adds `weight` times the regularizer's gradient to `gradients`. The result is `None` if the model has no orthonormal
/// factor. Reads from the device once for all factors.
pub fn add_regularizer<M: Module>(
    model: &M,
    trainable: &[Trainable],
    form: RegularizerForm,
    weight: f64,
    gradients: &mut GradientsParams,
) -> Option<RegularizerStats> {
    let sides = sides(trainable);
    let count = sides.len();
    let share = share(form, count);
    visit(model, sides, form, |id, gradient| {
        if weight == 0.0 {
            return;
        }
        let sum = match gradients.remove::<2>(id) {
            Some(task) => task + gradient * (weight * share),
            None => gradient * (weight * share),
        };
        gradients.register::<2>(id, sum);
    })
}

/// The gradients of the regularizer by parameter, for the decoupled update `U <- U - gamma_t grad L_reg`.
pub fn regularizer_gradients<M: Module>(
    model: &M,
    trainable: &[Trainable],
    form: RegularizerForm,
) -> (BTreeMap<ParamId, Tensor<2>>, Option<RegularizerStats>) {
    let sides = sides(trainable);
    let share = share(form, sides.len());
    let mut gradients = BTreeMap::new();
    let stats = visit(model, sides, form, |id, gradient| {
        gradients.insert(id, gradient * share);
    });
    (gradients, stats)
}

fn sides(trainable: &[Trainable]) -> BTreeMap<ParamId, Orthonormal> {
    trainable.iter().filter_map(|parameter| Some((parameter.id, parameter.orthonormal?))).collect()
}

fn share(form: RegularizerForm, count: usize) -> f64 {
    match form {
        RegularizerForm::Author => 1.0 / count.max(1) as f64,
        RegularizerForm::Paper | RegularizerForm::Squared => 1.0,
    }
}

fn visit<M: Module, F: FnMut(ParamId, Tensor<2>)>(
    model: &M,
    sides: BTreeMap<ParamId, Orthonormal>,
    form: RegularizerForm,
    mut receive: F,
) -> Option<RegularizerStats> {
    if sides.is_empty() {
        return None;
    }
    let share = share(form, sides.len());
    let mut terms = Terms { sides, form, norms: Vec::new(), receive: &mut receive };
    model.visit(&mut terms);
    let (norms, ranks): (Vec<_>, Vec<_>) = terms.norms.into_iter().unzip();
    let norms = Tensor::cat(norms, 0).into_data().try_into_vec::<f32>().ok()?;
    let defects: Vec<f64> =
        norms.iter().zip(&ranks).map(|(norm, rank)| f64::from(*norm) / (*rank as f64).sqrt()).collect();
    let value = norms.iter().map(|norm| f64::from(*norm)).map(|norm| match form {
        RegularizerForm::Squared => norm * norm,
        RegularizerForm::Paper | RegularizerForm::Author => norm,
    });
    Some(RegularizerStats {
        value: value.sum::<f64>() * share,
        mean_defect: defects.iter().sum::<f64>() / defects.len() as f64,
        max_defect: defects.iter().copied().fold(0.0, f64::max),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;
    use rand_distr::{Distribution, StandardNormal};

    /// The gradient by burn's tape, of the same equation.
    fn by_tape(factor: Tensor<2>, side: Orthonormal, form: RegularizerForm) -> Tensor<2> {
        let factor = Tensor::from_inner(factor).require_grad();
        let wide = if side == Orthonormal::Columns { factor.clone().transpose() } else { factor.clone() };
        let rank = wide.dims()[0];
        let g = wide.clone().matmul(wide.transpose()) - Tensor::eye(rank, &factor.device());
        let sum = g.square().sum();
        let loss = if form == RegularizerForm::Squared { sum } else { sum.sqrt() };
        factor.grad(&loss.backward()).unwrap()
    }

    #[test]
    fn closed_form_gradients_equal_the_tape() {
        let device = Device::flex();
        for (shape, side) in [([9, 4], Orthonormal::Columns), ([3, 7], Orthonormal::Rows)] {
            let drawn: Vec<f32> =
                StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(1)).take(shape[0] * shape[1]).collect();
            let factor = Tensor::<2>::from_data(TensorData::new::<f32, _>(drawn, shape), &device) * 0.5;
            for form in [RegularizerForm::Paper, RegularizerForm::Squared] {
                let (_, gradient) = term(factor.clone(), side, form);
                let difference = (gradient - by_tape(factor.clone(), side, form)).abs().max().into_scalar::<f32>();
                assert!(difference < 1e-5, "{side:?} {form:?} {difference}");
            }
        }
    }

    #[test]
    fn at_the_orthonormal_point_the_gradient_is_zero_not_noise() {
        let device = Device::flex();
        let u = Tensor::<2>::eye(5, &device).narrow(1, 0, 3) * (1.0 + 1e-7);
        let (norm, gradient) = term(u, Orthonormal::Columns, RegularizerForm::Paper);
        assert!(norm.into_scalar::<f32>() < 1e-5);
        assert_eq!(gradient.abs().max().into_scalar::<f32>(), 0.0);
    }
}
