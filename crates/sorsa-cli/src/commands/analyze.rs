//! `sorsa analyze`: how training changed singular values and vectors, over the checkpoints of runs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sorsa_checkpoint::ModelSource;
use sorsa_experiment::RunDir;
use sorsa_experiment::adapter::holds_adapter;
use sorsa_experiment::analysis::{self, AdapterSpectra, RunToAnalyze};
use sorsa_experiment::conversion::IntruderOptions;
use sorsa_files::write_atomic;
use sorsa_report::analysis::Analysis;

use crate::args::{AnalyzeArgs, ConfigArgs, DeviceArgs, Triplets};
use crate::commands::convert::{self, TunedName};
use crate::device::Backend;
use crate::exit::{OrBadInput, bad_input};
use crate::format::{TableFormat, print, print_json};
use crate::observer::TerminalObserver;
use crate::progress::Style;
use crate::session::{self, create_folder, model_folder};

pub fn run(args: &AnalyzeArgs) -> anyhow::Result<()> {
    if args.intruders {
        return intruders(args);
    }
    let is_run = |folder: &PathBuf| folder.join(RunDir::RECIPE).is_file();
    if let [adapter] = args.runs.as_slice()
        && !is_run(adapter)
        && holds_adapter(adapter)
    {
        return spectra(adapter, args);
    }
    if args.model.is_some() {
        return Err(bad_input("--model says nothing for runs: their recipes name the model"));
    }
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

/// Prints the spectrum of an adapter's factors.
fn spectra(adapter: &Path, args: &AnalyzeArgs) -> anyhow::Result<()> {
    let style = Style::choose(args.quiet);
    let base = match &args.model {
        Some(model) => Some(ModelSource::open(&model_folder(model, style)?).or_bad_input()?),
        None => None,
    };
    let spectra = AdapterSpectra::read(adapter, base.as_ref())?;
    match args.format.table(&spectra.rows()) {
        Some(table) => print(table.trim_end()),
        None => print_json(&spectra),
    }
}

/// Prints the intruder dimensions of each of the tuned weights.
fn intruders(args: &AnalyzeArgs) -> anyhow::Result<()> {
    let options = IntruderOptions { leading: args.which.top, threshold: args.which.threshold };
    let mut observer = TerminalObserver::new(Style::choose(args.quiet), "flex");
    let mut tables = Vec::new();
    for tuned in &args.runs {
        let tuned = tuned.to_string_lossy();
        let tuned = TunedName::new(&tuned, 1.0, args.model.as_deref())?;
        let difference = convert::difference(&[tuned], &ConfigArgs::default(), args.quiet, &mut observer)?.0;
        tables.push(difference.intruders(&options, &mut observer)?);
    }
    if args.format == TableFormat::Json {
        return match tables.as_slice() {
            [one] => print_json(one),
            several => print_json(&several),
        };
    }
    let head = ["tuned", "modules", "count", "with intruders", "intruders", "smallest cosine", "largest s / s_1"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (tuned, table) in args.runs.iter().zip(&tables) {
        for kind in table.kinds.iter().chain([&table.all]) {
            rows.push(vec![
                tuned.display().to_string(),
                kind.name.clone(),
                kind.modules.to_string(),
                kind.with_intruders.to_string(),
                kind.intruders.to_string(),
                format!("{:.3}", kind.smallest_cosine),
                format!("{:.3}", kind.largest),
            ]);
        }
    }
    if args.runs.len() == 1 {
        rows.iter_mut().for_each(|row| drop(row.remove(0)));
    }
    print(args.format.table(&rows).unwrap_or_default().trim_end())
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
