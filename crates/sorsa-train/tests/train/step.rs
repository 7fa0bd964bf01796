//! Laws of one optimizer step: the optimizer's formula, accumulation, runs that end early.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::{AdapterConfig, Attached, Method};
use sorsa_data::{Batch, BatchOptions, Batcher, Example};
use sorsa_files::{read_tensors, write_tensors};
use sorsa_models::{CausalLm, ModelConfig, WeightFormat};
use sorsa_train::metrics::{self, Metric};
use sorsa_train::{
    Checkpoints, Coupling, Decoupled, LossNormalization, Optimizer, OptimizerConfig, RunOutcome, TrainConfig,
    TrainError, TrainableModel, Trainer,
};

use crate::common::{resume, start};

fn model() -> CausalLm {
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 32, "initializer_range": 0.2,
    });
    let config = ModelConfig::parse(config.as_object().unwrap().clone()).unwrap();
    // Fresh weights are lazy and drawn from a generator that all tests share: draw them once, through a file.
    static FOLDER: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let fresh = CausalLm::init(&config, &Device::flex());
        fresh.save(folder.path(), sorsa_models::WeightFormat::F32).unwrap();
        folder
    });
    CausalLm::load(folder.path(), WeightFormat::F32, &Device::flex()).unwrap()
}

/// Sequences of unequal length, with unequal numbers of targets.
fn examples() -> Vec<Example> {
    (0..12usize)
        .map(|row| {
            let length = 5 + row * 7 % 11;
            Example {
                ids: (0..length).map(|i| ((row * 5 + i * 3) % 20) as u32).collect(),
                target_mask: (0..length).map(|i| i > 1 + row % 3).collect(),
                row,
                truncated: false,
            }
        })
        .collect()
}

fn batcher(batch_size: usize) -> Batcher {
    let options = BatchOptions { batch_size, shuffle: false, bucket: 0, ..BatchOptions::default() };
    Batcher::new(Arc::new(examples()), options).unwrap()
}

fn attach(method: Method) -> Attached<CausalLm> {
    AdapterConfig::new(method, 3, &["all-linear"]).attach(model(), &Default::default()).unwrap()
}

fn config(batch_size: usize, accumulation: usize) -> TrainConfig {
    let mut config = TrainConfig { batch_size, accumulation, checkpoint_every: 1, eval_every: 0, ..Default::default() };
    config.schedule.warmup_ratio = 0.0;
    config
}

fn losses(run: &std::path::Path) -> Vec<(f64, f64)> {
    let steps = metrics::read(run.join("metrics.jsonl")).unwrap();
    let step = |metric: &Metric| match metric {
        Metric::Step(step) => Some((step.loss, step.grad_norm)),
        Metric::Eval(_) | Metric::Watch(_) => None,
    };
    steps.iter().filter_map(step).collect()
}

#[test]
fn adamw_follows_its_formula() {
    #[derive(Module, Debug)]
    struct One {
        weight: Param<Tensor<1>>,
    }
    let device = Device::flex().autodiff();
    let mut model = One { weight: Param::from_tensor(Tensor::from_floats([1.0, -2.0], &device)) };
    let attached = AdapterConfig::new(Method::Full, 0, &[]).attach(model.clone(), &Default::default()).unwrap();
    let config = OptimizerConfig { learning_rate: 0.1.into(), weight_decay: 0.2, ..OptimizerConfig::default() };
    let mut optimizer = Optimizer::new(config, &attached.trainable);

    let (mut p, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
    for step in 1..=5 {
        let gradient = [0.3 * f64::from(step), -0.01];
        let factor = 1.0 / f64::from(step);
        let mut gradients = GradientsParams::new();
        let values = gradient.map(|g| g as f32);
        gradients.register(model.weight.id, Tensor::<1>::from_floats(values, &device.clone().without_autodiff()));
        model = optimizer.step(model, gradients, factor, Decoupled::default());
        for i in 0..2 {
            let rate = 0.1 * factor;
            p[i] *= 1.0 - rate * 0.2;
            m[i] = 0.9 * m[i] + 0.1 * gradient[i];
            v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
            let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(step)), v[i] / (1.0 - 0.999f64.powi(step)));
            p[i] -= rate * m_hat / (v_hat.sqrt() + 1e-8);
        }
        let found = model.weight.val().into_data().try_into_vec::<f32>().unwrap();
        for (found, expected) in found.iter().zip(p) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "step {step}: {found}, expected {expected}");
        }
    }
}

#[test]
fn accumulation_gives_the_step_of_the_large_batch() {
    for method in [Method::Sorsa, Method::Full] {
        let run = |batch_size, accumulation| {
            let folder = tempfile::tempdir().unwrap();
            let train = batcher(batch_size);
            let config = config(batch_size, accumulation);
            let mut trainer = start(attach(method), train, None, config, folder.path()).unwrap();
            trainer.run(&mut ()).unwrap();
            losses(folder.path())
        };
        let (whole, parts) = (run(6, 1), run(2, 3));
        assert_eq!(whole.len(), 2);
        for (whole, parts) in whole.iter().zip(&parts) {
            assert!((whole.0 - parts.0).abs() < 1e-5 * whole.0, "{method}: loss {} and {}", whole.0, parts.0);
            assert!((whole.1 - parts.1).abs() < 1e-4 * whole.1, "{method}: norm {} and {}", whole.1, parts.1);
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(4, 1);
    config.optimizer.learning_rate = 1e30.into();
    config.clip_norm = 0.0;
    let mut trainer = start(attach(Method::Full), batcher(4), None, config, folder.path()).unwrap();
    let error = trainer.run(&mut ()).unwrap_err();
    let TrainError::NotFinite { step, rows, checkpoint, .. } = &error else { panic!("{error}") };
    assert_eq!((*step, rows.len(), *checkpoint), (2, 4, Some(1)), "{error}");
    assert!(folder.path().join("checkpoints/step-1/state.json").exists());
}

#[test]
fn training_stops_when_the_validation_loss_does_not_fall_and_the_best_step_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(4, 1);
    config.epochs = 20.0;
    config.eval_every = 1;
    config.early_stopping = 2;
    config.keep_checkpoints = 1;
    // So high a rate that the loss rises after some steps.
    config.optimizer.learning_rate = 0.5.into();
    let validation = Some(batcher(12));
    let mut trainer = start(attach(Method::Full), batcher(4), validation, config, folder.path()).unwrap();
    assert_eq!(trainer.run(&mut ()).unwrap(), RunOutcome::EarlyStopped);
    let best = trainer.state().best.unwrap();
    assert!(trainer.state().step >= best.step + 2);
    assert_eq!(trainer.restore_best().unwrap(), Some(best.step));
    assert!((trainer.evaluate().unwrap() - best.loss).abs() < 1e-6);
}

/// A configuration whose update leaves the range of f32 in the first step.
fn overflowing() -> TrainConfig {
    let mut config = config(12, 1);
    config.optimizer.learning_rate = 1e38.into();
    config
}

#[test]
fn parameters_that_the_last_step_makes_infinite_are_an_error_and_are_never_written() {
    for method in [Method::Sorsa, Method::Full] {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = start(attach(method), batcher(12), None, overflowing(), folder.path()).unwrap();
        assert_eq!(trainer.total_steps(), 1);
        let error = trainer.run(&mut ()).unwrap_err();
        let TrainError::ParametersNotFinite { step, tensors, rows, checkpoint } = &error else { panic!("{error}") };
        assert_eq!((*step, rows.len(), *checkpoint), (1, 12, None), "{error}");
        assert!(!tensors.is_empty() && error.diverged_at() == Some(1));
        let text = error.to_string();
        assert!(text.starts_with("step 1: its update left numbers that are not finite: "), "{text}");
        assert!(text.ends_with("no checkpoint was written yet"), "{text}");
        assert!(!folder.path().join("checkpoints").exists());
        let save = trainer.adapter().save(&folder.path().join("adapter")).unwrap_err().to_string();
        assert!(save.contains("not written, numbers are not finite: "), "{save}");
        assert!(!folder.path().join("adapter").exists());
    }
}

#[test]
fn a_checkpoint_of_an_earlier_build_with_numbers_that_are_not_finite_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = start(attach(Method::Lora), batcher(4), None, config(4, 1), folder.path()).unwrap();
    trainer.run(&mut ()).unwrap();
    let checkpoints = Checkpoints::of(folder.path());
    let newest = *checkpoints.steps().last().unwrap();
    let file = checkpoints.parameters(newest);
    let mut parameters = read_tensors(&file).unwrap();
    parameters.values_mut().next().unwrap().values[0] = f32::NAN;
    write_tensors(&file, &parameters).unwrap();
    let state = file.with_file_name("state.json");
    let mut json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(&state).unwrap()).unwrap();
    json.remove("content").unwrap();
    std::fs::write(&state, serde_json::to_string(&json).unwrap()).unwrap();
    let resumed = resume(attach(Method::Lora), batcher(4), None, config(4, 1), folder.path()).unwrap();
    assert!(resumed.state().step < newest);
    let told = resumed.repairs()[0].to_string();
    assert!(told.contains("numbers are not finite: 1 of "), "{told}");
}

/// Rows, targets and mean losses of the steps of a run, and its epochs.
fn steps_of(trainer: &mut Trainer) -> Vec<(u64, f64, f64)> {
    let total = trainer.total_steps();
    (0..total)
        .map(|_| {
            let step = trainer.step().unwrap();
            (step.target_tokens, step.loss, step.epoch)
        })
        .collect()
}

#[test]
fn the_last_step_of_an_epoch_takes_what_is_left_and_its_loss_is_the_mean_over_its_own_targets() {
    for normalization in [LossNormalization::Step, LossNormalization::MicroBatch] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(2, 4);
        config.epochs = 2.0;
        config.loss_normalization = normalization;
        // So small a rate that all losses are those of the start.
        config.optimizer.learning_rate = 1e-30.into();
        let train = batcher(2);
        let batches: Vec<Batch> = (0..6).map(|index| train.batch(0, index)).collect();
        let mut trainer = start(attach(Method::Full), batcher(2), None, config, folder.path()).unwrap();
        let model = trainer.model();
        let sum = |batch: &Batch| f64::from(model.batch_loss(batch).unwrap().into_scalar::<f32>());
        let targets = |batches: &[Batch]| batches.iter().map(Batch::target_tokens).sum::<usize>();
        let mean = |batches: &[Batch]| match normalization {
            LossNormalization::Step => batches.iter().map(sum).sum::<f64>() / targets(batches) as f64,
            LossNormalization::MicroBatch => {
                let means = batches.iter().map(|batch| sum(batch) / batch.target_tokens() as f64);
                means.sum::<f64>() / batches.len() as f64
            }
        };
        let steps = steps_of(&mut trainer);
        assert_eq!(steps.len(), 4, "two epochs of two steps");
        for (epoch, steps) in steps.chunks(2).enumerate() {
            for ((found, loss, at), batches) in steps.iter().zip([&batches[..4], &batches[4..]]) {
                assert_eq!(*found as usize, targets(batches));
                assert!((loss - mean(batches)).abs() < 1e-5 * loss, "{loss} and {}", mean(batches));
                assert!(*at <= (epoch + 1) as f64);
            }
            assert_eq!(steps[1].2, (epoch + 1) as f64);
        }
    }
}

#[test]
fn a_run_that_an_earlier_build_started_keeps_its_steps_when_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(2, 4);
    config.epochs = 2.0;
    let attached = || attach(Method::Lora);
    // The evaluation before the first step leaves a checkpoint.
    let mut trainer = start(attached(), batcher(2), Some(batcher(2)), config.clone(), folder.path()).unwrap();
    assert_eq!(trainer.total_steps(), 4);
    trainer.run(&mut StopAtOnce).unwrap();
    let state = folder.path().join("checkpoints/step-1/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(json.remove("last_step").unwrap(), "takes-the-rest");
    // Earlier builds wrote no hash either.
    json.remove("content").unwrap();
    std::fs::write(&state, serde_json::to_string(&json).unwrap()).unwrap();

    let mut resumed = resume(attached(), batcher(2), Some(batcher(2)), config.clone(), folder.path()).unwrap();
    assert_eq!(resumed.total_steps(), 3, "twelve batches, four at a time");
    let train = batcher(2);
    let targets = |from: usize| (from..from + 4).map(|index| train.batch(0, index % 6).target_tokens()).sum::<usize>();
    for step in 1..3 {
        assert_eq!(resumed.step().unwrap().target_tokens as usize, targets(4 * step));
    }
    // What it writes says again how it counts.
    let mut again = resume(attached(), batcher(2), Some(batcher(2)), config.clone(), folder.path()).unwrap();
    again.run(&mut ()).unwrap();
    assert_eq!(again.state().step, 3);
    let text = std::fs::read_to_string(folder.path().join("checkpoints/step-3/state.json")).unwrap();
    assert!(text.contains("\"last_step\": \"takes-the-next-epoch\""), "{text}");
}

struct StopAtOnce;

impl sorsa_train::Observer for StopAtOnce {
    fn should_stop(&mut self) -> bool {
        true
    }
}

#[test]
fn pissa_is_trained_with_a_regularizer_if_the_configuration_gives_it_a_weight() {
    for coupling in [Coupling::Gradient, Coupling::Decoupled] {
        let defect = |gamma: f64| {
            let folder = tempfile::tempdir().unwrap();
            let mut config = config(4, 1);
            config.epochs = 10.0;
            config.optimizer.learning_rate = 0.02.into();
            config.regularizer.orthogonal_gamma = gamma;
            config.regularizer.coupling = coupling;
            let mut trainer = start(attach(Method::Pissa), batcher(4), None, config, folder.path()).unwrap();
            for step in 1..trainer.total_steps() {
                let metrics = trainer.step().unwrap();
                assert_eq!(metrics.gamma.is_some(), gamma > 0.0, "step {step}");
            }
            trainer.step().unwrap().defect
        };
        // Without a weight the defect is not measured, so that a tiny weight stands for none.
        let (none, weak, strong) = (defect(0.0), defect(1e-12).unwrap(), defect(0.02).unwrap());
        assert_eq!(none, None);
        assert!(strong < 0.5 * weak, "{coupling:?}: {strong} with the regularizer, {weak} without it");
    }
    let mut config = config(4, 1);
    config.regularizer.orthogonal_gamma = 1e-4;
    let folder = tempfile::tempdir().unwrap();
    let error = start(attach(Method::Full), batcher(4), None, config, folder.path()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("full does not train two factors"), "{error}");
}
