//! The search for a learning rate before the first step.
//!
//! A trial is the run in small: one step of rate 0, like a run's warm-up, and five steps of the recipe's schedule. A step is the trainer's
//! own: clipping, the regularizer and the optimizer count. All losses are those of the same held-aside training rows, which no trial trains on.
//!
//! 1. The first two steps see the same parameters at every rate, since the first has rate 0. So their gradients are computed once, and the
//!    update of the second is a direction. The loss along it, at rates a factor of 4 apart, brings the search near the rate.
//! 2. Trials at rates a factor of 2 apart go on from there, until the best rate lies between two others.
//!
//! The vertex of the parabola through the best trial and its neighbours, times [`multiple`], is the rate. `docs/experiments.md` compares
//! this with the largest eigenvalue of the Hessian and with other trials, and has the measurements of the multiple.
//!
//! Every trial starts from the same parameters, state and batches. Afterwards the trainer is as before, with the rate that was found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};
use sorsa_adapter::Trainable;
use sorsa_data::DataPosition;

use super::{TrainError, Trainer};
use crate::checkpoint::RunState;
use crate::optimizer::Optimizer;
use crate::schedule::Schedule;
use crate::trainable::{BatchSource, TrainableModel, TrainingBatch};

/// Steps of a trial: one of rate 0, and five of the schedule.
const TRIAL_STEPS: u64 = 6;
/// The steps of a trial whose gradients are those of the parameters at the start.
const COMMON_STEPS: u64 = 2;
/// The ratio of the rates along the first direction.
const LINE_FACTOR: f64 = 4.0;
/// The ratio of the rates of the trials.
const TRIAL_FACTOR: f64 = 2.0;
/// The most rates of each part.
const MOST_RATES: usize = 9;
/// The first direction is computed at this multiple of the guess: dtypes of few digits keep little of a small step.
const DIRECTION_SCALE: f64 = 16.0;
/// The rows that the loss is measured on, if batches are smaller, and the most batches.
const PROBE_ROWS: usize = 8;
const MOST_PROBE_BATCHES: usize = 4;

/// Steps from which on the multiple falls.
const SHORT_RUN: f64 = 20.0;

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
    /// Gradients of optimizer steps that the search computed.
    pub steps: u64,
    /// How often it measured the loss of the held-aside rows.
    pub evaluations: u64,
    /// What it took.
    pub seconds: f64,
    /// Why the rate may be wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<RateDoubt>,
}

/// Why the rate of a search may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateDoubt {
    /// No trial ended below the loss at the start.
    NothingBetter,
    /// The best trial has the lowest of the rates, and the search tries no more.
    LowestTried,
    /// The best trial has the highest of the rates, and the search tries no more.
    HighestTried,
}

impl fmt::Display for RateDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NothingBetter => "no tried rate lowered the loss: this one may make the model worse",
            Self::LowestTried => "the best of the tried rates is the lowest: a lower one may be better",
            Self::HighestTried => "the best of the tried rates is the highest: a higher one may be better",
        })
    }
}

impl RateDoubt {
    fn of(trials: &[TriedRate], loss_at_start: f64) -> Option<Self> {
        let index = best_index(trials);
        // Also if the loss at the start is no number.
        if !trials[index].loss.is_some_and(|loss| loss < loss_at_start) {
            return Some(Self::NothingBetter);
        }
        if index == 0 {
            return Some(Self::LowestTried);
        }
        if index + 1 == trials.len() { Some(Self::HighestTried) } else { None }
    }
}

/// Where a search looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateRange {
    /// The rate to begin with.
    pub guess: f64,
    /// No rate above this one is tried or found.
    pub largest: f64,
    /// The best rate of a run of up to 20 steps, as a multiple of the best rate of a trial: 1 unless something else was measured. A multiple
    /// above 1 ends at the highest rate whose trial keeps half of the best trial's gain.
    pub multiple: f64,
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

/// The share of the rate of short runs, up to 20 steps, that a run of `total_steps` gets. The fourth root fits runs of 20, 60 and 100 steps
/// (`docs/experiments.md`); for longer runs it is a choice to be careful.
pub fn multiple(total_steps: u64) -> f64 {
    (SHORT_RUN / SHORT_RUN.max(total_steps as f64)).powf(0.25)
}

/// Where the trainer stands before a search.
struct Before<M> {
    model: M,
    schedule: Schedule,
    state: RunState,
    steps: u64,
    evaluations: u64,
}

/// The common steps of all trials: what they leave but for the parameters, which are on a line from the start, at their rate.
struct Common<M> {
    moved: M,
    rate: f64,
    optimizer: Optimizer,
    state: RunState,
}

impl<M: TrainableModel, S: BatchSource<Batch = M::Batch>> Trainer<M, S> {
    /// Finds a learning rate, and makes it the optimizer's. `with_rate` makes the optimizer with a peak rate, without a step. `progress` is told
    /// the gradients computed so far.
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
        range: RateRange,
        progress: &mut dyn FnMut(u64),
    ) -> Result<RateSearch, TrainError> {
        let started = Instant::now();
        let range = RateRange { guess: range.guess.min(range.largest), ..range };
        let mut before = self.begin_search();
        let probe = self.probe_batches();
        let found = self.search(with_rate, range, &probe, &mut before, progress);
        self.end_search(&before);
        let mut found = found?;
        let of_trial = found.learning_rate;
        let limit = highest_good_rate(&found.trials, found.loss_at_start).max(of_trial);
        let of_short_run = (of_trial * range.multiple).min(limit);
        found.multiple = of_short_run / of_trial * multiple(self.total_steps());
        found.learning_rate = rounded((of_trial * found.multiple).min(range.largest));
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
        let end = self.more_trials(search, with_rate, beside, &probe, &mut before);
        search.trials.sort_by(|a, b| a.learning_rate.total_cmp(&b.learning_rate));
        search.doubt = RateDoubt::of(&search.trials, search.loss_at_start);
        search.steps += before.steps;
        search.evaluations += before.evaluations;
        search.seconds += started.elapsed().as_secs_f64();
        self.optimizer = with_rate(found);
        self.end_search(&before);
        end
    }

    fn more_trials(
        &mut self,
        search: &mut RateSearch,
        with_rate: &dyn Fn(f64) -> Optimizer,
        beside: usize,
        probe: &[M::Batch],
        before: &mut Before<M>,
    ) -> Result<(), TrainError> {
        let middle = best(&search.trials).learning_rate;
        let common = self.common_steps(with_rate, middle, before)?;
        let common = self.kept(common);
        for step in 1..=beside {
            for exponent in [-(step as i32), step as i32] {
                let rate = middle * TRIAL_FACTOR.powi(exponent);
                if search.trials.iter().all(|tried| (tried.learning_rate / rate - 1.0).abs() > 1e-6) {
                    search.trials.push(self.trial(with_rate(rate), &common, probe, before)?);
                }
            }
        }
        Ok(())
    }

    fn begin_search(&mut self) -> Before<M> {
        assert!(self.state.step == 0, "a learning rate is found before the first step");
        let before = Before {
            model: self.attached.model.clone(),
            schedule: self.schedule,
            state: self.state.clone(),
            steps: 0,
            evaluations: 0,
        };
        self.schedule = Schedule { warmup_steps: 1, ..self.config.schedule.over(TRIAL_STEPS) };
        before
    }

    fn end_search(&mut self, before: &Before<M>) {
        self.attached.model = before.model.clone();
        self.schedule = before.schedule;
        self.state = before.state.clone();
    }

    fn search(
        &mut self,
        with_rate: &dyn Fn(f64) -> Optimizer,
        range: RateRange,
        probe: &[M::Batch],
        before: &mut Before<M>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<RateSearch, TrainError> {
        before.evaluations += 1;
        let loss_at_start = self.probe_loss(probe);
        let common = self.common_steps(with_rate, range.guess, before)?;
        progress(before.steps);
        let first_step = bracket([range.guess, range.largest], LINE_FACTOR, |rate| {
            self.attached.model = self.after_common_steps(before, &common, rate);
            before.evaluations += 1;
            Ok(TriedRate { learning_rate: rate, loss: finite(self.probe_loss(probe)) })
        })?;
        let near = best(&first_step).learning_rate;
        let common = self.kept(common);
        let trials = bracket([near, range.largest], TRIAL_FACTOR, |rate| {
            let tried = self.trial(with_rate(rate), &common, probe, before);
            progress(before.steps);
            tried
        })?;
        Ok(RateSearch {
            learning_rate: vertex(&trials),
            multiple: 1.0,
            loss_at_start,
            first_step,
            doubt: RateDoubt::of(&trials, loss_at_start),
            trials,
            steps: before.steps,
            evaluations: before.evaluations,
            seconds: 0.0,
        })
    }

    /// The steps of a trial that see the parameters at the start, at a multiple of `guess`.
    fn common_steps(
        &mut self,
        with_rate: &dyn Fn(f64) -> Optimizer,
        guess: f64,
        before: &mut Before<M>,
    ) -> Result<Common<M>, TrainError> {
        let mut rate = guess * DIRECTION_SCALE;
        loop {
            self.begin_trial(with_rate(rate), before);
            let finished = self.steps_until(COMMON_STEPS, before)?;
            // A rate at which the first update itself overflows has no direction.
            if finished || rate <= guess {
                break;
            }
            rate /= LINE_FACTOR;
        }
        let optimizer = std::mem::replace(&mut self.optimizer, with_rate(guess));
        Ok(Common { moved: self.attached.model.clone(), rate, optimizer, state: self.state.clone() })
    }

    /// What trials go on from. Weights are large, and so are their copies: trials of whole weights make the common steps again.
    fn kept(&self, common: Common<M>) -> Option<Common<M>> {
        if self.attached.state.config.method().is_factored() { Some(common) } else { None }
    }

    /// The model after the common steps at a rate.
    fn after_common_steps(&self, before: &Before<M>, common: &Common<M>, rate: f64) -> M {
        between(before.model.clone(), &common.moved, &self.attached.trainable, rate / common.rate)
    }

    /// A trial from the parameters before the search. Leaves other parameters behind.
    fn trial(
        &mut self,
        optimizer: Optimizer,
        common: &Option<Common<M>>,
        probe: &[M::Batch],
        before: &mut Before<M>,
    ) -> Result<TriedRate, TrainError> {
        let learning_rate = optimizer.learning_rate();
        self.begin_trial(optimizer, before);
        if let Some(common) = common {
            self.attached.model = self.after_common_steps(before, common, learning_rate);
            self.optimizer.take_buffers_of(&common.optimizer);
            self.state = common.state.clone();
        }
        let mut loss = None;
        if self.steps_until(TRIAL_STEPS, before)? {
            before.evaluations += 1;
            loss = finite(self.probe_loss(probe));
        }
        Ok(TriedRate { learning_rate, loss })
    }

    fn begin_trial(&mut self, optimizer: Optimizer, before: &Before<M>) {
        self.attached.model = before.model.clone();
        self.state = before.state.clone();
        self.optimizer = optimizer;
    }

    /// Makes the steps up to the one of this number. Returns whether all numbers stay finite.
    fn steps_until(&mut self, last: u64, before: &mut Before<M>) -> Result<bool, TrainError> {
        while self.state.step < last {
            before.steps += 1;
            match self.step() {
                Ok(_) => {}
                Err(error) if error.diverged_at().is_some() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
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

/// The highest tried rate, from the best on, whose trial keeps half of what the best trial gains.
fn highest_good_rate(trials: &[TriedRate], loss_at_start: f64) -> f64 {
    let lowest = best_index(trials);
    let half = (loss_at_start + trials[lowest].score()) / 2.0;
    let mut highest = trials[lowest].learning_rate;
    for trial in &trials[lowest..] {
        if trial.score() > half {
            break;
        }
        highest = trial.learning_rate;
    }
    highest
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
