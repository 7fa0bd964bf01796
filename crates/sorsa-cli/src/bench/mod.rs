//! `sorsa bench`: methods of fine-tuning under equal conditions.
//!
//! `plan` says what is compared and finds what is wrong with the input; `stages` asks for runs, stage by stage; `work` makes them,
//! each in a process of its own, once for each `identity`; `collect` reads what they left; `results`, `findings`, `tables`,
//! `figures`, `page` and `write` make of it what people and programs read.

mod collect;
mod figures;
mod findings;
mod identity;
mod page;
mod plan;
mod rates;
mod results;
mod stages;
mod tables;
mod variant;
mod work;
mod write;

use crate::args::{BenchArgs, BenchFormat};
use crate::exit::{Interrupted, bad_input};
use crate::format::{print, print_json};
use crate::progress::Style;
use plan::Plan;
use results::Comparison;
use sorsa_experiment::estimate::grouped;
use work::Workshop;

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let style = Style::choose(args.quiet);
    if let Some(text) = args.forgetting_text.as_ref().filter(|text| !text.is_file()) {
        return Err(bad_input(format!("--forgetting-text: {} is no file", text.display())));
    }
    let plan = Plan::new(args, style)?;
    if args.dry_run {
        return show(&plan, args.format);
    }
    if style != Style::Quiet {
        eprintln!("{}", plan.summary());
    }
    let at_a_time = usize::try_from(args.jobs)?;
    let workshop = Workshop::new(&plan.folder, at_a_time, &args.device, style)?;
    let outcome = match stages::run(&plan, &workshop, args.forgetting_text.as_deref()) {
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted; the same command goes on with what is in {}", plan.folder.display());
            return Err(error);
        }
        outcome => outcome?,
    };
    if style != Style::Quiet {
        eprintln!("{} of the jobs were done by this process; the rest was there or done by others", outcome.done_here);
    }
    let comparison = Comparison::new(&plan, &outcome, args.device.backend, args.target_loss)?;
    write::write(&comparison, &plan.folder, args.format)
}

/// The plan without its execution.
fn show(plan: &Plan, format: BenchFormat) -> anyhow::Result<()> {
    let first: Vec<_> = plan
        .arms
        .iter()
        .zip(&plan.grids)
        .map(|(arm, grid)| serde_json::json!({ "arm": arm.to_string(), "learning_rates": grid.rates() }))
        .collect();
    if format == BenchFormat::Json {
        return print_json(&serde_json::json!({
            "arms": first, "seeds": plan.seeds, "gammas": plan.gammas, "extensions_at_most": plan.extend, "steps": plan.steps,
            "tokens_per_step": plan.tokens_per_step(), "problems": plan.problems, "runs": plan.run_count(),
            "estimated_minutes": plan.estimated_seconds() / 60.0, "folder": plan.folder,
        }));
    }
    print(plan.summary())?;
    for (arm, grid) in plan.arms.iter().zip(&plan.grids) {
        let rates: Vec<String> = grid.rates().iter().map(|rate| format!("{rate:e}")).collect();
        print(format_args!("  {:<16} learning rates {}", arm.to_string(), rates.join(", ")))?;
    }
    print(format_args!("parameters of the model {}; results go to {}", grouped(plan.parameters), plan.folder.display()))
}
