//! `quantization_config` of a `config.json`: in which format the weights of a folder are packed.

use std::path::Path;

use serde_json::{Map, Value};
use sorsa_kernels::packed::{GptqBits, ZeroPoints};

use crate::message::quoted;
use crate::weights::{Checkpoint, Dtype};

/// Tensors that a message names.
const NAMED: usize = 3;
/// The configuration of packed weights in `config.json`.
const FIELD: &str = "quantization_config";
/// The same in files of their own, as AutoGPTQ and AutoAWQ wrote it, and their method.
const FILES: [(&str, &str); 2] = [("quantize_config.json", "gptq"), ("quant_config.json", "awq")];

/// How the weights of a folder are packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Quantization {
    /// The 4 bits of bitsandbytes. All else is said by the tensors.
    FourBit,
    /// GPTQ.
    Gptq(GptqConfig),
    /// AWQ in the order of its gemm kernels, 4 bits.
    Awq,
}

/// What the tensors of GPTQ do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GptqConfig {
    /// The width of a code.
    pub bits: GptqBits,
    /// Columns of a group, if there is more than one group.
    pub group_size: Option<usize>,
    /// How zero points are stored.
    pub zero_points: ZeroPoints,
}

impl Quantization {
    /// Takes the configuration out of the fields of `config.json`; the error says what is not supported, and of which tensors.
    pub fn take(folder: &Path, object: &mut Map<String, Value>) -> Result<Option<Self>, Vec<String>> {
        let mut found = object.remove(FIELD);
        // A model of text and pictures.
        if let Some(Value::Object(text)) = object.get_mut("text_config") {
            let of_text = text.remove(FIELD);
            found = found.or(of_text);
        }
        let (field, found) = match found {
            Some(Value::Object(found)) => (FIELD, found),
            Some(Value::Null) | None => match read_file(folder)? {
                Some(found) => found,
                None => return Ok(None),
            },
            Some(other) => return Err(vec![format!("`{FIELD}` = {} is not supported", quoted(&other))]),
        };
        Self::parse(&found, field).map_err(|mut faults| {
            if let Some(tensors) = packed_tensors(folder) {
                faults.push(tensors);
            }
            faults
        })
    }

    fn parse(found: &Map<String, Value>, field: &str) -> Result<Option<Self>, Vec<String>> {
        let mut faults = Vec::new();
        let is_set = |key: &str| found.get(key).is_some_and(|value| *value == Value::Bool(true));
        let method = match found.get("quant_method") {
            Some(Value::String(method)) => method.to_lowercase(),
            // Older files of bitsandbytes and of AutoGPTQ have none.
            None if is_set("load_in_4bit") || is_set("load_in_8bit") => "bitsandbytes".to_owned(),
            _ => return Err(vec![format!("`{field}` = {} is not supported", quoted(&found.clone().into()))]),
        };
        let quantization = match method.as_str() {
            "bitsandbytes" | "bitsandbytes_4bit" => {
                if is_set("load_in_8bit") || found.get("load_in_4bit") == Some(&Value::Bool(false)) {
                    faults.push(format!("`{field}`: 8 bits of bitsandbytes (`load_in_8bit`) are not supported"));
                }
                Self::FourBit
            }
            "gptq" => Self::Gptq(GptqConfig::parse(found, field, &mut faults)),
            "awq" => {
                check_awq(found, field, &mut faults);
                Self::Awq
            }
            other => {
                return Err(vec![format!(
                    "`{field}`: weights packed by {} are not supported, expected bitsandbytes, gptq or awq",
                    quoted(&other.into())
                )]);
            }
        };
        if faults.is_empty() { Ok(Some(quantization)) } else { Err(faults) }
    }
}

impl GptqConfig {
    fn parse(found: &Map<String, Value>, field: &str, faults: &mut Vec<String>) -> Self {
        let bits = match found.get("bits").and_then(Value::as_u64) {
            Some(4) => GptqBits::Four,
            Some(8) => GptqBits::Eight,
            _ => {
                let other = found.get("bits").map_or_else(|| "none".to_owned(), quoted);
                faults.push(format!("`{field}`: `bits` of gptq should be 4 or 8, found {other}"));
                GptqBits::Four
            }
        };
        let group_size = match found.get("group_size").map(|value| (value.as_i64(), value)) {
            None | Some((Some(-1), _) | (_, Value::Null)) => None,
            Some((Some(size), _)) if size > 0 => usize::try_from(size).ok(),
            Some((_, other)) => {
                faults.push(format!(
                    "`{field}`: `group_size` should be -1 or a positive integer, found {}",
                    quoted(other)
                ));
                None
            }
        };
        let zero_points = match found.get("checkpoint_format").map(|value| (value.as_str(), value)) {
            None | Some((Some("gptq"), _) | (_, Value::Null)) => ZeroPoints::LessOne,
            Some((Some("gptq_v2"), _)) => ZeroPoints::Plain,
            Some((_, other)) => {
                let other = quoted(other);
                faults.push(format!("`{field}`: `checkpoint_format` should be gptq or gptq_v2, found {other}"));
                ZeroPoints::LessOne
            }
        };
        for (key, usual) in [("is_marlin_format", Value::Bool(false)), ("pack_dtype", "int32".into())] {
            if let Some(other) = found.get(key).filter(|value| !value.is_null() && **value != usual) {
                faults.push(format!("`{field}`: `{key}` should be {usual}, found {}", quoted(other)));
            }
        }
        // Other bits for some modules.
        if found.get("dynamic").is_some_and(|dynamic| dynamic.as_object().is_some_and(|rules| !rules.is_empty())) {
            faults.push(format!("`{field}`: `dynamic` is not supported"));
        }
        Self { bits, group_size, zero_points }
    }

    /// Codes of a word of 32 bits.
    pub fn per_word(&self) -> usize {
        match self.bits {
            GptqBits::Four => 8,
            GptqBits::Eight => 4,
        }
    }
}

fn check_awq(found: &Map<String, Value>, field: &str, faults: &mut Vec<String>) {
    // AutoAWQ's own names of the number of bits and the group size.
    let bits = found.get("bits").or_else(|| found.get("w_bit"));
    if bits.is_some_and(|bits| bits.as_u64() != Some(4)) {
        let bits = bits.map_or_else(String::new, quoted);
        faults.push(format!("`{field}`: `bits` of awq should be 4, found {bits}"));
    }
    match found.get("version") {
        None | Some(Value::Null) => {}
        Some(Value::String(version)) if version.eq_ignore_ascii_case("gemm") => {}
        Some(other) => faults.push(format!("`{field}`: `version` of awq should be gemm, found {}", quoted(other))),
    }
}

/// The name of a file, and its fields.
type NamedFields = (&'static str, Map<String, Value>);

/// The configuration in a file of its own, if the folder has one.
fn read_file(folder: &Path) -> Result<Option<NamedFields>, Vec<String>> {
    for (name, method) in FILES {
        let path = folder.join(name);
        if path.is_file() {
            let mut fields = crate::config::read_object(&path).map_err(|error| vec![error.to_string()])?;
            fields.entry("quant_method").or_insert_with(|| method.into());
            return Ok(Some((name, fields)));
        }
    }
    Ok(None)
}

/// The tensors of a folder that are not plain numbers, with their types.
fn packed_tensors(folder: &Path) -> Option<String> {
    let checkpoint = Checkpoint::open(folder).ok()?;
    let is_packed = |name: &&str| {
        let dtype = checkpoint.info(name).map(|info| info.dtype);
        dtype.is_some_and(|dtype| !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64))
    };
    let packed: Vec<&str> = checkpoint.names().filter(is_packed).collect();
    let named = packed.iter().take(NAMED).filter_map(|name| {
        let info = checkpoint.info(name)?;
        Some(format!("`{name}` ({:?} {:?})", info.dtype, info.shape))
    });
    let named: Vec<String> = named.collect();
    match packed.len() {
        0 => None,
        count if count > named.len() => {
            Some(format!("packed are {} and {} more tensors", named.join(", "), count - named.len()))
        }
        _ => Some(format!("packed are {}", named.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(config: Value) -> Result<Option<Quantization>, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let mut object = json!({"model_type": "llama"}).as_object().unwrap().clone();
        object.insert(FIELD.to_owned(), config);
        let found = Quantization::take(folder.path(), &mut object);
        assert!(!object.contains_key(FIELD));
        found
    }

    #[test]
    fn published_configurations_are_accepted() {
        let unsloth = json!({"_load_in_4bit": true, "_load_in_8bit": false, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true,
            "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": ["lm_head"], "llm_int8_threshold": 6.0, "load_in_4bit": true, "load_in_8bit": false,
            "quant_method": "bitsandbytes"});
        assert_eq!(parse(unsloth), Ok(Some(Quantization::FourBit)));
        let gptq = |format: Value| {
            json!({"bits": 4, "checkpoint_format": format, "desc_act": true, "group_size": 128, "quant_method": "gptq",
                "sym": true, "damp_percent": 0.1, "true_sequential": true})
        };
        let expected = GptqConfig { bits: GptqBits::Four, group_size: Some(128), zero_points: ZeroPoints::LessOne };
        assert_eq!(parse(gptq(json!("gptq"))), Ok(Some(Quantization::Gptq(expected.clone()))));
        let second = GptqConfig { zero_points: ZeroPoints::Plain, ..expected };
        assert_eq!(parse(gptq(json!("gptq_v2"))), Ok(Some(Quantization::Gptq(second))));
        let awq = json!({"bits": 4, "group_size": 128, "modules_to_not_convert": null, "quant_method": "awq",
            "version": "gemm", "zero_point": true});
        assert_eq!(parse(awq), Ok(Some(Quantization::Awq)));
        assert_eq!(parse(Value::Null), Ok(None));
    }

    #[test]
    fn other_formats_are_refused_by_name() {
        let refused = |config: Value| parse(config).unwrap_err().join("; ");
        assert!(refused(json!({"quant_method": "bitsandbytes", "load_in_8bit": true})).contains("load_in_8bit"));
        assert!(refused(json!({"load_in_8bit": true})).contains("load_in_8bit"));
        assert!(refused(json!({"quant_method": "fp8"})).contains("\"fp8\""));
        assert_eq!(refused(json!({"bits": 4})), "`quantization_config` = {\"bits\":4} is not supported");
        assert!(refused(json!({"quant_method": "gptq", "bits": 3, "checkpoint_format": "marlin"})).contains("marlin"));
        assert!(refused(json!({"quant_method": "awq", "bits": 4, "version": "gemv"})).contains("gemv"));
        assert!(refused(json!([4])).contains("[4] is not supported"));
    }

    #[test]
    fn the_older_files_count() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("quantize_config.json"),
            r#"{"bits": 8, "group_size": -1, "desc_act": false}"#,
        )
        .unwrap();
        let found = Quantization::take(folder.path(), &mut Map::new());
        let expected = GptqConfig { bits: GptqBits::Eight, group_size: None, zero_points: ZeroPoints::LessOne };
        assert_eq!(found, Ok(Some(Quantization::Gptq(expected))));
    }
}
