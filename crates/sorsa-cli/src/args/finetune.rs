//! The options of `sorsa finetune`, `inspect` and `pretrain`.

use std::path::PathBuf;

use clap::Args;
use sorsa_adapter::RankEnergy;
use sorsa_ops::MatmulPrecision;
use sorsa_train::LearningRate;

use super::{DeviceArgs, MAX_SEED, method_names};
use crate::format::Format;

/// A recipe, and options that replace its fields.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct RecipeArgs {
    /// Recipe (TOML). The options below replace its fields
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Model: a Hugging Face folder, a GGUF file, a hub id (owner/name or owner/name@revision), or `embedded` [default: embedded, or
    /// the model of the adapter's run]
    #[arg(long)]
    pub model: Option<String>,
    /// Storage dtype of the frozen weights: f32 or bf16 [default: f32]
    #[arg(long)]
    pub dtype: Option<String>,
    /// Pack the linear layers of a dense model while reading it: nf4, fp4, q8_0, q4_0 and others; nf4+q8_0 packs the embedding and
    /// the head too. The norms stay dense [default: none are packed]
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<String>,
    /// Start from the adapter in this folder: of sorsa, of PEFT, or of a run. It sets method, rank and target modules
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<String>,
    /// Start a new adapter, of any method and rank, from the weights that the adapter in this folder has reached
    #[arg(long, value_name = "DIR", conflicts_with = "adapter")]
    pub continue_from: Option<String>,
    /// Training data: a JSONL, JSON, parquet or text file, or `embedded` [default: embedded]
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// Validation data. If absent, the run holds out a part of the training data
    #[arg(long, value_name = "FILE")]
    pub validation: Option<String>,
    /// Problems to measure accuracy on, before and after training. If absent, the run measures none, unless it trains on
    /// the embedded task
    #[arg(long, value_name = "FILE")]
    pub test: Option<String>,
    /// Train on the first rows only [default: all rows]
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
    /// Skip rows that are malformed, too long, or refused by the template, and count them. If absent, such a row is an error
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Prompt template: alpaca, code, question, raw or chat [default: alpaca]
    #[arg(long)]
    pub template: Option<String>,
    /// Chat template of this name, if the tokenizer's folder has several, for example tool_use. The template is then chat
    /// [default: default]
    #[arg(long, value_name = "NAME")]
    pub chat_template: Option<String>,
    /// Text to append to every prompt that the model answers, but not in training [default: none]
    #[arg(long, value_name = "TEXT")]
    pub prompt_suffix: Option<String>,
    /// Maximum length of an answer, in tokens [default: 128]
    #[arg(long, value_name = "TOKENS")]
    pub max_new_tokens: Option<usize>,
    #[arg(long, help = format!("Method: {} [default: sorsa]", method_names(" or ")))]
    pub method: Option<String>,
    /// Rank of the adapters; auto:0.9 is, for each weight, the smallest rank that holds 0.9 of its squared singular values, at most
    /// adapter.rank_max (128) [default: 16]
    #[arg(long, value_parser = rank)]
    pub rank: Option<toml::Value>,
    /// Numerator of the adapters' scale, alpha / rank [default: the rank]
    #[arg(long)]
    pub alpha: Option<f64>,
    /// Linear layers to train: names, globs, `re:` regular expressions, or all-linear [default:
    /// q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]
    #[arg(long, value_delimiter = ',', value_name = "PATTERN,..")]
    pub target_modules: Option<Vec<String>>,
    /// Peak learning rate, or `auto`: the run finds it by short trials [default: auto; a known rate for the embedded model]
    #[arg(long, visible_alias = "learning-rate", value_name = "RATE")]
    pub lr: Option<LearningRate>,
    /// Weight of SORSA's orthonormal regularizer [default: 4e-4]
    #[arg(long)]
    pub gamma: Option<f64>,
    /// Passes over the training data [default: 1]
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Stop after this many optimizer steps [default: the end of the last epoch]
    #[arg(long, value_name = "STEPS")]
    pub max_steps: Option<u64>,
    /// End the run with a checkpoint and exit code 3 if its training loss climbs far, or its evaluations only get worse
    #[arg(long)]
    pub stop_on_divergence: bool,
    /// Sequences in a micro-batch [default: 16]
    #[arg(long, value_name = "ROWS")]
    pub batch_size: Option<usize>,
    /// Micro-batches in an optimizer step [default: 1]
    #[arg(long, value_name = "BATCHES")]
    pub accumulation: Option<usize>,
    /// Maximum length of a sequence, in tokens [default: 512]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Gradient checkpointing: run each block twice instead of storing its activations. Less memory, more time
    #[arg(long)]
    pub checkpoint_blocks: bool,
    /// Precision of products with weights in f32, on the CPU: highest (f32), high or medium (bf16 where the processor multiplies it
    /// fast) [default: highest]
    #[arg(long, value_name = "NAME")]
    pub matmul_precision: Option<MatmulPrecision>,
    /// Seed of data order, dropout, LoRA's initialization and the randomized SVD [default: 42 for data order and dropout,
    /// 0 for the others]
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    pub seed: Option<u64>,
    /// Set any field of the recipe, for example --set train.optimizer.beta2=0.95. May be given several times
    #[arg(long, value_name = "FIELD=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
pub struct FinetuneArgs {
    #[command(flatten)]
    pub fields: RecipeArgs,
    /// Folder of the results [default: a new folder in runs/]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Resume the run in this folder
    #[arg(long, value_name = "DIR", conflicts_with = "run_dir")]
    pub resume: Option<PathBuf>,
    /// Print the full recipe and what it would train, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Print results only, without progress
    #[arg(long, short)]
    pub quiet: bool,
    /// Format of the printed result
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct LrFindArgs {
    #[command(flatten)]
    pub fields: RecipeArgs,
    /// Rates to try on each side of the best one, a factor of 2 apart, besides those that the search takes
    #[arg(long, value_name = "RATES", default_value_t = 3)]
    pub beside: usize,
    /// File of the figure (SVG) [default: lr-find.svg; none with --json]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Print results only, without progress
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub training: FinetuneArgs,
    /// Measure what packing loses of each kind of weight, and how much of it LoftQ, QPiSSA and QSORSA take up (PiSSA's table 3).
    /// Packs in the format of --quantize, or in nf4. Reads and decomposes the weights
    #[arg(long)]
    pub quantization_error: bool,
    /// Ranks for this measurement
    #[arg(long, value_name = "RANK,..", requires = "quantization_error", value_delimiter = ',', default_value = "8,32,128", value_parser = clap::value_parser!(u32).range(1..))]
    pub ranks: Vec<u32>,
}

#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// Folder of the new model
    #[arg(long, value_name = "DIR", default_value = "runs/pretrain/model")]
    pub out: PathBuf,
    /// Corpus: a file of rows with the field `text`. If absent, the command generates the project's own corpus
    #[arg(long, value_name = "FILE", requires = "tokenizer")]
    pub corpus: Option<PathBuf>,
    /// Folder of the tokenizer. If absent, the command trains the project's own tokenizer
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Documents in the generated corpus
    #[arg(long, default_value_t = 100_000)]
    pub documents: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 128)]
    pub hidden_size: usize,
    /// Hidden width of the feed-forward layers
    #[arg(long, default_value_t = 352)]
    pub intermediate_size: usize,
    /// Number of blocks
    #[arg(long, default_value_t = 4)]
    pub layers: usize,
    /// Number of query heads
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Number of key and value heads
    #[arg(long, default_value_t = 2)]
    pub kv_heads: usize,
    /// Maximum length of the context, in tokens
    #[arg(long, default_value_t = 256)]
    pub context: usize,
    /// Number of optimizer steps
    #[arg(long, default_value_t = 3500)]
    pub steps: u64,
    /// Sequences in a step
    #[arg(long, default_value_t = 24)]
    pub batch_size: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 3e-3)]
    pub lr: f64,
    /// Seed of weights, corpus and data order
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the randomly initialized model, and stop
    #[arg(long)]
    pub init_only: bool,
    /// Resume from the newest checkpoint of an earlier call
    #[arg(long)]
    pub resume: bool,
    /// Write the generated corpus, tokenizer and task into this folder, and stop
    #[arg(long, value_name = "DIR")]
    pub generate_only: Option<PathBuf>,
    /// Print results only, without progress
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// A rank: a number, or `auto:SHARE`.
fn rank(text: &str) -> Result<toml::Value, String> {
    match text.parse::<u32>() {
        Ok(rank) => Ok(toml::Value::Integer(rank.into())),
        Err(_) => text.parse::<RankEnergy>().map(|energy| toml::Value::String(energy.to_string())),
    }
}
