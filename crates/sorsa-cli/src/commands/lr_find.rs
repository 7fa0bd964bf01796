//! `sorsa lr-find`: the search for a learning rate that `finetune` makes, as a table and a figure.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sorsa_experiment::PreparedRun;
use sorsa_files::write_atomic;
use sorsa_report::plot::{Axis, Figure, Marks, Scale, Series};
use sorsa_report::table;
use sorsa_train::{LearningRate, RateSearch, TriedRate};

use crate::args::LrFindArgs;
use crate::format::{print, print_json};
use crate::observer::TerminalObserver;
use crate::progress::Style;
use crate::recipe;
use crate::session;

/// The figure, if no file is named.
const FIGURE: &str = "lr-find.svg";

pub fn run(args: &LrFindArgs) -> anyhow::Result<()> {
    let mut recipe = recipe::resolve(&args.fields)?;
    recipe.train.optimizer.learning_rate = LearningRate::Auto;
    let style = Style::choose(args.quiet);
    let host = session::host(&args.device, style)?;
    let mut observer = TerminalObserver::new(style, &host.backend);
    let prepared = PreparedRun::new(&recipe, &host, &mut observer)?;
    let search = prepared.find_learning_rate(args.beside, &std::env::temp_dir(), &mut observer)?;
    let out = match (&args.out, args.json) {
        (Some(out), _) => Some(out.clone()),
        (None, true) => None,
        (None, false) => Some(PathBuf::from(FIGURE)),
    };
    if let Some(out) = &out {
        draw(&search, out)?;
    }
    if args.json {
        return print_json(&search);
    }
    print(table::aligned(&rows(&search)).trim_end())?;
    print(format_args!("learning rate {}", described(&search)))?;
    if let Some(doubt) = search.doubt {
        print(doubt)?;
    }
    if let Some(out) = out {
        print(format_args!("figure: {}", out.display()))?;
    }
    Ok(())
}

/// The rate, and what finding it took.
pub fn described(search: &RateSearch) -> String {
    format!(
        "{:.1e} (found by {} steps and {} evaluations in {:.0} s)",
        search.learning_rate, search.steps, search.evaluations, search.seconds
    )
}

fn rows(search: &RateSearch) -> Vec<Vec<String>> {
    let mut rows = vec![["learning rate", "loss after the trial", "change"].map(str::to_owned).to_vec()];
    for TriedRate { learning_rate, loss } in &search.trials {
        let (loss, change) = match loss {
            Some(loss) => (format!("{loss:.4}"), format!("{:+.4}", loss - search.loss_at_start)),
            None => ("not finite".to_owned(), String::new()),
        };
        rows.push(vec![format!("{learning_rate:.2e}"), loss, change]);
    }
    rows
}

fn draw(search: &RateSearch, out: &Path) -> anyhow::Result<()> {
    let points = |tried: &[TriedRate]| -> Vec<(f64, f64)> {
        tried.iter().filter_map(|tried| Some((tried.learning_rate, tried.loss?))).collect()
    };
    let trials = points(&search.trials);
    let rates = search.trials.iter().map(|tried| tried.learning_rate);
    let (low, high) = rates.fold((f64::INFINITY, 0f64), |(low, high), rate| (low.min(rate), high.max(rate)));
    let ends: Vec<(f64, f64)> = trials
        .iter()
        .map(|trial| trial.1)
        .chain([search.loss_at_start])
        .map(|loss| (search.learning_rate, loss))
        .collect();
    let figure = Figure {
        title: "Loss after a trial, by learning rate".to_owned(),
        x: Axis::new("learning rate", Scale::Log),
        y: Axis::new("loss, nats per target token", Scale::Log),
        series: vec![
            Series::new("after the trial", Marks::Line, trials),
            Series::new("before", Marks::Line, [(low, search.loss_at_start), (high, search.loss_at_start)]),
            Series::new("found", Marks::Line, ends),
        ],
    };
    write_atomic(out, figure.svg_file()?).with_context(|| format!("cannot write {}", out.display()))
}
