//! The options of `bench --speed`. They have the names of the options of the PyTorch program that it is compared with.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde_json::json;
use sorsa_checkpoint::PackingFormats;
use sorsa_models::{ActivationFormat, MatmulPrecision, ModelConfig, WeightFormat, float_dtype};

use crate::args::method_names;
use crate::exit::bad_input;

/// The names of formats that models compute with.
fn computed_format() -> impl TypedValueParser<Value = WeightFormat> {
    let computed = WeightFormat::ALL.into_iter().filter(|format| float_dtype(*format).is_some());
    PossibleValuesParser::new(computed.map(WeightFormat::name)).try_map(|name| name.parse::<WeightFormat>())
}

/// The names of formats of activations.
fn activation_format() -> impl TypedValueParser<Value = ActivationFormat> {
    PossibleValuesParser::new(ActivationFormat::ALL.map(ActivationFormat::name)).map(|name| match name.as_str() {
        "bf16" => ActivationFormat::Bf16,
        _ => ActivationFormat::F32,
    })
}

/// Options of `bench --speed`, which measures the training step of a random Llama.
#[derive(Debug, Clone, Args)]
pub struct SpeedArgs {
    #[arg(long = "method", help = format!("Methods to measure, each in its own process: {}", method_names(", ")), value_name = "METHOD,..", value_delimiter = ',', default_value = "lora")]
    pub methods: Vec<String>,
    /// Preset of sizes. The options below replace single sizes
    #[arg(long, value_enum, ignore_case = true, default_value_t)]
    pub shape: Shape,
    /// Width of the residual stream [default: the preset's]
    #[arg(long)]
    pub dim: Option<usize>,
    /// Number of blocks [default: the preset's]
    #[arg(long)]
    pub layers: Option<usize>,
    /// Number of query heads [default: the preset's]
    #[arg(long)]
    pub heads: Option<usize>,
    /// Number of key and value heads [default: the preset's, or the number of query heads if that is given]
    #[arg(long)]
    pub kv_heads: Option<usize>,
    /// Hidden width of the feed-forward layers [default: the preset's]
    #[arg(long)]
    pub ffn: Option<usize>,
    /// Size of the vocabulary, in tokens [default: the preset's]
    #[arg(long)]
    pub vocab: Option<usize>,
    /// Sequences in a step [default: the preset's]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Length of a sequence, in tokens [default: the preset's]
    #[arg(long)]
    pub seq: Option<usize>,
    /// Rank of the adapters
    #[arg(long, default_value_t = 16)]
    pub rank: usize,
    /// Storage dtype of the model's matrices
    #[arg(long, default_value = "f32", value_parser = computed_format())]
    pub dtype: WeightFormat,
    /// Precision of products with weights in f32: highest (f32), high or medium (bf16 where the processor multiplies it fast)
    #[arg(long, value_name = "NAME", default_value_t)]
    pub matmul_precision: MatmulPrecision,
    /// Pack the linear layers, and measure the step beside them: nf4, fp4, q8_0, q4_0 and others; nf4+q8_0 packs the embedding and the
    /// head too. The norms stay dense [default: none are packed]
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<PackingFormats>,
    /// Number of measured steps
    #[arg(long, default_value_t = 12)]
    pub steps: usize,
    /// Number of steps before the measured ones
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// Number of threads [default: all cores]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Seed of weights and tokens
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Use the plain operations instead of the fused ones
    #[arg(long)]
    pub plain: bool,
    /// Gradient checkpointing: run each block twice instead of storing its activations. Less memory, more time
    #[arg(long)]
    pub checkpoint_blocks: bool,
    /// Format in which the backward pass gets activations: f32 or bf16
    #[arg(long, default_value = "f32", value_parser = activation_format())]
    pub activations: ActivationFormat,
    /// Measure the start only, and no steps
    #[arg(long)]
    pub init_only: bool,
    /// Number of rounds. Each round measures every method once
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// Vary batch, sequence length, rank, layers and threads, one at a time. With --out, also write a table and figures
    #[arg(long)]
    pub scale: bool,
    /// Append the results to this file (JSONL)
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Presets of sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Shape {
    /// Width 288, 6 blocks, vocabulary 32,000, batch 4 x 256
    #[default]
    #[value(name = "S")]
    S,
    /// The same with a vocabulary of 8,192
    #[value(name = "S8")]
    S8,
    /// Width 768, 12 blocks, vocabulary 32,000, batch 1 x 256
    #[value(name = "L")]
    L,
    /// That of SmolLM2-135M with an output head of its own: width 576, 30 blocks, 9 query and 3 key heads, feed-forward 1536, vocabulary
    /// 49,152, batch 4 x 256
    #[value(name = "SmolLM2")]
    SmolLm2,
}

/// Sizes of the model and of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub dim: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub batch: usize,
    pub seq: usize,
}

impl Shape {
    fn sizes(self) -> Sizes {
        let small = Sizes { dim: 288, layers: 6, heads: 6, kv_heads: 6, ffn: 768, vocab: 32_000, batch: 4, seq: 256 };
        match self {
            Self::S => small,
            Self::S8 => Sizes { vocab: 8192, ..small },
            Self::L => Sizes { dim: 768, layers: 12, heads: 12, kv_heads: 12, ffn: 2048, batch: 1, ..small },
            Self::SmolLm2 => {
                Sizes { dim: 576, layers: 30, heads: 9, kv_heads: 3, ffn: 1536, vocab: 49_152, batch: 4, seq: 256 }
            }
        }
    }
}

impl SpeedArgs {
    /// The preset's sizes, with those that the options replace.
    pub fn sizes(&self) -> Sizes {
        let preset = self.shape.sizes();
        let heads = self.heads.unwrap_or(preset.heads);
        let kv_heads = if self.heads.is_some() { heads } else { preset.kv_heads };
        Sizes {
            dim: self.dim.unwrap_or(preset.dim),
            layers: self.layers.unwrap_or(preset.layers),
            heads,
            kv_heads: self.kv_heads.unwrap_or(kv_heads),
            ffn: self.ffn.unwrap_or(preset.ffn),
            vocab: self.vocab.unwrap_or(preset.vocab),
            batch: self.batch.unwrap_or(preset.batch),
            seq: self.seq.unwrap_or(preset.seq),
        }
    }

    /// Whether this process measures the only configuration itself.
    pub fn is_single(&self) -> bool {
        self.methods.len() == 1 && self.rounds == 1 && !self.scale
    }

    /// Checks that every count is at least 1.
    ///
    /// # Errors
    ///
    /// Bad input that names the option.
    pub fn check(&self) -> anyhow::Result<()> {
        let Sizes { layers, batch, seq, vocab, .. } = self.sizes();
        let counts = [
            ("--layers", layers),
            ("--batch", batch),
            ("--vocab", vocab),
            ("--rank", self.rank),
            ("--steps", self.steps),
            ("--rounds", self.rounds),
            ("--threads", self.threads.unwrap_or(1)),
            ("--seq", seq),
        ];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => Err(bad_input(format!("{name} must be at least 1"))),
            None => Ok(()),
        }
    }
}

impl Sizes {
    /// The configuration of a Llama of these sizes.
    ///
    /// # Errors
    ///
    /// Bad input if the sizes do not fit together.
    pub fn config(&self) -> anyhow::Result<ModelConfig> {
        let fields = json!({
            "model_type": "llama",
            "hidden_size": self.dim,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.seq.max(2048),
            "rms_norm_eps": 1e-6,
        });
        let parsed = ModelConfig::parse(fields.as_object().cloned().unwrap_or_default());
        parsed.map_err(|faults| bad_input(faults.join("; ")))
    }
}
