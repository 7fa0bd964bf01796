//! The options of `sorsa bench`, and of `sorsa bench --speed`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{DeviceArgs, MAX_SEED, RecipeArgs};
use crate::speed::SpeedArgs;

/// The comparison of methods. What it decides itself is no option: method, rate and seed of a run.
#[derive(Debug, Args)]
#[command(mut_arg("method", |arg| arg.hide(true)), mut_arg("lr", |arg| arg.hide(true)))]
#[command(mut_arg("seed", |arg| arg.hide(true)), mut_arg("adapter", |arg| arg.hide(true)))]
pub struct BenchArgs {
    /// Methods to compare; the differences are to lora, or to the first where lora is not among them. Without it lora,
    /// pissa, sorsa, sorsa-noreg (gamma 0), partial and full
    #[arg(long, value_delimiter = ',', value_name = "METHOD,..")]
    pub methods: Option<Vec<String>>,
    /// Learning rates to try, for all methods or for one (lora=4e-3); without it four around each method's default
    #[arg(long, value_delimiter = ',', value_name = "[METHOD=]RATE,..")]
    pub lrs: Option<Vec<String>>,
    /// How often a grid of rates may be extended where its best one is at an end
    #[arg(long, value_name = "TIMES")]
    pub extend: Option<usize>,
    /// Seeds of each method at its best rate; the first one chooses the rate. Without it 42, 43, 44
    #[arg(long, value_delimiter = ',', value_name = "SEED,..", value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    pub seeds: Option<Vec<u64>>,
    /// Ranks of the methods that have one; without it --rank, or 16
    #[arg(long, value_delimiter = ',', value_name = "RANK,..")]
    pub ranks: Option<Vec<usize>>,
    /// Weights of SORSA's regularizer to try at its best rate, or none; without it 0, 4e-5, 4e-4, 4e-3 and 4e-2
    #[arg(long, value_delimiter = ',', value_name = "GAMMA,..")]
    pub gammas: Option<Vec<String>>,
    /// The validation loss whose time is taken; without it the lowest that all methods reach
    #[arg(long, value_name = "NATS")]
    pub target_loss: Option<f64>,
    /// Texts whose loss before and after shows what was forgotten; of the embedded model, without it, pretraining texts
    #[arg(long, value_name = "FILE")]
    pub forgetting_text: Option<PathBuf>,
    /// Folder of runs and results; a second call with the same folder trains only what is missing
    #[arg(long, value_name = "DIR")]
    pub bench_dir: Option<PathBuf>,
    /// Runs at a time; more than one makes times incomparable
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub jobs: u64,
    /// A small comparison of minutes: 150 steps, two rates, two seeds, LoRA, PiSSA and SORSA
    #[arg(long)]
    pub quick: bool,
    /// List the runs, with a rough estimate of their time, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Measure the training step of a random model instead; its options: sorsa bench --speed --help
    #[arg(long)]
    speed: bool,
    #[command(flatten)]
    pub fields: RecipeArgs,
    /// Print results only
    #[arg(long, short)]
    pub quiet: bool,
    /// How the result is printed; all forms are written too
    #[arg(long, value_enum, default_value_t)]
    pub format: BenchFormat,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// How a comparison is printed.
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
