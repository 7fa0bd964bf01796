//! The options of `sorsa eval`, `grade` and `generate`.

use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{Args, ValueEnum};
use sorsa_experiment::tasks::data_sets;
use sorsa_ops::MatmulPrecision;

use super::{ConfigArgs, DeviceArgs, MAX_SEED};
use crate::format::TableFormat;

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Model: a Hugging Face folder, a GGUF file, a hub id, or `embedded` [default: embedded, or the model of the adapter's run]
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of an adapter (of sorsa or PEFT), or of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Storage dtype of the weights: f32 or bf16 [default: that of the adapter's run, or f32]
    #[arg(long)]
    pub dtype: Option<String>,
    /// Precision of products with weights in f32, on the CPU: highest (f32), high or medium (bf16 where the processor multiplies it fast)
    #[arg(long, value_name = "NAME", default_value_t)]
    pub matmul_precision: MatmulPrecision,
    /// File of problems: GSM8K, MATH, SVAMP, HumanEval, ARC, MetaMathQA, or rows with a prompt and its answer [default: the
    /// embedded test problems]
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// Kind of the problems [default: recognised by the fields of the file]
    #[arg(long, value_parser = PossibleValuesParser::new(data_sets()))]
    pub task: Option<String>,
    /// Measure the perplexity of these texts instead of accuracy
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub text: Option<PathBuf>,
    /// Measure the loss of the validation data of the run in this folder instead of accuracy: how much of that run's task is left, for example
    #[arg(long, value_name = "RUN", conflicts_with_all = ["data", "text", "task"])]
    pub validation_of: Option<PathBuf>,
    /// Use the first rows only [default: all rows]
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
    /// Prompt template: alpaca, code, question, raw or chat [default: that of the adapter's run, or raw for HumanEval and ARC,
    /// alpaca for other problems]
    #[arg(long)]
    pub template: Option<String>,
    /// Chat template of this name, if the tokenizer's folder has several, for example tool_use. The template is then chat
    /// [default: that of the adapter's run, or default]
    #[arg(long, value_name = "NAME")]
    pub chat_template: Option<String>,
    /// Text to append to every prompt, for example " Let's think step by step." [default: that of the adapter's run, or none]
    #[arg(long, value_name = "TEXT")]
    pub prompt_suffix: Option<String>,
    /// Maximum length of an answer, in tokens [default: that of the adapter's run, or 128]
    #[arg(long, value_name = "TOKENS")]
    pub max_new_tokens: Option<usize>,
    /// Text that ends an answer and is no part of it, beside the end tokens; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Number of prompts that the model continues at once
    #[arg(long, value_name = "PROMPTS", default_value_t = 64)]
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
    /// Allow HumanEval to run the programs that the model writes, in child processes with limits
    #[arg(long)]
    pub allow_code_execution: bool,
    /// Time limit of a program, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub code_timeout: u64,
    /// Memory limit of a program with all its processes, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    pub code_memory: u64,
    /// Skip rows that are malformed, too long, or refused by the template, and count them. If absent, such a row is an error
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
    /// File of generations: JSONL, a JSON array or parquet, with the generated text and the right answer in each row
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Kind of the problems, which decides what counts as the answer. HumanEval needs `sorsa eval`
    #[arg(long, value_enum, default_value = "gsm8k")]
    pub task: GradeTask,
    /// Field of the generated text [default: the first of prediction, generation, generated, output, completion, response]
    #[arg(long, value_name = "FIELD")]
    pub prediction_field: Option<String>,
    /// Field of the right answer or solution [default: the first of gold, answer, expected, solution, target]
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
    /// Text that the model continues
    #[arg(default_value = "")]
    pub prompt: String,
    /// Model: a Hugging Face folder, a GGUF file, a hub id, or `embedded` [default: embedded, or the model of the adapter's run]
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of an adapter (of sorsa or PEFT), or of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Storage dtype of the weights: f32 or bf16 [default: that of the adapter's run, or f32]
    #[arg(long)]
    pub dtype: Option<String>,
    /// Precision of products with weights in f32, on the CPU: highest (f32), high or medium (bf16 where the processor multiplies it fast)
    #[arg(long, value_name = "NAME", default_value_t)]
    pub matmul_precision: MatmulPrecision,
    /// Prompt template: alpaca, code, question, raw or chat [default: that of the adapter's run, or raw]
    #[arg(long)]
    pub template: Option<String>,
    /// Chat template of this name, if the tokenizer's folder has several, for example tool_use. The template is then chat
    /// [default: that of the adapter's run, or default]
    #[arg(long, value_name = "NAME")]
    pub chat_template: Option<String>,
    /// Maximum length of the continuation, in tokens [default: that of the adapter's run, or 128]
    #[arg(long, value_name = "TOKENS")]
    pub max_new_tokens: Option<usize>,
    /// Text that ends the continuation and is no part of it, beside the end tokens; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), allow_hyphen_values = true)]
    pub stop: Vec<String>,
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
