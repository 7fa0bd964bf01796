//! `sorsa bench`: a comparison of methods, or of any other settings, under equal conditions.
//!
//! `options` turns the arguments into a request; [`sorsa_experiment::comparison`] plans it and makes reports of its results; `jobs`
//! runs it, each run in a process of its own.

mod budget;
mod jobs;
mod options;

use crate::args::{BenchArgs, BenchFormat};
use crate::commands::finetune::{PROGRAM_MEMORY, PROGRAM_SECONDS};
use crate::exit::{Interrupted, bad_input};
use crate::format::{print, print_json};
use crate::observer::TerminalObserver;
use crate::progress::Style;
use crate::session;
use jobs::job_runner::JobRunner;
use jobs::stages;
use sorsa_experiment::comparison::fields::listed_sweeps;
use sorsa_experiment::comparison::{Comparison, ComparisonPlan, Measurements, Report};
use sorsa_experiment::estimate::grouped;

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let style = Style::choose(args.quiet);
    if let Some(text) = args.forgetting_text.iter().find(|text| !text.is_file()) {
        return Err(bad_input(format!("--forgetting-text: {} is no file", text.display())));
    }
    let mut host = session::host(&args.device, style)?;
    host.code = Some(session::code_execution(PROGRAM_SECONDS, PROGRAM_MEMORY));
    let mut observer = TerminalObserver::new(style, &host.backend);
    let mut plan = ComparisonPlan::new(options::request(args)?, &host, &mut observer)?;
    if args.dry_run {
        return show(&plan, args.format);
    }
    if style != Style::Quiet {
        eprintln!("{}", plan.summary());
    }
    let runner = JobRunner::new(&plan.folder, usize::try_from(args.jobs)?, &args.device, style)?;
    let measurements = Measurements::new(&plan, &args.forgetting_text)?;
    if let Some(seconds) = args.budget {
        let said = budget::fit(&mut plan, seconds, &measurements, &runner)?;
        if style != Style::Quiet {
            eprintln!("{said}");
        }
    }
    let (runs, done_here) = match stages::run(&plan, &measurements, &runner) {
        Err(error) if error.is::<Interrupted>() => {
            let folder = plan.folder.display();
            eprintln!("interrupted; the same command resumes the comparison in {folder}");
            return Err(error);
        }
        result => result?,
    };
    if style != Style::Quiet {
        eprintln!("this process did {done_here} of the jobs; the others were done before, or by other processes");
    }
    let comparison = Comparison::new(&plan, &runs, &measurements, args.target_loss)?;
    let report = Report::write(&comparison, &plan.folder)?;
    match args.format {
        BenchFormat::Table => print(report.plain),
        BenchFormat::Json => print(report.json),
        BenchFormat::Markdown => print(report.markdown.trim_end()),
        BenchFormat::Csv => print(report.csv.trim_end()),
        BenchFormat::Latex => print(report.latex.trim_end()),
    }
}

/// Prints a plan without running it.
fn show(plan: &ComparisonPlan, format: BenchFormat) -> anyhow::Result<()> {
    let rows = plan.rows.iter().zip(&plan.grids);
    if format == BenchFormat::Json {
        let arms: Vec<_> =
            rows.map(|(row, grid)| serde_json::json!({ "arm": row.name, "learning_rates": grid.rates(), "around_found_rate": grid.factors() })).collect();
        let mut json = serde_json::json!({
            "arms": arms, "seeds": plan.seeds, "extensions_at_most": plan.extend, "steps": plan.steps,
            "tokens_per_step": plan.tokens_per_step(), "problems": plan.problems, "runs": plan.run_count(),
            "estimated_minutes": plan.estimated_seconds() / 60.0, "folder": plan.folder,
        });
        for name in listed_sweeps() {
            json[name] = serde_json::json!([]);
        }
        for planned in &plan.sweeps {
            json[planned.sweep.plural()] = serde_json::to_value(&planned.sweep.values)?;
        }
        return print_json(&json);
    }
    print(plan.summary())?;
    for (row, grid) in rows {
        let rates = |rates: &[f64]| rates.iter().map(|rate| format!("{rate:e}")).collect::<Vec<_>>().join(", ");
        if grid.waits_for_rate() {
            print(format_args!(
                "  {:<16} {} times the learning rate that is found first",
                row.name,
                rates(grid.factors())
            ))?;
        } else {
            print(format_args!("  {:<16} learning rates {}", row.name, rates(grid.rates())))?;
        }
    }
    print(format_args!("parameters of the model {}; results go to {}", grouped(plan.parameters), plan.folder.display()))
}
