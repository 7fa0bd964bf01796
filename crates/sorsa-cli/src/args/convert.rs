//! The options of `sorsa merge`, `export` and `import`.

use std::path::PathBuf;

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
