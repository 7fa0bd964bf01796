//! `config.json` as a [`ModelConfig`]. Every field is used, is known to change nothing, or is an error.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sorsa_files::read_regular;

use crate::families::{self, Family, nested};
use crate::fields::Fields;
use crate::gguf::{GgufError, GgufModel};
use crate::message::{listed, quoted};
use crate::source::{ModelPlace, Quantization};

use crate::rope::Rope;

/// The file that a folder's configuration is in.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// The widest matrix.
const MOST_WIDTH: usize = i32::MAX as usize;
/// Parameters of a model at most: a hundred times those of the largest one.
const MOST_PARAMETERS: u128 = 1 << 48;
/// Bytes of a `config.json` at most.
const LARGEST_FILE: u64 = 1 << 26;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("{}: should be a JSON object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },
    /// Fields that are missing, wrong or not supported.
    #[error("{}: {}", path.display(), listed(faults))]
    Fields {
        /// The file.
        path: PathBuf,
        /// Everything found wrong.
        faults: Vec<String>,
    },
    /// A folder with several GGUF files, none of which it names.
    #[error(
        "{}: expected one GGUF file, found {}; name the file itself", folder.display(), listed(files)
    )]
    SeveralGgufFiles {
        /// The folder.
        folder: PathBuf,
        /// The names of the files.
        files: Vec<String>,
    },
    /// A GGUF file.
    #[error(transparent)]
    Gguf(Box<GgufError>),
}

impl From<GgufError> for ConfigError {
    fn from(error: GgufError) -> Self {
        Self::Gguf(Box::new(error))
    }
}

/// Sizes and constants of a language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Whose `config.json` this is.
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest context of the pretraining.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Token that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end one.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills batches; what it is changes nothing.
    pub pad_token_id: Option<u32>,
    /// What the blocks are.
    pub architecture: Architecture,
}

/// What the blocks of a model are.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one a model: a box would save nothing")]
pub enum Architecture {
    /// Attention over all tokens before.
    Transformer(TransformerConfig),
    /// A recurrence with a state of fixed size.
    Rwkv(RwkvConfig),
}

/// The settings of the decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformerConfig {
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Share of a head that is rotated, from its start.
    pub partial_rotary_factor: f64,
    /// Added to the mean square in a norm.
    pub rms_norm_eps: f64,
    /// Whether a norm scales by one plus its weight.
    pub norm_offset: bool,
    /// Where the norms of a block are.
    pub block_norms: BlockNorms,
    /// Whether each head's queries and keys are normalised before the rotation.
    pub query_key_norm: bool,
    /// Between the two halves of the feed-forward layer.
    pub activation: Activation,
    /// Scores are divided by the square root of this.
    pub query_pre_attn_scalar: f64,
    /// Soft cap of the scores.
    pub attention_soft_cap: Option<f64>,
    /// Soft cap of the logits.
    pub logit_soft_cap: Option<f64>,
    /// Whether embeddings are multiplied by the square root of their width.
    pub scale_embedding: bool,
    /// Whether queries, keys and values, and gate and up, are one linear layer each.
    pub fused_projections: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// Rotary embedding.
    pub rope: Rope,
    /// Rotary embedding of the layers with a window; absent: the same.
    pub local_rope: Option<Rope>,
    /// A query of a layer with a window sees this many keys, itself included.
    pub sliding_window: Option<usize>,
    /// For each layer, whether it has the window.
    pub layer_types: Vec<LayerType>,
}

/// What a layer's queries see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerType {
    /// All tokens before.
    Full,
    /// The last of them.
    Sliding,
}

/// Where the norms of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockNorms {
    /// Before attention and before the feed-forward layer.
    Before,
    /// Before and after each.
    BeforeAndAfter,
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)` with the error function.
    Gelu,
    /// `x Phi(x)` by its approximation with tanh.
    GeluTanh,
}

/// The sizes of an RWKV.
#[derive(Debug, Clone, PartialEq)]
pub struct RwkvConfig {
    /// Which recurrence.
    pub version: RwkvVersion,
    /// Width of receptance, keys and values.
    pub attention_hidden_size: usize,
    /// Added to the variance in a layer norm.
    pub layer_norm_epsilon: f64,
    /// Transformers halves the residual stream every so many layers when it infers in half precision. It changes no
    /// result; kept because it belongs to the file.
    pub rescale_every: i64,
}

/// A recurrence of the RWKV line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RwkvVersion {
    /// RWKV-4: one state per channel, constant decay.
    V4,
    /// RWKV-6: a matrix per head, decay and token shift that depend on the token.
    V6 {
        /// Width of a head.
        head_size: usize,
        /// Its square multiplies the epsilon of the norm over each head.
        head_size_divisor: usize,
    },
}

impl ModelConfig {
    /// Reads the configuration of a model: `config.json` of a folder, or the metadata of a GGUF file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]; every missing, wrong and unsupported field is listed in one error.
    pub fn read(model: &Path) -> Result<Self, ConfigError> {
        match ModelPlace::find(model)? {
            ModelPlace::Folder(folder) => Ok(read_folder(&folder)?.0),
            ModelPlace::Gguf { file, fields } => Ok(GgufModel::open_with(&file, &fields)?.config().clone()),
        }
    }

    /// A configuration from the fields of a `config.json`; the error lists every fault.
    pub fn parse(object: Map<String, Value>) -> Result<Self, Vec<String>> {
        let (config, faults) = Self::parse_with_faults(object)?;
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// The same with its faults, for a caller that has more of them to find; what is wrong or missing has a default.
    ///
    /// # Errors
    ///
    /// The fault, if the family is not known.
    pub(crate) fn parse_with_faults(object: Map<String, Value>) -> Result<(Self, Vec<String>), Vec<String>> {
        let mut fields = Fields::new(nested::text_part(object)?);
        let model_type = match fields.take("model_type") {
            Some(Value::String(name)) => name,
            Some(found) => return Err(vec![format!("`model_type` should be a name, found {}", quoted(&found))]),
            None => return Err(vec!["`model_type` is missing".to_owned()]),
        };
        let family = families::named(&model_type).ok_or_else(|| {
            let names = families::names().join(", ");
            vec![format!("`model_type` should be one of {names}, found {}", quoted(&model_type.as_str().into()))]
        })?;
        let config = family.read(&mut fields);
        config.check_sizes(&mut fields);
        if let Some(decoder) = config.transformer() {
            // Families that can do otherwise have taken them.
            fields.only("layer_types", decoder.layer_types_json());
            fields.only_number("partial_rotary_factor", 1.0);
        }
        Ok((config, fields.finish()))
    }

    /// The `config.json` of this configuration.
    pub fn to_json(&self) -> Value {
        self.family.write(self)
    }

    /// The settings of the transformer, if the model is one.
    pub fn transformer(&self) -> Option<&TransformerConfig> {
        match &self.architecture {
            Architecture::Transformer(config) => Some(config),
            Architecture::Rwkv(_) => None,
        }
    }

    /// The longest sequence that the model can take; absent: there is no end.
    pub fn context_length(&self) -> Option<usize> {
        match &self.architecture {
            Architecture::Transformer(config) => Some(config.rope.context(self.max_position_embeddings)),
            Architecture::Rwkv(_) => None,
        }
    }

    /// Number of parameters, in closed form.
    pub fn num_parameters(&self) -> usize {
        usize::try_from(self.parameters()).unwrap_or(usize::MAX)
    }

    fn parameters(&self) -> u128 {
        let embeddings = self.vocab_size as u128 * self.hidden_size as u128;
        let blocks = match &self.architecture {
            Architecture::Transformer(config) => config.parameters(self),
            Architecture::Rwkv(config) => config.parameters(self),
        };
        blocks + embeddings * if self.tie_word_embeddings { 1 } else { 2 }
    }

    /// Refuses sizes beyond those of any model, with which later sums of parameters and bytes would overflow.
    fn check_sizes(&self, fields: &mut Fields) {
        let mut widths = vec![
            ("hidden_size", Some(self.hidden_size)),
            ("intermediate_size", Some(self.intermediate_size)),
            ("vocab_size", Some(self.vocab_size)),
        ];
        match &self.architecture {
            Architecture::Transformer(config) => {
                let of_heads = |heads: usize| heads.checked_mul(config.head_dim);
                widths.push(("num_attention_heads` times `head_dim", of_heads(config.num_attention_heads)));
                widths.push(("num_key_value_heads` times `head_dim", of_heads(config.num_key_value_heads)));
            }
            Architecture::Rwkv(config) => widths.push(("attention_hidden_size", Some(config.attention_hidden_size))),
        }
        widths.retain(|(_, width)| width.is_none_or(|width| width > MOST_WIDTH));
        for (name, width) in &widths {
            let found = width.map_or("more than 2^64".to_owned(), |width| width.to_string());
            fields.faults.push(format!("`{name}` should be at most {MOST_WIDTH}, found {found}"));
        }
        if widths.is_empty() && fields.faults.is_empty() && self.parameters() > MOST_PARAMETERS {
            let found = self.parameters();
            fields.faults.push(format!("its sizes make {found} parameters, at most {MOST_PARAMETERS} are read"));
        }
    }
}

/// Reads `config.json` of a folder, and how its weights are packed.
pub(crate) fn read_folder(folder: &Path) -> Result<(ModelConfig, Option<Quantization>), ConfigError> {
    let path = folder.join(CONFIG_FILE);
    let mut object = read_object(&path)?;
    let quantization = Quantization::take(folder, &mut object);
    let config = ModelConfig::parse(object);
    match (config, quantization) {
        (Ok(config), Ok(quantization)) => Ok((config, quantization)),
        (config, quantization) => {
            let faults = [config.err(), quantization.err()].into_iter().flatten().flatten().collect();
            Err(ConfigError::Fields { path, faults })
        }
    }
}

/// Reads a file that is a JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let text = read_regular(path, LARGEST_FILE).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text)
        .map_err(|error| ConfigError::Json { path: path.to_owned(), reason: error.to_string() })
}

impl TransformerConfig {
    /// Width of the rotated part of a head.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// How many keys a query sees in a layer, itself included; absent: all before it.
    pub fn window(&self, layer_type: LayerType) -> Option<usize> {
        match layer_type {
            LayerType::Full => None,
            LayerType::Sliding => self.sliding_window,
        }
    }

    /// The rotary embedding of a layer.
    pub fn layer_rope(&self, layer_type: LayerType) -> &Rope {
        match layer_type {
            LayerType::Full => &self.rope,
            LayerType::Sliding => self.local_rope.as_ref().unwrap_or(&self.rope),
        }
    }

    /// Parameters of the blocks and the final norm.
    fn parameters(&self, sizes: &ModelConfig) -> u128 {
        let [d, ffn, head, heads, key_value_heads, layers] = [
            sizes.hidden_size,
            sizes.intermediate_size,
            self.head_dim,
            self.num_attention_heads,
            self.num_key_value_heads,
            sizes.num_hidden_layers,
        ]
        .map(|size| size as u128);
        let (q, kv) = (heads * head, key_value_heads * head);
        let bias = |has: bool, width: u128| if has { width } else { 0 };
        let attention = d * (q + 2 * kv) + bias(self.qkv_bias, q + 2 * kv) + q * d + bias(self.output_bias, d);
        let mlp = 3 * d * ffn + bias(self.mlp_bias, 2 * ffn + d);
        let norms = match self.block_norms {
            BlockNorms::Before => 2 * d,
            BlockNorms::BeforeAndAfter => 4 * d,
        } + bias(self.query_key_norm, 2 * head);
        layers * (attention + mlp + norms) + d
    }
}

impl RwkvConfig {
    /// Parameters of the blocks and the final norm.
    fn parameters(&self, sizes: &ModelConfig) -> u128 {
        let [d, ffn, width, layers] =
            [sizes.hidden_size, sizes.intermediate_size, self.attention_hidden_size, sizes.num_hidden_layers]
                .map(|size| size as u128);
        let attention = match self.version {
            RwkvVersion::V4 => 2 * width + 3 * d + 4 * d * width,
            RwkvVersion::V6 { .. } => {
                let [mix, decay] = self.low_ranks(sizes.hidden_size).map(|rank| rank as u128);
                // Shifts and their low-rank form, decay and its low-rank form, bonus and norm, five projections.
                6 * d + 10 * mix * d + width + decay * (d + width) + 3 * width + 5 * d * width
            }
        };
        let feed_forward = 2 * d + 2 * d * ffn + d * d;
        layers * (attention + feed_forward + 4 * d) + 2 * d + 2 * d
    }

    /// RWKV-6: ranks of what the token adds to the shifts and to the decay. They follow from the width in the
    /// reference implementation and are in no file.
    pub fn low_ranks(&self, hidden_size: usize) -> [usize; 2] {
        if hidden_size == 4096 { [64, 128] } else { [32, 64] }
    }
}

#[cfg(test)]
mod tests;
