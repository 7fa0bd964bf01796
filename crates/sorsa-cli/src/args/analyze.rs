//! The options of `sorsa verify` and `analyze`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::convert::IntruderArgs;
use super::{ConfigArgs, DeviceArgs};
use crate::format::{Format, TableFormat};

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Model: a Hugging Face folder, a hub id, or `embedded`
    #[arg(long)]
    pub model: String,
    /// Outputs of the other framework (safetensors): any of input_ids, attention_mask, labels, logits, prompt_ids,
    /// generated_ids
    #[arg(long, value_name = "FILE")]
    pub golden: PathBuf,
    /// Folder of an adapter (of sorsa or PEFT), or of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Largest accepted difference of a logit and of the loss
    #[arg(long, default_value_t = 1e-4)]
    pub tolerance: f64,
    /// Format of the printed table
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Singular triplets that the analysis compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Triplets {
    /// All of the weight, like the figure of the paper
    #[default]
    All,
    /// The r largest, r being the run's rank
    R,
}

#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// Folders of fine-tuning runs. Several runs are compared. A folder of an adapter (of sorsa or PEFT) instead: the spectrum of its
    /// factors
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// Count the intruder dimensions (arXiv 2410.21228) of tuned weights instead: of runs, adapters, or models
    #[arg(long)]
    pub intruders: bool,
    #[command(flatten)]
    pub which: IntruderArgs,
    /// Base model of an adapter or a tuned model [default: the model of the adapter's run]
    #[arg(long)]
    pub model: Option<String>,
    /// Analyze these modules only: names, globs or `re:` regular expressions, for example q_proj,v_proj [default: all
    /// modules that the runs train]
    #[arg(long, value_delimiter = ',', value_name = "PATTERN,..")]
    pub modules: Vec<String>,
    /// Singular values, with their vectors, over which the changes are averaged
    #[arg(long, value_enum, default_value_t)]
    pub triplets: Triplets,
    /// Folder of tables, figures and analysis.html [default: analysis/ in the folder of the run; ./analysis/ for several
    /// runs]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Format of the printed averages
    #[arg(long, value_enum, default_value_t)]
    pub format: TableFormat,
    /// Print results only, without progress
    #[arg(long, short)]
    pub quiet: bool,
}
