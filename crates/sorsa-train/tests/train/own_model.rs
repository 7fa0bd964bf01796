//! The trainer on a model, a loss and an update rule of the caller's own: a network of two layers on vectors, with an adapter,
//! its mean square error, and a descent along the signs of the gradients.

use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::prelude::*;
use sorsa_adapter::{AdapterConfig, Attached, Method, NamedTensors, export_trainable, project};
use sorsa_models::Pass;
use sorsa_train::{
    BatchSource, Optimizer, OptimizerKind, PeakRates, RunOutcome, StepRates, TrainConfig, TrainableModel, Trainer,
    TrainingBatch, UpdateRule,
};

#[derive(Module, Debug)]
struct Network {
    first: Linear,
    second: Linear,
}

impl Network {
    fn loss(&self, points: &Points) -> Tensor<1> {
        let rows = |values: &[f32], width: usize| {
            let rows = values.len() / width;
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), [rows, width]), &Device::flex())
        };
        let (mut x, y) = (rows(&points.x, 3), rows(&points.y, 1));
        if self.first.weight.val().is_autodiff() {
            x = x.autodiff();
        }
        let y = if x.is_autodiff() { y.autodiff() } else { y };
        (project(&self.second, project(&self.first, x).tanh()) - y).square().sum()
    }
}

struct Points {
    x: Vec<f32>,
    y: Vec<f32>,
}

impl TrainingBatch for Points {
    fn targets(&self) -> usize {
        self.y.len()
    }

    fn inputs(&self) -> usize {
        self.y.len()
    }
}

impl TrainableModel for Network {
    type Batch = Points;

    fn batch_gradients(&self, batch: &Points, pass: &Pass) -> Option<(Tensor<1>, GradientsParams)> {
        let loss = self.loss(batch) / pass.divisor;
        Some((loss.clone().inner(), GradientsParams::from_grads(loss.backward(), self)))
    }

    fn batch_loss(&self, batch: &Points) -> Option<Tensor<1>> {
        Some(self.loss(batch))
    }

    fn parameter_device(&self) -> Device {
        self.first.weight.val().device()
    }
}

/// `y = x_0 x_1 - x_2` at points that epoch and index decide.
struct Products;

impl BatchSource for Products {
    type Batch = Points;

    fn batches_per_epoch(&self, _epoch: u64) -> usize {
        5
    }

    fn batch(&self, epoch: u64, index: usize) -> Points {
        let at = |row: usize, axis: usize| ((epoch as usize * 61 + index * 17 + row * 7 + axis * 3) as f32).sin();
        let x: Vec<f32> = (0..8).flat_map(|row| (0..3).map(move |axis| at(row, axis))).collect();
        let y = x.chunks(3).map(|x| x[0] * x[1] - x[2]).collect();
        Points { x, y }
    }

    fn rows(&self, _batch: &Points) -> Vec<usize> {
        Vec::new()
    }
}

fn attached(method: Method) -> Attached<Network> {
    let device = Device::flex();
    let values = |rows: usize, columns: usize| {
        let numbers: Vec<f32> = (0..rows * columns).map(|i| ((i * i + 3 * i) as f32).cos() / 2.0).collect();
        Tensor::<2>::from_data(TensorData::new(numbers, [rows, columns]), &device)
    };
    let mut network =
        Network { first: LinearConfig::new(3, 12).init(&device), second: LinearConfig::new(12, 1).init(&device) };
    network.first.weight = burn::module::Param::from_tensor(values(3, 12));
    network.second.weight = burn::module::Param::from_tensor(values(12, 1));
    network.first.bias = None;
    network.second.bias = None;
    AdapterConfig::new(method, 2, &["first"]).attach(network, &Default::default()).unwrap()
}

fn config(kind: OptimizerKind, steps: u64) -> TrainConfig {
    let mut config = TrainConfig {
        accumulation: 2,
        epochs: 100.0,
        max_steps: Some(steps),
        eval_every: 4,
        checkpoint_every: 4,
        ..TrainConfig::default()
    };
    config.optimizer = kind.defaults();
    config.optimizer.learning_rate = 0.02.into();
    config
}

/// Rprop (Riedmiller and Braun, 1993): every number moves by a rate of its own, which grows while the gradient keeps its sign.
#[derive(Debug)]
struct SignDescent;

impl UpdateRule for SignDescent {
    fn buffers(&self) -> &'static [&'static str] {
        &["sign", "rate"]
    }

    fn update(&self, p: Tensor<1>, gradient: Tensor<1>, buffers: &mut [Tensor<1>], step: &StepRates) -> Tensor<1> {
        let sign = gradient.sign();
        // A buffer of zeros is a number's first step.
        let agreement = sign.clone() * buffers[0].clone();
        buffers[1] = (buffers[1].clone() * (agreement * 0.2 + 1.0)).clamp_min(0.2).clamp_max(2.0);
        buffers[0] = sign.clone();
        p - sign * buffers[1].clone() * step.learning_rate
    }
}

struct StopAfter(u64);

impl sorsa_train::Observer for StopAfter {
    fn should_stop(&mut self) -> bool {
        self.0 -= 1;
        self.0 == 0
    }
}

fn factors(trainer: &Trainer<Network, Products>) -> NamedTensors {
    trainer.adapter().trained
}

#[test]
fn a_network_on_vectors_learns_and_is_resumed_to_the_bit() {
    for (method, kind) in [(Method::Sorsa, OptimizerKind::AdamW), (Method::Lora, OptimizerKind::Lion)] {
        let folder = tempfile::tempdir().unwrap();
        let start = |run: &str, steps: u64| {
            let run = folder.path().join(run);
            std::fs::create_dir(&run).unwrap();
            let (attached, config) = (attached(method), config(kind, steps));
            let optimizer = Optimizer::new(config.optimizer.clone(), &attached.trainable);
            Trainer::start(attached, optimizer, Products, Some(Products), config, &run).unwrap()
        };
        let mut whole = start("whole", 12);
        let before = whole.evaluate().unwrap();
        assert_eq!(whole.run(&mut ()).unwrap(), RunOutcome::Completed);
        let after = whole.evaluate().unwrap();
        assert!(after < 0.9 * before, "{method} {kind}: {before} before, {after} after");

        // The second run is of the same length and is interrupted; what its schedule needs is in the configuration.
        let mut part = start("part", 12);
        assert_eq!(part.run(&mut StopAfter(5)).unwrap(), RunOutcome::Interrupted);
        drop(part);
        let run = folder.path().join("part");
        // The same start, as an adapter saved beside the run would give it.
        let again = attached(method);
        assert!(!export_trainable(&again.model, &again.trainable).is_empty());
        let optimizer = Optimizer::new(config(kind, 12).optimizer, &again.trainable);
        let mut resumed = Trainer::resume(again, optimizer, Products, Some(Products), config(kind, 12), &run).unwrap();
        assert_eq!(resumed.state().step, 5);
        resumed.run(&mut ()).unwrap();
        assert_eq!(factors(&whole), factors(&resumed), "{method} {kind}");
    }
}

#[test]
fn an_update_rule_of_the_callers_own_learns_and_is_resumed_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let rates = PeakRates { learning_rate: 0.02, ..PeakRates::default() };
    let resumed = |run: &str| {
        let run = folder.path().join(run);
        std::fs::create_dir_all(&run).unwrap();
        let attached = attached(Method::Sorsa);
        let optimizer = Optimizer::with_rule(Box::new(SignDescent), rates, &attached.trainable);
        let config = config(OptimizerKind::default(), 12);
        Trainer::resume(attached, optimizer, Products, Some(Products), config, &run).unwrap()
    };
    let mut whole = resumed("whole");
    let before = whole.evaluate().unwrap();
    assert_eq!(whole.run(&mut ()).unwrap(), RunOutcome::Completed);
    let after = whole.evaluate().unwrap();
    assert!(after < 0.9 * before, "{before} before, {after} after");
    assert_eq!(resumed("part").run(&mut StopAfter(5)).unwrap(), RunOutcome::Interrupted);
    let mut rest = resumed("part");
    assert_eq!(rest.state().step, 5);
    rest.run(&mut ()).unwrap();
    assert_eq!(factors(&whole), factors(&rest));
}
