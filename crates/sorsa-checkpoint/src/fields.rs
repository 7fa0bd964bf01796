//! The fields of a `config.json`. Readers take them one by one and note their faults. A field that nobody took is a fault too,
//! if it may change what the model computes.

use serde_json::{Map, Value};

use crate::message;

/// Fields with a word of [`COMPUTATION`] in their names that do not change what a model computes: for the training, for the
/// generation by Transformers, or about the file.
const HARMLESS: &[&str] = &[
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "diversity_penalty",
    "encoder_no_repeat_ngram_size",
    "epsilon_cutoff",
    "eta_cutoff",
    "experts_implementation",
    "finetuning_task",
    "flash_attention",
    "flash_attn",
    "fused_attn",
    "generation_config",
    "gradient_checkpointing",
    "initializer_cutoff_factor",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "length_penalty",
    "max_sequence_length",
    "model_parallel",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "prefix",
    "repetition_penalty",
    "router_aux_loss_coef",
    "sep_token_id",
    "task_specific_params",
    "transformers.js_config",
    "top_k",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
    "use_sdpa",
];

/// Endings of the names of fields that count in training only.
const OF_TRAINING: &[&str] = &["_dropout", "_dropout_prob", "_pdrop", "_loss", "_loss_coef"];

/// Beginnings of the names of harmless fields: what Transformers keeps for itself (`_name_or_path`), and what other
/// programs note (`transformers.js_config`, `unsloth_version`, `mergekit_version`).
const HARMLESS_PREFIXES: &[&str] =
    &["_", "transformers.js", "transformers_", "unsloth_", "mergekit", "tokenizer_", "training_"];

/// Words of names that speak of the computation. A field with one of them that nobody reads is a fault, unless its value
/// says that it is not in use.
const COMPUTATION: &[&str] = &[
    "act",
    "activation",
    "adapter",
    "adapters",
    "alibi",
    "altup",
    "arch",
    "attention",
    "attentions",
    "attn",
    "audio",
    "base",
    "beta",
    "bias",
    "biases",
    "bidirectional",
    "bits",
    "block",
    "blocks",
    "cap",
    "causal",
    "chunk",
    "clamp",
    "clip",
    "codebook",
    "codebooks",
    "compress",
    "compression",
    "config",
    "context",
    "conv",
    "cross",
    "decay",
    "depth",
    "dilation",
    "dim",
    "dims",
    "embd",
    "embed",
    "embedding",
    "embeddings",
    "encoder",
    "eps",
    "epsilon",
    "expert",
    "experts",
    "factor",
    "feed",
    "ffn",
    "forward",
    "freq",
    "frequency",
    "fused",
    "gate",
    "gated",
    "gating",
    "global",
    "group",
    "groups",
    "head",
    "heads",
    "hidden",
    "image",
    "inner",
    "interleave",
    "interleaved",
    "intermediate",
    "interpolate",
    "kernel",
    "key",
    "kv",
    "latent",
    "layer",
    "layernorm",
    "layers",
    "linear",
    "ln",
    "local",
    "logit",
    "logits",
    "lora",
    "mamba",
    "mask",
    "mixture",
    "mlp",
    "mod",
    "moe",
    "mrope",
    "mscale",
    "mtp",
    "mult",
    "multi",
    "multiplier",
    "mup",
    "neox",
    "nope",
    "norm",
    "normalization",
    "normalize",
    "norms",
    "ntk",
    "offset",
    "parallel",
    "partial",
    "patch",
    "pattern",
    "period",
    "position",
    "positional",
    "positions",
    "pre",
    "predict",
    "projection",
    "projector",
    "pruned",
    "qk",
    "qkv",
    "quant",
    "quantization",
    "quantized",
    "query",
    "rank",
    "ratio",
    "recurrent",
    "relative",
    "residual",
    "rms",
    "rmsnorm",
    "rope",
    "rotary",
    "router",
    "routed",
    "scalar",
    "scale",
    "scaled",
    "scales",
    "scaling",
    "scalings",
    "share",
    "shared",
    "sink",
    "sinks",
    "sliding",
    "smoothing",
    "soft",
    "softcap",
    "softcapping",
    "softmax",
    "sparse",
    "sparsity",
    "ssm",
    "stage",
    "state",
    "step",
    "stride",
    "swa",
    "text",
    "theta",
    "tie",
    "tied",
    "topk",
    "untie",
    "value",
    "vision",
    "width",
    "window",
    "yarn",
];

/// Computation fields with the value that stands for doing nothing.
const NEUTRAL: &[(&str, f64)] = &[
    ("embedding_multiplier", 1.0),
    ("emb_scale", 1.0),
    ("full_attn_mod", 1.0),
    ("interpolate_factor", 1.0),
    ("logit_scale", 1.0),
    ("logits_scale", 1.0),
    ("logits_scaling", 1.0),
    ("lm_head_multiplier", 1.0),
    ("partial_rotary_factor", 1.0),
    ("pretraining_tp", 1.0),
    ("residual_multiplier", 1.0),
    ("rope_pct", 1.0),
    ("rotary_pct", 1.0),
];

/// Whether a field of `config.json` that nobody reads cannot change what the model computes: because of its name, or because
/// its value is null, false, zero or empty, which is what a field says that is not in use.
pub(crate) fn is_harmless(name: &str, value: &Value) -> bool {
    let is_known = HARMLESS.contains(&name)
        || HARMLESS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || OF_TRAINING.iter().any(|end| name.ends_with(end));
    is_known || is_unused(name, value) || !speaks_of_computation(name)
}

/// Whether the value says that the field is not in use.
pub(crate) fn is_unused(name: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        // An empty configuration of a part of the model stands for that part with its defaults.
        Value::Object(object) => object.is_empty() && !name.ends_with("_config"),
        Value::Bool(true) => false,
        Value::Number(number) => {
            let number = number.as_f64();
            number == Some(0.0) || NEUTRAL.iter().any(|(known, neutral)| *known == name && number == Some(*neutral))
        }
    }
}

fn speaks_of_computation(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    // A vocabulary or a hidden size that nobody read: `n_embd`, `num_local_experts`, `d_model`.
    words.any(|word| COMPUTATION.contains(&word))
        || name.starts_with("n_")
        || name.starts_with("d_")
        || name.starts_with("num_")
}

/// Takes fields out of an object, collecting faults.
pub(crate) struct Fields {
    object: Map<String, Value>,
    pub faults: Vec<String>,
}

impl Fields {
    pub fn new(object: Map<String, Value>) -> Self {
        Self { object, faults: Vec::new() }
    }

    /// Takes the field's value; nothing if it is missing or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null, which for some fields is not the same as missing.
    pub fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
    }

    /// Whether the field is there, if only as null.
    pub fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// Sets a field.
    pub fn put(&mut self, name: &str, value: Value) {
        self.object.insert(name.to_owned(), value);
    }

    pub fn wrong(&mut self, name: &str, expected: &str, found: &Value) {
        self.faults.push(format!("`{name}` should be {expected}, found {}", message::quoted(found)));
    }

    pub fn size(&mut self, name: &str, default: Option<usize>) -> usize {
        match (self.take(name), default) {
            (Some(value), _) => match value.as_u64().filter(|size| (1..1 << 40).contains(size)) {
                Some(size) => size as usize,
                None => {
                    self.wrong(name, "a positive integer", &value);
                    1
                }
            },
            (None, Some(default)) => default,
            (None, None) => {
                self.faults.push(format!("`{name}` is missing"));
                1
            }
        }
    }

    /// Reads a size and leaves it for another reader; 0 if there is none up to `most`.
    pub fn peek_size(&self, name: &str, most: usize) -> usize {
        self.object.get(name).and_then(Value::as_u64).filter(|size| *size <= most as u64).unwrap_or(0) as usize
    }

    /// Reads a name and leaves it for another reader.
    pub fn peek_text(&self, name: &str) -> Option<&str> {
        self.object.get(name).and_then(Value::as_str)
    }

    /// An index, which may be 0.
    pub fn index(&mut self, name: &str, default: usize) -> usize {
        let Some(value) = self.take(name) else { return default };
        value.as_u64().map_or_else(
            || {
                self.wrong(name, "an index", &value);
                default
            },
            |index| index as usize,
        )
    }

    /// Takes a size. Null means none, a missing field `default`.
    pub fn optional_size(&mut self, name: &str, default: Option<usize>) -> Option<usize> {
        match self.object.get(name) {
            Some(Value::Null) => None,
            None => default,
            Some(_) => Some(self.size(name, None)),
        }
    }

    /// Takes a positive number; `default` if there is none.
    pub fn number(&mut self, name: &str, default: f64) -> f64 {
        let Some(value) = self.take(name) else { return default };
        match value.as_f64().filter(|number| number.is_finite() && *number > 0.0) {
            Some(number) => number,
            None => {
                self.wrong(name, "a positive number", &value);
                default
            }
        }
    }

    /// A positive number that has to be there.
    pub fn required_number(&mut self, name: &str) -> f64 {
        if self.object.get(name).is_none_or(Value::is_null) {
            self.faults.push(format!("`{name}` is missing"));
        }
        self.number(name, 1.0)
    }

    /// Takes a positive number. Null means none, a missing field `default`.
    pub fn optional_number(&mut self, name: &str, default: Option<f64>) -> Option<f64> {
        match self.object.get(name) {
            Some(Value::Null) => None,
            None => default,
            Some(_) => Some(self.number(name, 1.0)),
        }
    }

    /// A list of positive numbers that has to be there.
    pub fn numbers(&mut self, name: &str) -> Vec<f64> {
        let Some(value) = self.take(name) else {
            self.faults.push(format!("`{name}` is missing"));
            return Vec::new();
        };
        let positive = |value: &Value| value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        let numbers: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(positive).collect());
        numbers.filter(|numbers| !numbers.is_empty()).unwrap_or_else(|| {
            self.wrong(name, "a list of positive numbers", &value);
            Vec::new()
        })
    }

    /// The object of this name and its faults, to be [put back](Self::put_back).
    pub fn take_object(&mut self, name: &str) -> Option<Self> {
        match self.object.get_mut(name) {
            Some(Value::Object(object)) => Some(Self::new(std::mem::take(object))),
            _ => None,
        }
    }

    /// Puts back what is left of an object, and takes over its faults.
    pub fn put_back(&mut self, name: &str, inner: Self) {
        self.faults.extend(inner.faults);
        self.object.insert(name.to_owned(), Value::Object(inner.object));
    }

    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(value) = self.take(name) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.wrong(name, "true or false", &value);
            default
        })
    }

    /// Takes a field whose only supported value is `only`; it may be left out.
    pub fn only(&mut self, name: &str, only: impl Into<Value>) {
        let only = only.into();
        if let Some(found) = self.take(name).filter(|value| *value != only) {
            self.wrong(name, &only.to_string(), &found);
        }
    }

    /// The same for a number, which files write as an integer or not.
    pub fn only_number(&mut self, name: &str, only: f64) {
        if let Some(found) = self.take(name).filter(|value| value.as_f64() != Some(only)) {
            self.wrong(name, &only.to_string(), &found);
        }
    }

    pub fn tokens(&mut self, name: &str) -> Vec<u32> {
        let Some(value) = self.take(name) else { return Vec::new() };
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Vec<u32>> = match &value {
            Value::Array(ids) => ids.iter().map(one).collect(),
            id => one(id).map(|id| vec![id]),
        };
        ids.unwrap_or_else(|| {
            self.wrong(name, "a token id or a list of them", &value);
            Vec::new()
        })
    }

    /// All faults, with one for each field that nobody took and that may change what the model computes.
    pub fn finish(self) -> Vec<String> {
        let mut faults = self.faults;
        let left = self.object.iter().filter(|(name, value)| !is_harmless(name, value));
        faults.extend(
            left.map(|(name, value)| {
                format!("`{}` = {} is not supported", message::name(name), message::quoted(value))
            }),
        );
        faults
    }

    /// As [`Self::finish`] for the object in `field`: the names of its fields follow that of `field`.
    pub fn finish_inner(self, field: &str) -> Vec<String> {
        let left = self.object.iter().filter(|(name, value)| !is_unused(name, value));
        let mut faults: Vec<String> =
            left.map(|(name, _)| format!("`{field}.{}` is not supported", message::name(name))).collect();
        faults.extend(self.faults);
        faults
    }

    /// Forgets the fields that are left: they belong to something that is a fault already.
    pub fn clear(&mut self) {
        self.object.clear();
    }
}
