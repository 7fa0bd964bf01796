//! The command line, as typed. What it means is decided in `recipe.rs`.

mod bench;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::device::Backend;
use crate::format::{Format, TableFormat};

pub use bench::{BenchArgs, BenchFormat, BenchSpeedArgs};

/// Fine-tunes language models with SVD-based adapters.
#[derive(Debug, Parser)]
#[command(name = "sorsa", version, max_term_width = 100, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an adapter, or all weights; without arguments, on the embedded model and task
    Finetune(Box<FinetuneArgs>),
    /// Train a small base model from scratch; without arguments, the embedded one
    Pretrain(Box<PretrainArgs>),
    /// Measure accuracy on a task, or the loss of a text
    Eval(Box<EvalArgs>),
    /// Compare methods under equal conditions; without arguments, on the embedded model and task
    Bench(Box<BenchArgs>),
    /// Grade generations that were made elsewhere
    Grade(GradeArgs),
    /// Continue a prompt
    Generate(Box<GenerateArgs>),
    /// Merge an adapter into its model and write a Hugging Face folder
    Merge(MergeArgs),
    /// Write a model or an adapter in the form of another program
    Export(ExportArgs),
    /// Bring in an adapter that PEFT or SORSA's author wrote
    Import(ImportArgs),
    /// Compare a model with results that another framework wrote
    Verify(VerifyArgs),
    /// Show what training did to singular values and vectors, over the checkpoints of runs
    Analyze(AnalyzeArgs),
    /// Show what would be trained: modules, shapes, parameters, memory
    Inspect(Box<FinetuneArgs>),
    /// Measure the training step of a random model: seconds, CPU seconds, memory
    #[command(name = BENCH_SPEED, bin_name = "sorsa bench --speed", hide = true)]
    BenchSpeed(Box<BenchSpeedArgs>),
    /// Show what this build can run on, and whether it works
    Devices(DevicesArgs),
}

/// What `bench --speed` is to the parser: none of its options are the comparison's.
const BENCH_SPEED: &str = "bench-speed";

impl Cli {
    /// The command line of this process.
    ///
    /// # Errors
    /// Usage, and the texts that were asked for.
    pub fn of_process() -> Result<Self, clap::Error> {
        let mut arguments: Vec<OsString> = std::env::args_os().collect();
        let speed = arguments.iter().skip(2).take_while(|argument| *argument != "--").position(|it| it == "--speed");
        if let (Some("bench"), Some(index)) = (arguments.get(1).and_then(|command| command.to_str()), speed) {
            arguments.remove(index + 2);
            arguments[1] = BENCH_SPEED.into();
        }
        Self::try_parse_from(arguments)
    }
}

/// The largest integer of a TOML file.
const MAX_SEED: u64 = i64::MAX as u64;

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Backend: flex (CPU), wgpu, vulkan or cuda
    #[arg(long, value_name = "NAME", default_value_t = Backend::default())]
    pub backend: Backend,
    /// Which of the backend's devices, as `sorsa devices` counts them
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub device: usize,
}

/// What a run does: a recipe, and options that replace its fields.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct RecipeArgs {
    /// Recipe (TOML); options below replace its fields
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Model: a Hugging Face folder, a hub id (owner/name or owner/name@revision), or `embedded`
    #[arg(long)]
    pub model: Option<String>,
    /// What the frozen weights are kept in: f32 or bf16
    #[arg(long)]
    pub dtype: Option<String>,
    /// Start from this adapter: its folder, PEFT's, or a run's; it decides method, rank and targets
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<String>,
    /// Training data: JSONL, JSON or parquet
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// Validation data; without it a part of the training data is held out
    #[arg(long, value_name = "FILE")]
    pub validation: Option<String>,
    /// Problems that accuracy is measured on, before and after
    #[arg(long, value_name = "FILE")]
    pub test: Option<String>,
    /// Use the first rows of the training data only
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
    /// Leave out malformed rows, and count them
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// sorsa, pissa, lora, dora, olora, partial or full
    #[arg(long)]
    pub method: Option<String>,
    /// Rank of the adapters
    #[arg(long)]
    pub rank: Option<usize>,
    /// Numerator of the adapters' scale (alpha / rank)
    #[arg(long)]
    pub alpha: Option<f64>,
    /// Linear layers to train: names, globs, `re:` regular expressions, or all-linear
    #[arg(long, value_delimiter = ',', value_name = "PATTERN,..")]
    pub target_modules: Option<Vec<String>>,
    /// Peak learning rate
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,
    /// Weight of the orthonormal regularizer
    #[arg(long)]
    pub gamma: Option<f64>,
    /// Passes over the training data
    #[arg(long)]
    pub epochs: Option<f64>,
    /// End after so many optimizer steps
    #[arg(long, value_name = "STEPS")]
    pub max_steps: Option<u64>,
    /// Sequences of one micro-batch
    #[arg(long, value_name = "ROWS")]
    pub batch_size: Option<usize>,
    /// Micro-batches of one optimizer step
    #[arg(long, value_name = "BATCHES")]
    pub accumulation: Option<usize>,
    /// Longest sequence, in tokens
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Run each block twice instead of keeping what its backward pass needs
    #[arg(long)]
    pub checkpoint_blocks: bool,
    /// Seed of data order, dropout, LoRA's start and the randomized SVD
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    pub seed: Option<u64>,
    /// Any field of the recipe, e.g. --set train.optimizer.beta2=0.95
    #[arg(long, value_name = "FIELD=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
pub struct FinetuneArgs {
    #[command(flatten)]
    pub fields: RecipeArgs,
    /// Where results go; without it a new folder under runs/
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Go on with the run in this folder
    #[arg(long, value_name = "DIR", conflicts_with = "run_dir")]
    pub resume: Option<PathBuf>,
    /// Show what would be done, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Print results only
    #[arg(long, short)]
    pub quiet: bool,
    /// How tables are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// Folder of the new model
    #[arg(long, value_name = "DIR", default_value = "runs/pretrain/model")]
    pub out: PathBuf,
    /// Corpus ({"text"} rows); without it the project's own is generated
    #[arg(long, value_name = "FILE", requires = "tokenizer")]
    pub corpus: Option<PathBuf>,
    /// Folder of the tokenizer; without it the project's own is trained
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Documents of the generated corpus
    #[arg(long, default_value_t = 100_000)]
    pub documents: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 128)]
    pub hidden_size: usize,
    /// Width of the feed-forward layers
    #[arg(long, default_value_t = 352)]
    pub intermediate_size: usize,
    /// Blocks
    #[arg(long, default_value_t = 4)]
    pub layers: usize,
    /// Query heads
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Key and value heads
    #[arg(long, default_value_t = 2)]
    pub kv_heads: usize,
    /// Longest context, in tokens
    #[arg(long, default_value_t = 256)]
    pub context: usize,
    /// Optimizer steps
    #[arg(long, default_value_t = 3500)]
    pub steps: u64,
    /// Sequences of one step
    #[arg(long, default_value_t = 24)]
    pub batch_size: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 3e-3)]
    pub lr: f64,
    /// Seed of weights, corpus and data order
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write the freshly initialised model and stop
    #[arg(long)]
    pub init_only: bool,
    /// Go on from the newest checkpoint of an earlier call
    #[arg(long)]
    pub resume: bool,
    /// Write the generated corpus, tokenizer and task into this folder and stop
    #[arg(long, value_name = "DIR")]
    pub generate_only: Option<PathBuf>,
    /// Print results only
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Model: a Hugging Face folder, a hub id, or `embedded`; without it that of the adapter's run, or `embedded`
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of an adapter, or of a run that has one
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What the weights are kept in: f32 or bf16
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// Problems (GSM8K, MATH, SVAMP, HumanEval, MetaMathQA or any prompts with answers); without it the embedded test
    /// problems
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// What kind of problems they are; without it told by the fields of the file
    #[arg(long, value_enum)]
    pub task: Option<Task>,
    /// Measure the perplexity of these texts instead
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub text: Option<PathBuf>,
    /// Use the first rows only
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
    /// alpaca, code, question, raw or chat; without it alpaca, and raw for HumanEval
    #[arg(long)]
    pub template: Option<String>,
    /// Text put after every prompt
    #[arg(long, default_value = "")]
    pub prompt_suffix: String,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 128)]
    pub max_new_tokens: usize,
    /// Prompts generated together
    #[arg(long, default_value_t = 64)]
    pub batch_size: usize,
    /// Generations of each prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub samples: usize,
    /// Sample at this temperature; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the k most likely tokens
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens that together reach this probability
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    pub seed: u64,
    /// Where every generation is kept (JSONL); a second call with the same settings goes on where it stopped
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Where the answers are written that the graders disagree on (JSONL)
    #[arg(long, value_name = "FILE")]
    pub disagreements: Option<PathBuf>,
    /// Run the programs that the model writes, in a child process with limits (HumanEval)
    #[arg(long)]
    pub allow_code_execution: bool,
    /// Time limit of a program
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub code_timeout: u64,
    /// Memory limit of a program
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    pub code_memory: u64,
    /// Leave out malformed rows, and count them
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: TableFormat,
    /// Print results only
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// A kind of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Task {
    Gsm8k,
    Math,
    Svamp,
    Humaneval,
    Embedded,
}

#[derive(Debug, Args)]
pub struct GradeArgs {
    /// Generations, one JSON object a line
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// gsm8k, math, svamp or embedded
    #[arg(long, value_enum, default_value = "gsm8k")]
    pub task: Task,
    /// Field of the generated text; without it the first of prediction, generation, generated, output, completion and
    /// response
    #[arg(long, value_name = "FIELD")]
    pub prediction_field: Option<String>,
    /// Field of the gold answer or solution; without it the first of gold, answer, expected, solution and target
    #[arg(long, value_name = "FIELD")]
    pub gold_field: Option<String>,
    /// Where every verdict is written (JSONL)
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Where the answers are written that the graders disagree on (JSONL)
    #[arg(long, value_name = "FILE")]
    pub disagreements: Option<PathBuf>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: TableFormat,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The prompt
    #[arg(default_value = "")]
    pub prompt: String,
    /// Model: a Hugging Face folder, a hub id, or `embedded`; without it that of the adapter's run, or `embedded`
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of an adapter, or of a run that has one
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What the weights are kept in: f32 or bf16
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// alpaca, code, question, raw or chat
    #[arg(long, default_value = "raw")]
    pub template: String,
    /// Longest continuation, in tokens
    #[arg(long, default_value_t = 128)]
    pub max_new_tokens: usize,
    /// Sample at this temperature; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the k most likely tokens
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens that together reach this probability
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folder of the adapter, or of a run that has one
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// The model it was trained on; without it the one that the run's recipe names
    #[arg(long)]
    pub model: Option<String>,
    /// Folder of the merged model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// f32, f16 or bf16; without it, as the base model is stored
    #[arg(long)]
    pub dtype: Option<String>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// What `export` writes.
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
    /// SORSA adapter as its author's checkpoint
    Author,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// What to write
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// Folder of an adapter, of PEFT's, or of a run that has one; without it the model alone (hf, gguf)
    #[arg(long, value_name = "DIR", required_if_eq_any = [("format", "peft"), ("format", "gguf-lora"), ("format", "author")])]
    pub adapter: Option<PathBuf>,
    /// The model it was trained on; without it the one that the run's recipe names
    #[arg(long, required_unless_present = "adapter")]
    pub model: Option<String>,
    /// Folder, or file for gguf and gguf-lora
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// f32, f16, bf16 (hf, gguf), q8_0 (gguf); without it as the model is stored (hf), f16 (gguf) or f32 (gguf-lora)
    #[arg(long)]
    pub dtype: Option<String>,
    /// Approximate what was trained by a LoRA of this rank, and say what that leaves out (peft, gguf-lora)
    #[arg(long)]
    pub rank: Option<usize>,
    /// Leave PiSSA, OLoRA and SORSA as they are, for PEFT to decompose the model again (peft)
    #[arg(long, conflicts_with = "rank")]
    pub as_trained: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Folder of PEFT's adapter or of the author's checkpoint
    #[arg(value_name = "DIR")]
    pub from: PathBuf,
    /// The original model
    #[arg(long)]
    pub model: String,
    /// PEFT's folder of the same adapter before training, for one that split the weights: what it took is then known
    #[arg(long, value_name = "DIR")]
    pub start: Option<PathBuf>,
    /// Folder of the adapter
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Model: a Hugging Face folder, a hub id, or `embedded`
    #[arg(long)]
    pub model: String,
    /// Results (safetensors): input_ids, attention_mask, labels, logits, prompt_ids, generated_ids, whatever is there
    #[arg(long, value_name = "FILE")]
    pub golden: PathBuf,
    /// Folder of an adapter, of PEFT's, or of a run that has one
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Largest difference of a logit and of the loss
    #[arg(long, default_value_t = 1e-4)]
    pub tolerance: f64,
    /// How the table is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Which singular triplets are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Triplets {
    /// As many as the weight has: what the paper's figure shows
    #[default]
    All,
    /// The leading ones, as many as the run's rank
    R,
}

#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// Folders of fine-tuning runs; several are compared
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// Look at these modules only, e.g. q_proj,v_proj: names, globs, `re:` regular expressions
    #[arg(long, value_delimiter = ',', value_name = "PATTERN,..")]
    pub modules: Vec<String>,
    /// Singular triplets that the changes of values and directions are averaged over
    #[arg(long, value_enum, default_value_t)]
    pub triplets: Triplets,
    /// Folder of tables, figures and analysis.html; without it analysis/ in the run, or here for several runs
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How the averages are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: TableFormat,
    /// Print results only
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// How the list is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Ignored: the build decides which backends there are
    #[arg(long, hide = true)]
    pub backend: Option<Backend>,
}
