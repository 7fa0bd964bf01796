//! `sorsa finetune`: split, train, evaluate, and leave a run directory that somebody can use.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sorsa_adapter::{AttachOptions, Attached, Method, SavedAdapter};
use sorsa_eval::grade::{Grader, Score};
use sorsa_eval::report::{Evaluation, RunReport, Sample, bytes};
use sorsa_files::peak_memory_bytes;
use sorsa_models::CausalLm;
use sorsa_train::metrics::{self, Metric};
use sorsa_train::{Outcome, TrainError, Trainer};

use crate::args::FinetuneArgs;
use crate::commands::inspect;
use crate::curves::training_curves;
use crate::device::{self, Backend};
use crate::estimate::grouped;
use crate::exit::{Interrupted, OrBadInput};
use crate::format::{Format, print, print_json};
use crate::plan::{DataReport, Plan, Task, TrainingShape};
use crate::progress::{Progress, Style, TrainingProgress};
use crate::recipe::Recipe;
use crate::run_dir::RunDir;
use crate::session::{cache_folder, load_saved};
use crate::task::{Answers, percent};

/// What a run came to: `summary.json`.
#[derive(Debug, Serialize)]
struct Summary {
    method: Method,
    rank: Option<usize>,
    trainable_parameters: u64,
    total_parameters: u64,
    loss_before: Option<f64>,
    loss_after: Option<f64>,
    accuracy_before: Option<f64>,
    accuracy_after: Option<f64>,
    accuracy_after_interval: Option<[f64; 2]>,
    problems: usize,
    steps: u64,
    best_step: Option<u64>,
    /// Whether no evaluation was better than the one before training, so that the adapter saved is the one at the start.
    adapter_is_the_start: bool,
    tokens: u64,
    tokens_per_s: f64,
    seconds: f64,
    svd_seconds: f64,
    svd_largest_residual: Option<f64>,
    peak_memory_bytes: Option<u64>,
    backend: Backend,
    seed: u64,
    outcome: &'static str,
    version: &'static str,
}

/// What a run leaves whose loss was not a number any more.
pub const DIVERGED: &str = "diverged.json";

/// Accuracy before training, kept for a resumed run.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    scores: Vec<(Grader, Score)>,
}

pub fn run(args: &FinetuneArgs) -> anyhow::Result<()> {
    let mut recipe = Recipe::of(args)?;
    if args.dry_run {
        return show(&recipe, &inspect::shape(&recipe, args)?, args.format);
    }
    let style = Style::choose(args.quiet);
    let device = device::open(args.device.backend, args.device.device)?;
    // Everything that reads comes before anything is written.
    let Plan { model, train, validation, task } = Plan::new(&recipe, &device, style)?;
    let start = match (&recipe.model.adapter, &args.resume) {
        (Some(folder), None) => Some(load_saved(&model, Path::new(folder))?),
        _ => None,
    };
    if let Some(start) = &start {
        recipe.start_from(start)?;
    }
    let shape = TrainingShape::new(&recipe, model.config(), &device)?;
    let run = match &args.resume {
        Some(folder) => RunDir::open(folder)?,
        None => RunDir::create(args.run_dir.as_deref(), &run_name(&recipe))?,
    };
    if style != Style::Quiet {
        announce(&recipe, &task.data, &shape, args.device.backend, &run);
    }
    let started = std::time::Instant::now();
    let attached = attach(&recipe, model, start, &run, args, style);
    if attached.is_err() && args.resume.is_none() {
        run.abandon();
    }
    let (attached, svd_residual) = attached?;
    let svd_seconds = started.elapsed().as_secs_f64();
    // Of the model as training finds it: an adapter that it starts from counts.
    let baseline = match std::fs::read(run.file("baseline.json")) {
        Ok(json) if args.resume.is_some() => serde_json::from_slice(&json).or_bad_input()?,
        _ => {
            let scores = answer(&task, &attached.model, &recipe, style)?.map_or_else(Vec::new, |a| a.scores());
            let baseline = Baseline { scores };
            run.write("baseline.json", serde_json::to_vec_pretty(&baseline)?)?;
            baseline
        }
    };
    if let (Some((_, score)), true) = (baseline.scores.first(), style != Style::Quiet) {
        eprintln!("accuracy before: {}", percent(score));
    }
    if args.resume.is_none() {
        // The recipe comes last: a folder that has it can be resumed.
        run.write("recipe.toml", recipe.to_toml()?)?;
    }

    let config = recipe.train.clone();
    let mut trainer = match args.resume {
        Some(_) => Trainer::resume(attached, train, validation, config, run.path())?,
        None => Trainer::start(attached, train, validation, config, run.path())?,
    };
    let mut progress = TrainingProgress::new(trainer.total_steps(), style);
    let outcome = trainer.run(&mut progress);
    progress.finish();
    if let Err(TrainError::NotFinite { step, .. }) = &outcome {
        // Whoever tries learning rates tells this from a machine that failed.
        run.write(DIVERGED, serde_json::to_vec_pretty(&serde_json::json!({ "step": step }))?)?;
    }
    let outcome = outcome?;
    if outcome == Outcome::Interrupted {
        let step = trainer.state().step;
        eprintln!("interrupted at step {step}; go on with: cargo xtask finetune --resume {}", run.path().display());
        return Err(Interrupted.into());
    }
    let best_step = trainer.restore_best()?;
    let state = trainer.state().clone();
    trainer.adapter().save(&run.file("adapter"))?;
    let model = trainer.model();
    let answers = answer(&task, &model, &recipe, style)?;
    if let Some(answers) = &answers {
        run.write_rows("generations.jsonl", &answers.rows)?;
    }

    let logged = metrics::read(run.file("metrics.jsonl"))?;
    let eval_loss = |step: u64| {
        logged.iter().find_map(|metric| match metric {
            Metric::Eval(eval) if eval.step == step => Some(eval.loss),
            _ => None,
        })
    };
    let accuracy = answers.as_ref().map(|answers| answers.score());
    let summary = Summary {
        method: recipe.adapter.method,
        rank: recipe.adapter.method.is_factored().then_some(recipe.adapter.rank),
        trainable_parameters: shape.trainable_parameters,
        total_parameters: shape.parameters,
        loss_before: eval_loss(0),
        loss_after: eval_loss(best_step.unwrap_or(state.step)),
        accuracy_before: baseline.scores.first().map(|(_, score)| score.correct.rate()),
        accuracy_after: accuracy.map(|score| score.correct.rate()),
        accuracy_after_interval: accuracy.map(|score| {
            let interval = score.correct.interval();
            [interval.low, interval.high]
        }),
        problems: task.data.problems,
        steps: state.step,
        best_step,
        adapter_is_the_start: best_step == Some(0),
        tokens: state.tokens,
        tokens_per_s: state.tokens as f64 / state.seconds.max(1e-9),
        seconds: state.seconds,
        svd_seconds,
        svd_largest_residual: svd_residual,
        peak_memory_bytes: peak_memory_bytes(),
        backend: args.device.backend,
        seed: recipe.train.seed,
        outcome: if outcome == Outcome::EarlyStopped { "early stopped" } else { "completed" },
        version: env!("CARGO_PKG_VERSION"),
    };
    run.write("summary.json", serde_json::to_vec_pretty(&summary)?)?;
    let report = report(&recipe, &task.data, &summary, baseline, answers.as_ref(), &logged)?;
    run.write("report.html", report)?;
    conclude(&summary, answers.as_ref(), &run, &recipe, &logged, args)
}

/// What is said of a run whose every evaluation was worse than the one before training.
fn not_improved(summary: &Summary, recipe: &Recipe, logged: &[Metric]) -> String {
    let evaluations = logged.iter().filter_map(|metric| match metric {
        Metric::Eval(eval) if eval.step > 0 => Some(eval.loss),
        _ => None,
    });
    let lowest = evaluations.reduce(f64::min).map_or_else(|| "unknown".to_owned(), |loss| format!("{loss:.4}"));
    format!(
        "NOT IMPROVED: validation loss {:.4} before training, {lowest} at best after it. The adapter that was saved is the \
         one before training. Try a lower learning rate (--lr, now {:e}) or more steps.",
        summary.loss_before.unwrap_or(f64::NAN),
        recipe.train.optimizer.learning_rate
    )
}

/// Prints a recipe and what it would train, as one document: TOML that can be run, its shape in comments, or JSON.
fn show(recipe: &Recipe, shape: &TrainingShape, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table => {
            let comments: String = shape.table().lines().map(|line| format!("# {line}\n")).collect();
            print(format_args!("{comments}\n{}", recipe.to_toml()?.trim_end()))
        }
        Format::Json => print_json(&serde_json::json!({ "recipe": recipe, "shape": shape })),
    }
}

/// The name of a run's folder.
fn run_name(recipe: &Recipe) -> String {
    let model = Path::new(recipe.model.path.trim_end_matches('/')).file_name();
    let model = model.map_or("model".into(), |name| name.to_string_lossy().replace('@', "-"));
    let method = recipe.adapter.method;
    if method.is_factored() {
        format!("{model}-{method}-r{}", recipe.adapter.rank)
    } else {
        format!("{model}-{method}")
    }
}

/// Says what is going to happen.
fn announce(recipe: &Recipe, data: &DataReport, shape: &TrainingShape, backend: Backend, run: &RunDir) {
    eprintln!("model  {} on {backend}, weights {}, adapter and optimizer f32", recipe.model.path, recipe.model.dtype);
    let left_out = match data.dropped + data.truncated + data.skipped {
        0 => String::new(),
        _ => format!(" ({} dropped, {} truncated, {} malformed)", data.dropped, data.truncated, data.skipped),
    };
    eprintln!(
        "data   {} {} examples{left_out}, {} tokens, {} of them targets; {} to validate, {} problems",
        grouped(data.train_examples as u64),
        data.format,
        grouped(data.train_tokens as u64),
        grouped(data.target_tokens as u64),
        data.validation_examples,
        data.problems
    );
    eprint!("{}", shape.table());
    eprintln!("run    {}", run.path().display());
}

/// Attaches the adapter: fresh, the one to start `from`, or as it was at the start of the run that is resumed. Returns the largest residual of
/// the decompositions too.
fn attach(
    recipe: &Recipe,
    model: CausalLm,
    from: Option<SavedAdapter>,
    run: &RunDir,
    args: &FinetuneArgs,
    style: Style,
) -> anyhow::Result<(Attached<CausalLm>, Option<f64>)> {
    let start = run.file("start");
    if args.resume.is_some() && recipe.adapter.method.is_factored() {
        return Ok((SavedAdapter::load(&start).and_then(|adapter| adapter.attach(model)).or_bad_input()?, None));
    }
    if let Some(mut saved) = from {
        saved.state.config.dropout = recipe.adapter.dropout;
        saved.save(&start)?;
        return Ok((saved.attach(model).or_bad_input()?, None));
    }
    let count = recipe.adapter.targets(&model).or_bad_input()?.len() as u64;
    let progress = Progress::new("decomposing weights", count, style);
    let show = |done: usize, _total: usize| progress.set(done as u64, "");
    let options = AttachOptions {
        svd: recipe.svd_options()?,
        placement: args.device.backend.svd_placement(),
        cache: recipe.svd.cache.then(cache_folder).flatten().map(|folder| folder.join("svd")),
        progress: Some(&show),
    };
    let attached = recipe.adapter.attach(model, &options).or_bad_input()?;
    progress.finish();
    if recipe.adapter.method.is_factored() {
        attached.snapshot().save(&start)?;
    }
    let residual = attached.modules.iter().filter_map(|module| module.svd_residual).reduce(f64::max);
    let rounding = attached.modules.iter().filter_map(|module| module.rounding).reduce(f64::max);
    if let (Some(residual), true) = (residual, style != Style::Quiet) {
        let cached = attached.modules.iter().filter(|module| module.cached).count();
        let rounding =
            rounding.map_or_else(String::new, |lost| format!(", rounding takes up to {lost:.1e} of a residual"));
        eprintln!("svd    {count} matrices ({cached} cached), largest residual {residual:.1e} of s_1{rounding}");
    }
    Ok((attached, residual))
}

/// Answers the recipe's problems, if there are any.
fn answer(task: &Task, model: &CausalLm, recipe: &Recipe, style: Style) -> anyhow::Result<Option<Answers>> {
    let Some(problems) = &task.problems else { return Ok(None) };
    let eval = &recipe.eval;
    problems.answer(model, &task.encoder, eval.batch_size, eval.max_new_tokens, &task.stops, style).map(Some)
}

/// The report of the run, as HTML.
fn report(
    recipe: &Recipe,
    data: &DataReport,
    summary: &Summary,
    baseline: Baseline,
    answers: Option<&Answers>,
    logged: &[Metric],
) -> anyhow::Result<String> {
    let fields = match serde_json::to_value(summary)? {
        serde_json::Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let machine = format!("{} {}, {cores} cores", std::env::consts::OS, std::env::consts::ARCH);
    let setting = [
        ("model", recipe.model.path.clone()),
        ("data", format!("{} ({} examples)", recipe.data.train, data.train_examples)),
        ("backend", summary.backend.to_string()),
        ("machine", machine),
    ];
    let samples = answers.map_or_else(Vec::new, |answers| {
        let sample = |row: &crate::task::Generated| Sample {
            prompt: row.prompt.clone(),
            expected: row.expected.clone(),
            generated: row.generated.clone(),
            verdict: Some(row.faithful.clone()),
        };
        answers.rows.iter().take(12).map(sample).collect()
    });
    let report = RunReport {
        title: format!("{} on {}", recipe.adapter.method, recipe.model.path),
        setting: setting.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        summary: fields,
        before: Evaluation { loss: summary.loss_before, scores: baseline.scores },
        after: Evaluation { loss: summary.loss_after, scores: answers.map_or_else(Vec::new, Answers::scores) },
        curves: training_curves(logged),
        samples,
        recipe: recipe.to_toml()?,
    };
    report.html().context("cannot draw the report")
}

/// Prints what the run came to and what to do next.
fn conclude(
    summary: &Summary,
    answers: Option<&Answers>,
    run: &RunDir,
    recipe: &Recipe,
    logged: &[Metric],
    args: &FinetuneArgs,
) -> anyhow::Result<()> {
    if args.format == Format::Json {
        return print_json(summary);
    }
    let rank = summary.rank.map_or_else(String::new, |rank| format!(" rank {rank}"));
    print(format_args!(
        "{}{rank}: {} of {} parameters trained, {} steps, {:.0} s, {:.0} tokens/s, peak memory {}",
        summary.method,
        grouped(summary.trainable_parameters),
        grouped(summary.total_parameters),
        summary.steps,
        summary.seconds,
        summary.tokens_per_s,
        summary.peak_memory_bytes.map_or_else(|| "unknown".to_owned(), bytes)
    ))?;
    if summary.adapter_is_the_start {
        print(not_improved(summary, recipe, logged))?;
    } else if let (Some(before), Some(after)) = (summary.loss_before, summary.loss_after) {
        print(format_args!("validation loss: {before:.4} before, {after:.4} after"))?;
    }
    if let (Some(before), Some(answers)) = (summary.accuracy_before, answers) {
        let after = percent(&answers.score());
        let of = if summary.adapter_is_the_start { "with the adapter at the start" } else { "after" };
        print(format_args!(
            "accuracy on {} held-out problems: {:.1} % before, {after} {of}",
            summary.problems,
            100.0 * before
        ))?;
    }
    let folder = run.path().display();
    print(format_args!("results: {folder} (report.html, summary.json, metrics.jsonl, adapter/)"))?;
    let model = match recipe.model.path.as_str() {
        crate::embedded::EMBEDDED => String::new(),
        model => format!(" --model {model}"),
    };
    print(format_args!(
        "next:    cargo xtask generate --adapter {folder}{model} --template {} \"Tom has 12 apples. He buys 7 more apples. How many apples does Tom have now?\"",
        recipe.data.template
    ))?;
    Ok(())
}
