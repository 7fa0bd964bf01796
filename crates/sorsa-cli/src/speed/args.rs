//! What `bench --speed` can be asked for. Options are named as those of the comparison's PyTorch program.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use sorsa_models::ModelConfig;

use crate::exit::bad_input;

/// The training step of a random Llama: sizes and what is varied.
#[derive(Debug, Clone, Args)]
pub struct SpeedArgs {
    /// Methods, each in a process of its own: sorsa, pissa, lora, dora, olora, partial, full
    #[arg(long = "method", value_name = "METHOD,..", value_delimiter = ',', default_value = "lora")]
    pub methods: Vec<String>,
    /// Sizes that the options below replace
    #[arg(long, value_enum, ignore_case = true, default_value_t)]
    pub shape: Shape,
    /// Width of the residual stream
    #[arg(long)]
    pub dim: Option<usize>,
    /// Blocks
    #[arg(long)]
    pub layers: Option<usize>,
    /// Query heads
    #[arg(long)]
    pub heads: Option<usize>,
    /// Key and value heads; without it as many as query heads
    #[arg(long)]
    pub kv_heads: Option<usize>,
    /// Width of the feed-forward layers
    #[arg(long)]
    pub ffn: Option<usize>,
    /// Tokens of the vocabulary
    #[arg(long)]
    pub vocab: Option<usize>,
    /// Sequences of a step
    #[arg(long)]
    pub batch: Option<usize>,
    /// Tokens of a sequence
    #[arg(long)]
    pub seq: Option<usize>,
    /// Rank of the adapters
    #[arg(long, default_value_t = 16)]
    pub rank: usize,
    /// dtype of the model's matrices: f32 or bf16
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    pub dtype: String,
    /// Steps that are measured
    #[arg(long, default_value_t = 12)]
    pub steps: usize,
    /// Steps before them, which are not
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// Threads; without it, all cores
    #[arg(long)]
    pub threads: Option<usize>,
    /// Seed of weights and tokens
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The plain forms of all operations instead of the fused ones
    #[arg(long)]
    pub plain: bool,
    /// Run each block twice instead of keeping what its backward pass needs
    #[arg(long)]
    pub checkpoint_blocks: bool,
    /// Measure start-up alone
    #[arg(long)]
    pub init_only: bool,
    /// Rounds over all methods, in turn
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// Vary batch, sequence, rank, layers and threads, one at a time; with --out a table and figures are written beside
    /// the lines
    #[arg(long)]
    pub scale: bool,
    /// Where the lines are written too (JSONL)
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Named sizes.
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
}

/// Sizes of a model and of a batch.
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
        }
    }
}

impl SpeedArgs {
    /// The sizes that are meant.
    pub fn sizes(&self) -> Sizes {
        let preset = self.shape.sizes();
        let heads = self.heads.unwrap_or(preset.heads);
        Sizes {
            dim: self.dim.unwrap_or(preset.dim),
            layers: self.layers.unwrap_or(preset.layers),
            heads,
            kv_heads: self.kv_heads.unwrap_or(heads),
            ffn: self.ffn.unwrap_or(preset.ffn),
            vocab: self.vocab.unwrap_or(preset.vocab),
            batch: self.batch.unwrap_or(preset.batch),
            seq: self.seq.unwrap_or(preset.seq),
        }
    }

    /// Whether one configuration is asked for, which this process measures itself.
    pub fn is_single(&self) -> bool {
        self.methods.len() == 1 && self.rounds == 1 && !self.scale
    }

    /// What makes no sense.
    ///
    /// # Errors
    ///
    /// Bad input, with the option's name.
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
    /// A Llama of these sizes.
    ///
    /// # Errors
    ///
    /// Bad input where sizes do not go together.
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
