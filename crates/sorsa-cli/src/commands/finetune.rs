//! `sorsa finetune`: splits the data, trains, evaluates, and writes a run directory.

use std::path::Path;

use sorsa_experiment::embedded::EMBEDDED;
use sorsa_experiment::estimate::grouped;
use sorsa_experiment::{ExperimentError, PreparedRun, Recipe, RunDir, RunEnd, Summary, TrainingShape};
use sorsa_report::report::bytes;
use sorsa_train::metrics::Metric;

use crate::args::FinetuneArgs;
use crate::commands::inspect;
use crate::exit::{Diverged, Interrupted};
use crate::format::{Format, print, print_json};
use crate::observer::{TerminalObserver, divergence_text};
use crate::progress::Style;
use crate::recipe;
use crate::session;
use crate::terminal::shell_word;

/// Limits of a program that the model writes; `sorsa eval` has the same defaults.
pub const PROGRAM_SECONDS: u64 = 5;
pub const PROGRAM_MEMORY: u64 = 1 << 30;

pub fn run(args: &FinetuneArgs) -> anyhow::Result<()> {
    let recipe = recipe::of(args)?;
    if args.dry_run {
        return show(&recipe, &inspect::shape(&recipe, args)?, args.format);
    }
    let style = Style::choose(args.quiet);
    let mut host = session::host(&args.device, style)?;
    host.code = Some(session::code_execution(PROGRAM_SECONDS, PROGRAM_MEMORY));
    let mut observer = TerminalObserver::new(style, &host.backend);
    let (prepared, run) = match &args.resume {
        Some(folder) => {
            let run = RunDir::new(folder);
            if let Some(summary) = run.ended() {
                eprintln!(
                    "note: {} has ended ({} at step {}), nothing is left to do",
                    folder.display(),
                    match summary.outcome {
                        RunEnd::Completed => "completed",
                        RunEnd::EarlyStopped => "early stopped",
                        RunEnd::Diverged => "diverged",
                    },
                    summary.steps
                );
                return conclude(&summary, &run, &recipe, args.format);
            }
            (PreparedRun::resumed(&run, &host, &mut observer)?, run)
        }
        None => {
            let prepared = PreparedRun::new(&recipe, &host, &mut observer)?;
            let run = match &args.run_dir {
                Some(folder) => RunDir::new(folder),
                None => RunDir::create_unused(Path::new("runs"), &run_name(prepared.recipe()))?,
            };
            (prepared, run)
        }
    };
    let recipe = prepared.recipe().clone();
    match prepared.train(&run, &mut observer) {
        Ok(summary) => conclude(&summary, &run, &recipe, args.format),
        Err(ExperimentError::Interrupted { step }) => {
            let folder = shell_word(&run.path().display().to_string());
            eprintln!("interrupted at step {step}; go on with: cargo xtask finetune --resume {folder}");
            Err(Interrupted.into())
        }
        Err(error) => Err(error.into()),
    }
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
    let method = recipe.adapter.method();
    if method.is_factored() {
        match recipe.adapter.rank_energy {
            // No colon: not every system has it in names.
            Some(energy) => format!("{model}-{method}-auto{}", energy.share()),
            None => format!("{model}-{method}-r{}", recipe.adapter.rank),
        }
    } else {
        format!("{model}-{method}")
    }
}

/// Prints the results of the run. A run that was to end because it diverged is an error.
fn conclude(summary: &Summary, run: &RunDir, recipe: &Recipe, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => print_json(summary)?,
        Format::Table => print_results(summary, run, recipe)?,
    }
    match summary.outcome {
        RunEnd::Diverged => Err(Diverged.into()),
        RunEnd::Completed | RunEnd::EarlyStopped => Ok(()),
    }
}

/// Prints the results of the run and the next command.
fn print_results(summary: &Summary, run: &RunDir, recipe: &Recipe) -> anyhow::Result<()> {
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
    if let Some(learning_rate) = summary.learning_rate {
        for divergence in &summary.divergences {
            print(format_args!("DIVERGED: {}", divergence_text(divergence, learning_rate)))?;
        }
    }
    if summary.adapter_is_the_start {
        print(not_improved(summary, recipe, &run.metrics()?))?;
    } else if let (Some(before), Some(after)) = (summary.loss_before, summary.loss_after) {
        print(format_args!("validation loss: {before:.4} before, {after:.4} after"))?;
    }
    if let (Some(before), Some(after)) = (summary.accuracy_before, summary.accuracy_after_percent()) {
        let of = if summary.adapter_is_the_start { "with the adapter at the start" } else { "after" };
        let (problems, before) = (summary.problems, 100.0 * before);
        print(format_args!("accuracy on {problems} held-out problems: {before:.1} % before, {after} {of}"))?;
    }
    print(format_args!("results: {} (report.html, summary.json, metrics.jsonl, adapter/)", run.path().display()))?;
    let folder = shell_word(&run.path().display().to_string());
    let model = match recipe.model.path.as_str() {
        EMBEDDED => String::new(),
        model => format!(" --model {}", shell_word(model)),
    };
    print(format_args!(
        "next:    cargo xtask generate --adapter {folder}{model} --template {} \"Tom has 12 apples. He buys 7 more apples. How many apples does Tom have now?\"",
        recipe.data.template
    ))?;
    Ok(())
}

/// The warning about a run in which no evaluation was better than the one before training.
fn not_improved(summary: &Summary, recipe: &Recipe, metrics: &[Metric]) -> String {
    let evaluations = metrics.iter().filter_map(|metric| match metric {
        Metric::Eval(eval) if eval.step > 0 => Some(eval.loss),
        _ => None,
    });
    let lowest = evaluations.reduce(f64::min).map_or_else(|| "unknown".to_owned(), |loss| format!("{loss:.4}"));
    // Of a run of an earlier build the recipe has the rate.
    let rate = summary.learning_rate.or(recipe.train.optimizer.learning_rate.number()).unwrap_or(f64::NAN);
    format!(
        "NOT IMPROVED: validation loss {:.4} before training, {lowest} at best after it. The adapter that was saved is the \
         one before training. Try a lower learning rate (--lr {:.1e} instead of {rate:.1e}) or more steps.",
        summary.loss_before.unwrap_or(f64::NAN),
        rate / 3.0,
    )
}
