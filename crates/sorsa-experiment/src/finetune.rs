//! A fine-tune from a recipe to a run directory: read, attach, train, evaluate, report.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use sorsa_adapter::{AdapterConfig, AdapterState, AttachOptions, Attached, SavedAdapter, WeightGradients};
use sorsa_data::Batcher;
use sorsa_files::peak_memory_bytes;
use sorsa_models::CausalLm;
use sorsa_ops::Instructions;
use sorsa_report::report::{self, RunReport, Sample};
use sorsa_train::metrics::Metric;
use sorsa_train::{BatchGradients, Divergence, LearningRate, Optimizer, RateSearch, RunOutcome, TrainError, Trainer};

use crate::adapter::{BaseModel, LoadedAdapter, with_head_for};
use crate::answer_log::AnswerLog;
use crate::content;
use crate::curves::training_curves;
use crate::error::ExperimentError;
use crate::host::Host;
use crate::inputs::{Inputs, Test};
use crate::learning_rate::{find_learning_rate, optimizer_with};
use crate::model::LoadedModel;
use crate::observer::{Event, Observer};
use crate::packed_on_read::PackedOnRead;
use crate::private_folder::private_folder;
use crate::recipe::Recipe;
use crate::run_dir::{RunDir, json_lines};
use crate::run_inputs::{RunInputs, field_changes};
use crate::summary::{Baseline, NotFinite, RunEnd, Summary};
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

/// Resumes a run from its newest checkpoint, like a run that was never interrupted. A run that has ended stays what it is.
///
/// # Errors
///
/// [`ExperimentError::NoRun`]; [`ExperimentError::InputsChanged`] and [`ExperimentError::AdapterChanged`] if the run was begun with
/// other files or another adapter; and all that [`finetune`] finds.
pub fn resume(host: &Host, run: &RunDir, observer: &mut dyn Observer) -> Result<Summary, ExperimentError> {
    if let Some(summary) = run.ended() {
        return Ok(summary);
    }
    PreparedRun::resumed(run, host, observer)?.train(run, observer)
}

/// A run whose input is read; nothing is written yet.
pub struct PreparedRun<'a> {
    recipe: Recipe,
    host: &'a Host,
    model: CausalLm,
    originals: PackedOnRead,
    inputs: Inputs,
    files: RunInputs,
    start: Start,
    shape: TrainingShape,
}

/// A model without an adapter.
struct PlainModel {
    model: CausalLm,
    originals: PackedOnRead,
}

/// What training starts from.
enum Start {
    /// A fresh adapter.
    Fresh,
    /// An adapter that was trained before.
    Adapter(Box<SavedAdapter>),
    /// The adapter at the start of the run that is resumed.
    Resumed {
        /// The fingerprint that it had; absent of runs of earlier builds.
        content: Option<String>,
    },
}

impl<'a> PreparedRun<'a> {
    /// Reads the model, the data and the adapter to start from, if the recipe names one.
    ///
    /// # Errors
    ///
    /// All that can be wrong with the input.
    pub fn new(recipe: &Recipe, host: &'a Host, observer: &mut dyn Observer) -> Result<Self, ExperimentError> {
        let (loaded, inputs, files) = read(recipe, host, observer)?;
        let mut recipe = recipe.clone();
        let originals = PackedOnRead::open(&loaded.folder, loaded.quantize)?;
        if recipe.model.adapter.is_none() && recipe.adapter.rank_energy.is_some() {
            let options = AttachOptions { originals: Some(&originals), ..AttachOptions::default() };
            let ranks = recipe.adapter.with_resolved_ranks(&loaded.model, &options)?;
            observer.on_event(Event::Note { text: &ranks.to_string() });
            recipe.adapter = ranks.config;
        }
        let (model, start) = match (&recipe.model.adapter, &recipe.model.continue_from) {
            (Some(folder), _) => {
                let base = BaseModel { name: &loaded.name, folder: &loaded.folder, quantize: loaded.quantize };
                let adapter = LoadedAdapter::read(loaded.model, base, Path::new(folder), observer)?;
                recipe.start_from(&adapter.saved)?;
                (adapter.model, Start::Adapter(Box::new(adapter.saved)))
            }
            (None, Some(folder)) => {
                let base = BaseModel { name: &loaded.name, folder: &loaded.folder, quantize: loaded.quantize };
                let LoadedAdapter { model, saved } =
                    LoadedAdapter::read(loaded.model, base, Path::new(folder), observer)?;
                saved.check_weights(&model, &originals)?;
                let old = &saved.state.config;
                let text = format!(
                    "{} goes on from the weights of {folder} ({}, rank {}): at the start they are the same",
                    recipe.adapter.method(),
                    old.method(),
                    old.rank
                );
                observer.on_event(Event::Note { text: &text });
                let options = AttachOptions {
                    svd: recipe.svd_options(),
                    placement: host.placement,
                    originals: Some(&originals),
                    ..AttachOptions::default()
                };
                let start = saved.handed_over(&model, &recipe.adapter, &options)?;
                (model, Start::Adapter(Box::new(start)))
            }
            (None, None) => (loaded.model, Start::Fresh),
        };
        let shape = TrainingShape::with_packed_bytes(&recipe, model.config(), loaded.packed_bytes, host)?;
        Ok(Self { recipe, host, model, originals, inputs, files, start, shape })
    }

    /// Reads the model and the data of an earlier run, and compares them with those that it was begun with. Tells the observer which
    /// fields of the recipe were changed.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::NoRun`]; [`ExperimentError::InputsChanged`], [`ExperimentError::AdapterChanged`]; and all that can be wrong
    /// with the input.
    pub fn resumed(run: &RunDir, host: &'a Host, observer: &mut dyn Observer) -> Result<Self, ExperimentError> {
        let recipe = run
            .recipe()
            .map_err(|error| ExperimentError::NoRun { path: run.path().to_owned(), reason: error.to_string() })?;
        if recipe.train.optimizer.learning_rate == LearningRate::Auto {
            // The run wrote the number that it found.
            let faults =
                vec!["train.optimizer.learning_rate must be a number in a run that has begun, found auto".to_owned()];
            return Err(ExperimentError::RecipeValues { name: run.file(RunDir::RECIPE).display().to_string(), faults });
        }
        let begun = run.inputs()?;
        if let Some(begun) = &begun {
            check_recipe(begun, &recipe, run, observer)?;
            if let (true, Some(instructions)) = (host.fused_operations, &begun.instructions) {
                take_instructions(instructions, observer);
            }
        }
        let (LoadedModel { model, folder, quantize, packed_bytes, .. }, inputs, files) = read(&recipe, host, observer)?;
        let originals = PackedOnRead::open(&folder, quantize)?;
        if let Some(begun) = &begun {
            let changes = begun.file_changes(&files, &recipe);
            if !changes.is_empty() {
                return Err(ExperimentError::InputsChanged { run: run.path().to_owned(), changes });
            }
        }
        let start = Start::Resumed { content: begun.and_then(|begun| begun.start) };
        // A start that cannot be read is reported when it is attached.
        let model = match AdapterState::load(&run.file(RunDir::START)) {
            Ok(state) => with_head_for(model, &state),
            Err(_) => model,
        };
        let shape = TrainingShape::with_packed_bytes(&recipe, model.config(), packed_bytes, host)?;
        Ok(Self { recipe, host, model, originals, inputs, files, start, shape })
    }

    /// The recipe, with what the adapter to start from decides.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Finds the learning rate without training, and tries rates around it too, `beside` of them on each side. Files that are needed on the
    /// way are in a folder of their own in `scratch`, and gone at the end.
    ///
    /// # Errors
    ///
    /// Decompositions that fail; failures of training.
    pub fn find_learning_rate(
        self,
        beside: usize,
        scratch: &Path,
        observer: &mut dyn Observer,
    ) -> Result<RateSearch, ExperimentError> {
        let Self { recipe, host, model, originals, inputs, start, shape, .. } = self;
        let folder = private_folder(scratch, "sorsa-lr-find-")
            .map_err(|source| ExperimentError::CreateFolder { path: scratch.to_owned(), source })?;
        let run = RunDir::new(folder.path());
        observer.on_event(Event::Planned { recipe: &recipe, data: &inputs.data, shape: &shape, run: &run });
        let attached = attach(&recipe, host, PlainModel { model, originals }, &inputs.train, start, &run, observer)?;
        let mut config = recipe.train.clone();
        config.optimizer.learning_rate = recipe.learning_rate_guess().into();
        let optimizer = Optimizer::new(config.optimizer.clone(), &attached.trainable);
        let mut trainer = Trainer::start(attached, optimizer, inputs.train, None, config, run.path())?;
        let mut search = find_learning_rate(&mut trainer, &recipe, observer)?;
        let with_rate = optimizer_with(&recipe, &trainer);
        trainer.widen(&mut search, &with_rate, beside)?;
        observer.on_event(Event::LearningRateFound { search: &search });
        Ok(search)
    }

    /// Trains, evaluates and reports.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::RunExists`] for a folder that holds a run; decompositions that fail; failures of training.
    pub fn train(self, run: &RunDir, observer: &mut dyn Observer) -> Result<Summary, ExperimentError> {
        let Self { mut recipe, host, model, originals, inputs, mut files, start, shape } = self;
        let Inputs { train, validation, test, data } = inputs;
        let resumed = matches!(start, Start::Resumed { .. });
        // The folder is this process's until the report is written.
        let (begun, lock) = match resumed {
            true => (None, Some(run.reopen()?)),
            false => (Some(run.begin()?), None),
        };
        observer.on_event(Event::Planned { recipe: &recipe, data: &data, shape: &shape, run });
        let started = Instant::now();
        let attached = attach(&recipe, host, PlainModel { model, originals }, &train, start, run, observer)?;
        let svd_largest_residual = attached.modules.iter().filter_map(|module| module.svd_residual).reduce(f64::max);
        let svd_seconds = started.elapsed().as_secs_f64();

        // Of the model as training finds it: an adapter that it starts from counts.
        let known = match resumed && run.file(RunDir::BASELINE).exists() {
            true => match run.baseline() {
                Err(ExperimentError::MalformedResult { path, .. }) => {
                    let text = format!("{} is damaged: the scores before training are measured again", path.display());
                    observer.on_event(Event::Note { text: &text });
                    None
                }
                found => Some(found?),
            },
            false => None,
        };
        let baseline = match known {
            Some(baseline) => baseline,
            None => {
                let evaluation = answer(test.as_ref(), &attached.model, observer)?;
                let baseline = Baseline { scores: evaluation.map_or_else(Vec::new, |found| found.scores.graders) };
                run.write_json(RunDir::BASELINE, &baseline)?;
                baseline
            }
        };
        if let Some((_, score)) = baseline.scores.first() {
            observer.on_event(Event::AccuracyBefore { score });
        }
        let mut config = recipe.train.clone();
        if config.optimizer.learning_rate == LearningRate::Auto {
            config.optimizer.learning_rate = recipe.learning_rate_guess().into();
        }
        let optimizer = Optimizer::new(config.optimizer.clone(), &attached.trainable);
        let mut trainer = match resumed {
            true => Trainer::resume(attached, optimizer, train, validation, config, run.path())?,
            false => Trainer::start(attached, optimizer, train, validation, config, run.path())?,
        };
        let search = match recipe.train.optimizer.learning_rate {
            LearningRate::Auto => {
                let found = find_learning_rate(&mut trainer, &recipe, observer)?;
                recipe.train.optimizer.learning_rate = found.learning_rate.into();
                run.write_json(RunDir::LEARNING_RATE, &found)?;
                observer.on_event(Event::LearningRateFound { search: &found });
                Some(found)
            }
            // Of a damaged file only the seconds are lost.
            LearningRate::Rate(_) => run.learning_rate_search().unwrap_or_default(),
        };
        let _lock = match begun {
            Some(begun) => {
                files.recipe = recipe.to_toml()?;
                files.instructions = host.fused_operations.then(|| Instructions::used().to_string());
                if run.file(RunDir::START).exists() {
                    files.start = Some(content::of_adapter(&run.file(RunDir::START))?);
                }
                run.write_json(RunDir::INPUTS, &files)?;
                // The recipe comes last: a folder that has it can be resumed.
                run.write(RunDir::RECIPE, recipe.to_toml()?)?;
                Some(begun.keep())
            }
            None => lock,
        };

        let learning_rate = trainer.learning_rate();
        for repair in trainer.repairs() {
            observer.on_event(Event::Note { text: &repair.to_string() });
        }
        observer.on_event(Event::TrainingStarts { total_steps: trainer.total_steps(), best: trainer.state().best });
        let outcome = trainer.run(&mut TrainingObserver { observer: &mut *observer, learning_rate });
        // Whoever asks to stop in the last step does not want the evaluation either.
        let stopped = observer.should_stop();
        observer.on_event(Event::TrainingEnded);
        if let Some(step) = outcome.as_ref().err().and_then(TrainError::diverged_at) {
            run.write_json(RunDir::DIVERGED, &NotFinite { step })?;
        }
        let end = match outcome? {
            RunOutcome::Completed if !stopped => RunEnd::Completed,
            RunOutcome::EarlyStopped if !stopped => RunEnd::EarlyStopped,
            RunOutcome::Diverged if !stopped => RunEnd::Diverged,
            _ => return Err(ExperimentError::Interrupted { step: trainer.state().step }),
        };
        let best_step = trainer.restore_best()?;
        let state = trainer.state().clone();
        trainer.save_adapter(&run.file(RunDir::ADAPTER)).map_err(ExperimentError::SaveAdapter)?;
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
            learning_rate: Some(learning_rate),
            learning_rate_search_seconds: search.map(|search| search.seconds),
            divergences: trainer.divergences().to_vec(),
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
        run.write(RunDir::REPORT, report.html()?)?;
        Ok(summary)
    }
}

/// Reads the model and the data of a recipe.
fn read(
    recipe: &Recipe,
    host: &Host,
    observer: &mut dyn Observer,
) -> Result<(LoadedModel, Inputs, RunInputs), ExperimentError> {
    recipe.train.matmul_precision.choose();
    let host = &Host { sources: host.sources.for_model(&recipe.model), ..host.clone() };
    let loaded = LoadedModel::load(&recipe.model.path, recipe.model.dtype, host)?;
    for text in &loaded.notes {
        observer.on_event(Event::Note { text });
    }
    let inputs = Inputs::read(recipe, &loaded.tokenizer, loaded.model.config(), host, observer)?;
    let files = RunInputs::new(recipe, &loaded.folder, &host.sources)?;
    Ok((loaded, inputs, files))
}

/// Tells the observer what was changed in the recipe of a run. The adapter cannot be changed any more.
fn check_recipe(
    begun: &RunInputs,
    recipe: &Recipe,
    run: &RunDir,
    observer: &mut dyn Observer,
) -> Result<(), ExperimentError> {
    let changes = begun.recipe_changes(recipe);
    let (adapter, others): (Vec<String>, Vec<String>) =
        changes.into_iter().partition(|change| change.starts_with("adapter."));
    let path = run.file(RunDir::RECIPE);
    if !adapter.is_empty() {
        return Err(ExperimentError::AdapterChanged { recipe: path, changes: adapter });
    }
    if !others.is_empty() {
        let shown = others.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = match others.len().saturating_sub(5) {
            0 => String::new(),
            more => format!(" and {more} more fields"),
        };
        let text = format!("{} was changed since the run began: {shown}{more}", path.display());
        observer.on_event(Event::Note { text: &text });
    }
    Ok(())
}

/// Makes a resumed run use the instructions that it began with, so that its numbers are those of a run that was never interrupted. Tells the
/// observer if the processor lacks them, or if somebody chose others.
fn take_instructions(begun: &str, observer: &mut dyn Observer) {
    let used = Instructions::used();
    if begun == used.name() {
        return;
    }
    let odd = match begun.parse::<Instructions>() {
        Ok(begun) if Instructions::chosen().is_none() && begun.choose().is_ok() => return,
        Ok(begun) if begun.is_available() => "others were chosen",
        _ => "this processor lacks them",
    };
    let text = format!(
        "the run began with the instructions {begun}; {odd}: it goes on with {used}, and its numbers may differ in the last digits"
    );
    observer.on_event(Event::Note { text: &text });
}

/// The adapter that a run began with, checked against its fingerprint and the recipe.
fn read_start(recipe: &Recipe, run: &RunDir, content: Option<String>) -> Result<SavedAdapter, ExperimentError> {
    let folder = run.file(RunDir::START);
    let damaged = |reason: String| ExperimentError::DamagedStart { folder: folder.clone(), reason };
    let saved = SavedAdapter::load(&folder).map_err(|error| damaged(error.to_string()))?;
    if content.is_some_and(|content| content::of_adapter(&folder).is_ok_and(|found| found != content)) {
        return Err(damaged("its content is not what was written".to_owned()));
    }
    // The seed counts for an adapter that is drawn; it is the run's own beside an adapter that training started from.
    let config = AdapterConfig { seed: recipe.adapter.seed, ..saved.state.config.clone() };
    let changes: Vec<String> =
        field_changes(&config, &recipe.adapter).into_iter().map(|change| format!("adapter.{change}")).collect();
    if !changes.is_empty() {
        return Err(ExperimentError::AdapterChanged { recipe: run.file(RunDir::RECIPE), changes });
    }
    Ok(saved)
}

/// Attaches the adapter that training starts from, and saves it for a run that is resumed.
fn attach(
    recipe: &Recipe,
    host: &Host,
    PlainModel { model, originals }: PlainModel,
    train: &Batcher,
    start: Start,
    run: &RunDir,
    observer: &mut dyn Observer,
) -> Result<Attached<CausalLm>, ExperimentError> {
    let folder = run.file(RunDir::START);
    let factored = recipe.adapter.method().is_factored();
    match start {
        Start::Resumed { content } if factored => {
            return Ok(read_start(recipe, run, content)?.attach_with(model, &originals)?);
        }
        Start::Adapter(mut saved) => {
            saved.state.config.dropout = recipe.adapter.dropout;
            saved.save(&folder).map_err(ExperimentError::SaveAdapter)?;
            return Ok(saved.attach_with(model, &originals)?);
        }
        Start::Fresh | Start::Resumed { .. } => {}
    }
    let total = recipe.adapter.targets(&model)?.len();
    observer.on_event(Event::Decomposing { done: 0, total });
    // A second handle keeps the weights that the adapter replaces by residuals.
    let plain = recipe.adapter.method().needs_gradients().then(|| model.clone());
    let checkpoint_blocks = recipe.train.checkpoint_blocks;
    let gradients = plain.as_ref().map(|model| BatchGradients { model, data: train, checkpoint_blocks });
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
            originals: Some(&originals),
            gradients: gradients.as_ref().map(|gradients| gradients as &dyn WeightGradients),
            progress: Some(&show),
        };
        recipe.adapter.attach(model, &options)?
    };
    if factored {
        attached.save(&folder).map_err(ExperimentError::SaveAdapter)?;
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
    learning_rate: f64,
}

impl sorsa_train::Observer for TrainingObserver<'_> {
    fn on_metric(&mut self, metric: &Metric, _total_steps: u64) {
        self.observer.on_event(Event::Trained { metric });
    }

    fn on_divergence(&mut self, divergence: &Divergence) {
        self.observer.on_event(Event::Diverged { divergence, learning_rate: self.learning_rate });
    }

    fn should_stop(&mut self) -> bool {
        self.observer.should_stop()
    }
}
