//! `sorsa analyze`: how training changed singular values and vectors, over the checkpoints of runs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sorsa_experiment::analysis::{self, RunToAnalyze};
use sorsa_files::write_atomic;
use sorsa_report::analysis::Analysis;

use crate::args::{AnalyzeArgs, DeviceArgs, Triplets};
use crate::device::Backend;
use crate::format::{TableFormat, print, print_json};
use crate::observer::TerminalObserver;
use crate::progress::Style;
use crate::session::{self, create_folder};

pub fn run(args: &AnalyzeArgs) -> anyhow::Result<()> {
    let style = Style::choose(args.quiet);
    // The CPU decomposes, whichever device trained.
    let host = session::host(&DeviceArgs { backend: Backend::Flex, device: 0 }, style)?;
    let mut observer = TerminalObserver::new(style, &host.backend);
    let opened: Vec<_> = args.runs.iter().map(|folder| RunToAnalyze::open(folder)).collect::<Result<_, _>>()?;
    let (triplets, over) = match args.triplets {
        Triplets::All => ("all", analysis::Triplets::All),
        Triplets::R => ("r", analysis::Triplets::Rank),
    };
    let mut base = None;
    let mut runs = Vec::with_capacity(opened.len());
    for (run, name) in opened.iter().zip(names(&opened)) {
        let loaded = run.base(base.take(), &host)?;
        runs.push(run.analyze(name, &loaded, &args.modules, over, &mut observer)?);
        base = Some(loaded);
    }
    let analysis = Analysis { triplets: triplets.to_owned(), runs };
    let out = match (&args.out, &args.runs[..]) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join("analysis"),
        (None, _) => PathBuf::from("analysis"),
    };
    write(&analysis, &out)?;
    match args.format.table(&analysis.averages()) {
        Some(table) => print(table.trim_end())?,
        None => print_json(&analysis.averages_json())?,
    }
    if args.format == TableFormat::Table {
        print(format_args!("results: {} (analysis.html, analysis.csv, analysis.json, figures)", out.display()))?;
    }
    Ok(())
}

/// A name for each run. Runs of the same name get their folders too.
fn names(runs: &[RunToAnalyze<'_>]) -> Vec<String> {
    let plain: Vec<String> = runs.iter().map(RunToAnalyze::name).collect();
    let shared = |name: &String| plain.iter().filter(|other| *other == name).count() > 1;
    let named = |(name, run): (&String, &RunToAnalyze<'_>)| match shared(name) {
        true => format!("{name} ({})", run.folder_name()),
        false => name.clone(),
    };
    plain.iter().zip(runs).map(named).collect()
}

/// Writes tables, figures and the page.
fn write(analysis: &Analysis, out: &Path) -> anyhow::Result<()> {
    // A figure that cannot be drawn is found before the folder is made.
    let mut files = vec![
        ("analysis.json".to_owned(), serde_json::to_vec_pretty(&analysis.json())?),
        ("analysis.csv".to_owned(), TableFormat::Csv.table(&analysis.rows()).unwrap_or_default().into_bytes()),
        ("analysis.html".to_owned(), analysis.html().context("cannot draw the page")?.into_bytes()),
    ];
    for (name, figure) in analysis.figures() {
        files.push((format!("{name}.svg"), figure.svg_file()?.into_bytes()));
        files.push((format!("{name}.png"), figure.png()?));
    }
    create_folder(out)?;
    for (name, content) in files {
        let path = out.join(name);
        write_atomic(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
