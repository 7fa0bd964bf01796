//! The regularizer of SORSA, which keeps the vectors of factors orthonormal, and its form for other methods, which keeps
//! them orthogonal. Both have gradients in closed form.
//!
//! For a factor of SORSA, `U [d, r]` with vectors of length 1:
//!
//! ```text
//! G = U^T U - I
//! paper, author   ||G||_F      gradient 2 U G / ||G||_F   (0 where ||G||_F is below the rounding floor)
//! squared         ||G||_F^2    gradient 4 U G
//! spectral        ||G||_2      gradient 2 U S, S = sign(l) q q^T of the eigenvalue l of G with the largest magnitude
//! nuclear         ||G||_*      gradient 2 U S, S = Q sign(L) Q^T of G = Q L Q^T
//! ```
//!
//! The paper sums over all factors, the author's code takes their mean. Rows of `V^T` are treated like columns of `U`. It
//! costs two small products per factor and needs no tape; the nuclear norm also takes an eigendecomposition `[r, r]` on the
//! host, the spectral norm one eigenpair (`spectrum.rs`). [`Probes`] make the first three cheaper (`probe.rs`).
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

mod exact;
mod probe;
mod spectrum;

use std::collections::BTreeMap;

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
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
    /// `sum_k ||G_k||_2`, the largest singular value of each.
    Spectral,
    /// `sum_k ||G_k||_*`, the sum of the singular values of each.
    Nuclear,
}

impl RegularizerForm {
    /// Whether random vectors can estimate the form.
    pub fn has_probes(self) -> bool {
        matches!(self, Self::Paper | Self::Author | Self::Squared)
    }
}

/// Random vectors that estimate the regularizer, in place of the whole `G`:
///
/// ```text
/// ||G||_F^2  is estimated by  1/p sum_i ||G z_i||^2,   z_i of independent numbers 1 and -1
/// ```
///
/// The estimate and its gradient are unbiased for the squared form. The other forms take the root of the estimate and the
/// gradient of this root, which are too small on average. `||G z||` takes products of a factor with vectors only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probes {
    /// How many vectors, at least 1.
    pub count: usize,
    /// The seed of their numbers.
    pub seed: u64,
}

/// A form of the regularizer, and whether it is computed or estimated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Regularizer {
    /// The form.
    pub form: RegularizerForm,
    /// The random vectors that estimate it; absent if it is computed. The spectral and the nuclear norm have no estimate.
    pub probes: Option<Probes>,
}

impl From<RegularizerForm> for Regularizer {
    fn from(form: RegularizerForm) -> Self {
        Self { form, probes: None }
    }
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

/// The regularized factors of a model, in its order, without autodiff.
fn factors<M: Module>(model: &M, trainable: &[Trainable]) -> Vec<(ParamId, Tensor<2>, Regularized)> {
    struct Collect {
        regularized: BTreeMap<ParamId, Regularized>,
        found: Vec<(ParamId, Tensor<2>, Regularized)>,
    }
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(regularized) = self.regularized.get(&param.id) else { return };
            let shape = param.lazy_shape();
            let factor: Tensor<2> = param.base().without_autodiff().reshape([shape[0], shape[1]]);
            self.found.push((param.id, factor, *regularized));
        }
    }
    let regularized = trainable.iter().filter_map(|parameter| Some((parameter.id, parameter.regularized?))).collect();
    let mut collect = Collect { regularized, found: Vec::new() };
    if !collect.regularized.is_empty() {
        model.visit(&mut collect);
    }
    collect.found
}

/// Adds `weight` times the regularizer's gradient to `gradients`. The result is `None` if no factor is regularized. Reads
/// from the device once for all factors; the spectral and the nuclear norm also read `G` of each.
pub fn add_regularizer<M: Module>(
    model: &M,
    trainable: &[Trainable],
    regularizer: impl Into<Regularizer>,
    weight: f64,
    gradients: &mut GradientsParams,
) -> Option<RegularizerStats> {
    let regularizer = regularizer.into();
    let factors = factors(model, trainable);
    let share = share(regularizer.form, factors.len());
    measure(factors, regularizer, |id, gradient| {
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
    regularizer: impl Into<Regularizer>,
) -> (BTreeMap<ParamId, Tensor<2>>, Option<RegularizerStats>) {
    let regularizer = regularizer.into();
    let factors = factors(model, trainable);
    let share = share(regularizer.form, factors.len());
    let mut gradients = BTreeMap::new();
    let stats = measure(factors, regularizer, |id, gradient| {
        gradients.insert(id, gradient * share);
    });
    (gradients, stats)
}

fn share(form: RegularizerForm, count: usize) -> f64 {
    match form {
        RegularizerForm::Author => 1.0 / count.max(1) as f64,
        _ => 1.0,
    }
}

/// Gives the gradient of each factor to `receive`, and measures all of them.
fn measure(
    factors: Vec<(ParamId, Tensor<2>, Regularized)>,
    Regularizer { form, probes }: Regularizer,
    mut receive: impl FnMut(ParamId, Tensor<2>),
) -> Option<RegularizerStats> {
    if factors.is_empty() {
        return None;
    }
    let share = share(form, factors.len());
    let mut values = Vec::new();
    let mut spectra = match form.has_probes() {
        true => Vec::new(),
        false => {
            let factors: Vec<_> =
                factors.iter().map(|(_, factor, regularized)| (factor.clone(), *regularized)).collect();
            spectrum::spectra(&factors, form)
        }
    }
    .into_iter();
    let mut probes = probes.map(|Probes { count, seed }| (count, ChaCha8Rng::seed_from_u64(seed)));
    // The sizes of factors whose vectors have free lengths: of all factors or of none.
    let (mut norms, mut sizes, mut ranks) = (Vec::new(), Vec::new(), Vec::new());
    for (id, factor, regularized) in factors {
        let rank = factor.dims()[if regularized.vectors == Vectors::Columns { 1 } else { 0 }];
        let Term { norm, size, gradient } = match (spectra.next(), &mut probes) {
            (Some(spectrum), _) => {
                values.push(spectrum.value);
                spectrum.term(factor, regularized)
            }
            (None, Some((count, generator))) => {
                let z = probe::draw(rank, *count, generator, &factor.device());
                probe::term(factor, regularized, form, z)
            }
            (None, None) => exact::term(factor, regularized, form),
        };
        norms.push(norm);
        sizes.extend(size);
        ranks.push(rank);
        receive(id, gradient);
    }
    let read = Tensor::cat(norms.into_iter().chain(sizes).collect(), 0).into_data().try_into_vec::<f32>().ok()?;
    let (norms, sizes) = read.split_at(ranks.len());
    let defect = |index: usize| match sizes.get(index) {
        None => f64::from(norms[index]) / (ranks[index] as f64).sqrt(),
        Some(0.0) => 0.0,
        Some(size) => f64::from(norms[index]) / f64::from(*size),
    };
    let defects: Vec<f64> = (0..norms.len()).map(defect).collect();
    let norms = norms.iter().map(|norm| f64::from(*norm));
    let value: f64 = match form {
        RegularizerForm::Squared => norms.map(|norm| norm * norm).sum(),
        RegularizerForm::Paper | RegularizerForm::Author => norms.sum(),
        RegularizerForm::Spectral | RegularizerForm::Nuclear => values.into_iter().sum(),
    };
    Some(RegularizerStats {
        value: value * share,
        mean_defect: defects.iter().sum::<f64>() / defects.len() as f64,
        max_defect: defects.iter().copied().fold(0.0, f64::max),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::exact::term;
    use super::*;
    use rand_distr::{Distribution, StandardNormal};

    const COLUMNS: Regularized = Regularized { vectors: Vectors::Columns, lengths: Lengths::One };

    /// Numbers of a normal distribution.
    pub(super) fn drawn(shape: [usize; 2], seed: u64) -> Tensor<2> {
        let numbers = StandardNormal.sample_iter(ChaCha8Rng::seed_from_u64(seed));
        let numbers: Vec<f32> = numbers.take(shape[0] * shape[1]).collect();
        Tensor::from_data(TensorData::new(numbers, shape), &Device::flex())
    }

    /// Shapes of factors with both kinds of vectors and of lengths.
    pub(super) fn every_side() -> Vec<([usize; 2], Regularized)> {
        let sides = [([9, 4], Vectors::Columns), ([3, 7], Vectors::Rows)];
        let both = [Lengths::One, Lengths::Free];
        sides
            .iter()
            .flat_map(|(shape, vectors)| both.map(|lengths| (*shape, Regularized { vectors: *vectors, lengths })))
            .collect()
    }

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
        for (shape, regularized) in every_side() {
            let factor = drawn(shape, 1) * 0.5;
            for form in [RegularizerForm::Paper, RegularizerForm::Squared] {
                let gradient = term(factor.clone(), regularized, form).gradient;
                let tape = by_tape(factor.clone(), regularized, form);
                let difference = (gradient - tape).abs().max().into_scalar::<f32>();
                assert!(difference < 1e-5, "{regularized:?} {form:?} {difference}");
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

    #[test]
    fn values_and_gradients_of_every_form_are_those_of_pytorch() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/optimizers/regularizer.json");
        let cases: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let floats = |value: &serde_json::Value| -> Vec<f32> {
            value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
        };
        assert_eq!(cases.len(), 16);
        for case in cases {
            let shape = [0, 1].map(|side| case["shape"][side].as_u64().unwrap() as usize);
            let vectors = if shape[0] > shape[1] { Vectors::Columns } else { Vectors::Rows };
            let lengths = if case["lengths"] == "one" { Lengths::One } else { Lengths::Free };
            let form: RegularizerForm = serde_json::from_value(case["form"].clone()).unwrap();
            let factor = Tensor::<2>::from_data(TensorData::new(floats(&case["factor"]), shape), &Device::flex());
            let mut gradient: Vec<f32> = Vec::new();
            let factors = vec![(ParamId::new(), factor, Regularized { vectors, lengths })];
            let stats = measure(factors, form.into(), |_, found| gradient = found.into_data().try_into_vec().unwrap());
            let (value, expected) = (stats.unwrap().value, case["value"].as_f64().unwrap());
            assert!((value - expected).abs() < 1e-5 * expected, "{form:?}: {value}, expected {expected}");
            for (found, expected) in gradient.iter().zip(floats(&case["gradient"])) {
                let difference: f32 = found - expected;
                assert!(difference.abs() < 1e-5, "{form:?} {lengths:?}: {found}, expected {expected}");
            }
        }
    }
}
