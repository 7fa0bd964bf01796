//! The options of `sorsa bench`, and of `sorsa bench --speed`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{DeviceArgs, MAX_SEED, RecipeArgs};
use crate::speed::SpeedArgs;

/// A comparison. It sets method, learning rate and seed of each run itself, so these are not options.
#[derive(Debug, Args)]
#[command(mut_arg("method", |arg| arg.hide(true)), mut_arg("lr", |arg| arg.hide(true)))]
#[command(mut_arg("seed", |arg| arg.hide(true)), mut_arg("adapter", |arg| arg.hide(true)))]
pub struct BenchArgs {
    /// Methods or named arms to compare [default: lora, pissa, sorsa, sorsa-noreg (gamma 0), partial, full]
    #[arg(long, value_delimiter = ',', value_name = "METHOD,..")]
    pub methods: Option<Vec<String>>,
    /// Add an arm: a name and the recipe fields in which it differs, for example
    /// --arm wide=adapter.method=lora,adapter.rank=64
    #[arg(long, value_name = "NAME=FIELD=VALUE,..")]
    pub arm: Vec<String>,
    /// Try several values of a recipe field, with one run each at the best learning rate of each arm that uses the field, for
    /// example --sweep adapter.alpha=8,16,32
    #[arg(long, value_name = "FIELD=VALUE,..")]
    pub sweep: Vec<String>,
    /// Arms, sweeps and questions in a TOML file, or the name of a built-in suite: ablation, peft, regularizer, reviewers or settings; see
    /// docs/bench.md
    #[arg(long, value_name = "FILE")]
    pub suite: Option<PathBuf>,
    /// Arm to compare the others with [default: lora, or the first arm if lora is not among them]
    #[arg(long, value_name = "ARM")]
    pub reference: Option<String>,
    /// Learning rates to try, for all arms or for one (lora=4e-3) [default: 0.5, 1, 2 and 4 times the default of the method]
    #[arg(long, value_delimiter = ',', value_name = "[ARM=]RATE,..")]
    pub lrs: Option<Vec<String>>,
    /// Number of learning rates that may be added if the best rate is the smallest or the largest [default: 2, with --quick 0]
    #[arg(long, value_name = "TIMES")]
    pub extend: Option<usize>,
    /// Seeds. The first one chooses the learning rate of each arm; all run at this rate [default: 42,43,44, with --quick
    /// 42,43]
    #[arg(long, value_delimiter = ',', value_name = "SEED,..", value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    pub seeds: Option<Vec<u64>>,
    /// Ranks to compare, short for --sweep adapter.rank=RANK,..; each rank has learning rates and seeds of its own [default:
    /// the rank of --rank]
    #[arg(long, value_delimiter = ',', value_name = "RANK,..")]
    pub ranks: Option<Vec<usize>>,
    /// Weights of the orthonormal regularizer to try, short for --sweep train.regularizer.gamma=GAMMA,..; `none` tries no other
    /// weight [default: 0,4e-5,4e-4,4e-3,4e-2; with --quick, --sweep or --suite `none`]
    #[arg(long, value_delimiter = ',', value_name = "GAMMA,..")]
    pub gammas: Option<Vec<String>>,
    /// Report the training time until the validation loss is this low [default: the lowest loss that all runs reach]
    #[arg(long, value_name = "NATS")]
    pub target_loss: Option<f64>,
    /// Texts that show what a model forgets: the comparison measures the loss of each file before and after training [default:
    /// pretraining texts for the embedded model, none for others]
    #[arg(long, value_name = "FILE,..", value_delimiter = ',')]
    pub forgetting_text: Vec<PathBuf>,
    /// Train every chosen run on these data afterwards, and measure what is left of the first task
    #[arg(long, value_name = "FILE")]
    pub then: Option<String>,
    /// Folder of runs and results. A second call with the same folder trains only the runs that are missing [default: runs/bench, with
    /// --quick runs/bench-quick]
    #[arg(long, value_name = "DIR")]
    pub bench_dir: Option<PathBuf>,
    /// Number of runs that train at the same time. If it is more than 1, their speeds cannot be compared
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub jobs: u64,
    /// Leave out as much as is needed for the comparison to take at most this long, for example 3h or 90m: seeds, then sweeps, then learning
    /// rates. A step, an evaluation and a test are measured first
    #[arg(long, value_name = "TIME", value_parser = seconds_of)]
    pub budget: Option<f64>,
    /// Compare LoRA, PiSSA and SORSA in minutes: 150 steps, two learning rates, two seeds
    #[arg(long)]
    pub quick: bool,
    /// Print the planned runs and a rough estimate of their time, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Measure the training step of a random model instead; sorsa bench --speed --help lists its options
    #[arg(long)]
    speed: bool,
    #[command(flatten)]
    pub fields: RecipeArgs,
    /// Print results only, without progress
    #[arg(long, short)]
    pub quiet: bool,
    /// Output format. The folder has the results in all formats
    #[arg(long, value_enum, default_value_t)]
    pub format: BenchFormat,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Output format of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BenchFormat {
    /// Aligned columns
    #[default]
    Table,
    /// One JSON document
    Json,
    /// Tables in Markdown
    Markdown,
    /// A row for each run
    Csv,
    /// Tables of LaTeX, with booktabs
    Latex,
}

#[derive(Debug, Args)]
pub struct BenchSpeedArgs {
    #[command(flatten)]
    pub speed: SpeedArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Reads `3h`, `2h30m`, `90m` or `45s`.
fn seconds_of(text: &str) -> Result<f64, String> {
    let fault = || format!("expected a time like 3h, 2h30m, 90m or 45s, found `{text}`");
    let (mut seconds, mut digits) = (0.0, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' | '.' => {
                digits.push(c);
                continue;
            }
            'h' => 3600.0,
            'm' => 60.0,
            's' => 1.0,
            _ => return Err(fault()),
        };
        seconds += unit * digits.parse::<f64>().map_err(|_| fault())?;
        digits.clear();
    }
    if seconds > 0.0 && digits.is_empty() { Ok(seconds) } else { Err(fault()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_units() {
        assert_eq!(
            ["3h", "2h30m", "90m", "45s", "1.5h"].map(|text| seconds_of(text).unwrap()),
            [10800.0, 9000.0, 5400.0, 45.0, 5400.0]
        );
        for text in ["", "3", "h", "2h30", "3d", "0s", "-3h"] {
            assert!(seconds_of(text).is_err(), "{text}");
        }
    }
}
