//! The training loop.
//!
//! One optimizer step: the gradients of the micro-batches, normalised by the step's targets; clipping by the global norm;
//! the regularizer's closed-form gradient; the optimizer's update. A checkpoint holds everything that the next loss
//! depends on, so a run that is killed and resumed gives the same numbers as an uninterrupted run.

mod error;
mod rate_search;

pub use error::TrainError;
pub use rate_search::{RateDoubt, RateRange, RateSearch, TriedRate, multiple};

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::prelude::*;
use sorsa_adapter::{
    AdapterError, Attached, RegularizerStats, SavedAdapter, Trainable, add_penalties, add_regularizer,
    export_trainable, import_trainable, orthonormality_defect, regularizer_gradients,
};
use sorsa_data::{Batcher, DataPosition};
use sorsa_models::{CausalLm, mixed_seed};

use crate::checkpoint::{Best, Checkpoints, RunState};
use crate::config::{Coupling, GammaSchedule, TrainConfig};
use crate::divergence::{Divergence, DivergenceWatch};
use crate::gamma::GammaController;
use crate::gradients::{Clipping, clip, global_norm, parameter_sum, step_gradients};
use crate::metrics::{self, EvalMetrics, LogRepair, Metric, MetricsLog, StepMetrics, WatchMetrics};
use crate::optimizer::{Decoupled, Optimizer};
use crate::repair::{Repair, newest_whole};
use crate::run_length::RunLength;
use crate::schedule::Schedule;
use crate::tensorboard::EventWriter;
use crate::trainable::{BatchSource, TrainableModel, TrainingBatch};
use sorsa_files::{not_finite, peak_memory_bytes};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// All steps were made.
    Completed,
    /// The evaluation loss stopped falling.
    EarlyStopped,
    /// Training made the model worse, and the run was to end then; a checkpoint was written.
    Diverged,
    /// The observer asked to stop; a checkpoint was written.
    Interrupted,
}

/// Receives the metrics of a run, and may end it.
pub trait Observer {
    /// A step or an evaluation was made.
    fn on_metric(&mut self, _metric: &Metric, _total_steps: u64) {}
    /// The metric before shows that training makes the model worse.
    fn on_divergence(&mut self, _divergence: &Divergence) {}
    /// Returns whether to write a checkpoint and end the run. The trainer asks after every step.
    fn should_stop(&mut self) -> bool {
        false
    }
}

impl Observer for () {}

/// The part of a step's seed that random probes of the regularizer are drawn from.
const PROBES: u64 = u64::MAX;
/// The learning rate as a share of its peak below which a constant gamma is no longer made up for in the gradient.
const SMALLEST_RATE: f64 = 0.01;

/// A run: model, data, optimizer and progress. The default model is a language model. The loss is the model's own
/// ([`TrainableModel`]), the optimizer is handed in.
pub struct Trainer<M = CausalLm, S = Batcher> {
    attached: Attached<M>,
    optimizer: Optimizer,
    config: TrainConfig,
    schedule: Schedule,
    length: RunLength,
    train: S,
    validation: Option<S>,
    state: RunState,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
    events: EventWriter,
    device: Device,
    repairs: Vec<Repair>,
    watch: DivergenceWatch,
}

/// The folder of a run and its log.
struct RunFiles<'a> {
    folder: &'a Path,
    metrics: MetricsLog,
}

impl<M: TrainableModel, S: BatchSource<Batch = M::Batch>> Trainer<M, S> {
    /// Starts a run in the folder `run`, which exists. The model is moved to autodiff. `optimizer` has made no step;
    /// `config.optimizer` is not looked at.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if files of the run cannot be written, or if a regularizer makes no sense for the method.
    pub fn start(
        attached: Attached<M>,
        optimizer: Optimizer,
        train: S,
        validation: Option<S>,
        config: TrainConfig,
        run: &Path,
    ) -> Result<Self, TrainError> {
        let metrics = MetricsLog::create(run.join("metrics.jsonl"))?;
        let run = RunFiles { folder: run, metrics };
        Self::assemble(attached, optimizer, train, validation, config, run, RunState::default())
    }

    /// Continues from the newest checkpoint of the run in the folder `run`. `attached` is the model before the first step.
    /// If there is no checkpoint, the run starts anew. If a checkpoint is damaged, the run continues from the one before it;
    /// [`repairs`](Self::repairs) says so.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if a checkpoint cannot be read or does not fit.
    pub fn resume(
        attached: Attached<M>,
        optimizer: Optimizer,
        train: S,
        validation: Option<S>,
        config: TrainConfig,
        run: &Path,
    ) -> Result<Self, TrainError> {
        let checkpoints = Checkpoints::open(run)?;
        let mut repairs = Vec::new();
        let Some(step) = newest_whole(&checkpoints, &mut repairs)? else {
            return Self::start(attached, optimizer, train, validation, config, run);
        };
        let checkpoint = checkpoints.load(step)?;
        let log = run.join("metrics.jsonl");
        let (metrics, repair) = MetricsLog::resume(&log, step)?;
        if repair != LogRepair::default() {
            repairs.push(Repair::Log { path: log.clone(), step, repair });
        }
        let file = Checkpoints::optimizer_file(&checkpoint.folder);
        let device = attached.model.parameter_device().without_autodiff();
        let optimizer = optimizer.load(&file, &attached.trainable, step, &device)?;
        let run = RunFiles { folder: run, metrics };
        let mut trainer = Self::assemble(attached, optimizer, train, validation, config, run, checkpoint.state)?;
        trainer.repairs = repairs;
        for metric in metrics::read(&log)? {
            trainer.watch.add(&metric);
        }
        trainer.restore(&checkpoint.parameters, &checkpoint.folder)?;
        Ok(trainer)
    }

    fn assemble(
        mut attached: Attached<M>,
        optimizer: Optimizer,
        train: S,
        validation: Option<S>,
        config: TrainConfig,
        run: RunFiles<'_>,
        state: RunState,
    ) -> Result<Self, TrainError> {
        attached.model = attached.model.train();
        if config.regularizer.orthogonal_gamma > 0.0 {
            attached.keep_vectors_orthogonal()?;
        }
        let device = attached.model.parameter_device();
        let length = RunLength::new(&config, train.batches_per_epoch(0), state.last_step);
        let schedule = config.schedule.over(length.steps(|epoch| train.batches_per_epoch(epoch)));
        // Only a run that begins has an event of step 0 to come.
        let first = if state == RunState::default() { 0 } else { state.step + 1 };
        let events = EventWriter::create(run.folder, "sorsa", first)?;
        let checkpoints = Checkpoints::open(run.folder)?;
        Ok(Self {
            attached,
            optimizer,
            config,
            schedule,
            length,
            train,
            validation,
            state,
            checkpoints,
            metrics: run.metrics,
            events,
            device,
            repairs: Vec::new(),
            watch: DivergenceWatch::default(),
        })
    }

    /// What was damaged in the files of the run that is resumed, and what was done about it.
    pub fn repairs(&self) -> &[Repair] {
        &self.repairs
    }

    /// What the metrics showed of a model that gets worse.
    pub fn divergences(&self) -> &[Divergence] {
        self.watch.found()
    }

    /// The parameters that are trained.
    pub fn trainable(&self) -> &[Trainable] {
        &self.attached.trainable
    }

    /// The peak learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.optimizer.learning_rate()
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.schedule.total_steps
    }

    /// The progress of the run.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Returns the model for evaluation: without autodiff, dropout off, adapters attached.
    pub fn model(&self) -> M {
        self.attached.model.valid()
    }

    /// Returns a copy of the adapter with its current values.
    pub fn adapter(&self) -> SavedAdapter {
        self.attached.snapshot()
    }

    /// Writes the folder of the adapter as it is now.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] with the file; nothing is written if a trained value is not finite.
    pub fn save_adapter(&self, folder: &Path) -> Result<(), AdapterError> {
        self.attached.save(folder)
    }

    /// Ends the run and returns the model with its adapter, without autodiff.
    pub fn into_attached(self) -> Attached<M> {
        Attached { model: self.attached.model.valid(), ..self.attached }
    }

    /// Trains to the end, evaluating and writing checkpoints on the way.
    ///
    /// # Errors
    ///
    /// [`TrainError`]; the last good checkpoint stays.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<RunOutcome, TrainError> {
        // If training never lowers the loss, the parameters before training are the best.
        if self.state.step == 0 && self.state.best.is_none() {
            if self.config.watch_every > 0 {
                self.watch(observer)?;
            }
            if self.evaluate_and_log(observer)? {
                self.save_checkpoint()?;
            }
        }
        while self.state.step < self.total_steps() {
            // A run that is resumed may have ended already.
            if self.has_stalled() {
                return Ok(RunOutcome::EarlyStopped);
            }
            if self.has_diverged() {
                return Ok(RunOutcome::Diverged);
            }
            let metrics = self.step()?;
            self.log(Metric::Step(metrics), observer)?;
            let (step, last) = (self.state.step, self.state.step == self.total_steps());
            let due = |every: u64| last || (every > 0 && step % every == 0);
            if self.config.watch_every > 0 && due(self.config.watch_every) {
                self.watch(observer)?;
            }
            // A run that ends here has an evaluation of its end.
            let evaluates = due(self.config.eval_every) || self.has_diverged();
            let improved = evaluates && self.evaluate_and_log(observer)?;
            let (early, diverged) = (self.has_stalled(), self.has_diverged());
            let stop = !last && observer.should_stop();
            if improved || stop || early || diverged || due(self.config.checkpoint_every) {
                self.save_checkpoint()?;
            }
            if early {
                return Ok(RunOutcome::EarlyStopped);
            }
            if diverged {
                return Ok(RunOutcome::Diverged);
            }
            if stop {
                return Ok(RunOutcome::Interrupted);
            }
        }
        Ok(RunOutcome::Completed)
    }

    fn has_stalled(&self) -> bool {
        let patience = self.config.early_stopping;
        patience > 0 && self.state.evaluations_without_improvement >= patience
    }

    fn has_diverged(&self) -> bool {
        self.config.stop_on_divergence && !self.watch.found().is_empty()
    }

    /// One optimizer step, without evaluation, log or checkpoint.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the loss is not a number or no batch has a target.
    pub fn step(&mut self) -> Result<StepMetrics, TrainError> {
        let started = Instant::now();
        let first = self.state.position;
        let mut position = first;
        let batches = self.next_batches(&mut position);
        let step = self.state.step + 1;
        // Dropout of a step depends on the seed and the step alone.
        let seed = mixed_seed(self.config.seed, step);
        self.device.seed(seed);

        let model = &self.attached.model;
        let config = &self.config;
        let (by_blocks, activations) = (config.checkpoint_blocks, config.activations);
        let result = step_gradients(model, &batches, config.loss_normalization, seed, by_blocks, activations);
        let Some(result) = result else {
            return Err(TrainError::NoTargets { step, rows: self.rows(&batches) });
        };
        let mut gradients = result.gradients;
        add_penalties(model, &self.attached.state.config, &self.attached.trainable, &mut gradients);
        let norm = global_norm(model, &gradients).unwrap_or_else(|| result.loss.zeros_like());
        let read = Tensor::cat(vec![result.loss, norm], 0).into_data().try_into_vec::<f32>().unwrap_or_default();
        let (loss, grad_norm) = (read[0], read[1]);
        if !loss.is_finite() || !grad_norm.is_finite() {
            let checkpoint = self.checkpoints.steps().last().copied();
            let rows = self.rows(&batches);
            let at_end = first.batch >= self.train.batches_per_epoch(first.epoch);
            let (epoch, batch) = if at_end { (first.epoch + 1, 0) } else { (first.epoch, first.batch) };
            return Err(TrainError::NotFinite { step, loss, grad_norm, epoch, batch, rows, checkpoint });
        }
        let mut norm = f64::from(grad_norm);
        if self.config.clip_value > 0.0 {
            gradients = clip(model, gradients, Clipping::Limit(self.config.clip_value));
            norm = global_norm(model, &gradients).map_or(0.0, |norm| f64::from(norm.into_scalar::<f32>()));
        }
        let limit = self.config.clip_norm;
        if limit > 0.0 && norm > limit {
            gradients = clip(model, gradients, Clipping::Scale(limit / (norm + 1e-6)));
        }
        let factor = self.schedule.factor(self.state.step);
        let (stats, gamma, decoupled) = self.regularize(&mut gradients, factor);
        // Before the update, with a regularizer and without one.
        let defect = match stats {
            Some(stats) => Some(stats.mean_defect),
            None => orthonormality_defect(&self.attached.model, &self.attached.trainable),
        };
        let model = self.attached.model.clone();
        self.attached.model = self.optimizer.step(model, gradients, factor, decoupled);
        self.check_parameters(step, &batches)?;

        let tokens: u64 = batches.iter().map(|batch| batch.inputs() as u64).sum();
        let seconds = started.elapsed().as_secs_f64();
        self.state.step = step;
        self.state.position = position;
        self.state.seconds += seconds;
        self.state.tokens += tokens;
        if let (Some(target), Some(stats)) = (self.config.regularizer.target_defect, stats) {
            let RunState { gamma_factor, gamma_integral, .. } = self.state;
            let before = GammaController { factor: gamma_factor, integral: gamma_integral };
            let after = before.after(stats.mean_defect, target);
            self.state.gamma_factor = after.factor;
            self.state.gamma_integral = after.integral;
        }
        let per_epoch = self.train.batches_per_epoch(position.epoch).max(1);
        Ok(StepMetrics {
            step,
            epoch: position.epoch as f64 + position.batch as f64 / per_epoch as f64,
            loss: f64::from(loss),
            learning_rate: self.optimizer.learning_rate() * factor,
            gamma,
            grad_norm: f64::from(grad_norm),
            regularizer: stats.map(|stats| stats.value),
            defect,
            tokens,
            target_tokens: batches.iter().map(|batch| batch.targets() as u64).sum(),
            tokens_per_s: tokens as f64 / seconds.max(1e-9),
            seconds: self.state.seconds,
            peak_memory_bytes: peak_memory_bytes(),
        })
    }

    /// Fails if the update of `step` left a trained parameter that is not finite.
    fn check_parameters(&self, step: u64, batches: &[M::Batch]) -> Result<(), TrainError> {
        let (model, trainable) = (&self.attached.model, &self.attached.trainable);
        let Some(sum) = parameter_sum(model, trainable) else { return Ok(()) };
        if sum.into_scalar::<f32>().is_finite() {
            return Ok(());
        }
        // The sum of finite numbers may be too large for f32.
        let tensors = not_finite(&export_trainable(model, trainable));
        if tensors.is_empty() {
            return Ok(());
        }
        let checkpoint = self.checkpoints.steps().last().copied();
        Err(TrainError::ParametersNotFinite { step, tensors, rows: self.rows(batches), checkpoint })
    }

    /// The micro-batches of one step from `position` on, which is advanced.
    fn next_batches(&self, position: &mut DataPosition) -> Vec<M::Batch> {
        let mut batches = vec![self.train.next_batch(position)];
        let in_epoch = self.train.batches_per_epoch(position.epoch);
        let size = self.length.batches_of_step(position.epoch, in_epoch, position.batch - 1);
        batches.extend((1..size).map(|_| self.train.next_batch(position)));
        batches
    }

    /// Adds the regularizer's gradient, or prepares the decoupled step. Returns the measured values, gamma_t and that step.
    fn regularize(
        &self,
        gradients: &mut burn::optim::GradientsParams,
        factor: f64,
    ) -> (Option<RegularizerStats>, Option<f64>, Decoupled) {
        let config = &self.config.regularizer;
        let step = self.state.step + 1;
        if !step.is_multiple_of(config.every) {
            return (None, None, Decoupled::default());
        }
        let mut gamma = if config.orthogonal_gamma > 0.0 { config.orthogonal_gamma } else { config.gamma };
        if config.author_accumulation {
            gamma /= self.config.accumulation as f64;
        }
        if config.target_defect.is_some() {
            gamma *= f64::from(self.state.gamma_factor);
        }
        // One step stands for those without the regularizer too.
        let skipped = config.every as f64;
        let gamma_t = match config.schedule {
            GammaSchedule::LearningRate => gamma * factor,
            GammaSchedule::Constant => gamma,
        };
        // The optimizer multiplies the gradient by the learning rate.
        let relative = match config.schedule {
            GammaSchedule::LearningRate => gamma,
            GammaSchedule::Constant => gamma / factor.max(SMALLEST_RATE),
        };
        let (model, trainable) = (&self.attached.model, &self.attached.trainable);
        let regularizer = config.regularizer(mixed_seed(mixed_seed(self.config.seed, step), PROBES));
        let (stats, decoupled) = match config.coupling {
            Coupling::Gradient => {
                let weight = relative * skipped / self.optimizer.learning_rate();
                (add_regularizer(model, trainable, regularizer, weight, gradients), Decoupled::default())
            }
            Coupling::Decoupled => {
                let (directions, stats) = regularizer_gradients(model, trainable, regularizer);
                (stats, Decoupled { rate: gamma_t * skipped, directions })
            }
        };
        (stats, stats.map(|_| gamma_t), decoupled)
    }

    /// Returns the mean loss per target over the validation data, if there is such data.
    pub fn evaluate(&self) -> Option<f64> {
        let validation = self.validation.as_ref()?;
        Some(mean_loss(&self.model(), validation))
    }

    /// Evaluates, and returns whether the loss is the lowest so far.
    fn evaluate_and_log(&mut self, observer: &mut dyn Observer) -> Result<bool, TrainError> {
        let Some(loss) = self.evaluate() else { return Ok(false) };
        let step = self.state.step;
        self.log(Metric::Eval(EvalMetrics { step, loss, perplexity: loss.exp() }), observer)?;
        // A loss that is not a number never becomes the best one: later losses would be compared with it.
        let improved = loss.is_finite() && self.state.best.is_none_or(|best| loss < best.loss);
        if improved {
            self.state.best = Some(Best { step, loss });
            self.state.evaluations_without_improvement = 0;
        } else {
            self.state.evaluations_without_improvement += 1;
        }
        Ok(improved)
    }

    /// Measures factors and weights.
    fn watch(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let measures = self.attached.module_measures(self.config.watch_weights)?;
        self.log(Metric::Watch(WatchMetrics::new(self.state.step, &measures)), observer)
    }

    fn log(&mut self, metric: Metric, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.metrics.append(&metric)?;
        match &metric {
            Metric::Step(step) => {
                let mut scalars = vec![
                    ("train/loss", step.loss),
                    ("train/learning_rate", step.learning_rate),
                    ("train/grad_norm", step.grad_norm),
                    ("train/tokens_per_s", step.tokens_per_s),
                ];
                scalars.extend(step.regularizer.map(|value| ("regularizer/value", value)));
                scalars.extend(step.defect.map(|value| ("regularizer/defect", value)));
                scalars.extend(step.gamma.map(|value| ("regularizer/gamma", value)));
                self.events.scalars(step.step, scalars)?;
            }
            Metric::Eval(eval) => {
                self.events.scalars(eval.step, [("eval/loss", eval.loss), ("eval/perplexity", eval.perplexity)])?;
            }
            Metric::Watch(watch) => {
                let scalars = watch.scalars();
                self.events.scalars(watch.step, scalars.iter().map(|(name, value)| (name.as_str(), *value)))?;
            }
        }
        observer.on_metric(&metric, self.total_steps());
        if let Some(divergence) = self.watch.add(&metric) {
            observer.on_divergence(&divergence);
        }
        Ok(())
    }

    fn save_checkpoint(&mut self) -> Result<(), TrainError> {
        // A checkpoint is never ahead of the log, power failures included.
        self.metrics.sync()?;
        self.events.sync()?;
        let parameters = export_trainable(&self.attached.model, &self.attached.trainable);
        self.checkpoints.save(&self.state, parameters, &self.optimizer, &self.attached.trainable)?;
        self.checkpoints.prune(self.config.keep_checkpoints, self.state.best.map(|best| best.step))?;
        Ok(())
    }

    /// Puts the parameters of the best evaluation back into the model, if their checkpoint is still on disk. Returns
    /// their step.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the checkpoint cannot be read.
    pub fn restore_best(&mut self) -> Result<Option<u64>, TrainError> {
        let Some(best) = self.state.best.filter(|best| self.checkpoints.steps().contains(&best.step)) else {
            return Ok(None);
        };
        let checkpoint = self.checkpoints.load(best.step)?;
        self.restore(&checkpoint.parameters, &checkpoint.folder)?;
        Ok(Some(best.step))
    }

    fn restore(&mut self, parameters: &sorsa_adapter::NamedTensors, source: &Path) -> Result<(), TrainError> {
        let source: PathBuf = source.join("parameters.safetensors");
        let model = self.attached.model.clone();
        self.attached.model = import_trainable(model, &self.attached.trainable, parameters, &source)?;
        Ok(())
    }

    /// Rows of the data file in the batches.
    fn rows(&self, batches: &[M::Batch]) -> Vec<usize> {
        batches.iter().flat_map(|batch| self.train.rows(batch)).collect()
    }
}

/// The mean loss per target over one pass of `data`: for a language model the mean negative log-likelihood of a token.
/// The model is plain.
pub fn mean_loss<M: TrainableModel>(model: &M, data: &impl BatchSource<Batch = M::Batch>) -> f64 {
    let (mut sum, mut targets) = (0.0, 0);
    for index in 0..data.batches_per_epoch(0) {
        let batch = data.batch(0, index);
        if let Some(loss) = model.batch_loss(&batch) {
            sum += f64::from(loss.into_scalar::<f32>());
            targets += batch.targets();
        }
    }
    sum / targets.max(1) as f64
}
