//! The regularizer of SORSA, which keeps the vectors of factors orthonormal, and its form for other methods, which keeps
//! them orthogonal. Both have gradients in closed form.
//!
//! For a factor of SORSA, `U [d, r]` with vectors of length 1:
//!
//! ```text
//! G = U^T U - I
//! paper, author   ||G||_F      gradient 2 U G / ||G||_F   (0 where ||G||_F is below the rounding floor)
//! squared         ||G||_F^2    gradient 4 U G
//! ```
//!
//! The paper sums over all factors, the author's code takes their mean. Rows of `V^T` are treated like columns of `U`. It
//! costs two small products per factor and needs no tape.
//!
//! A method without singular values of their own has them in the lengths of its vectors: PiSSA starts at
//! `A = U sqrt(s)`, `B = sqrt(s) V^T`. Lengths of 1 would take the singular values away, and lengths like those at the start
//! would fix them, which SORSA trains. So the regularizer leaves the lengths free:
//!
//! ```text
//! G = A^T A - diag(A^T A)
//! ```
//!
//! `G` is 0 exactly if `A = U diag(a)` and `B = diag(b) V^T` with orthonormal `U` and `V`. Then `A B = U diag(a b) V^T`, the
//! same set of products that SORSA's regularizer has. The gradients are those above with this `G`. They follow the scale of
//! the vectors: a weight that suits SORSA is a start for a search, not a setting. [`Attached::keep_vectors_orthogonal`] puts
//! this regularizer on a model.

use std::collections::BTreeMap;

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

use crate::attach::Attached;
use crate::error::AdapterError;
use crate::factors::Vectors;
use crate::parameters::{ParameterGroup, Trainable};

/// The form of the regularizer. `G_k` is that of factor `k`.
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
    /// Mean over the factors of `||G||_F / sqrt(r)`; for vectors of free lengths, of `||G||_F / ||diag(A^T A)||_F`.
    pub mean_defect: f64,
    /// The largest of these.
    pub max_defect: f64,
}

/// Which vectors of a trained factor are regularized, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Regularized {
    pub vectors: Vectors,
    pub lengths: Lengths,
}

/// The lengths of regularized vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lengths {
    /// The vectors are to be orthonormal.
    One,
    /// The vectors are to be orthogonal.
    Free,
}

impl<M> Attached<M> {
    /// Puts the regularizer of orthogonal vectors on both factors of every adapted weight, for [`add_regularizer`] and
    /// [`regularizer_gradients`]. Without this call only SORSA's factors have a regularizer.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Config`] if the method does not train two factors or has a regularizer of its own.
    pub fn keep_vectors_orthogonal(&mut self) -> Result<(), AdapterError> {
        let faults: Vec<String> =
            self.state.config.methods().into_iter().filter_map(crate::Method::orthogonality_fault).collect();
        if !faults.is_empty() {
            return Err(AdapterError::Config { faults });
        }
        for parameter in self.trainable.iter_mut().filter(|parameter| parameter.group == ParameterGroup::Factor) {
            // `<module>.<method>.<factor>`
            let mut parts = parameter.name.rsplitn(3, '.');
            let (name, _) = (parts.next().unwrap_or_default(), parts.next());
            let method = self.state.config.method_at(parts.next().unwrap_or_default());
            let factor = method.factors().iter().find(|factor| factor.name == name);
            let vectors = factor.and_then(|factor| factor.vectors());
            parameter.regularized = vectors.map(|vectors| Regularized { vectors, lengths: Lengths::Free });
        }
        Ok(())
    }
}

/// The defect below which the gradient of the norm is rounding noise and taken as 0: some thirty units in the last place
/// of f32, which is what an SVD in f32 leaves.
const FLOOR: f64 = 32.0 * f32::EPSILON as f64;

/// What the regularizer finds for one factor, f32.
struct Term {
    /// `||G||_F`, one element.
    norm: Tensor<1>,
    /// `||diag(A^T A)||_F`, one element, if lengths are free. The defect is relative to it.
    size: Option<Tensor<1>>,
    /// The gradient of the form's term.
    gradient: Tensor<2>,
}

fn term(factor: Tensor<2>, regularized: Regularized, form: RegularizerForm) -> Term {
    let factor = factor.cast(FloatDType::F32);
    let gram = match regularized.vectors {
        Vectors::Columns => factor.clone().transpose().matmul(factor.clone()),
        Vectors::Rows => factor.clone().matmul(factor.clone().transpose()),
    };
    let rank = gram.dims()[0];
    let identity = Tensor::<2>::eye(rank, &factor.device());
    let (defect, size) = match regularized.lengths {
        Lengths::One => (gram - identity, None),
        Lengths::Free => {
            let diagonal = gram.clone() * identity;
            (gram - diagonal.clone(), Some(diagonal.square().sum().sqrt()))
        }
    };
    let product = match regularized.vectors {
        Vectors::Columns => factor.matmul(defect.clone()),
        Vectors::Rows => defect.clone().matmul(factor),
    };
    let norm = defect.square().sum().sqrt();
    let gradient = match form {
        RegularizerForm::Squared => product * 4.0,
        RegularizerForm::Paper | RegularizerForm::Author => {
            let (below, divisor) = match &size {
                None => {
                    let floor = FLOOR * (rank as f64).sqrt();
                    (norm.clone().lower_equal_elem(floor), norm.clone().clamp_min(floor))
                }
                Some(size) => {
                    // A factor that is 0, like LoRA's B at the start, has a norm of 0 and a floor of 0.
                    let below = norm.clone().lower_equal(size.clone() * FLOOR);
                    (below.clone(), norm.clone().mask_fill(below, 1.0))
                }
            };
            let factor = (divisor.recip() * 2.0).mask_fill(below, 0.0);
            product * factor.unsqueeze()
        }
    };
    Term { norm, size, gradient }
}

/// Visits the regularized factors of a model with their gradients from the form.
struct Terms<'a, F> {
    regularized: BTreeMap<ParamId, Regularized>,
    form: RegularizerForm,
    norms: Vec<Tensor<1>>,
    /// The sizes of factors whose vectors have free lengths: of all factors or of none.
    sizes: Vec<Tensor<1>>,
    ranks: Vec<usize>,
    receive: &'a mut F,
}

impl<F: FnMut(ParamId, Tensor<2>)> ModuleVisitor for Terms<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(regularized) = self.regularized.get(&param.id) else { return };
        let shape = param.lazy_shape();
        let factor: Tensor<2> = param.base().without_autodiff().reshape([shape[0], shape[1]]);
        self.ranks.push(if regularized.vectors == Vectors::Columns { shape[1] } else { shape[0] });
        let Term { norm, size, gradient } = term(factor, *regularized, self.form);
        self.norms.push(norm);
        self.sizes.extend(size);
        (self.receive)(param.id, gradient);
    }
}

/// Adds `weight` times the regularizer's gradient to `gradients`. The result is `None` if no factor is regularized. Reads
/// from the device once for all factors.
pub fn add_regularizer<M: Module>(
    model: &M,
    trainable: &[Trainable],
    form: RegularizerForm,
    weight: f64,
    gradients: &mut GradientsParams,
) -> Option<RegularizerStats> {
    let regularized = regularized(trainable);
    let share = share(form, regularized.len());
    visit(model, regularized, form, |id, gradient| {
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
    let regularized = regularized(trainable);
    let share = share(form, regularized.len());
    let mut gradients = BTreeMap::new();
    let stats = visit(model, regularized, form, |id, gradient| {
        gradients.insert(id, gradient * share);
    });
    (gradients, stats)
}

fn regularized(trainable: &[Trainable]) -> BTreeMap<ParamId, Regularized> {
    trainable.iter().filter_map(|parameter| Some((parameter.id, parameter.regularized?))).collect()
}

fn share(form: RegularizerForm, count: usize) -> f64 {
    match form {
        RegularizerForm::Author => 1.0 / count.max(1) as f64,
        RegularizerForm::Paper | RegularizerForm::Squared => 1.0,
    }
}

fn visit<M: Module, F: FnMut(ParamId, Tensor<2>)>(
    model: &M,
    regularized: BTreeMap<ParamId, Regularized>,
    form: RegularizerForm,
    mut receive: F,
) -> Option<RegularizerStats> {
    if regularized.is_empty() {
        return None;
    }
    let share = share(form, regularized.len());
    let receive = &mut receive;
    let mut terms = Terms { regularized, form, norms: Vec::new(), sizes: Vec::new(), ranks: Vec::new(), receive };
    model.visit(&mut terms);
    let Terms { norms, sizes, ranks, .. } = terms;
    let read = Tensor::cat(norms.into_iter().chain(sizes).collect(), 0).into_data().try_into_vec::<f32>().ok()?;
    let (norms, sizes) = read.split_at(ranks.len());
    let defect = |index: usize| match sizes.get(index) {
        None => f64::from(norms[index]) / (ranks[index] as f64).sqrt(),
        Some(0.0) => 0.0,
        Some(size) => f64::from(norms[index]) / f64::from(*size),
    };
    let defects: Vec<f64> = (0..norms.len()).map(defect).collect();
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

    const COLUMNS: Regularized = Regularized { vectors: Vectors::Columns, lengths: Lengths::One };

    /// The gradient by burn's tape, of the same equation.
    fn by_tape(factor: Tensor<2>, regularized: Regularized, form: RegularizerForm) -> Tensor<2> {
        let factor = Tensor::from_inner(factor).require_grad();
        let columns = regularized.vectors == Vectors::Columns;
        let wide = if columns { factor.clone().transpose() } else { factor.clone() };
        let rank = wide.dims()[0];
        let gram = wide.clone().matmul(wide.transpose());
        let identity = Tensor::<2>::eye(rank, &factor.device());
        let g = match regularized.lengths {
            Lengths::One => gram - identity,
            Lengths::Free => gram * (identity.ones_like() - identity),
        };
        let sum = g.square().sum();
        let loss = if form == RegularizerForm::Squared { sum } else { sum.sqrt() };
        factor.grad(&loss.backward()).unwrap()
    }

    #[test]
    fn closed_form_gradients_equal_the_tape() {
        let device = Device::flex();
        for (shape, vectors) in [([9, 4], Vectors::Columns), ([3, 7], Vectors::Rows)] {
            for lengths in [Lengths::One, Lengths::Free] {
                let regularized = Regularized { vectors, lengths };
                let drawn: Vec<f32> =
                    StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(1)).take(shape[0] * shape[1]).collect();
                let factor = Tensor::<2>::from_data(TensorData::new::<f32, _>(drawn, shape), &device) * 0.5;
                for form in [RegularizerForm::Paper, RegularizerForm::Squared] {
                    let gradient = term(factor.clone(), regularized, form).gradient;
                    let tape = by_tape(factor.clone(), regularized, form);
                    let difference = (gradient - tape).abs().max().into_scalar::<f32>();
                    assert!(difference < 1e-5, "{regularized:?} {form:?} {difference}");
                }
            }
        }
    }

    #[test]
    fn at_the_orthonormal_point_the_gradient_is_zero_not_noise() {
        let device = Device::flex();
        let u = Tensor::<2>::eye(5, &device).narrow(1, 0, 3) * (1.0 + 1e-7);
        let Term { norm, gradient, .. } = term(u, COLUMNS, RegularizerForm::Paper);
        assert!(norm.into_scalar::<f32>() < 1e-5);
        assert_eq!(gradient.abs().max().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn vectors_of_any_length_are_orthogonal_and_a_factor_of_zeros_has_no_gradient() {
        let device = Device::flex();
        let free = Regularized { lengths: Lengths::Free, ..COLUMNS };
        let lengths = Tensor::<2>::from_data([[30.0, 1e-3, 2.0]], &device);
        let orthogonal = Tensor::<2>::eye(5, &device).narrow(1, 0, 3) * lengths;
        for factor in [orthogonal.clone(), orthogonal + 1e-7, Tensor::zeros([5, 3], &device)] {
            for form in [RegularizerForm::Paper, RegularizerForm::Squared] {
                let gradient = term(factor.clone(), free, form).gradient.abs().max().into_scalar::<f32>();
                assert!(
                    gradient < 1e-3 && (form == RegularizerForm::Squared || gradient == 0.0),
                    "{form:?} {gradient}"
                );
            }
        }
    }
}
