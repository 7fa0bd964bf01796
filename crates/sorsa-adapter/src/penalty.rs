//! Terms that a method adds to the loss: of its own, with weights among the method's settings. Their gradients have closed forms:
//!
//! ```text
//! squares        weight * sum s^2              gradient 2 weight s
//! orthonormal    weight * ||U^T U - I||_F      gradient 2 weight U G / ||G||_F,   G = U^T U - I
//! ```
//!
//! SORSA's regularizer is another one: a setting of training, with a schedule, that enters beside the optimizer's step.

use std::collections::BTreeMap;

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::factors::Vectors;
use crate::{AdapterConfig, Trainable};

/// A term of the loss, of one factor of every adapted weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Penalty {
    /// Its weight in the loss.
    pub weight: f64,
    pub term: PenaltyTerm,
}

/// What a penalty is small for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PenaltyTerm {
    /// Small numbers.
    Squares,
    /// Orthonormal vectors.
    Orthonormal(Vectors),
}

/// The norm below which `G` is rounding noise without a direction, for each vector.
const FLOOR: f64 = 32.0 * f32::EPSILON as f64;

impl Penalty {
    /// The gradient of the term at `factor`, f32.
    fn gradient<const D: usize>(self, factor: Tensor<D>) -> Tensor<D> {
        let factor = factor.cast(FloatDType::F32);
        let vectors = match self.term {
            PenaltyTerm::Squares => return factor * (2.0 * self.weight),
            PenaltyTerm::Orthonormal(vectors) => vectors,
        };
        let shape = factor.dims();
        let matrix: Tensor<2> = factor.reshape([shape[0], shape[1]]);
        let rows = match vectors {
            Vectors::Rows => matrix,
            Vectors::Columns => matrix.transpose(),
        };
        let rank = rows.dims()[0];
        let defect = rows.clone().matmul(rows.clone().transpose()) - Tensor::eye(rank, &rows.device());
        let norm = defect.clone().square().sum().sqrt();
        let none = norm.clone().lower_equal_elem(FLOOR * (rank as f64).sqrt());
        let factor = norm.recip().mask_fill(none, 0.0) * (2.0 * self.weight);
        let gradient = defect.matmul(rows) * factor.unsqueeze();
        let gradient = match vectors {
            Vectors::Rows => gradient,
            Vectors::Columns => gradient.transpose(),
        };
        gradient.reshape(shape)
    }
}

/// Adds the gradients of the method's own terms of the loss, if it has any, to those of the loss.
pub fn add_penalties<M: Module>(
    model: &M,
    config: &AdapterConfig,
    trainable: &[Trainable],
    gradients: &mut GradientsParams,
) {
    struct Add<'a> {
        penalties: BTreeMap<ParamId, Penalty>,
        gradients: &'a mut GradientsParams,
    }
    impl ModuleVisitor for Add<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(penalty) = self.penalties.get(&param.id) else { return };
            let own = penalty.gradient(param.base().without_autodiff());
            let sum = match self.gradients.remove::<D>(param.id) {
                Some(gradient) => gradient + own,
                None => own,
            };
            self.gradients.register::<D>(param.id, sum);
        }
    }
    let penalty = |parameter: &Trainable| {
        // The name is `<module>.<method>.<factor>`.
        let mut parts = parameter.name.rsplitn(3, '.');
        let (factor, module) = (parts.next()?, parts.nth(1)?);
        let terms = config.method_config_at(module).penalties();
        let (_, penalty) = terms.into_iter().find(|(name, penalty)| *name == factor && penalty.weight > 0.0)?;
        Some((parameter.id, penalty))
    };
    let penalties: BTreeMap<ParamId, Penalty> = trainable.iter().filter_map(penalty).collect();
    if !penalties.is_empty() {
        model.visit(&mut Add { penalties, gradients });
    }
}
