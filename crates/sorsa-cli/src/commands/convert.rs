//! `sorsa convert`: a LoRA of any difference of weights.

use std::path::{Path, PathBuf};

use sorsa_adapter::KeptRank;
use sorsa_adapter::peft::PeftAdapter;
use sorsa_experiment::Observer;
use sorsa_experiment::adapter::adapter_folder;
use sorsa_experiment::conversion::{ConversionTable, ConvertOptions, Difference, IntruderOptions, KindConversion};

use crate::args::{ConfigArgs, ConvertArgs};
use crate::commands::export::base_for_others;
use crate::device::{self, Backend};
use crate::exit::{OrBadInput, bad_input};
use crate::format::{Format, TableFormat, print, print_json};
use crate::observer::TerminalObserver;
use crate::progress::Style;
use crate::session::{self, model_folder, model_of_run, sources, warn};

/// Tuned weights by their name, with the model that they were tuned from.
pub struct TunedName {
    name: String,
    weight: f64,
    /// The folder of the adapter, if it is one.
    adapter: Option<PathBuf>,
    base: String,
    /// Whether the user named the base.
    base_is_given: bool,
}

impl TunedName {
    /// Finds out whether `name` is an adapter or a run, and which model is its base if `model` is not given.
    pub fn new(name: &str, weight: f64, model: Option<&str>) -> anyhow::Result<Self> {
        let adapter = match adapter_folder(Path::new(name)) {
            Ok(_) => Some(PathBuf::from(name)),
            Err(_) => None,
        };
        let base = match (model, &adapter) {
            (Some(model), _) => model.to_owned(),
            (None, Some(adapter)) => model_of_run(adapter)?,
            (None, None) => {
                return Err(bad_input(format!(
                    "{name} holds no adapter: name the base of the tuned model with --model"
                )));
            }
        };
        Ok(Self { name: name.to_owned(), weight, adapter, base, base_is_given: model.is_some() })
    }
}

pub fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    // Before the work.
    PeftAdapter::check_folder(&args.out).or_bad_input()?;
    let mut tuned = Vec::new();
    match &args.from {
        Some(from) => tuned.push(TunedName::new(from, 1.0, args.model.as_deref())?),
        None => {
            for text in &args.add {
                let (name, weight) = weighted(text)?;
                tuned.push(TunedName::new(name, weight, args.model.as_deref())?);
            }
        }
    }
    let mut observer = TerminalObserver::new(Style::choose(args.quiet), "flex");
    let (difference, base) = difference(&tuned, &args.config, args.quiet, &mut observer)?;
    let rank = match (args.rank, args.energy) {
        (Some(rank), _) => KeptRank::Rank(rank),
        (None, Some(part)) => KeptRank::Energy(part),
        (None, None) if difference.is_of_low_rank() => KeptRank::All,
        (None, None) => {
            return Err(bad_input(
                "the difference is no product of factors, so an exact LoRA would be as large as the model: choose --rank or --energy",
            ));
        }
    };
    let intruders = IntruderOptions { leading: args.intruders.top, threshold: args.intruders.threshold };
    let options = ConvertOptions { rank, intruders: args.without_intruders.map(|factor| (intruders, factor)) };
    let conversion = difference.convert(&options, &mut observer)?;
    let (base_model, revision) = base_for_others(&base);
    let peft = conversion.lora.finish(base_model, revision);
    peft.save(&args.out)?;
    let table = &conversion.table;
    if !table.left_out.is_empty() {
        let shown = table.left_out.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let more = match table.left_out.len().saturating_sub(5) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        warn(format_args!(
            "not in the LoRA, although they differ from the base, because PEFT cannot hold them: {shown}{more}"
        ));
    }
    if args.format == Format::Json {
        return print_json(table);
    }
    print(TableFormat::Table.table(&rows(table)).unwrap_or_default().trim_end())?;
    if !table.whole.is_empty() {
        print(format_args!(
            "{} parameters that are no linear layers are replaced whole (modules_to_save)",
            table.whole.len()
        ))?;
    }
    let [low, high] = table.all.ranks;
    let ranks = if low == high { format!("rank {low}") } else { format!("ranks {low} to {high}") };
    print(format_args!("LoRA of {ranks} on {} modules in {}", table.all.modules, args.out.display()))?;
    if peft.config.base_model.is_none() {
        warn("other programs cannot find the embedded model by name, so `base_model_name_or_path` is null");
    }
    Ok(())
}

/// `DIR=NUMBER`.
fn weighted(text: &str) -> anyhow::Result<(&str, f64)> {
    let number = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite());
    match text.rsplit_once('=').and_then(|(name, weight)| Some((name, number(weight)?))) {
        Some(found) => Ok(found),
        None => Err(bad_input(format!("--add {text}: expected FROM=NUMBER"))),
    }
}

/// The weighted sum of the differences to their one base, and the base's name.
pub fn difference(
    tuned: &[TunedName],
    config: &ConfigArgs,
    quiet: bool,
    observer: &mut dyn Observer,
) -> anyhow::Result<(Difference, String)> {
    let [first, ..] = tuned else { return Err(bad_input("name the tuned weights")) };
    if let Some(other) = tuned.iter().find(|other| other.base != first.base) {
        return Err(bad_input(format!(
            "the bases differ: {} was trained on {}, {} on {}",
            first.name, first.base, other.name, other.base
        )));
    }
    let style = Style::choose(quiet);
    session::set_config(config, first.adapter.as_deref())?;
    if !first.base_is_given {
        session::check_asked(None, &first.base)?;
    }
    let folder = model_folder(&first.base, style)?;
    let mut difference = Difference::to_base(&folder, &device::open(Backend::default(), 0)?)?;
    for one in tuned {
        match &one.adapter {
            Some(adapter) => {
                session::set_config(config, Some(adapter))?;
                let base = (one.base.as_str(), sources(style)?.quantize);
                difference.add_adapter(adapter, one.weight, base, observer)?;
            }
            None => difference.add_model(&model_folder(&one.name, style)?, one.weight)?,
        }
    }
    Ok((difference, first.base.clone()))
}

fn rows(table: &ConversionTable) -> Vec<Vec<String>> {
    let mut head = ["modules", "count", "rank", "change / base", "norm kept", "error"].map(str::to_owned).to_vec();
    if table.all.intruders.is_some() {
        head.extend(["intruders", "moved"].map(str::to_owned));
    }
    let mut rows = vec![head];
    for KindConversion { name, modules, ranks: [low, high], change, kept, error, intruders, moved } in
        table.kinds.iter().chain([&table.all])
    {
        let mut row = vec![
            name.clone(),
            modules.to_string(),
            if low == high { low.to_string() } else { format!("{low}-{high}") },
            format!("{change:.3e}"),
            format!("{:.2} %", 100.0 * kept),
            format!("{error:.2e}"),
        ];
        if let (Some([before, after]), Some(moved)) = (intruders, moved) {
            row.extend([format!("{before} -> {after}"), format!("{moved:.3}")]);
        }
        rows.push(row);
    }
    rows
}
