//! The search for a learning rate: what it finds, and what it leaves as it was.

use std::path::Path;

use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::{AdapterConfig, Attached, Method, export_trainable, project};
use sorsa_models::Pass;
use sorsa_train::metrics::{self, Metric};
use sorsa_train::{
    BatchSource, Divergence, Optimizer, OptimizerConfig, OptimizerKind, RateDoubt, RateRange, RateSearch, RunOutcome,
    TrainConfig, TrainableModel, Trainer, TrainingBatch, multiple,
};

/// A linear map of 4 numbers, whose loss is `curvature / 2 |x W|^2` for the rows `x` of the identity.
#[derive(Module, Debug)]
struct Bowl {
    map: Linear,
}

impl Bowl {
    fn loss(&self, curvature: f64) -> Tensor<1> {
        let mut x = Tensor::<2>::eye(4, &Device::flex());
        if self.map.weight.val().is_autodiff() {
            x = x.autodiff();
        }
        project(&self.map, x).square().sum() * (curvature / 2.0)
    }
}

impl TrainableModel for Bowl {
    type Batch = Curvature;

    fn batch_gradients(&self, batch: &Curvature, pass: &Pass) -> Option<(Tensor<1>, GradientsParams)> {
        let loss = self.loss(batch.0) / pass.divisor;
        Some((loss.clone().inner(), GradientsParams::from_grads(loss.backward(), self)))
    }

    fn batch_loss(&self, batch: &Curvature) -> Option<Tensor<1>> {
        Some(self.loss(batch.0))
    }

    fn parameter_device(&self) -> Device {
        self.map.weight.val().device()
    }
}

struct Curvature(f64);

impl TrainingBatch for Curvature {
    fn targets(&self) -> usize {
        1
    }

    fn inputs(&self) -> usize {
        1
    }
}

/// Batches that are all alike, or that differ by up to a tenth.
struct Batches {
    curvature: f64,
    spread: f64,
}

impl BatchSource for Batches {
    type Batch = Curvature;

    fn batches_per_epoch(&self, _epoch: u64) -> usize {
        50
    }

    fn batch(&self, epoch: u64, index: usize) -> Curvature {
        Curvature(self.curvature * (1.0 + self.spread * ((epoch as usize * 61 + index * 17) as f64).sin()))
    }

    fn rows(&self, _batch: &Curvature) -> Vec<usize> {
        Vec::new()
    }
}

fn attached(method: Method) -> Attached<Bowl> {
    let device = Device::flex();
    let numbers: Vec<f32> = (0..16).map(|i| ((i * i + 3 * i) as f32).cos()).collect();
    let mut map = LinearConfig::new(4, 4).init(&device);
    map.weight = burn::module::Param::from_tensor(Tensor::from_data(TensorData::new(numbers, [4, 4]), &device));
    map.bias = None;
    AdapterConfig::new(method, 2, &["map"]).attach(Bowl { map }, &Default::default()).unwrap()
}

fn trainer(method: Method, optimizer: &OptimizerConfig, batches: Batches, run: &Path) -> Trainer<Bowl, Batches> {
    let attached = attached(method);
    let config = short(optimizer);
    let spread = batches.spread;
    let validation = Batches { curvature: batches.curvature, spread };
    let optimizer = Optimizer::new(optimizer.clone(), &attached.trainable);
    Trainer::start(attached, optimizer, batches, Some(validation), config, run).unwrap()
}

fn short(optimizer: &OptimizerConfig) -> TrainConfig {
    TrainConfig {
        max_steps: Some(20),
        eval_every: 5,
        clip_norm: 0.0,
        optimizer: optimizer.clone(),
        ..TrainConfig::default()
    }
}

fn find(trainer: &mut Trainer<Bowl, Batches>, config: &OptimizerConfig, guess: f64) -> RateSearch {
    let trainable = trainer.trainable().to_vec();
    let with_rate =
        |rate: f64| Optimizer::new(OptimizerConfig { learning_rate: rate.into(), ..config.clone() }, &trainable);
    let range = RateRange { guess, largest: f64::INFINITY, multiple: 1.0 };
    trainer.find_learning_rate(&with_rate, range, &mut |_| ()).unwrap()
}

/// All that is logged but times.
fn logged(run: &Path) -> Vec<Vec<f64>> {
    let numbers = |metric: &Metric| match metric {
        Metric::Step(step) => vec![step.loss, step.learning_rate, step.grad_norm],
        Metric::Eval(eval) => vec![eval.loss],
        other => panic!("nothing is watched: {other:?}"),
    };
    metrics::read(run.join("metrics.jsonl")).unwrap().iter().map(numbers).collect()
}

#[test]
fn the_rate_of_a_known_bowl_is_found_from_guesses_far_above_and_far_below() {
    // Gradient descent without momentum multiplies by 1 - rate * curvature: one step at 1 / curvature ends at the lowest point.
    let config = OptimizerConfig { beta1: 0.0, ..OptimizerKind::Sgd.defaults() };
    for curvature in [0.5, 20.0, 3000.0] {
        for guess in [1e-3, 1.0 / curvature, 10.0] {
            let folder = tempfile::tempdir().unwrap();
            let mut trainer = trainer(Method::Full, &config, Batches { curvature, spread: 0.0 }, folder.path());
            let found = find(&mut trainer, &config, guess);
            let ratio = found.learning_rate / found.multiple * curvature;
            assert!((0.6..1.7).contains(&ratio), "{curvature} {guess}: {found:?}");
            assert_eq!(trainer.learning_rate(), found.learning_rate);
            assert!(found.trials.windows(2).all(|pair| pair[0].learning_rate < pair[1].learning_rate));
        }
    }
}

#[test]
fn a_search_leaves_everything_as_before_and_is_the_same_again() {
    for kind in OptimizerKind::ALL {
        for method in [Method::Sorsa, Method::Lora, Method::Full] {
            let batches = || Batches { curvature: 0.3, spread: 0.1 };
            let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let mut searched = trainer(method, &kind.defaults(), batches(), folders[0].path());
            let before = export_trainable(&searched.model(), searched.trainable());
            let found = find(&mut searched, &kind.defaults(), 1e-3);
            assert_eq!(export_trainable(&searched.model(), searched.trainable()), before, "{kind} {method}");
            let again = find(&mut searched, &kind.defaults(), 1e-3);
            assert_eq!(RateSearch { seconds: found.seconds, ..again }, found, "{kind} {method}");
            let trainable = searched.trainable().to_vec();
            let with_rate = |rate: f64| {
                Optimizer::new(OptimizerConfig { learning_rate: rate.into(), ..kind.defaults() }, &trainable)
            };
            let mut wide = found.clone();
            searched.widen(&mut wide, &with_rate, 3).unwrap();
            assert!(wide.trials.len() >= 7 && wide.learning_rate == found.learning_rate);
            assert_eq!(searched.run(&mut ()).unwrap(), RunOutcome::Completed);

            let named = OptimizerConfig { learning_rate: found.learning_rate.into(), ..kind.defaults() };
            trainer(method, &named, batches(), folders[1].path()).run(&mut ()).unwrap();
            let [after_search, of_number] = folders.each_ref().map(|folder| logged(folder.path()));
            assert_eq!(after_search, of_number, "{kind} {method}: to the bit");
            let losses: Vec<f64> = of_number.iter().filter(|row| row.len() == 1).map(|row| row[0]).collect();
            assert!(losses.last() < losses.first(), "{kind} {method}: {losses:?}");
        }
    }
}

#[test]
fn a_trial_ends_like_a_run_of_six_steps() {
    let config = OptimizerKind::AdamW.defaults();
    for method in [Method::Lora, Method::Pissa, Method::Sorsa, Method::Full] {
        let batches = || Batches { curvature: 0.3, spread: 0.1 };
        let folder = tempfile::tempdir().unwrap();
        let mut searched = trainer(method, &config, batches(), folder.path());
        let mut found = find(&mut searched, &config, 1e-2);
        let trainable = searched.trainable().to_vec();
        let with_rate =
            |rate: f64| Optimizer::new(OptimizerConfig { learning_rate: rate.into(), ..config.clone() }, &trainable);
        searched.widen(&mut found, &with_rate, 2).unwrap();
        assert!(found.trials.len() >= 5, "{method}");
        for trial in &found.trials {
            let folder = tempfile::tempdir().unwrap();
            let attached = attached(method);
            let train = TrainConfig { max_steps: Some(6), eval_every: 0, ..short(&config) };
            let optimizer = Optimizer::new(
                OptimizerConfig { learning_rate: trial.learning_rate.into(), ..config.clone() },
                &attached.trainable,
            );
            let mut run = Trainer::start(attached, optimizer, batches(), None, train, folder.path()).unwrap();
            run.run(&mut ()).unwrap();
            // The batch after those of the trial.
            let loss = f64::from(run.model().batch_loss(&batches().batch(0, 6)).unwrap().into_scalar::<f32>());
            let of_trial = trial.loss.unwrap();
            assert!((loss / of_trial - 1.0).abs() < 2e-4, "{method} {trial:?}: {loss}");
        }
    }
}

#[test]
fn a_search_that_finds_nothing_inside_its_range_says_so() {
    let config = OptimizerConfig { beta1: 0.0, ..OptimizerKind::Sgd.defaults() };
    let doubt = |curvature: f64, guess: f64, largest: f64| {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = trainer(Method::Full, &config, Batches { curvature, spread: 0.0 }, folder.path());
        let trainable = trainer.trainable().to_vec();
        let with_rate =
            |rate: f64| Optimizer::new(OptimizerConfig { learning_rate: rate.into(), ..config.clone() }, &trainable);
        let range = RateRange { guess, largest, multiple: 1.0 };
        let mut found = trainer.find_learning_rate(&with_rate, range, &mut |_| ()).unwrap();
        let doubt = found.doubt;
        trainer.widen(&mut found, &with_rate, 1).unwrap();
        assert_eq!(found.doubt, doubt);
        doubt
    };
    assert_eq!(doubt(1.0, 0.3, f64::INFINITY), None);
    assert_eq!(doubt(1.0, 1e-3, 1e-2), Some(RateDoubt::HighestTried));
    assert_eq!(doubt(0.0, 1e-3, 1.0), Some(RateDoubt::NothingBetter));
    let old = r#"{"learning_rate":1e-3,"multiple":1.5,"loss_at_start":2.0,"first_step":[],"trials":[],"steps":10,"evaluations":7,"seconds":1.0}"#;
    assert_eq!(serde_json::from_str::<RateSearch>(old).unwrap().doubt, None, "a file of an earlier build");
}

#[test]
fn a_multiple_ends_where_half_of_the_gain_is_lost() {
    let config = OptimizerConfig { beta1: 0.0, ..OptimizerKind::Sgd.defaults() };
    let rate = |multiple: f64| {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = trainer(Method::Full, &config, Batches { curvature: 1.0, spread: 0.0 }, folder.path());
        let trainable = trainer.trainable().to_vec();
        let with_rate =
            |rate: f64| Optimizer::new(OptimizerConfig { learning_rate: rate.into(), ..config.clone() }, &trainable);
        let range = RateRange { guess: 0.3, largest: f64::INFINITY, multiple };
        trainer.find_learning_rate(&with_rate, range, &mut |_| ()).unwrap().learning_rate
    };
    // Above a rate of 2 / curvature, gradient descent diverges.
    let (one, many) = (rate(1.0), rate(1000.0));
    assert!(one < 2.0 && (one..5.0).contains(&many), "{one} {many}");
    assert!((rate(1.1) / one - 1.1).abs() < 0.06);
}

#[test]
fn a_long_run_gets_a_smaller_multiple_than_a_short_one() {
    let of = multiple;
    assert_eq!(of(1), of(20));
    assert!(of(20) > of(200) && of(200) > of(20_000) && of(20_000) > 0.05);
}

#[test]
fn a_run_that_diverges_ends_with_a_checkpoint_if_it_is_to() {
    let rate = 3.0;
    let config = OptimizerConfig { beta1: 0.0, learning_rate: rate.into(), ..OptimizerKind::Sgd.defaults() };
    let run = |stop: bool, folder: &Path| {
        let attached = attached(Method::Full);
        let train = TrainConfig {
            max_steps: Some(20),
            eval_every: 0,
            clip_norm: 0.0,
            stop_on_divergence: stop,
            optimizer: config.clone(),
            ..TrainConfig::default()
        };
        let optimizer = Optimizer::new(config.clone(), &attached.trainable);
        let batches = || Batches { curvature: 1.0, spread: 0.0 };
        Trainer::resume(attached, optimizer, batches(), Some(batches()), train, folder).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let mut stopped = run(true, folder.path());
    assert_eq!(stopped.run(&mut ()).unwrap(), RunOutcome::Diverged);
    let step = stopped.state().step;
    assert!(step < 10, "{step}");
    assert!(matches!(stopped.divergences(), [Divergence::TrainingLoss { step: found, .. }] if *found == step));

    // A run that is resumed knows it, and stays where it is.
    let mut resumed = run(true, folder.path());
    assert_eq!(resumed.divergences(), stopped.divergences());
    assert_eq!(resumed.run(&mut ()).unwrap(), RunOutcome::Diverged);
    assert_eq!(resumed.state().step, step);
    assert_eq!(resumed.restore_best().unwrap(), Some(0));

    struct Count(usize);
    impl sorsa_train::Observer for Count {
        fn on_divergence(&mut self, _divergence: &Divergence) {
            self.0 += 1;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut count = Count(0);
    assert_eq!(run(false, folder.path()).run(&mut count).unwrap(), RunOutcome::Completed);
    assert_eq!(count.0, 1, "said once");
}
