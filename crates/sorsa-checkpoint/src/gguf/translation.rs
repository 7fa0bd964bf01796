//! From a [`ModelConfig`] to what llama.cpp calls the architecture: its name, its sizes, and what it cannot express. What
//! differs from family to family is in the family's file, as its [`LlamaCpp`].

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use sorsa_files::read_regular;

use super::{GgufError, Import, Value};
use crate::config::{Activation, Architecture, LayerType, ModelConfig, TransformerConfig};
use crate::families;
use crate::rope::RopeScaling;

/// Bytes of a JSON file at most.
const LARGEST_JSON: u64 = 1 << 28;
/// llama.cpp keeps sizes in 32 bits with a sign.
const LARGEST_SIZE: usize = (1 << 31) - 1;

/// A family's llama.cpp architecture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LlamaCpp {
    /// Its name, the first part of its keys.
    pub name: &'static str,
    /// Whether it rotates neighbouring pairs of values; Transformers rotates the two halves of a head.
    pub rotates_pairs: bool,
    /// Notes what it cannot express, and what it computes in another way than Transformers.
    pub check: fn(&mut Limits<'_>),
    /// Metadata beside what all architectures have; keys without the name of the architecture.
    pub metadata: fn(&ModelConfig, &TransformerConfig) -> Vec<(&'static str, Value)>,
    /// Reads that metadata back, and sets the fields of `config.json` that llama.cpp has no key of.
    pub import: fn(&mut Import<'_>),
}

/// What stands between a model and llama.cpp's architecture for it.
pub(crate) struct Limits<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Its blocks.
    pub decoder: &'a TransformerConfig,
    name: &'static str,
    faults: Vec<String>,
    notes: Vec<String>,
}

impl Limits<'_> {
    /// Adds something that the architecture cannot express.
    pub fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    /// Adds something that llama.cpp computes in another way.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// The only activation is `activation`, whose field in `config.json` is `field`.
    pub fn activation(&mut self, field: &str, activation: Activation) {
        if self.decoder.activation != activation {
            let (expected, found) = (activation.name(), self.decoder.activation.name());
            self.fault(format!("`{field}` should be \"{expected}\", found \"{found}\""));
        }
    }

    /// Neither the output of attention nor the feed-forward layers have biases.
    pub fn no_biases(&mut self) {
        let name = self.name;
        if self.decoder.output_bias {
            self.fault(format!("`attention_bias` is not part of llama.cpp's {name}"));
        }
        if self.decoder.mlp_bias {
            self.fault(format!("`mlp_bias` is not part of llama.cpp's {name}"));
        }
    }

    /// The heads divide the width of the model.
    pub fn heads_divide_width(&mut self) {
        let (width, heads, found) = (self.config.hidden_size, self.decoder.num_attention_heads, self.decoder.head_dim);
        if heads.saturating_mul(found) != width {
            self.fault(format!("llama.cpp's {} needs heads of {} values, found {found}", self.name, width / heads));
        }
    }

    /// The head is the embedding.
    pub fn tied_embeddings(&mut self) {
        if !self.config.tie_word_embeddings {
            self.fault(format!("llama.cpp's {} has tied embeddings only", self.name));
        }
    }

    /// The rotary frequencies are scaled as `is_known` accepts.
    pub fn rope_scaling(&mut self, is_known: fn(&RopeScaling) -> bool) {
        if !is_known(&self.decoder.rope.scaling) {
            self.fault(format!("this `rope_scaling` is not part of llama.cpp's {}", self.name));
        }
    }

    /// llama.cpp ignores the window: every layer sees all tokens. Adds a note if a text can be longer than the window.
    pub fn ignores_window(&mut self) {
        let is_used = self.decoder.layer_types.contains(&LayerType::Sliding);
        if let Some(window) = self.decoder.sliding_window.filter(|window| is_used && *window < self.context()) {
            self.note(format!(
                "llama.cpp's architecture `{}` has no sliding window: texts longer than {window} tokens are continued \
                 differently",
                self.name
            ));
        }
    }

    /// Every layer has the window but each `period`th.
    pub fn full_layer_every(&mut self, period: usize) {
        if self.decoder.sliding_window.is_none() {
            self.fault("`sliding_window` should be a positive integer, found null".to_owned());
        }
        let expected = (1..=self.decoder.layer_types.len()).map(|layer| match layer.is_multiple_of(period) {
            true => LayerType::Full,
            false => LayerType::Sliding,
        });
        if !expected.eq(self.decoder.layer_types.iter().copied()) {
            self.fault(format!("`layer_types` should have full_attention in every {period}th layer and nowhere else"));
        }
    }

    fn context(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// What no architecture has.
    fn sizes(&mut self) {
        let (config, decoder) = (self.config, self.decoder);
        for (field, size) in [
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("vocab_size", config.vocab_size),
            ("max_position_embeddings", config.max_position_embeddings),
            ("num_attention_heads", decoder.num_attention_heads),
            ("head_dim", decoder.head_dim),
        ] {
            if size > LARGEST_SIZE {
                self.fault(format!("`{field}` should be a positive integer below 2^31, found {size}"));
            }
        }
    }
}

/// A model in llama.cpp's terms.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Translation {
    pub config: ModelConfig,
    pub decoder: TransformerConfig,
    /// llama.cpp's name of the architecture, the first part of its keys.
    pub name: &'static str,
    pub rotates_pairs: bool,
    more: Vec<(&'static str, Value)>,
    /// What llama.cpp computes in another way than Transformers.
    pub notes: Vec<String>,
}

impl Translation {
    /// Reads `config.json` of a model's folder.
    ///
    /// # Errors
    ///
    /// [`GgufError::Unsupported`] with every field that is missing, wrong or cannot be expressed.
    pub fn read(folder: &Path) -> Result<Self, GgufError> {
        let fields: Map<String, Json> = read_json(&folder.join("config.json"))?.unwrap_or_default();
        Self::parse(fields).map_err(|faults| GgufError::Unsupported { folder: folder.to_owned(), faults })
    }

    /// The same from the fields; the error lists every fault.
    pub fn parse(fields: Map<String, Json>) -> Result<Self, Vec<String>> {
        let (config, faults) = ModelConfig::parse_with_faults(fields)?;
        let (Some(llama_cpp), Architecture::Transformer(decoder)) = (config.family.llama_cpp(), &config.architecture)
        else {
            let names = families::names_in_llama_cpp().join(", ");
            return Err(vec![format!("`model_type` should be one of {names}, found {:?}", config.family)]);
        };
        let mut limits =
            Limits { config: &config, decoder, name: llama_cpp.name, faults: Vec::new(), notes: Vec::new() };
        limits.sizes();
        (llama_cpp.check)(&mut limits);
        let Limits { faults: not_in_llama_cpp, notes, .. } = limits;
        let faults = [not_in_llama_cpp, faults].concat();
        if !faults.is_empty() {
            return Err(faults);
        }
        let (name, rotates_pairs) = (llama_cpp.name, llama_cpp.rotates_pairs);
        let (more, decoder) = ((llama_cpp.metadata)(&config, decoder), decoder.clone());
        Ok(Self { config, decoder, name, rotates_pairs, more, notes })
    }

    /// Width of all queries.
    pub fn query_width(&self) -> usize {
        self.decoder.num_attention_heads * self.decoder.head_dim
    }

    /// Width of all keys, and of all values.
    pub fn key_width(&self) -> usize {
        self.decoder.num_key_value_heads * self.decoder.head_dim
    }

    /// The metadata that llama.cpp reads sizes and constants from.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        let (config, decoder) = (&self.config, &self.decoder);
        let mut list: Vec<(&str, Value)> = vec![
            ("block_count", (config.num_hidden_layers as u32).into()),
            ("context_length", (config.max_position_embeddings as u32).into()),
            ("embedding_length", (config.hidden_size as u32).into()),
            ("feed_forward_length", (config.intermediate_size as u32).into()),
            ("attention.head_count", (decoder.num_attention_heads as u32).into()),
            ("attention.head_count_kv", (decoder.num_key_value_heads as u32).into()),
            ("attention.key_length", (decoder.head_dim as u32).into()),
            ("attention.value_length", (decoder.head_dim as u32).into()),
            ("attention.layer_norm_rms_epsilon", (decoder.rms_norm_eps as f32).into()),
            ("rope.dimension_count", (decoder.rotary_dim() as u32).into()),
            ("rope.freq_base", (decoder.rope.theta as f32).into()),
            ("vocab_size", (config.vocab_size as u32).into()),
        ];
        match &decoder.rope.scaling {
            RopeScaling::Linear { factor } => {
                list.push(("rope.scaling.type", "linear".into()));
                list.push(("rope.scaling.factor", (*factor as f32).into()));
            }
            RopeScaling::LongRope(long) => list.push(("rope.scaling.attn_factor", (long.amplitude() as f32).into())),
            // Llama 3's is a tensor, and no architecture has the others.
            RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Dynamic { .. } | RopeScaling::Yarn(_) => {}
        }
        list.extend(self.more.iter().cloned());
        if let Some(rope) = &decoder.local_rope {
            list.push(("rope.freq_base_swa", (rope.theta as f32).into()));
        }
        if let Some(cap) = decoder.attention_soft_cap {
            list.push(("attn_logit_softcapping", (cap as f32).into()));
        }
        if let Some(cap) = decoder.logit_soft_cap {
            list.push(("final_logit_softcapping", (cap as f32).into()));
        }
        list.into_iter().map(|(key, value)| (format!("{}.{key}", self.name), value)).collect()
    }

    /// What llama.cpp divides the frequency of each plane by, for Llama 3's scaling: 1 for wavelengths below
    /// `original / high_freq_factor`, `factor` above `original / low_freq_factor`, between them interpolated.
    pub fn llama3_divisors(&self) -> Option<Vec<f32>> {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
            self.decoder.rope.scaling
        else {
            return None;
        };
        let (original, dim) = (original_max_position_embeddings as f64, self.decoder.rotary_dim());
        let scaling = [factor, low_freq_factor, high_freq_factor, original];
        Some((0..dim / 2).map(|plane| llama3_divisor(plane, dim, self.decoder.rope.theta, scaling) as f32).collect())
    }
}

/// What Llama 3's scaling divides the frequency of one of `dim / 2` planes by.
pub(super) fn llama3_divisor(plane: usize, dim: usize, theta: f64, [factor, low, high, original]: [f64; 4]) -> f64 {
    let frequency = theta.powf(-2.0 * plane as f64 / dim as f64);
    let wavelength = std::f64::consts::TAU / frequency;
    if wavelength < original / high {
        1.0
    } else if wavelength > original / low {
        factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

/// Reads a JSON file; nothing if it is missing, unless it is `config.json`.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, GgufError> {
    let bytes = match read_regular(path, LARGEST_JSON) {
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
    use serde_json::json;

    use super::*;

    fn config(model_type: &str) -> Json {
        json!({"model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5})
    }

    fn parse(config: &Json) -> Result<Translation, Vec<String>> {
        Translation::parse(config.as_object().unwrap().clone())
    }

    fn value(translation: &Translation, key: &str) -> Option<Value> {
        translation.metadata().into_iter().find(|(found, _)| found == key).map(|(_, value)| value)
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
        assert_eq!((mistral.name, mistral.notes.len()), ("llama", 1));
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
        assert!(llama.decoder.qkv_bias && llama.decoder.output_bias);
        assert_eq!(llama.llama3_divisors().unwrap().len(), 8);
    }

    #[test]
    fn llama_3_divides_long_wavelengths_and_keeps_short_ones() {
        let mut json = config("llama");
        json["head_dim"] = 128.into();
        json["rope_theta"] = 500_000.0.into();
        json["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let divisors = parse(&json).unwrap().llama3_divisors().unwrap();
        assert_eq!((divisors.len(), divisors[0], divisors[63]), (64, 1.0, 8.0));
        assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]));
        // Plane 32 has wavelength 2 pi sqrt(500000) = 4442.9, between 8192 / 4 and 8192.
        let smooth = (8192.0 / (std::f64::consts::TAU * 500_000f64.sqrt()) - 1.0) / 3.0;
        assert!((f64::from(divisors[32]) - 1.0 / ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-6);
    }

    #[test]
    fn scalings_that_llama_cpp_does_not_know_and_fields_that_nobody_knows_are_faults() {
        let faults = |field: &str, value: Json| {
            let mut json = config("llama");
            json[field] = value;
            parse(&json).map(|_| Vec::new()).unwrap_or_else(|faults| faults)
        };
        assert!(faults("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}))[0].contains("`rope_scaling`"));
        assert_eq!(faults("rope_scaling", json!({"type": "linear", "factor": -1, "odd": 3})).len(), 2);
        assert!(faults("rope_parameters", json!({"rope_theta": 5e5, "rope_type": "default"})).is_empty());
        assert!(faults("model_type", "rwkv".into())[0].contains("phi3"));
    }

    #[test]
    fn what_is_left_out_means_what_it_means_for_training() {
        // Transformers gives a Mistral without the field a window of 4096, and all heads to one whose number is null.
        let mut json = config("mistral");
        json["max_position_embeddings"] = 8192.into();
        json["num_key_value_heads"] = Json::Null;
        json["head_dim"] = Json::Null;
        let mistral = parse(&json).unwrap();
        assert_eq!((mistral.notes.len(), mistral.key_width(), mistral.query_width()), (1, 64, 64));
        json["rope_scaling"] = json!({"rope_type": "llama3"});
        assert_eq!(parse(&json).unwrap_err(), ["`factor` is missing"]);
    }
}
