//! The command line, as the user types it. `recipe.rs` turns it into a recipe.

mod analyze;
mod bench;
mod convert;
mod eval;
mod finetune;

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};
use sorsa_adapter::Method;
use sorsa_checkpoint::PackingFormats;

use crate::device::Backend;
use crate::format::Format;

pub use analyze::{AnalyzeArgs, Triplets, VerifyArgs};
pub use bench::{BenchArgs, BenchFormat, BenchSpeedArgs};
pub use convert::{ConvertArgs, ExportArgs, ExportFormat, ImportArgs, MergeArgs, UnpackArgs};
pub use eval::{EvalArgs, GenerateArgs, GradeArgs, GradeTask};
pub use finetune::{FinetuneArgs, InspectArgs, LrFindArgs, PretrainArgs, RecipeArgs};

/// Fine-tunes language models with SVD-based adapters.
#[derive(Debug, Parser)]
#[command(name = "sorsa", version, max_term_width = 100, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an adapter or all weights; without arguments, on the embedded model and task
    Finetune(Box<FinetuneArgs>),
    /// Find the learning rate for `finetune` with the same options: a table and a figure of the loss by rate
    LrFind(Box<LrFindArgs>),
    /// Train a small base model from scratch; without arguments, the embedded model
    Pretrain(Box<PretrainArgs>),
    /// Measure accuracy on a task, or the perplexity of a text
    Eval(Box<EvalArgs>),
    /// Compare methods over learning rates and seeds; without arguments, on the embedded model and task
    Bench(Box<BenchArgs>),
    /// Grade a file of answers that any program has generated
    Grade(GradeArgs),
    /// Generate text after a prompt, with or without an adapter
    Generate(Box<GenerateArgs>),
    /// Merge an adapter into its model and write a Hugging Face folder
    Merge(MergeArgs),
    /// Write a model or an adapter in the format of another program
    Export(ExportArgs),
    /// Convert an adapter of PEFT or of SORSA's author into one of this program
    Import(ImportArgs),
    /// Make a LoRA of any difference: a tuned model minus its base, an adapter, or a weighted sum of adapters
    Convert(Box<ConvertArgs>),
    /// Write the model in a GGUF file as a Hugging Face folder
    Unpack(UnpackArgs),
    /// Compare a model's outputs with those of another framework
    Verify(VerifyArgs),
    /// Show how training changes the singular values and vectors of weights, checkpoint by checkpoint
    Analyze(AnalyzeArgs),
    /// Show what `finetune` would train with the same options: modules, shapes, parameters, memory
    Inspect(Box<InspectArgs>),
    /// Measure the training step of a random model: seconds, CPU seconds, memory
    #[command(name = BENCH_SPEED, override_usage = "sorsa bench --speed [OPTIONS]", hide = true)]
    BenchSpeed(Box<BenchSpeedArgs>),
    /// List the devices that this build can compute on, and test each
    Devices(DevicesArgs),
}

/// The parser's name for `bench --speed`, which shares no option with the comparison.
const BENCH_SPEED: &str = "bench-speed";

impl Cli {
    /// The command line of this process.
    ///
    /// # Errors
    /// A usage error; also the text of `--help` and `--version`.
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

/// Largest seed: recipes are TOML, whose integers are signed.
const MAX_SEED: u64 = i64::MAX as u64;

/// The device that computes.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Backend: flex (CPU), wgpu, vulkan or cuda
    #[arg(long, value_name = "NAME", default_value_t = Backend::default())]
    pub backend: Backend,
    /// Index of the device; `sorsa devices` lists them
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub device: usize,
}

/// Fields of the model's `config.json`, for commands without a recipe.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Read the model as if its config.json said this, as in model.config.rope_theta=5e5; repeatable
    #[arg(long, value_name = "FIELD=VALUE")]
    pub set: Vec<String>,
    /// Pack the linear layers of a dense model while reading it: nf4, fp4, q8_0, q4_0 and others; nf4+q8_0 packs the embedding and
    /// the head too [default: as the adapter's run did, or not]
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<PackingFormats>,
}

#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Format of the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Check the processor instead: what it has, the speed of each kernel beside the processor's peak, and its error against f64. Takes
    /// some 20 seconds; exit code 1 if a kernel is wrong
    #[arg(long)]
    pub check: bool,
    /// Ignored: the build determines the backends
    #[arg(long, hide = true)]
    pub backend: Option<Backend>,
}

impl DevicesArgs {
    /// Format of the result.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

/// The methods as help texts list them, the last one after `last`: `sorsa, pissa, .. or full`.
pub fn method_names(last: &str) -> String {
    let names = Method::ALL.map(Method::name);
    let (end, others) = names.split_last().expect("there are methods");
    format!("{}{last}{end}", others.join(", "))
}
