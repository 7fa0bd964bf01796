//! The options of `sorsa eval`, `grade` and `generate`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use sorsa_experiment::tasks::data_sets;

use super::{ConfigArgs, DeviceArgs, MAX_SEED};
use crate::format::TableFormat;

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Model: a Hugging Face folder, a hub id, or `embedded` [default: embedded, or the model of the adapter's run]
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of an adapter (of sorsa or PEFT), or of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Storage dtype of the weights: f32 or bf16
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// File of problems: GSM8K, MATH, SVAMP, HumanEval, MetaMathQA or any prompts with answers [default: the embedded test
    /// problems]
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// Kind of the problems [default: recognised by the fields of the file]
    #[arg(long, value_parser = PossibleValuesParser::new(data_sets()))]
    pub task: Option<String>,
    /// Measure the perplexity of these texts instead of accuracy
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub text: Option<PathBuf>,
    /// Use the first rows only [default: all rows]
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
    /// Prompt template: alpaca, code, question, raw or chat [default: raw for HumanEval, alpaca for other problems]
    #[arg(long)]
    pub template: Option<String>,
    /// Text to append to every prompt
    #[arg(long, default_value = "")]
    pub prompt_suffix: String,
    /// Maximum length of an answer, in tokens
    #[arg(long, default_value_t = 128)]
    pub max_new_tokens: usize,
    /// Number of prompts that the model continues at once
    #[arg(long, default_value_t = 64)]
    pub batch_size: usize,
    /// Number of generations for each prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub samples: usize,
    /// Temperature of the sampling; 0 is greedy decoding
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the k most likely tokens only [default: all tokens]
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens only, until their probabilities sum to this [default: all tokens]
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    pub seed: u64,
    /// Write every generation to this file (JSONL). A second call with the same settings resumes from it
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write the answers that the graders disagree on to this file (JSONL)
    #[arg(long, value_name = "FILE")]
    pub disagreements: Option<PathBuf>,
    /// Run the programs that the model writes, in a child process with limits. HumanEval requires it
    #[arg(long)]
    pub allow_code_execution: bool,
    /// Time limit of a program, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub code_timeout: u64,
    /// Memory limit of a program, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    pub code_memory: u64,
    /// Skip malformed rows and count them. If absent, a malformed row is an error
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Format of the printed result
    #[arg(long, value_enum, default_value_t)]
    pub format: TableFormat,
    /// Print results only, without progress
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Kind of the problems whose answers `grade` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GradeTask {
    Gsm8k,
    Math,
    Svamp,
    Humaneval,
    Embedded,
}

#[derive(Debug, Args)]
pub struct GradeArgs {
    /// File of generations (JSONL)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Kind of the problems. `sorsa eval` grades HumanEval
    #[arg(long, value_enum, default_value = "gsm8k")]
    pub task: GradeTask,
    /// Field of the generated text [default: the first of prediction, generation, generated, output, completion, response]
    #[arg(long, value_name = "FIELD")]
    pub prediction_field: Option<String>,
    /// Field of the gold answer or solution [default: the first of gold, answer, expected, solution, target]
    #[arg(long, value_name = "FIELD")]
    pub gold_field: Option<String>,
    /// Write every verdict to this file (JSONL)
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write the answers that the graders disagree on to this file (JSONL)
    #[arg(long, value_name = "FILE")]
    pub disagreements: Option<PathBuf>,
    /// Format of the printed result
    #[arg(long, value_enum, default_value_t)]
    pub format: TableFormat,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Prompt to continue
    #[arg(default_value = "")]
    pub prompt: String,
    /// Model: a Hugging Face folder, a hub id, or `embedded` [default: embedded, or the model of the adapter's run]
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of an adapter (of sorsa or PEFT), or of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Storage dtype of the weights: f32 or bf16
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// Prompt template: alpaca, code, question, raw or chat
    #[arg(long, default_value = "raw")]
    pub template: String,
    /// Maximum length of the continuation, in tokens
    #[arg(long, default_value_t = 128)]
    pub max_new_tokens: usize,
    /// Temperature of the sampling; 0 is greedy decoding
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the k most likely tokens only [default: all tokens]
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens only, until their probabilities sum to this [default: all tokens]
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}
