//! From llama.cpp's metadata to the fields of `config.json`. What differs from family to family is in the family's file, as the
//! `import` of its [`LlamaCpp`](super::super::LlamaCpp).

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::super::{GgufFile, Value};
use crate::families;

/// llama.cpp's metadata of one architecture, and the fields that were made of it.
pub(crate) struct Import<'a> {
    file: &'a GgufFile,
    /// The metadata of the architecture by its key without the architecture's name. What is left at the end is not understood.
    left: BTreeMap<&'a str, &'a Value>,
    /// The fields of `config.json`.
    pub fields: Map<String, Json>,
    faults: Vec<String>,
}

impl<'a> Import<'a> {
    /// Takes a key.
    pub fn take(&mut self, key: &str) -> Option<&'a Value> {
        self.left.remove(key)
    }

    /// Takes a key that only describes what the shapes say too.
    pub fn ignore(&mut self, key: &str) {
        self.left.remove(key);
    }

    /// Takes a whole number.
    pub fn size(&mut self, key: &str) -> Option<u64> {
        let value = self.take(key)?;
        let size = whole(value);
        if size.is_none() {
            self.fault(format!("`{key}` should be a whole number, found {}", brief(value)));
        }
        size
    }

    /// Takes a number. llama.cpp keeps f32; the shortest decimal number that rounds to it is what `config.json` had.
    pub fn number(&mut self, key: &str) -> Option<f64> {
        let value = self.take(key)?;
        let number = match value {
            Value::F32(number) => number.to_string().parse().ok(),
            Value::F64(number) => Some(*number),
            other => whole(other).map(|number| number as f64),
        };
        let number = number.filter(|number: &f64| number.is_finite());
        if number.is_none() {
            self.fault(format!("`{key}` should be a number, found {}", brief(value)));
        }
        number
    }

    /// Sets a field if there is a value.
    pub fn put(&mut self, field: &str, value: Option<impl Into<Json>>) {
        if let Some(value) = value {
            self.fields.insert(field.to_owned(), value.into());
        }
    }

    /// A field that was set as a whole number, else 0.
    pub fn known_size(&self, field: &str) -> u64 {
        self.fields.get(field).and_then(Json::as_u64).unwrap_or(0)
    }

    /// The values of a tensor of the configuration, if the file has it.
    pub fn tensor(&self, name: &str) -> Option<Vec<f32>> {
        self.file.info(name)?;
        self.file.to_f32(name).ok()
    }

    /// Adds something that is wrong or not supported.
    pub fn fault(&mut self, text: String) {
        self.faults.push(text);
    }
}

/// The fields of `config.json` for the model in `file`.
pub(super) fn fields(file: &GgufFile) -> Result<Map<String, Json>, Vec<String>> {
    let Some(Value::String(name)) = file.get("general.architecture") else {
        return Err(vec!["`general.architecture` is missing".to_owned()]);
    };
    let Some((family, llama_cpp)) = families::from_llama_cpp(name) else {
        let known = families::architectures_in_llama_cpp().join(", ");
        return Err(vec![format!("`general.architecture` should be one of {known}, found \"{name}\"")]);
    };
    let prefix = format!("{name}.");
    let entries = file.metadata().iter();
    let left = entries.filter_map(|(key, value)| Some((key.strip_prefix(prefix.as_str())?, value))).collect();
    let mut import = Import { file, left, fields: Map::new(), faults: Vec::new() };
    import.fields.insert("model_type".to_owned(), family.model_type().into());
    read_sizes(&mut import);
    read_rope(&mut import);
    read_tokens(&mut import);
    (llama_cpp.import)(&mut import);
    let Import { left, fields, mut faults, .. } = import;
    faults.extend(
        left.into_iter().map(|(key, value)| format!("`{prefix}{key}` is not supported, found {}", brief(value))),
    );
    if faults.is_empty() { Ok(fields) } else { Err(faults) }
}

fn read_sizes(import: &mut Import<'_>) {
    for (key, field) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
    ] {
        let size = import.size(key);
        if size.is_none() {
            import.fault(format!("`{key}` is missing"));
        }
        import.put(field, size);
    }
    // Each block has tensors: what is made for each block of a file needs no more memory than the file.
    let tensors = import.file.tensors().len() as u64;
    if import.known_size("num_hidden_layers") > tensors {
        import.fault(format!("`block_count` should be at most the number of tensors, which is {tensors}"));
        import.fields.remove("num_hidden_layers");
    }
    let heads = import.known_size("num_attention_heads");
    let key_value_heads = import.size("attention.head_count_kv").unwrap_or(heads);
    import.put("num_key_value_heads", Some(key_value_heads));
    let head_dim = import.size("attention.key_length");
    let head_dim = head_dim.or_else(|| import.known_size("hidden_size").checked_div(heads));
    import.put("head_dim", head_dim);
    let values = import.size("attention.value_length");
    if values.is_some() && values != head_dim {
        import.fault("`attention.value_length` should be `attention.key_length`".to_owned());
    }
    let epsilon = import.number("attention.layer_norm_rms_epsilon");
    import.put("rms_norm_eps", epsilon);
    import.ignore("vocab_size");
    let rows = import.file.info("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    import.put("vocab_size", rows);
    let has = |name: &str| import.file.info(name).is_some();
    let (tied, biases, mlp_biases) = (!has("output.weight"), has("blk.0.attn_output.bias"), has("blk.0.ffn_down.bias"));
    import.put("tie_word_embeddings", Some(tied));
    if biases {
        import.put("attention_bias", Some(true));
    }
    if mlp_biases {
        import.put("mlp_bias", Some(true));
    }
    for (key, field) in
        [("attn_logit_softcapping", "attn_logit_softcapping"), ("final_logit_softcapping", "final_logit_softcapping")]
    {
        let cap = import.number(key);
        import.put(field, cap);
    }
}

fn read_rope(import: &mut Import<'_>) {
    let theta = import.number("rope.freq_base");
    import.put("rope_theta", theta);
    let head_dim = import.known_size("head_dim");
    let rotated = import.size("rope.dimension_count").unwrap_or(head_dim);
    if rotated != head_dim && head_dim > 0 {
        import.put("partial_rotary_factor", Some(rotated as f64 / head_dim as f64));
    }
    let kind = import.take("rope.scaling.type");
    let factor = import.number("rope.scaling.factor");
    match (kind, factor) {
        (Some(Value::String(kind)), Some(factor)) if kind == "linear" => {
            import.put("rope_scaling", Some(json!({"rope_type": "linear", "factor": factor})));
        }
        (Some(Value::String(kind)), _) if kind == "none" => {}
        (None, None) => {}
        (kind, _) => import.fault(format!(
            "`rope.scaling.type` should be linear, found {}",
            kind.map_or_else(|| "none".to_owned(), brief)
        )),
    }
    if let Some(divisors) = import.tensor("rope_freqs.weight") {
        match llama3_scaling(&divisors, theta.unwrap_or(10_000.0), rotated) {
            Some(scaling) => import.put("rope_scaling", Some(scaling)),
            None => import.fault("`rope_freqs.weight` is no scaling of Llama 3's that is known".to_owned()),
        }
    }
}

/// Llama 3's scaling whose divisors of the frequencies are `divisors`. The published models have two factors.
fn llama3_scaling(divisors: &[f32], theta: f64, rotated: u64) -> Option<Json> {
    [8.0, 32.0].into_iter().find_map(|factor| {
        let (low, high, original) = (1.0, 4.0, 8192.0);
        let is_near = |(plane, found): (usize, &f32)| {
            let expected = super::super::translation::llama3_divisor(
                plane,
                rotated as usize,
                theta,
                [factor, low, high, original],
            );
            (f64::from(*found) - expected).abs() <= 1e-4 * expected
        };
        divisors.iter().enumerate().all(is_near).then(|| {
            json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original as u64})
        })
    })
}

fn read_tokens(import: &mut Import<'_>) {
    for (key, field) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
        let id = import.file.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(whole);
        import.put(field, id);
    }
}

/// A whole number of any width.
pub(in super::super) fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::U8(number) => Some((*number).into()),
        Value::U16(number) => Some((*number).into()),
        Value::U32(number) => Some((*number).into()),
        Value::U64(number) => Some(*number),
        Value::I8(number) => (*number).try_into().ok(),
        Value::I16(number) => (*number).try_into().ok(),
        Value::I32(number) => (*number).try_into().ok(),
        Value::I64(number) => (*number).try_into().ok(),
        _ => None,
    }
}

/// A value for a message: arrays by their length.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("an array of {}", array.len()),
        Value::String(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        other => format!("{other:?}"),
    }
}
