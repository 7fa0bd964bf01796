//! The search for a learning rate before the first step.
//!
//! Two parts look at the loss of the same held-aside training rows, which no trial trains on:
//!
//! 1. One step of the optimizer gives a direction, and the loss along it at rates a factor of 4 apart brings the search near the rate.
//!    An update rule's first step is linear in the rate, so that this takes the gradient of one step.
//! 2. Trials of a few whole steps at a constant rate, a factor of 2 apart, until the best rate lies between two others. A step is the
//!    trainer's own: clipping, the regularizer and the optimizer count.
//!
//! The vertex of the parabola through the best trial and its neighbours, times [`multiple`], is the rate. `docs/experiments.md` compares
//! this with the largest eigenvalue of the Hessian and with a rate that rises during one trial, and has the table of the multiple.
//!
//! Every trial starts from the same parameters, state and batches. Afterwards the trainer is as before, with the rate that was found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sorsa_adapter::Trainable;
use sorsa_data::DataPosition;

use super::{TrainError, Trainer};
use crate::config::ScheduleConfig;
use crate::optimizer::Optimizer;
use crate::schedule::{Schedule, ScheduleKind};
use crate::trainable::{BatchSource, TrainableModel, TrainingBatch};

/// Steps of a trial.
const TRIAL_STEPS: u64 = 3;
/// The ratio of the rates along the first direction.
const LINE_FACTOR: f64 = 4.0;
/// The ratio of the rates of the trials.
const TRIAL_FACTOR: f64 = 2.0;
/// The most rates of each part.
const MOST_RATES: usize = 9;
/// The first direction is computed at this multiple of the guess: dtypes of few digits keep little of a small step.
const DIRECTION_SCALE: f64 = 64.0;
/// The rows that the loss is measured on, if batches are smaller, and the most batches.
const PROBE_ROWS: usize = 16;
const MOST_PROBE_BATCHES: usize = 4;

/// Peak of a decaying schedule, as a multiple of the best constant rate of a trial.
const PEAK_OF_DECAYING_SCHEDULE: f64 = 1.5;
/// Steps from which on the multiple falls.
const LONG_RUN: f64 = 100.0;

/// What a search found, and from what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateSearch {
    /// The peak learning rate, rounded to two digits.
    pub learning_rate: f64,
    /// The rate of the lowest trial loss times this is the learning rate; see [`multiple`].
    pub multiple: f64,
    /// The loss of the held-aside rows before any step.
    pub loss_at_start: f64,
    /// The losses along the first direction, rates ascending.
    pub first_step: Vec<TriedRate>,
    /// The losses after the trials, rates ascending.
    pub trials: Vec<TriedRate>,
    /// Optimizer steps that the search made.
    pub steps: u64,
    /// How often it measured the loss of the held-aside rows.
    pub evaluations: u64,
    /// What it took.
    pub seconds: f64,
}

/// The loss after a trial.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriedRate {
    /// The constant learning rate of the trial.
    pub learning_rate: f64,
    /// The loss of the held-aside rows; absent if the trial ended in numbers that are not finite.
    pub loss: Option<f64>,
}

impl TriedRate {
    fn score(&self) -> f64 {
        self.loss.unwrap_or(f64::INFINITY)
    }
}

/// The peak rate of a run as a multiple of the best constant rate of a trial. A schedule that decays has a higher peak than a constant rate, and
/// a run recovers from first steps that are too large, which a trial of three steps does not. From 100 steps on, a longer run gets a smaller
/// multiple. `docs/experiments.md` has the measurements at 20 and 100 steps; the exponent for longer runs is a choice to be careful.
pub fn multiple(schedule: &ScheduleConfig, total_steps: u64) -> f64 {
    let peak = match schedule.kind {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Cosine | ScheduleKind::Linear => PEAK_OF_DECAYING_SCHEDULE,
    };
    peak * (LONG_RUN / LONG_RUN.max(total_steps as f64)).powf(0.25)
}

/// Where the trainer stands before a search.
struct Before<M> {
    model: M,
    schedule: Schedule,
    steps: u64,
    evaluations: u64,
}

impl<M: TrainableModel, S: BatchSource<Batch = M::Batch>> Trainer<M, S> {
    /// Finds a learning rate, and makes it the optimizer's. `with_rate` makes the optimizer with a peak rate, without a step; `guess` is the
    /// rate to begin with, and no rate above `largest` is found. `progress` is told the steps made so far.
    ///
    /// # Errors
    ///
    /// [`TrainError::NoTargets`]. A trial that diverges is no error.
    ///
    /// # Panics
    ///
    /// If the run has begun.
    pub fn find_learning_rate(
        &mut self,
        with_rate: &dyn Fn(f64) -> Optimizer,
        guess: f64,
        largest: f64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<RateSearch, TrainError> {
        let started = Instant::now();
        let mut before = self.begin_search();
        let probe = self.probe_batches();
        let found = self.search(with_rate, [guess.min(largest), largest], &probe, &mut before, progress);
        self.end_search(&before);
        let mut found = found?;
        found.multiple = multiple(&self.config.schedule, self.total_steps());
        found.learning_rate = rounded((found.learning_rate * found.multiple).min(largest));
        found.seconds = started.elapsed().as_secs_f64();
        self.optimizer = with_rate(found.learning_rate);
        Ok(found)
    }

    /// Adds trials at lower and higher rates to a search, for a picture: `beside` of them on each side of the best one. The trainer is as
    /// before.
    ///
    /// # Errors
    ///
    /// As [`find_learning_rate`](Self::find_learning_rate).
    ///
    /// # Panics
    ///
    /// If the run has begun.
    pub fn widen(
        &mut self,
        search: &mut RateSearch,
        with_rate: &dyn Fn(f64) -> Optimizer,
        beside: usize,
    ) -> Result<(), TrainError> {
        let started = Instant::now();
        let mut before = self.begin_search();
        let probe = self.probe_batches();
        let found = self.optimizer.learning_rate();
        let middle = best(&search.trials).learning_rate;
        let mut end = Ok(());
        for step in 1..=beside {
            for exponent in [-(step as i32), step as i32] {
                let rate = middle * TRIAL_FACTOR.powi(exponent);
                if end.is_ok() && search.trials.iter().all(|tried| (tried.learning_rate / rate - 1.0).abs() > 1e-6) {
                    match self.trial(with_rate(rate), &probe, &mut before) {
                        Ok(tried) => search.trials.push(tried),
                        Err(error) => end = Err(error),
                    }
                }
            }
        }
        search.trials.sort_by(|a, b| a.learning_rate.total_cmp(&b.learning_rate));
        search.steps += before.steps;
        search.evaluations += before.evaluations;
        search.seconds += started.elapsed().as_secs_f64();
        self.optimizer = with_rate(found);
        self.end_search(&before);
        end
    }

    fn begin_search(&mut self) -> Before<M> {
        assert!(self.state.step == 0, "a learning rate is found before the first step");
        let before = Before { model: self.attached.model.clone(), schedule: self.schedule, steps: 0, evaluations: 0 };
        let total_steps = self.schedule.total_steps.max(TRIAL_STEPS);
        self.schedule = Schedule { kind: ScheduleKind::Constant, warmup_steps: 0, total_steps, min_ratio: 1.0 };
        before
    }

    fn end_search(&mut self, before: &Before<M>) {
        self.attached.model = before.model.clone();
        self.schedule = before.schedule;
    }

    fn search(
        &mut self,
        with_rate: &dyn Fn(f64) -> Optimizer,
        [guess, largest]: [f64; 2],
        probe: &[M::Batch],
        before: &mut Before<M>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<RateSearch, TrainError> {
        before.evaluations += 1;
        let loss_at_start = self.probe_loss(probe);
        // A rate at which the first step itself overflows has no direction.
        let mut scale = guess * DIRECTION_SCALE;
        while self.trial_steps(with_rate(scale), 1, before)?.is_none() && scale > guess {
            scale /= LINE_FACTOR;
        }
        let moved = self.attached.model.clone();
        progress(before.steps);
        let first_step = bracket([guess, largest], LINE_FACTOR, |rate| {
            self.attached.model = between(before.model.clone(), &moved, &self.attached.trainable, rate / scale);
            before.evaluations += 1;
            Ok(TriedRate { learning_rate: rate, loss: finite(self.probe_loss(probe)) })
        })?;
        let near = best(&first_step).learning_rate;
        let trials = bracket([near, largest], TRIAL_FACTOR, |rate| {
            let tried = self.trial(with_rate(rate), probe, before);
            progress(before.steps);
            tried
        })?;
        Ok(RateSearch {
            learning_rate: vertex(&trials),
            multiple: 1.0,
            loss_at_start,
            first_step,
            trials,
            steps: before.steps,
            evaluations: before.evaluations,
            seconds: 0.0,
        })
    }

    /// A trial from the parameters before the search. Leaves other parameters behind.
    fn trial(
        &mut self,
        optimizer: Optimizer,
        probe: &[M::Batch],
        before: &mut Before<M>,
    ) -> Result<TriedRate, TrainError> {
        let learning_rate = optimizer.learning_rate();
        let loss = match self.trial_steps(optimizer, TRIAL_STEPS, before)? {
            Some(()) => {
                before.evaluations += 1;
                finite(self.probe_loss(probe))
            }
            None => None,
        };
        Ok(TriedRate { learning_rate, loss })
    }

    /// Some steps from the parameters before the search; nothing if they diverge.
    fn trial_steps(
        &mut self,
        optimizer: Optimizer,
        steps: u64,
        before: &mut Before<M>,
    ) -> Result<Option<()>, TrainError> {
        self.attached.model = before.model.clone();
        self.optimizer = optimizer;
        let state = self.state.clone();
        let mut end = Ok(Some(()));
        for _ in 0..steps {
            before.steps += 1;
            if let Err(error) = self.step() {
                end = if error.diverged_at().is_some() { Ok(None) } else { Err(error) };
                break;
            }
        }
        self.state = state;
        end
    }

    /// Batches after those of a trial.
    fn probe_batches(&self) -> Vec<M::Batch> {
        let mut position = DataPosition::default();
        for _ in 0..TRIAL_STEPS {
            self.next_batches(&mut position);
        }
        let count = PROBE_ROWS.div_ceil(self.config.batch_size.max(1)).min(MOST_PROBE_BATCHES);
        (0..count).map(|_| self.train.next_batch(&mut position)).collect()
    }

    fn probe_loss(&self, probe: &[M::Batch]) -> f64 {
        let model = self.model();
        let (mut sum, mut targets) = (0.0, 0);
        for batch in probe {
            if let Some(loss) = model.batch_loss(batch) {
                sum += f64::from(loss.into_scalar::<f32>());
                targets += batch.targets();
            }
        }
        sum / targets.max(1) as f64
    }
}

fn finite(loss: f64) -> Option<f64> {
    if loss.is_finite() { Some(loss) } else { None }
}

/// Rounds to two digits: a rate is told and typed again.
fn rounded(rate: f64) -> f64 {
    format!("{rate:.1e}").parse().unwrap_or(rate)
}

/// Tries `first` and rates above and below it, a factor apart and none above `largest`, until the lowest loss lies between two others or there are
/// enough. Returns them ascending.
fn bracket(
    [first, largest]: [f64; 2],
    factor: f64,
    mut attempt: impl FnMut(f64) -> Result<TriedRate, TrainError>,
) -> Result<Vec<TriedRate>, TrainError> {
    let mut tried = vec![attempt(first)?];
    while tried.len() < MOST_RATES {
        let lowest = best_index(&tried);
        if lowest == 0 && (tried.len() > 1 || tried[0].loss.is_none()) {
            tried.insert(0, attempt(tried[0].learning_rate / factor)?);
        } else if lowest + 1 == tried.len() && tried[lowest].learning_rate * factor <= largest {
            tried.push(attempt(tried[lowest].learning_rate * factor)?);
        } else {
            break;
        }
    }
    Ok(tried)
}

/// The index of the lowest loss; of equal ones the last, 0 if there is none.
fn best_index(tried: &[TriedRate]) -> usize {
    let mut lowest = 0;
    for (index, rate) in tried.iter().enumerate() {
        if rate.loss.is_some() && rate.score() <= tried[lowest].score() {
            lowest = index;
        }
    }
    lowest
}

fn best(tried: &[TriedRate]) -> TriedRate {
    tried[best_index(tried)]
}

/// The rate of the lowest point of the parabola through the best trial and its neighbours, over the logarithm of the rate. At most half a
/// factor from the best trial.
fn vertex(trials: &[TriedRate]) -> f64 {
    let index = best_index(trials);
    let found = trials[index].learning_rate;
    if index == 0 || index + 1 == trials.len() {
        return found;
    }
    let (below, lowest, above) = (trials[index - 1].score(), trials[index].score(), trials[index + 1].score());
    let curvature = below - 2.0 * lowest + above;
    let shift = if curvature.is_infinite() { -0.5 } else { 0.5 * (below - above) / curvature.max(f64::MIN_POSITIVE) };
    found * TRIAL_FACTOR.powf(shift.clamp(-0.5, 0.5))
}

/// The model whose trained parameters are `start + share (moved - start)`.
fn between<M: Module>(start: M, moved: &M, trainable: &[Trainable], share: f64) -> M {
    struct Collect {
        trained: BTreeSet<ParamId>,
        values: BTreeMap<ParamId, Tensor<1>>,
    }
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.trained.contains(&param.id) {
                self.values.insert(param.id, flat(param.base()));
            }
        }
    }
    struct Move {
        values: BTreeMap<ParamId, Tensor<1>>,
        share: f64,
    }
    impl ModuleMapper for Move {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(moved) = self.values.remove(&param.id) else { return param };
            param.map(|start| {
                let (shape, dtype) = (start.shape(), FloatDType::from(start.dtype()));
                let start = flat(start);
                let value = start.clone() + (moved - start) * self.share;
                Tensor::from_inner(value.reshape(shape).cast(dtype)).require_grad()
            })
        }
    }
    let trained = trainable.iter().map(|parameter| parameter.id).collect();
    let mut collect = Collect { trained, values: BTreeMap::new() };
    moved.visit(&mut collect);
    start.map(&mut Move { values: collect.values, share })
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let tensor = tensor.without_autodiff().cast(FloatDType::F32);
    let size = tensor.shape().num_elements();
    tensor.reshape([size])
}
