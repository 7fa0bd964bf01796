//! A fine-tune from a recipe to a run directory: read, attach, train, evaluate, report.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use sorsa_adapter::{AttachOptions, Attached, SavedAdapter};
use sorsa_files::peak_memory_bytes;
use sorsa_files::recover;
use sorsa_models::CausalLm;
use sorsa_report::report::{self, RunReport, Sample};
use sorsa_train::metrics::Metric;
use sorsa_train::{RunOutcome, TrainError, Trainer};

use crate::answer_log::AnswerLog;
use crate::curves::training_curves;
use crate::error::ExperimentError;
use crate::host::Host;
use crate::inputs::{Inputs, Test};
use crate::model::{LoadedModel, load_adapter};
use crate::observer::{Event, Observer};
use crate::recipe::Recipe;
use crate::run_dir::{RunDir, json_lines};
use crate::summary::{Baseline, Divergence, RunEnd, Summary};
use crate::tasks::{Evaluation, evaluate};
use crate::training_shape::TrainingShape;

/// Generations that the report shows.
const SHOWN_SAMPLES: usize = 12;

/// Trains by a recipe, and leaves a run that somebody can use in `run`.
///
/// # Errors
///
/// Bad input leaves nothing behind. [`ExperimentError::Interrupted`] leaves a checkpoint for [`resume`].
pub fn finetune(
    recipe: &Recipe,
    host: &Host,
    run: &RunDir,
    observer: &mut dyn Observer,
) -> Result<Summary, ExperimentError> {
    PreparedRun::new(recipe, host, observer)?.train(run, observer)
}

/// Resumes a run from its newest checkpoint, like a run that was never interrupted.
///
/// # Errors
///
/// [`ExperimentError::NoRun`], and all that [`finetune`] finds.
pub fn resume(host: &Host, run: &RunDir, observer: &mut dyn Observer) -> Result<Summary, ExperimentError> {
    PreparedRun::resumed(run, host, observer)?.train(run, observer)
}

/// A run whose input is read; nothing is written yet.
pub struct PreparedRun<'a> {
    recipe: Recipe,
    host: &'a Host,
    model: CausalLm,
    inputs: Inputs,
    start: Start,
    shape: TrainingShape,
}

/// What training starts from.
enum Start {
    /// A fresh adapter.
    Fresh,
    /// An adapter that was trained before.
    Adapter(Box<SavedAdapter>),
    /// The adapter at the start of the run that is resumed.
    Resumed,
}

impl<'a> PreparedRun<'a> {
    /// Reads the model, the data and the adapter to start from, if the recipe names one.
    ///
    /// # Errors
    ///
    /// All that can be wrong with the input.
    pub fn new(recipe: &Recipe, host: &'a Host, observer: &mut dyn Observer) -> Result<Self, ExperimentError> {
        let (model, inputs) = read(recipe, host, observer)?;
        let mut recipe = recipe.clone();
        let start = match &recipe.model.adapter {
            Some(folder) => {
                let saved = load_adapter(&model, Path::new(folder))?;
                recipe.start_from(&saved)?;
                Start::Adapter(Box::new(saved))
            }
            None => Start::Fresh,
        };
        let shape = TrainingShape::new(&recipe, model.config(), host)?;
        Ok(Self { recipe, host, model, inputs, start, shape })
    }

    /// Reads the model and the data of an earlier run.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NoRun`], and all that can be wrong with the input.
    pub fn resumed(run: &RunDir, host: &'a Host, observer: &mut dyn Observer) -> Result<Self, ExperimentError> {
        let recipe = run
            .recipe()
            .map_err(|error| ExperimentError::NoRun { path: run.path().to_owned(), reason: error.to_string() })?;
        let (model, inputs) = read(&recipe, host, observer)?;
        let shape = TrainingShape::new(&recipe, model.config(), host)?;
        Ok(Self { recipe, host, model, inputs, start: Start::Resumed, shape })
    }

    /// The recipe, with what the adapter to start from decides.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Trains, evaluates and reports.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::RunExists`] for a folder that holds a run; decompositions that fail; failures of training.
    pub fn train(self, run: &RunDir, observer: &mut dyn Observer) -> Result<Summary, ExperimentError> {
        let Self { recipe, host, model, inputs, start, shape } = self;
        let Inputs { train, validation, test, data } = inputs;
        let resumed = matches!(start, Start::Resumed);
        if resumed {
            recover(run.path())?;
        } else {
            run.create()?;
        }
        observer.on_event(Event::Planned { recipe: &recipe, data: &data, shape: &shape, run });
        let started = Instant::now();
        let attached = attach(&recipe, host, model, start, run, observer);
        if attached.is_err() && !resumed {
            run.abandon();
        }
        let attached = attached?;
        let svd_largest_residual = attached.modules.iter().filter_map(|module| module.svd_residual).reduce(f64::max);
        let svd_seconds = started.elapsed().as_secs_f64();

        // Of the model as training finds it: an adapter that it starts from counts.
        let baseline = if resumed && run.file(RunDir::BASELINE).exists() {
            run.baseline()?
        } else {
            let evaluation = answer(test.as_ref(), &attached.model, observer)?;
            let baseline = Baseline { scores: evaluation.map_or_else(Vec::new, |found| found.scores.graders) };
            run.write_json(RunDir::BASELINE, &baseline)?;
            baseline
        };
        if let Some((_, score)) = baseline.scores.first() {
            observer.on_event(Event::AccuracyBefore { score });
        }
        if !resumed {
            // The recipe comes last: a folder that has it can be resumed.
            run.write(RunDir::RECIPE, recipe.to_toml()?)?;
        }

        let config = recipe.train.clone();
        let mut trainer = match resumed {
            true => Trainer::resume(attached, train, validation, config, run.path())?,
            false => Trainer::start(attached, train, validation, config, run.path())?,
        };
        observer.on_event(Event::TrainingStarts { total_steps: trainer.total_steps() });
        let outcome = trainer.run(&mut TrainingObserver { observer: &mut *observer });
        observer.on_event(Event::TrainingEnded);
        if let Err(TrainError::NotFinite { step, .. }) = &outcome {
            run.write_json(RunDir::DIVERGED, &Divergence { step: *step })?;
        }
        let end = match outcome? {
            RunOutcome::Completed => RunEnd::Completed,
            RunOutcome::EarlyStopped => RunEnd::EarlyStopped,
            RunOutcome::Interrupted => return Err(ExperimentError::Interrupted { step: trainer.state().step }),
        };
        let best_step = trainer.restore_best()?;
        let state = trainer.state().clone();
        trainer.adapter().save(&run.file(RunDir::ADAPTER)).map_err(ExperimentError::SaveAdapter)?;
        let evaluation = answer(test.as_ref(), &trainer.model(), observer)?;
        if let Some(evaluation) = &evaluation {
            run.write(RunDir::GENERATIONS, json_lines(&evaluation.answers)?)?;
        }

        let metrics = run.metrics()?;
        let accuracy = evaluation.as_ref().and_then(Evaluation::score).map(|score| score.correct);
        let method = recipe.adapter.method();
        let summary = Summary {
            method,
            rank: if method.is_factored() { Some(recipe.adapter.rank) } else { None },
            trainable_parameters: shape.trainable_parameters,
            total_parameters: shape.parameters,
            loss_before: loss_at(&metrics, 0),
            loss_after: loss_at(&metrics, best_step.unwrap_or(state.step)),
            accuracy_before: baseline.scores.first().map(|(_, score)| score.correct.rate()),
            accuracy_after: accuracy.map(|share| share.rate()),
            accuracy_after_interval: accuracy.map(|share| {
                let interval = share.interval();
                [interval.low, interval.high]
            }),
            problems: data.problems,
            steps: state.step,
            best_step,
            adapter_is_the_start: best_step == Some(0),
            tokens: state.tokens,
            tokens_per_s: state.tokens as f64 / state.seconds.max(1e-9),
            seconds: state.seconds,
            svd_seconds,
            svd_largest_residual,
            peak_memory_bytes: peak_memory_bytes(),
            backend: host.backend.clone(),
            seed: recipe.train.seed,
            outcome: end,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        run.write_json(RunDir::SUMMARY, &summary)?;
        let settings = [
            ("model", recipe.model.path.clone()),
            ("data", format!("{} ({} examples)", recipe.data.train, data.train_examples)),
            ("backend", summary.backend.clone()),
            ("machine", host.machine.clone()),
        ];
        let report = report(&recipe, settings, &summary, baseline, evaluation, &metrics)?;
        run.write("report.html", report.html()?)?;
        Ok(summary)
    }
}

/// Reads the model and the data of a recipe.
fn read(recipe: &Recipe, host: &Host, observer: &mut dyn Observer) -> Result<(CausalLm, Inputs), ExperimentError> {
    let host = &Host { sources: host.sources.with_config(&recipe.model.config), ..host.clone() };
    let loaded = LoadedModel::load(&recipe.model.path, recipe.model.dtype, host)?;
    let inputs = Inputs::read(recipe, &loaded.tokenizer, loaded.model.config(), host, observer)?;
    Ok((loaded.model, inputs))
}

/// Attaches the adapter that training starts from, and saves it for a run that is resumed.
fn attach(
    recipe: &Recipe,
    host: &Host,
    model: CausalLm,
    start: Start,
    run: &RunDir,
    observer: &mut dyn Observer,
) -> Result<Attached<CausalLm>, ExperimentError> {
    let folder = run.file(RunDir::START);
    let factored = recipe.adapter.method().is_factored();
    match start {
        Start::Resumed if factored => return Ok(SavedAdapter::load(&folder)?.attach(model)?),
        Start::Adapter(mut saved) => {
            saved.state.config.dropout = recipe.adapter.dropout;
            saved.save(&folder).map_err(ExperimentError::SaveAdapter)?;
            return Ok(saved.attach(model)?);
        }
        Start::Fresh | Start::Resumed => {}
    }
    let total = recipe.adapter.targets(&model)?.len();
    observer.on_event(Event::Decomposing { done: 0, total });
    let attached = {
        let shared = Mutex::new(&mut *observer);
        let show = |done: usize, _total: usize| {
            shared.lock().unwrap_or_else(PoisonError::into_inner).on_event(Event::Decomposing { done, total });
        };
        let options = AttachOptions {
            svd: recipe.svd_options(),
            placement: host.placement,
            cache: match (&host.cache, recipe.svd.cache) {
                (Some(cache), true) => Some(cache.join("svd")),
                _ => None,
            },
            progress: Some(&show),
        };
        recipe.adapter.attach(model, &options)?
    };
    if factored {
        attached.snapshot().save(&folder).map_err(ExperimentError::SaveAdapter)?;
    }
    observer.on_event(Event::Attached { modules: &attached.modules });
    Ok(attached)
}

/// Asks the model the problems of the test, if there is one.
fn answer(
    test: Option<&Test>,
    model: &CausalLm,
    observer: &mut dyn Observer,
) -> Result<Option<Evaluation>, ExperimentError> {
    let Some(test) = test else { return Ok(None) };
    evaluate(&*test.problems, model, &test.options, AnswerLog::in_memory(), observer).map(Some)
}

/// The validation loss after so many steps.
fn loss_at(metrics: &[Metric], step: u64) -> Option<f64> {
    metrics.iter().find_map(|metric| match metric {
        Metric::Eval(eval) if eval.step == step => Some(eval.loss),
        _ => None,
    })
}

/// The report of a run.
fn report(
    recipe: &Recipe,
    settings: [(&str, String); 4],
    summary: &Summary,
    baseline: Baseline,
    evaluation: Option<Evaluation>,
    metrics: &[Metric],
) -> Result<RunReport, ExperimentError> {
    let fields = match serde_json::to_value(summary)? {
        serde_json::Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    let (answers, scores) = match evaluation {
        Some(evaluation) => (evaluation.answers, evaluation.scores.graders),
        None => (Vec::new(), Vec::new()),
    };
    let samples = answers.into_iter().take(SHOWN_SAMPLES).map(|answer| Sample {
        verdict: Some(answer.verdict()),
        prompt: answer.prompt,
        expected: answer.expected.unwrap_or_default(),
        generated: answer.generated,
    });
    Ok(RunReport {
        title: format!("{} on {}", recipe.adapter.method(), recipe.model.path),
        setting: settings.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        summary: fields,
        before: report::LossAndScores { loss: summary.loss_before, scores: baseline.scores },
        after: report::LossAndScores { loss: summary.loss_after, scores },
        curves: training_curves(metrics),
        samples: samples.collect(),
        recipe: recipe.to_toml()?,
    })
}

/// Hands the events of training on.
struct TrainingObserver<'a> {
    observer: &'a mut dyn Observer,
}

impl sorsa_train::Observer for TrainingObserver<'_> {
    fn on_metric(&mut self, metric: &Metric, _total_steps: u64) {
        self.observer.on_event(Event::Trained { metric });
    }

    fn should_stop(&mut self) -> bool {
        self.observer.should_stop()
    }
}
