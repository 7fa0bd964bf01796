//! Gradients of one optimizer step: the loss of micro-batches, summed, and the global norm.

use burn::module::{ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_data::Batch;
use sorsa_models::{CausalLm, ModelInput};

use crate::config::LossNormalization;

/// Loss and gradients of one optimizer step, before clipping.
pub(crate) struct StepGradients {
    pub gradients: GradientsParams,
    /// The normalised loss, one element, still on the device.
    pub loss: Tensor<1>,
}

/// The model's view of a batch.
pub(crate) fn model_input(batch: &Batch) -> ModelInput<'_> {
    ModelInput {
        rows: batch.rows,
        len: batch.len,
        input_ids: &batch.input_ids,
        positions: &batch.positions,
        segments: &batch.segments,
    }
}

/// Runs forward and backward of every micro-batch. Nothing where no batch has a target.
pub(crate) fn step_gradients(
    model: &CausalLm,
    batches: &[Batch],
    normalization: LossNormalization,
) -> Option<StepGradients> {
    let targets: usize = batches.iter().map(Batch::target_tokens).sum();
    let mut accumulator = GradientsAccumulator::new();
    let mut total: Option<Tensor<1>> = None;
    for batch in batches {
        let Some(sum) = model.loss_sum(&model_input(batch), &batch.targets) else { continue };
        let divisor = match normalization {
            LossNormalization::Step => targets,
            LossNormalization::MicroBatch => batches.len() * batch.target_tokens(),
        };
        let loss = sum / divisor as f64;
        let value = loss.clone().inner();
        total = Some(match total {
            Some(total) => total + value,
            None => value,
        });
        let gradients = GradientsParams::from_grads(loss.backward(), model);
        accumulator.accumulate(model, gradients);
    }
    Some(StepGradients { gradients: accumulator.grads(), loss: total? })
}

/// The global norm of all gradients, one element, on the device.
pub(crate) fn global_norm<M: Module>(model: &M, gradients: &GradientsParams) -> Option<Tensor<1>> {
    struct Sum<'a> {
        gradients: &'a GradientsParams,
        squares: Option<Tensor<1>>,
    }
    impl ModuleVisitor for Sum<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(gradient) = self.gradients.get::<D>(param.id) else { return };
            let square = gradient.cast(FloatDType::F32).square().sum();
            self.squares = Some(match self.squares.take() {
                Some(sum) => sum + square,
                None => square,
            });
        }
    }
    let mut sum = Sum { gradients, squares: None };
    model.visit(&mut sum);
    sum.squares.map(Tensor::sqrt)
}

/// Multiplies every gradient by `factor`.
pub(crate) fn scale<M: Module>(model: &M, gradients: GradientsParams, factor: f64) -> GradientsParams {
    struct Scale {
        gradients: GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Scale {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register::<D>(param.id, gradient * self.factor);
            }
        }
    }
    let mut scale = Scale { gradients, factor };
    model.visit(&mut scale);
    scale.gradients
}
