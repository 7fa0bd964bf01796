//! From `config.json` to what llama.cpp calls the architecture: its name, its sizes, and what it cannot express.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};

use super::fields::Fields;
use super::rope::{Rope, Scaling};
use super::{GgufError, Value};

/// The families that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    Gemma3,
    Phi3,
}

use Family::*;

impl Family {
    const ALL: [(&str, Self); 8] = [
        ("llama", Llama),
        ("mistral", Mistral),
        ("qwen2", Qwen2),
        ("qwen3", Qwen3),
        ("gemma", Gemma),
        ("gemma2", Gemma2),
        ("gemma3_text", Gemma3),
        ("phi3", Phi3),
    ];

    /// llama.cpp's name, the first part of its keys.
    pub fn name(self) -> &'static str {
        match self {
            Llama | Mistral => "llama",
            Qwen2 => "qwen2",
            Qwen3 => "qwen3",
            Gemma => "gemma",
            Gemma2 => "gemma2",
            Gemma3 => "gemma3",
            Phi3 => "phi3",
        }
    }

    pub fn is_gemma(self) -> bool {
        matches!(self, Gemma | Gemma2 | Gemma3)
    }

    /// Whether llama.cpp rotates neighbouring pairs of values where Transformers rotates halves of the head.
    pub fn rotates_pairs(self) -> bool {
        matches!(self, Llama | Mistral)
    }
}

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Architecture {
    pub family: Family,
    pub hidden: usize,
    pub ffn: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
    pub tied: bool,
    pub qkv_bias: bool,
    pub out_bias: bool,
    pub mlp_bias: bool,
    pub rope: Rope,
    eps: f64,
    window: Option<usize>,
    original_context: usize,
    local_theta: Option<f64>,
    attention_softcap: Option<f64>,
    final_softcap: Option<f64>,
    /// What llama.cpp computes in another way than Transformers.
    pub notes: Vec<String>,
}

impl Architecture {
    /// Reads `config.json` of a model's folder.
    ///
    /// # Errors
    ///
    /// [`GgufError::Unsupported`] with every field that is missing, wrong or cannot be expressed.
    pub fn read(folder: &Path) -> Result<Self, GgufError> {
        let config: Map<String, Json> = read_json(&folder.join("config.json"))?.unwrap_or_default();
        Self::parse(config).map_err(|faults| GgufError::Unsupported { folder: folder.to_owned(), faults })
    }

    /// The same from the fields; the error lists every fault.
    pub fn parse(config: Map<String, Json>) -> Result<Self, Vec<String>> {
        let mut fields = Fields::new(config, "");
        let found = fields.take("model_type").unwrap_or(Json::Null);
        let Some((_, family)) = Family::ALL.into_iter().find(|(name, _)| found == *name) else {
            let names = Family::ALL.map(|(name, _)| name).join(", ");
            return Err(vec![format!("`model_type` should be one of {names}, found {found}")]);
        };
        let hidden = fields.size("hidden_size", None);
        let heads = fields.size("num_attention_heads", None);
        let blocks = fields.size("num_hidden_layers", None);
        // Transformers' defaults where a checkpoint leaves a field out.
        let kv_heads = match family {
            Mistral => 8,
            Qwen2 | Qwen3 => 32,
            Gemma => 16,
            Gemma2 | Gemma3 => 4,
            Llama | Phi3 => heads,
        };
        let context = match family {
            Llama => 2048,
            Phi3 => 4096,
            Qwen2 | Qwen3 => 32_768,
            Gemma | Gemma2 => 8192,
            Mistral | Gemma3 => 131_072,
        };
        let head_dim = match family {
            Qwen3 => 128,
            Gemma | Gemma2 | Gemma3 => 256,
            _ => (hidden / heads).max(1),
        };
        let context = fields.size("max_position_embeddings", Some(context));
        let theta = if family == Gemma3 { 1e6 } else { 1e4 };
        let rope = Rope::take(&mut fields, theta, context);
        let attention_bias = fields.flag("attention_bias", false);
        let mut architecture = Self {
            family,
            hidden,
            ffn: fields.size("intermediate_size", None),
            blocks,
            heads,
            kv_heads: fields.size("num_key_value_heads", Some(kv_heads)),
            head_dim: fields.size("head_dim", Some(head_dim)),
            vocab: fields.size("vocab_size", None),
            context,
            tied: fields.flag("tie_word_embeddings", family.is_gemma()),
            qkv_bias: attention_bias || family == Qwen2,
            out_bias: attention_bias,
            mlp_bias: fields.flag("mlp_bias", false),
            rope,
            eps: fields.number("rms_norm_eps", if family == Phi3 { 1e-5 } else { 1e-6 }),
            window: None,
            original_context: fields.size("original_max_position_embeddings", Some(context)),
            local_theta: None,
            attention_softcap: None,
            final_softcap: None,
            notes: Vec::new(),
        };
        architecture.activation(&mut fields);
        architecture.window(&mut fields);
        if family.is_gemma() {
            architecture.gemma(&mut fields);
        }
        fields.only("pretraining_tp", &[json!(1)]);
        match family {
            Qwen2 | Qwen3 => fields.only("use_mrope", &[json!(false)]),
            Phi3 => {
                fields.only("lm_head_bias", &[json!(false)]);
                fields.only("full_attn_mod", &[json!(1)]);
                fields.only("interpolate_factor", &[json!(1)]);
            }
            _ => {}
        }
        architecture.check(&mut fields);
        match fields.finish() {
            faults if faults.is_empty() => Ok(architecture),
            faults => Err(faults),
        }
    }

    fn activation(&mut self, fields: &mut Fields) {
        let tanh = json!("gelu_pytorch_tanh");
        match self.family {
            Gemma => {
                let found = fields.take("hidden_act").unwrap_or_else(|| tanh.clone());
                if found == json!("gelu") {
                    // What the first Gemma's file says, and not what it was trained with.
                    self.notes.push(
                        "`hidden_act` is gelu, which is computed exactly here and as its tanh approximation by llama.cpp"
                            .to_owned(),
                    );
                } else if found != tanh {
                    fields.wrong("hidden_act", "\"gelu_pytorch_tanh\" or \"gelu\"", &found);
                }
                fields.only("hidden_activation", &[tanh]);
            }
            Gemma2 | Gemma3 => {
                // Not used: the other field decides.
                fields.take("hidden_act");
                fields.only("hidden_activation", &[tanh]);
            }
            _ => fields.only("hidden_act", &[json!("silu")]),
        }
    }

    fn window(&mut self, fields: &mut Fields) {
        let no_window = fields.is_null("sliding_window");
        let window = fields.optional_size("sliding_window");
        let used = fields.flag("use_sliding_window", !matches!(self.family, Qwen2 | Qwen3));
        // From this block on, where a window is used at all.
        fields.take("max_window_layers");
        self.window = window.filter(|_| used);
        let period = match self.family {
            Gemma2 => 2,
            Gemma3 => {
                fields.only("sliding_window_pattern", &[json!(6)]);
                fields.only("_sliding_window_pattern", &[json!(6)]);
                6
            }
            _ => {
                // Written by Transformers, follows from the fields above.
                fields.take("layer_types");
                if let Some(window) = self.window.filter(|window| *window < self.context) {
                    self.notes.push(format!(
                        "llama.cpp's architecture `{}` has no sliding window: texts longer than {window} tokens are \
                         continued differently",
                        self.family.name()
                    ));
                }
                return;
            }
        };
        if no_window {
            fields.faults.push("`sliding_window` should be a positive integer, found null".to_owned());
        }
        self.window = Some(window.unwrap_or(4096));
        let expected: Vec<&str> = (1..=self.blocks)
            .map(|block| if block.is_multiple_of(period) { "full_attention" } else { "sliding_attention" })
            .collect();
        fields.only("layer_types", &[json!(expected)]);
    }

    fn gemma(&mut self, fields: &mut Fields) {
        fields.only("use_bidirectional_attention", &[json!(false)]);
        if self.family == Gemma {
            return;
        }
        self.attention_softcap = fields.optional_number("attn_logit_softcapping");
        self.final_softcap = fields.optional_number("final_logit_softcapping");
        // llama.cpp knows the 27 billion models by their number of blocks, and scales queries by the head's width in all
        // others.
        let largest = self.blocks == if self.family == Gemma2 { 46 } else { 62 };
        let scalar = if largest { self.hidden / self.heads } else { self.head_dim };
        let found = fields.number("query_pre_attn_scalar", 256.0);
        if found != scalar as f64 {
            fields.wrong("query_pre_attn_scalar", &format!("{scalar} with {} blocks", self.blocks), &json!(found));
        }
        if self.family == Gemma3 {
            self.local_theta = Some(fields.number("rope_local_base_freq", 1e4));
            if self.attention_softcap.is_some() {
                fields.faults.push("`attn_logit_softcapping` is not part of llama.cpp's gemma3".to_owned());
            }
        } else if self.attention_softcap.is_none() || self.final_softcap.is_none() {
            fields.faults.push("llama.cpp's gemma2 needs both soft caps".to_owned());
        }
    }

    /// What the fields must not say together.
    fn check(&self, fields: &mut Fields) {
        let Self { family, heads, kv_heads, head_dim, .. } = self;
        let name = family.name();
        let mut fault = |stands: bool, text: String| {
            if stands {
                fields.faults.push(text);
            }
        };
        fault(
            !heads.is_multiple_of(*kv_heads),
            format!("{heads} attention heads cannot share {kv_heads} key-value heads"),
        );
        fault(!head_dim.is_multiple_of(2), format!("`head_dim` should be even, found {head_dim}"));
        let llama = family.rotates_pairs();
        fault(self.out_bias && !llama, format!("`attention_bias` is not part of llama.cpp's {name}"));
        fault(self.mlp_bias && !llama, format!("`mlp_bias` is not part of llama.cpp's {name}"));
        fault(
            matches!(family, Qwen2 | Phi3) && heads * head_dim != self.hidden,
            format!("llama.cpp's {name} needs heads of {} values, found {head_dim}", self.hidden / heads),
        );
        fault(matches!(family, Gemma | Gemma2) && !self.tied, format!("llama.cpp's {name} has tied embeddings only"));
        let partial = self.rope.partial;
        fault(
            partial > 1.0 || (partial < 1.0 && *family != Phi3),
            format!("`partial_rotary_factor` of {partial} is not part of llama.cpp's {name}"),
        );
        let fits = match &self.rope.scaling {
            Scaling::None => true,
            Scaling::Linear { .. } => *family != Gemma2,
            Scaling::Llama3 { .. } => llama,
            Scaling::LongRope { short, long } => {
                let planes = self.rotated() / 2;
                fault(
                    short.len() != planes || long.len() != planes,
                    format!("longrope needs {planes} factors, found {} and {}", short.len(), long.len()),
                );
                *family == Phi3
            }
        };
        fault(!fits, format!("this `rope_scaling` is not part of llama.cpp's {name}"));
    }

    /// Values of a head that are rotated.
    pub fn rotated(&self) -> usize {
        (self.head_dim as f64 * self.rope.partial) as usize
    }

    /// Width of all queries.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all keys, and of all values.
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The metadata that llama.cpp reads sizes and constants from.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        let mut list: Vec<(&str, Value)> = vec![
            ("block_count", (self.blocks as u32).into()),
            ("context_length", (self.context as u32).into()),
            ("embedding_length", (self.hidden as u32).into()),
            ("feed_forward_length", (self.ffn as u32).into()),
            ("attention.head_count", (self.heads as u32).into()),
            ("attention.head_count_kv", (self.kv_heads as u32).into()),
            ("attention.key_length", (self.head_dim as u32).into()),
            ("attention.value_length", (self.head_dim as u32).into()),
            ("attention.layer_norm_rms_epsilon", (self.eps as f32).into()),
            ("rope.dimension_count", (self.rotated() as u32).into()),
            ("rope.freq_base", (self.rope.theta as f32).into()),
            ("vocab_size", (self.vocab as u32).into()),
        ];
        match &self.rope.scaling {
            Scaling::None | Scaling::Llama3 { .. } => {}
            Scaling::Linear { factor } => {
                list.push(("rope.scaling.type", "linear".into()));
                list.push(("rope.scaling.factor", (*factor as f32).into()));
            }
            Scaling::LongRope { .. } => {
                let (original, stretch) =
                    (self.original_context as f64, self.context as f64 / self.original_context as f64);
                let factor = if stretch > 1.0 { (1.0 + stretch.ln() / original.ln()).sqrt() } else { 1.0 };
                list.push(("rope.scaling.attn_factor", (factor as f32).into()));
            }
        }
        if self.family == Phi3 {
            list.push(("rope.scaling.original_context_length", (self.original_context as u32).into()));
            // Phi 4 has none and says so with a zero.
            list.push(("attention.sliding_window", (self.window.unwrap_or(0) as u32).into()));
        }
        if let (Gemma2 | Gemma3, Some(window)) = (self.family, self.window) {
            list.push(("attention.sliding_window", (window as u32).into()));
        }
        if let Some(theta) = self.local_theta {
            list.push(("rope.freq_base_swa", (theta as f32).into()));
        }
        if let Some(cap) = self.attention_softcap {
            list.push(("attn_logit_softcapping", (cap as f32).into()));
        }
        if let Some(cap) = self.final_softcap {
            list.push(("final_logit_softcapping", (cap as f32).into()));
        }
        list.into_iter().map(|(key, value)| (format!("{}.{key}", self.family.name()), value)).collect()
    }
}

/// A JSON file, nothing where it is not there, except for `config.json`, which must be.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, GgufError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !path.ends_with("config.json") => {
            return Ok(None);
        }
        Err(error) => return Err(GgufError::io(path)(error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| GgufError::Json { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(model_type: &str) -> Json {
        json!({"model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5})
    }

    fn parse(config: &Json) -> Result<Architecture, Vec<String>> {
        Architecture::parse(config.as_object().unwrap().clone())
    }

    fn value(architecture: &Architecture, key: &str) -> Option<Value> {
        architecture.metadata().into_iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }

    #[test]
    fn every_fault_is_listed_at_once() {
        let mut json = config("llama");
        json["hidden_act"] = "gelu".into();
        json["num_key_value_heads"] = 3.into();
        json["quantization_config"] = json!({"bits": 4});
        json["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0});
        json["vocab_size"] = Json::Null;
        let faults = parse(&json).unwrap_err();
        assert_eq!(faults.len(), 5, "{faults:?}");
        assert!(parse(&config("mamba")).unwrap_err()[0].contains("gemma3_text"));
    }

    #[test]
    fn a_window_that_llama_cpp_ignores_is_reported() {
        let mut json = config("mistral");
        json["sliding_window"] = 32.into();
        let mistral = parse(&json).unwrap();
        assert_eq!((mistral.family.name(), mistral.notes.len()), ("llama", 1));
        json["sliding_window"] = Json::Null;
        assert!(parse(&json).unwrap().notes.is_empty());
        let mut json = config("qwen2");
        json["sliding_window"] = 32.into();
        json["max_window_layers"] = 1.into();
        json["use_sliding_window"] = false.into();
        assert!(parse(&json).unwrap().notes.is_empty());
    }

    #[test]
    fn gemma_2_has_a_window_in_every_other_block() {
        let mut json = config("gemma2");
        json["attn_logit_softcapping"] = 50.0.into();
        json["final_logit_softcapping"] = 30.0.into();
        json["query_pre_attn_scalar"] = 16.into();
        json["sliding_window"] = 32.into();
        json["layer_types"] = json!(["sliding_attention", "full_attention"]);
        let gemma = parse(&json).unwrap();
        assert_eq!(value(&gemma, "gemma2.attention.sliding_window"), Some(32u32.into()));
        assert_eq!(value(&gemma, "gemma2.attn_logit_softcapping"), Some(50f32.into()));
        json["layer_types"] = json!(["full_attention", "full_attention"]);
        json["query_pre_attn_scalar"] = 20.into();
        assert_eq!(parse(&json).unwrap_err().len(), 2);
    }

    #[test]
    fn what_the_first_gemma_computes_otherwise_is_said_and_what_is_missing_has_transformers_default() {
        let mut json = config("gemma");
        assert!(parse(&json).unwrap().notes.is_empty());
        json["hidden_act"] = "gelu".into();
        assert!(parse(&json).unwrap().notes[0].contains("gelu"));
        let mut json = config("gemma3_text");
        // 256 by default, which is not the width of these heads.
        assert!(parse(&json).unwrap_err()[0].contains("query_pre_attn_scalar"));
        json["query_pre_attn_scalar"] = 16.into();
        parse(&json).unwrap();
        json["sliding_window"] = Json::Null;
        assert!(parse(&json).unwrap_err()[0].contains("sliding_window"));
        let mut json = config("qwen2");
        json["use_mrope"] = false.into();
        parse(&json).unwrap();
        json["use_mrope"] = true.into();
        assert!(parse(&json).unwrap_err()[0].contains("use_mrope"));
    }

    #[test]
    fn biases_and_scalings_that_an_architecture_lacks_are_refused() {
        let mut json = config("qwen3");
        json["attention_bias"] = true.into();
        json["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0});
        assert_eq!(parse(&json).unwrap_err().len(), 2);
        json["model_type"] = "llama".into();
        let llama = parse(&json).unwrap();
        assert!(llama.qkv_bias && llama.out_bias);
        assert_eq!(llama.rope.llama3_divisors(16).unwrap().len(), 8);
    }
}
