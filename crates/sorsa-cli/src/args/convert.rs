//! The options of `sorsa merge`, `export`, `import` and `convert`.

use std::path::PathBuf;

use crate::format::Format;
use crate::output_type::OutputType;
use clap::{Args, ValueEnum};

use super::{ConfigArgs, DeviceArgs};

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folder of the adapter (of sorsa or PEFT), or of its run
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Base model of the adapter: a Hugging Face folder, a hub id, or `embedded` [default: the model of the adapter's run]
    #[arg(long)]
    pub model: Option<String>,
    /// Folder to write the merged model into
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Storage dtype of the merged model: f32, f16 or bf16, or nf4 or fp4 (bitsandbytes, `-single` without double quantization)
    /// [default: the base model's]
    #[arg(long)]
    pub dtype: Option<OutputType>,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Format that `export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Merged model as a Hugging Face folder
    Hf,
    /// Adapter as a PEFT folder, for the original model
    Peft,
    /// Merged model as one GGUF file, for llama.cpp
    Gguf,
    /// Adapter as a GGUF file, for llama.cpp's --lora
    GgufLora,
    /// SORSA adapter as a checkpoint of SORSA's author
    Author,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Format to write
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// Folder of the adapter (of sorsa or PEFT), or of its run. If absent, the command exports the base model (hf, gguf)
    #[arg(long, value_name = "DIR", required_if_eq_any = [("format", "peft"), ("format", "gguf-lora"), ("format", "author")])]
    pub adapter: Option<PathBuf>,
    /// Base model of the adapter: a Hugging Face folder, a hub id, or `embedded` [default: the model of the adapter's run]
    #[arg(long, required_unless_present = "adapter")]
    pub model: Option<String>,
    /// Folder to write, or file for gguf and gguf-lora
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Storage dtype: f32, f16 or bf16; for hf also nf4 or fp4 (bitsandbytes, `-single` without double quantization); for gguf also
    /// q8_0, q6_k, q5_k_m, q5_k, q5_1, q5_0, q4_k_m, q4_k, q4_1 or q4_0 [default: the base model's for hf, f16 for gguf, f32 for
    /// gguf-lora]
    #[arg(long)]
    pub dtype: Option<OutputType>,
    /// Approximate the trained change of the weights by a LoRA of this rank, and print the error (peft, gguf-lora)
    /// [default: exact]
    #[arg(long)]
    pub rank: Option<usize>,
    /// Write the trained factors of PiSSA, OLoRA and SORSA unchanged; PEFT then decomposes the base model again (peft).
    /// If absent, the adapter fits the original model
    #[arg(long, conflicts_with = "rank")]
    pub as_trained: bool,
    /// Write the weights that the adapter is added to, without its part of them, as a model of their own (a folder for peft, a GGUF
    /// file for gguf-lora), and the adapter for that model. Needed if the rest of the weights was packed again
    #[arg(long, value_name = "PATH")]
    pub residual: Option<PathBuf>,
    /// Storage dtype of the residual, like --dtype [default: packed like it was trained beside; f32 if the files of that kind have no
    /// such type]
    #[arg(long, requires = "residual")]
    pub residual_dtype: Option<OutputType>,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Folder of a PEFT adapter, or of a checkpoint of SORSA's author
    #[arg(value_name = "DIR")]
    pub from: PathBuf,
    /// Base model of the adapter: a Hugging Face folder, a hub id, or `embedded`
    #[arg(long)]
    pub model: String,
    /// PEFT's folder of the same adapter before training. PiSSA and OLoRA need it to know exactly which part of the weights the
    /// adapter replaced
    #[arg(long, value_name = "DIR")]
    pub start: Option<PathBuf>,
    /// Folder to write the adapter into
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct UnpackArgs {
    /// GGUF file of a model
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Folder to write the model into: config.json, weights, tokenizer and chat template
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Storage dtype of the weights: f32, f16 or bf16. Packed weights are widened; f32 loses nothing
    #[arg(long, default_value = "f32")]
    pub dtype: String,
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Tuned weights: a merged or fully fine-tuned model (a folder, a GGUF file, a hub id), an adapter (of sorsa or PEFT), or a run
    #[arg(value_name = "FROM", required_unless_present = "add")]
    pub from: Option<String>,
    /// Add these tuned weights times a number, as in A=0.5; repeatable, in place of FROM. The base must be the same
    #[arg(long, value_name = "FROM=NUMBER", conflicts_with = "from")]
    pub add: Vec<String>,
    /// Base model: a Hugging Face folder, a GGUF file, a hub id, or `embedded` [default: the model of the adapter's run]
    #[arg(long)]
    pub model: Option<String>,
    /// PEFT folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Rank of the LoRA [default: exact, for adapters with factors]
    #[arg(long, value_parser = rank)]
    pub rank: Option<usize>,
    /// Choose the rank of each module: the smallest that keeps this part of the difference's squared norm, as in 0.95
    #[arg(long, value_name = "PART", conflicts_with = "rank", value_parser = part)]
    pub energy: Option<f64>,
    /// Scale the intruder dimensions of the tuned weights by this factor first (arXiv 2410.21228); 0 removes them [default if given: 0]
    #[arg(long, value_name = "FACTOR", num_args = 0..=1, require_equals = true, default_missing_value = "0", value_parser = factor)]
    pub without_intruders: Option<f64>,
    #[command(flatten)]
    pub intruders: IntruderArgs,
    /// Format of the printed table
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print results only, without progress
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Which singular vectors are intruder dimensions.
#[derive(Debug, Clone, Args)]
pub struct IntruderArgs {
    /// Leading singular vectors of a tuned weight that may be intruder dimensions
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = rank)]
    pub top: usize,
    /// A vector is an intruder dimension if no singular vector of the base has a cosine of this size with it
    #[arg(long, value_name = "COSINE", default_value_t = 0.5, value_parser = part)]
    pub threshold: f64,
}

fn rank(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rank) if rank >= 1 => Ok(rank),
        _ => Err("expected a number of at least 1".to_owned()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if 0.0 < part && part <= 1.0 => Ok(part),
        _ => Err("expected a number above 0, at most 1".to_owned()),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (0.0..1.0).contains(&factor) => Ok(factor),
        _ => Err("expected a number from 0, below 1".to_owned()),
    }
}
