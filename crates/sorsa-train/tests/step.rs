//! Laws of one optimizer step: the optimizer's formula, accumulation, runs that end early.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::{AdapterConfig, Attached, Method};
use sorsa_data::{BatchOptions, Batcher, Example};
use sorsa_models::{CausalLm, ModelConfig, WeightFormat};
use sorsa_train::metrics::{self, Metric};
use sorsa_train::{Decoupled, Optimizer, OptimizerConfig, RunOutcome, TrainConfig, TrainError, Trainer};

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
        Metric::Eval(_) => None,
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
    let config = OptimizerConfig { learning_rate: 0.1, weight_decay: 0.2, ..OptimizerConfig::default() };
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
            let mut trainer = Trainer::start(attach(method), train, None, config, folder.path()).unwrap();
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
    config.optimizer.learning_rate = 1e30;
    config.clip_norm = 0.0;
    let mut trainer = Trainer::start(attach(Method::Full), batcher(4), None, config, folder.path()).unwrap();
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
    config.optimizer.learning_rate = 0.5;
    let validation = Some(batcher(12));
    let mut trainer = Trainer::start(attach(Method::Full), batcher(4), validation, config, folder.path()).unwrap();
    assert_eq!(trainer.run(&mut ()).unwrap(), RunOutcome::EarlyStopped);
    let best = trainer.state().best.unwrap();
    assert!(trainer.state().step >= best.step + 2);
    assert_eq!(trainer.restore_best().unwrap(), Some(best.step));
    assert!((trainer.evaluate().unwrap() - best.loss).abs() < 1e-6);
}
