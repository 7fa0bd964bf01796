//! Gradients of one optimizer step: summed over micro-batches, with their global norm.

use std::collections::BTreeSet;

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::FloatDType;
use sorsa_adapter::Trainable;
use sorsa_models::{ActivationFormat, Pass, mixed_seed};

use crate::config::LossNormalization;
use crate::trainable::{TrainableModel, TrainingBatch};

/// Loss and gradients of one optimizer step, before clipping.
pub(crate) struct StepGradients {
    pub gradients: GradientsParams,
    /// The normalised loss, one element, still on the device.
    pub loss: Tensor<1>,
}

/// Runs forward and backward of every micro-batch; dropout depends on `seed` and the micro-batch's index. Returns nothing
/// if no batch has a target.
pub(crate) fn step_gradients<M: TrainableModel>(
    model: &M,
    batches: &[M::Batch],
    normalization: LossNormalization,
    seed: u64,
    checkpoint_blocks: bool,
    activations: ActivationFormat,
) -> Option<StepGradients> {
    let targets: usize = batches.iter().map(TrainingBatch::targets).sum();
    let mut accumulator = GradientsAccumulator::new();
    let mut total: Option<Tensor<1>> = None;
    for (index, batch) in batches.iter().enumerate() {
        let divisor = match normalization {
            LossNormalization::Step => targets,
            LossNormalization::MicroBatch => batches.len() * batch.targets(),
        };
        let seed = mixed_seed(seed, index as u64);
        let pass = Pass { divisor: divisor as f64, seed, checkpoint_blocks, activations };
        let Some((value, gradients)) = model.batch_gradients(batch, &pass) else {
            continue;
        };
        total = Some(match total {
            Some(total) => total + value,
            None => value,
        });
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

/// The sum of all trained parameters, one element on the device: NaN or infinite if one of them is, and if the sum of
/// finite ones leaves the range of f32. It reads each number once, where the optimizer's update makes some ten passes.
pub(crate) fn parameter_sum<M: Module>(model: &M, trainable: &[Trainable]) -> Option<Tensor<1>> {
    struct Sum {
        trained: BTreeSet<ParamId>,
        sum: Option<Tensor<1>>,
    }
    impl ModuleVisitor for Sum {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.trained.contains(&param.id) {
                return;
            }
            let part = param.base().without_autodiff().sum().cast(FloatDType::F32);
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + part,
                None => part,
            });
        }
    }
    let mut sum = Sum { trained: trainable.iter().map(|parameter| parameter.id).collect(), sum: None };
    model.visit(&mut sum);
    sum.sum
}

/// What clipping does with every number of a gradient.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clipping {
    /// Multiplies it.
    Scale(f64),
    /// Takes the nearest number of at most this magnitude.
    Limit(f64),
}

/// The gradients after `clipping`.
pub(crate) fn clip<M: Module>(model: &M, gradients: GradientsParams, clipping: Clipping) -> GradientsParams {
    struct Clip {
        gradients: GradientsParams,
        clipping: Clipping,
    }
    impl ModuleVisitor for Clip {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                let clipped = match self.clipping {
                    Clipping::Scale(factor) => gradient * factor,
                    Clipping::Limit(limit) => gradient.clamp(-limit, limit),
                };
                self.gradients.register::<D>(param.id, clipped);
            }
        }
    }
    let mut clip = Clip { gradients, clipping };
    model.visit(&mut clip);
    clip.gradients
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use burn::module::ParamId;
    use sorsa_adapter::{AdapterConfig, Method};
    use sorsa_data::{Batch, BatchOptions, Batcher, Example};
    use sorsa_models::{CausalLm, ModelConfig};

    use super::*;

    fn model() -> CausalLm {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 11, "max_position_embeddings": 32, "initializer_range": 0.3,
        });
        let model = CausalLm::init(&ModelConfig::parse(config.as_object().unwrap().clone()).unwrap(), &Device::flex());
        AdapterConfig::new(Method::Full, 1, &[]).attach(model, &Default::default()).unwrap().model.train()
    }

    /// Six sequences with 1 to 6 targets, in batches of `batch_size`.
    fn batches(batch_size: usize) -> Vec<Batch> {
        let example = |row: usize| Example {
            ids: (0..8).map(|i| ((row * 3 + i * i) % 11) as u32).collect(),
            target_mask: (0..8).map(|i| i > 6 - row).collect(),
            row,
            truncated: false,
        };
        let options = BatchOptions { batch_size, shuffle: false, ..BatchOptions::default() };
        let batcher = Batcher::new(Arc::new((0..6).map(example).collect()), options).unwrap();
        (0..batcher.batches_per_epoch(0)).map(|index| batcher.batch(0, index)).collect()
    }

    /// Loss and gradients on the host.
    fn step(
        model: &CausalLm,
        batch_size: usize,
        normalization: LossNormalization,
    ) -> (f32, BTreeMap<ParamId, Vec<f32>>) {
        let StepGradients { gradients, loss } =
            step_gradients(model, &batches(batch_size), normalization, 0, false, ActivationFormat::F32).unwrap();
        (loss.into_scalar::<f32>(), on_host(model, &gradients))
    }

    fn on_host(model: &CausalLm, gradients: &GradientsParams) -> BTreeMap<ParamId, Vec<f32>> {
        struct Collect<'a> {
            gradients: &'a GradientsParams,
            found: BTreeMap<ParamId, Vec<f32>>,
        }
        impl ModuleVisitor for Collect<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let gradient = self.gradients.get::<D>(param.id).unwrap();
                self.found.insert(param.id, gradient.into_data().try_into_vec::<f32>().unwrap());
            }
        }
        let mut collect = Collect { gradients, found: BTreeMap::new() };
        model.visit(&mut collect);
        collect.found
    }

    fn distance(a: &BTreeMap<ParamId, Vec<f32>>, b: &BTreeMap<ParamId, Vec<f32>>) -> f32 {
        let pairs = a.iter().flat_map(|(id, values)| values.iter().zip(&b[id]));
        let differences = pairs.map(|(a, b)| (a - b).abs());
        differences.fold(0f32, |worst, d| if worst.is_nan() || d <= worst { worst } else { d })
    }

    #[test]
    fn micro_batches_with_unequal_numbers_of_targets_give_loss_and_gradient_of_the_large_batch() {
        let model = model();
        let (loss, gradients) = step(&model, 6, LossNormalization::Step);
        for batch_size in [1, 2, 4] {
            let (parts_loss, parts) = step(&model, batch_size, LossNormalization::Step);
            assert!((parts_loss - loss).abs() < 1e-5, "{parts_loss} and {loss}");
            assert!(distance(&parts, &gradients) < 1e-5, "{}", distance(&parts, &gradients));
        }
    }

    #[test]
    fn the_mean_of_the_micro_batches_means_is_another_thing() {
        let model = model();
        let (loss, gradients) = step(&model, 2, LossNormalization::MicroBatch);
        let means: Vec<f32> = batches(2)
            .iter()
            .map(|batch| {
                let sum = model.batch_loss(batch).unwrap();
                sum.into_scalar::<f32>() / batch.target_tokens() as f32
            })
            .collect();
        assert!((loss - means.iter().sum::<f32>() / 3.0).abs() < 1e-5);
        assert!(distance(&gradients, &step(&model, 2, LossNormalization::Step).1) > 1e-3);
    }

    #[test]
    fn the_norm_is_over_all_gradients_and_scaling_scales_it() {
        let model = model();
        let result =
            step_gradients(&model, &batches(6), LossNormalization::Step, 0, false, ActivationFormat::F32).unwrap();
        let squares = |gradients: &GradientsParams| {
            on_host(&model, gradients).into_values().flatten().map(|g| f64::from(g).powi(2)).sum::<f64>()
        };
        let norm =
            |gradients: &GradientsParams| f64::from(global_norm(&model, gradients).unwrap().into_scalar::<f32>());
        let before = norm(&result.gradients);
        assert!((before - squares(&result.gradients).sqrt()).abs() < 1e-5 * before);
        let clipped = clip(&model, result.gradients, Clipping::Scale(0.25 / before));
        assert!((norm(&clipped) - 0.25).abs() < 1e-6);
        assert!((squares(&clipped).sqrt() - 0.25).abs() < 1e-6);
        let largest = |gradients: &GradientsParams| {
            on_host(&model, gradients).into_values().flatten().fold(0f32, |largest, g| largest.max(g.abs()))
        };
        let limit = largest(&clipped) / 3.0;
        let before = on_host(&model, &clipped);
        let limited = clip(&model, clipped, Clipping::Limit(f64::from(limit)));
        for (id, values) in on_host(&model, &limited) {
            let expected: Vec<f32> = before[&id].iter().map(|g| g.clamp(-limit, limit)).collect();
            assert_eq!(values, expected);
        }
    }
}
