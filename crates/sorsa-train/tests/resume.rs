//! Runs that are interrupted, end early or fail: their checkpoints, and the runs that resume from them. A program of its own, as the
//! generator behind dropout is one for the whole process.

#[path = "train/common/mod.rs"]
mod common;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use burn::prelude::*;
use sorsa_adapter::{
    AdapterConfig, Attached, Method, MethodConfig, NamedTensors, RegularizerForm, Retraction, SorsaConfig, SorsaTrained,
};
use sorsa_data::{BatchOptions, Batcher, Example};
use sorsa_models::WeightFormat;
use sorsa_models::{CausalLm, ModelConfig};
use sorsa_train::metrics::{self, Metric};
use sorsa_train::{
    Checkpoints, Coupling, GammaSchedule, Observer, OptimizerConfig, OptimizerKind, RunOutcome, TrainConfig, TrainError,
};

use common::{resume, start};

/// One run at a time, for the generator behind dropout.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn model() -> CausalLm {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 32, "initializer_range": 0.2,
        });
        let config = ModelConfig::parse(config.as_object().unwrap().clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        CausalLm::init(&config, &Device::flex()).save(folder.path(), WeightFormat::F32).unwrap();
        folder
    });
    CausalLm::load(folder.path(), WeightFormat::F32, &Device::flex()).unwrap()
}

fn attach(method: impl Into<MethodConfig>) -> Attached<CausalLm> {
    let config = AdapterConfig::new(method, 3, &["all-linear"]).with_dropout(0.3);
    config.attach(model(), &Default::default()).unwrap()
}

/// Rows 100, 101, .. of `count` sequences that count up by `stride`, all tokens targets but the first two.
fn examples(count: usize, stride: usize) -> Vec<Example> {
    let example = |row: usize| Example {
        ids: (0..6 + row % 5).map(|i| ((row + i * stride) % 20) as u32).collect(),
        target_mask: (0..6 + row % 5).map(|i| i > 1).collect(),
        row: 100 + row,
        truncated: false,
    };
    (0..count).map(example).collect()
}

fn batcher(examples: Vec<Example>, shuffle: bool) -> Batcher {
    let options = BatchOptions { batch_size: 2, shuffle, ..BatchOptions::default() };
    Batcher::new(Arc::new(examples), options).unwrap()
}

/// Nine steps of 2 micro-batches, over the end of epochs that are no whole number of steps.
fn config() -> TrainConfig {
    let mut config =
        TrainConfig { batch_size: 2, accumulation: 2, epochs: 3.4, eval_every: 2, ..TrainConfig::default() };
    config.optimizer.learning_rate = 0.02.into();
    config.regularizer.gamma = 0.01;
    config
}

/// Asks to stop after some steps of one process.
struct StopAfter(usize);

impl Observer for StopAfter {
    fn should_stop(&mut self) -> bool {
        self.0 -= 1;
        self.0 == 0
    }
}

/// Everything logged that does not depend on the clock.
fn logged(run: &Path) -> Vec<(u64, Vec<f64>)> {
    let numbers = |metric: &Metric| match metric {
        Metric::Step(s) => vec![s.loss, s.grad_norm, s.learning_rate, s.gamma.unwrap_or(0.0), s.defect.unwrap_or(0.0)],
        Metric::Eval(eval) => vec![eval.loss],
        Metric::Watch(watch) => {
            let kinds = watch.by_kind.values().flat_map(|kind| [kind.kappa_part, kind.kappa, kind.defect]);
            kinds.map(|value| value.unwrap_or(0.0)).collect()
        }
    };
    metrics::read(run.join("metrics.jsonl")).unwrap().iter().map(|m| (m.step(), numbers(m))).collect()
}

/// Trains in processes of so many steps each, and the last one to the end.
fn run(
    method: impl Into<MethodConfig>,
    config: &TrainConfig,
    interruptions: &[usize],
) -> (Vec<(u64, Vec<f64>)>, NamedTensors) {
    let method = method.into();
    let folder = tempfile::tempdir().unwrap();
    let data = || (batcher(examples(11, 3), true), Some(batcher(examples(4, 3), false)));
    for steps in interruptions {
        let (train, validation) = data();
        let mut trainer = resume(attach(method.clone()), train, validation, config.clone(), folder.path()).unwrap();
        assert_eq!(trainer.run(&mut StopAfter(*steps)).unwrap(), RunOutcome::Interrupted);
    }
    let (train, validation) = data();
    let mut trainer = resume(attach(method.clone()), train, validation, config.clone(), folder.path()).unwrap();
    assert_eq!(trainer.run(&mut ()).unwrap(), RunOutcome::Completed);
    assert_eq!(trainer.state().step, trainer.total_steps());
    (logged(folder.path()), trainer.adapter().trained)
}

#[test]
fn a_run_in_pieces_is_the_run_in_one_piece_to_the_bit() {
    let _alone = alone();
    let mut adaptive = config();
    adaptive.regularizer.target_defect = Some(0.003);
    for (method, config) in [(Method::Sorsa, config()), (Method::Sorsa, adaptive), (Method::Full, config())] {
        let whole = run(method, &config, &[]);
        let steps: Vec<u64> = whole.0.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 10, 11, 11], "{method}");
        assert_eq!(run(method, &config, &[1]), whole, "{method}");
        assert_eq!(run(method, &config, &[3, 4]), whole, "{method}");
    }
}

#[test]
fn every_form_of_the_regularizer_and_the_measures_of_weights_are_the_same_in_pieces() {
    let _alone = alone();
    let form = |change: fn(&mut TrainConfig)| {
        let mut config = TrainConfig { watch_every: 3, ..config() };
        config.regularizer.target_defect = Some(0.003);
        change(&mut config);
        config
    };
    let forms = [
        form(|config| config.regularizer.probes = 2),
        form(|config| {
            config.regularizer.every = 2;
            config.regularizer.form = RegularizerForm::Nuclear;
        }),
        form(|config| {
            config.regularizer.schedule = GammaSchedule::Constant;
            config.regularizer.coupling = Coupling::Decoupled;
        }),
    ];
    for config in forms {
        let whole = run(Method::Sorsa, &config, &[]);
        let steps: Vec<u64> = whole.0.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 6, 7, 8, 8, 9, 9, 10, 10, 11, 11, 11]);
        assert_eq!(run(Method::Sorsa, &config, &[3, 4]), whole, "{:?}", config.regularizer);
    }
}

#[test]
fn every_optimizer_goes_on_to_the_bit() {
    let _alone = alone();
    for kind in OptimizerKind::ALL {
        let mut config = TrainConfig { clip_value: 0.01, ..config() };
        config.optimizer = OptimizerConfig { learning_rate: 0.02.into(), beta1: 0.8, ..kind.defaults() };
        config.optimizer.factor_rates.insert("vt".into(), 2.0);
        let whole = run(Method::Sorsa, &config, &[]);
        assert_eq!(run(Method::Sorsa, &config, &[5]), whole, "{kind}");
    }
}

#[test]
fn a_run_on_the_stiefel_manifold_or_with_fixed_factors_in_pieces_is_the_run_in_one_piece_to_the_bit() {
    let _alone = alone();
    let on_manifold = |retraction, retract_every| SorsaConfig { retraction, retract_every, ..SorsaConfig::default() };
    let fixed = |train| SorsaConfig { train, ..SorsaConfig::default() };
    let methods: [MethodConfig; 6] = [
        Method::Stella.into(),
        on_manifold(Retraction::Polar, 1).into(),
        on_manifold(Retraction::NewtonSchulz, 2).into(),
        on_manifold(Retraction::Qr, 3).into(),
        fixed(SorsaTrained::Vectors).into(),
        fixed(SorsaTrained::SingularValues).into(),
    ];
    for (index, method) in methods.into_iter().enumerate() {
        let mut config = config();
        config.optimizer = OptimizerKind::ALL[index % OptimizerKind::ALL.len()].defaults();
        config.optimizer.learning_rate = 0.01.into();
        let whole = run(method.clone(), &config, &[]);
        assert_eq!(run(method.clone(), &config, &[3, 4]), whole, "{method:?}");
    }
}

#[test]
fn dropout_is_drawn_anew_for_every_step_and_from_the_seed() {
    let _alone = alone();
    // Learning nothing from one batch, only dropout can change the loss.
    let losses = |seed| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = TrainConfig { seed, epochs: 3.0, eval_every: 0, ..TrainConfig::default() };
        config.optimizer.learning_rate = 1e-30.into();
        config.regularizer.gamma = 0.0;
        let train = batcher(examples(2, 3), false);
        let mut trainer = start(attach(Method::Sorsa), train, None, config, folder.path()).unwrap();
        trainer.run(&mut ()).unwrap();
        logged(folder.path()).into_iter().map(|(_, numbers)| numbers[0]).collect::<Vec<_>>()
    };
    let first = losses(1);
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
    assert_eq!(losses(1), first);
    assert_ne!(losses(2)[0], first[0]);
}

#[test]
fn a_run_without_progress_stops_early_and_stays_stopped_when_resumed() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut config = TrainConfig { epochs: 10.0, eval_every: 1, early_stopping: 3, ..TrainConfig::default() };
    config.optimizer.learning_rate = 1e-30.into();
    for _ in 0..2 {
        let (train, validation) = (batcher(examples(4, 3), false), Some(batcher(examples(4, 3), false)));
        let attached = attach(Method::Full);
        let mut trainer = resume(attached, train, validation, config.clone(), folder.path()).unwrap();
        assert_eq!(trainer.run(&mut ()).unwrap(), RunOutcome::EarlyStopped);
        assert_eq!(trainer.state().step, 3);
        assert_eq!(trainer.state().best.unwrap().step, 0);
    }
}

#[test]
fn the_best_and_the_newest_checkpoint_are_kept_and_the_best_comes_back() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    // First what the validation data is like, then what it is not: its loss falls and rises.
    let train = batcher([examples(8, 3), examples(8, 7)].concat(), false);
    let mut config = TrainConfig { eval_every: 1, checkpoint_every: 1, keep_checkpoints: 1, ..TrainConfig::default() };
    config.optimizer.learning_rate = 0.03.into();
    config.schedule.warmup_ratio = 0.0;
    let validation = Some(batcher(examples(8, 3), false));
    let mut trainer = start(attach(Method::Full), train, validation, config, folder.path()).unwrap();
    assert_eq!(trainer.run(&mut ()).unwrap(), RunOutcome::Completed);
    let best = trainer.state().best.unwrap();
    assert!((1..8).contains(&best.step), "{best:?}");
    assert_eq!(Checkpoints::open(folder.path()).unwrap().steps(), [best.step, 8]);
    assert!(trainer.evaluate().unwrap() > best.loss);
    assert_eq!(trainer.restore_best().unwrap(), Some(best.step));
    assert_eq!(trainer.evaluate().unwrap(), best.loss);
}

#[test]
fn an_error_names_the_batch_of_the_epoch_that_it_is_in() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut config = TrainConfig { epochs: 2.0, eval_every: 0, clip_norm: 0.0, ..TrainConfig::default() };
    config.optimizer.learning_rate = 1e30.into();
    config.schedule.warmup_ratio = 0.0;
    // One batch is an epoch: the second step is the first of the second.
    let train = batcher(examples(2, 3), false);
    let mut trainer = start(attach(Method::Full), train, None, config, folder.path()).unwrap();
    let error = trainer.run(&mut ()).unwrap_err();
    let TrainError::NotFinite { step, epoch, batch, rows, checkpoint, .. } = &error else { panic!("{error}") };
    assert_eq!((*step, *epoch, *batch, rows.as_slice(), *checkpoint), (2, 1, 0, &[100, 101][..], None));
    assert!(error.to_string().contains("rows [100, 101]; no checkpoint was written yet"), "{error}");
}

#[test]
fn a_step_without_targets_is_an_error_that_names_its_rows() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut examples = examples(4, 3);
    examples[2..].iter_mut().for_each(|example| example.target_mask.fill(false));
    let config = TrainConfig::default();
    let mut trainer = start(attach(Method::Lora), batcher(examples, false), None, config, folder.path()).unwrap();
    let error = trainer.run(&mut ()).unwrap_err();
    let TrainError::NoTargets { step, rows } = &error else { panic!("{error}") };
    assert_eq!((*step, rows.as_slice()), (2, &[102, 103][..]));
}
