//! `config.json`: which architecture, of which size. Every field is either used, known to change nothing, or an error.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::rope::{Rope, RopeScaling};

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
    #[error("{}: {}", path.display(), faults.join("; "))]
    Fields {
        /// The file.
        path: PathBuf,
        /// Everything found wrong.
        faults: Vec<String>,
    },
}

/// Sizes and constants of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Hugging Face's `model_type`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest context.
    pub max_position_embeddings: usize,
    /// Added to the mean square in a norm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// A query sees this many keys, itself included; absent: all before it.
    pub sliding_window: Option<usize>,
    /// Whether q, k, v and o have a bias.
    pub attention_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Token that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end one.
    pub eos_token_ids: Vec<u32>,
}

/// Fields that do not change what the model computes.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "dtype",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "max_sequence_length",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unk_token_id",
    "use_cache",
    "use_return_dict",
    "embd_pdrop",
    "resid_pdrop",
    "hidden_dropout",
    "dropout",
    "problem_type",
    "task_specific_params",
    "cache_implementation",
    "license",
];

/// Takes fields out of the object, collecting faults.
struct Fields {
    object: Map<String, Value>,
    faults: Vec<String>,
}

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    fn wrong(&mut self, name: &str, expected: &str, found: &Value) {
        self.faults.push(format!("`{name}` should be {expected}, found {found}"));
    }

    fn size(&mut self, name: &str, default: Option<usize>) -> usize {
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

    fn number(&mut self, name: &str, default: f64) -> f64 {
        let Some(value) = self.take(name) else { return default };
        match value.as_f64().filter(|number| number.is_finite() && *number > 0.0) {
            Some(number) => number,
            None => {
                self.wrong(name, "a positive number", &value);
                default
            }
        }
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(value) = self.take(name) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.wrong(name, "true or false", &value);
            default
        })
    }

    fn tokens(&mut self, name: &str) -> Vec<u32> {
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
}

impl ModelConfig {
    /// Reads `config.json` of a model's folder.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]; every missing, wrong and unsupported field is listed in one error.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(|source| ConfigError::Io { path: path.clone(), source })?;
        let object = serde_json::from_slice::<Map<String, Value>>(&text)
            .map_err(|error| ConfigError::Json { path: path.clone(), reason: error.to_string() })?;
        Self::parse(object).map_err(|faults| ConfigError::Fields { path, faults })
    }

    /// A configuration from the fields of a `config.json`; the error lists every fault.
    pub fn parse(object: Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut fields = Fields { object, faults: Vec::new() };
        let model_type = match fields.take("model_type") {
            Some(Value::String(name)) if matches!(name.as_str(), "llama" | "mistral") => name,
            Some(found) => return Err(vec![format!("`model_type` should be llama or mistral, found {found}")]),
            None => return Err(vec!["`model_type` is missing".to_owned()]),
        };
        let mistral = model_type == "mistral";
        if let Some(activation) = fields.take("hidden_act").filter(|value| value != "silu") {
            fields.wrong("hidden_act", "silu", &activation);
        }
        if let Some(parallel) = fields.take("pretraining_tp").filter(|value| value != 1) {
            fields.wrong("pretraining_tp", "1", &parallel);
        }
        let hidden_size = fields.size("hidden_size", None);
        let num_attention_heads = fields.size("num_attention_heads", None);
        // Transformers' defaults, which differ: Mistral's are those of Mistral 7B.
        let (context, kv_heads) = if mistral { (131_072, 8) } else { (2048, num_attention_heads) };
        let max_position_embeddings = fields.size("max_position_embeddings", Some(context));
        let rope = fields.rope(max_position_embeddings);
        let sliding_window = match fields.object.get("sliding_window") {
            // Here null and a missing field are not the same.
            Some(Value::Null) => None,
            _ if mistral => Some(fields.size("sliding_window", Some(4096))),
            Some(value) => {
                let value = value.clone();
                fields.object.remove("sliding_window");
                fields.wrong("sliding_window", "absent in a llama", &value);
                None
            }
            None => None,
        };
        let config = Self {
            hidden_size,
            intermediate_size: fields.size("intermediate_size", None),
            num_hidden_layers: fields.size("num_hidden_layers", None),
            num_attention_heads,
            num_key_value_heads: fields.size("num_key_value_heads", Some(kv_heads)),
            head_dim: fields.size("head_dim", Some((hidden_size / num_attention_heads).max(1))),
            vocab_size: fields.size("vocab_size", None),
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6),
            rope,
            sliding_window,
            attention_bias: fields.flag("attention_bias", false),
            mlp_bias: fields.flag("mlp_bias", false),
            tie_word_embeddings: fields.flag("tie_word_embeddings", false),
            initializer_range: fields.number("initializer_range", 0.02),
            bos_token_id: fields.tokens("bos_token_id").first().copied(),
            eos_token_ids: fields.tokens("eos_token_id"),
            model_type,
        };
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
            fields.faults.push(format!("{heads} attention heads cannot share {kv_heads} key-value heads"));
        }
        if !config.head_dim.is_multiple_of(2) {
            fields.faults.push(format!("`head_dim` should be even, found {}", config.head_dim));
        }
        let unknown = fields
            .object
            .iter()
            .filter(|(name, value)| !value.is_null() && !name.starts_with('_') && !HARMLESS.contains(&name.as_str()));
        let unknown: Vec<String> =
            unknown.map(|(name, value)| format!("`{name}` = {value} is not supported")).collect();
        fields.faults.extend(unknown);
        if fields.faults.is_empty() { Ok(config) } else { Err(fields.faults) }
    }

    /// The `config.json` of this configuration.
    pub fn to_json(&self) -> Value {
        let mut json = serde_json::json!({
            "architectures": [if self.model_type == "mistral" { "MistralForCausalLM" } else { "LlamaForCausalLM" }],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "hidden_act": "silu",
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": match self.eos_token_ids.as_slice() {
                [] => Value::Null,
                [id] => (*id).into(),
                ids => ids.into(),
            },
            "torch_dtype": "float32",
        });
        if self.model_type == "mistral" {
            json["sliding_window"] = self.sliding_window.into();
        }
        if let Some(scaling) = self.rope.scaling_json() {
            json["rope_scaling"] = scaling;
        }
        json
    }

    /// Number of parameters, in closed form.
    pub fn num_parameters(&self) -> usize {
        let (d, ffn) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let attention = d * q + 2 * d * kv + q * d + if self.attention_bias { q + 2 * kv + d } else { 0 };
        let mlp = 3 * d * ffn + if self.mlp_bias { 2 * ffn + d } else { 0 };
        let embeddings = self.vocab_size * d * if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * (attention + mlp + 2 * d) + d + embeddings
    }
}

impl Fields {
    /// `rope_theta` and `rope_scaling`, or `rope_parameters` that holds both.
    fn rope(&mut self, max_position_embeddings: usize) -> Rope {
        let mut theta = self.number("rope_theta", 10_000.0);
        let nested = self.take("rope_parameters").or_else(|| self.take("rope_scaling"));
        let mut scaling = RopeScaling::None;
        if let Some(Value::Object(object)) = nested {
            let mut inner = Fields { object, faults: Vec::new() };
            theta = inner.number("rope_theta", theta);
            let kind = inner.take("rope_type").or_else(|| inner.take("type"));
            inner.object.remove("type");
            scaling = match kind.as_ref().and_then(Value::as_str) {
                None | Some("default") => RopeScaling::None,
                Some("linear") => RopeScaling::Linear { factor: inner.number("factor", 1.0) },
                Some("llama3") => RopeScaling::Llama3 {
                    factor: inner.number("factor", 8.0),
                    low_freq_factor: inner.number("low_freq_factor", 1.0),
                    high_freq_factor: inner.number("high_freq_factor", 4.0),
                    original_max_position_embeddings: inner
                        .size("original_max_position_embeddings", Some(max_position_embeddings)),
                },
                Some(other) => {
                    inner.faults.push(format!("rope type `{other}` is not supported (default, linear, llama3)"));
                    inner.object.clear();
                    RopeScaling::None
                }
            };
            let left = inner.object.keys().map(|name| format!("`rope_scaling.{name}` is not supported"));
            self.faults.extend(left.collect::<Vec<_>>());
            self.faults.extend(inner.faults);
        } else if let Some(other) = nested {
            self.wrong("rope_scaling", "an object", &other);
        }
        Rope { theta, scaling }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &Value) -> Result<ModelConfig, Vec<String>> {
        ModelConfig::parse(json.as_object().unwrap().clone())
    }

    fn llama_2_7b() -> Value {
        serde_json::json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        })
    }

    #[test]
    fn llama_2_7b_has_its_published_number_of_parameters() {
        assert_eq!(parse(&llama_2_7b()).unwrap().num_parameters(), 6_738_415_616);
    }

    #[test]
    fn every_fault_is_listed_at_once() {
        let mut json = llama_2_7b();
        json["hidden_act"] = "gelu".into();
        json["num_key_value_heads"] = 5.into();
        json["quantization_config"] = serde_json::json!({"bits": 4});
        json["rope_scaling"] = serde_json::json!({"rope_type": "longrope"});
        json.as_object_mut().unwrap().remove("vocab_size");
        let faults = parse(&json).unwrap_err();
        assert_eq!(faults.len(), 5, "{faults:?}");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut json = llama_2_7b();
        json["rope_scaling"] = serde_json::json!({
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        json["eos_token_id"] = serde_json::json!([128001, 128008, 128009]);
        json["rope_theta"] = 500_000.0.into();
        let config = parse(&json).unwrap();
        assert_eq!(parse(&config.to_json()).unwrap(), config);
        assert_eq!(config.eos_token_ids, [128001, 128008, 128009]);
        json["model_type"] = "mistral".into();
        for window in [Value::Null, 7.into()] {
            json["sliding_window"] = window;
            let config = parse(&json).unwrap();
            assert_eq!(parse(&config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn what_a_mistral_leaves_out_is_as_in_mistral_7b() {
        let mut json = llama_2_7b();
        json["model_type"] = "mistral".into();
        json.as_object_mut().unwrap().remove("max_position_embeddings");
        let config = parse(&json).unwrap();
        let found = (config.sliding_window, config.num_key_value_heads, config.max_position_embeddings);
        assert_eq!(found, (Some(4096), 8, 131_072));
        json["sliding_window"] = Value::Null;
        assert_eq!(parse(&json).unwrap().sliding_window, None);
    }

    #[test]
    fn other_ways_to_stretch_the_context_are_refused_in_one_error_that_names_them() {
        for kind in ["yarn", "dynamic", "longrope"] {
            let mut json = llama_2_7b();
            json["rope_scaling"] = serde_json::json!({"rope_type": kind, "factor": 4.0, "beta_fast": 32});
            json["sliding_window"] = 128.into();
            let faults = parse(&json).unwrap_err();
            assert_eq!(faults.len(), 2, "{faults:?}");
            assert!(faults.iter().any(|fault| fault.contains(&format!("rope type `{kind}`"))), "{faults:?}");
            assert!(faults.iter().any(|fault| fault.contains("`sliding_window`")), "{faults:?}");
        }
    }
}
