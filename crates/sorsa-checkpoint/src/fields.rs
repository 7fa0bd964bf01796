//! The fields of a `config.json`. Readers take them one by one and note their faults; fields that nobody took are faults too,
//! unless they are known to change nothing.

use serde_json::{Map, Value};

/// Fields that do not change what a model computes: for the training, for the generation by Transformers, or about the
/// file.
const HARMLESS: &[&str] = &[
    // About the file and the class.
    "architectures",
    "attn_implementation",
    "auto_map",
    "cache_implementation",
    "dtype",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "license",
    "max_sequence_length",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
    // Of the training.
    "attention_dropout",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "resid_pdrop",
    // Tokens.
    "decoder_start_token_id",
    "sep_token_id",
    "unk_token_id",
    // Defaults of the generation, which older files have here.
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Beginnings of the names of harmless fields: what Transformers keeps for itself (`_name_or_path`), and what other
/// programs note (`transformers.js_config`, `unsloth_version`, `mergekit_version`).
const HARMLESS_PREFIXES: &[&str] = &["_", "transformers.js", "unsloth_", "mergekit"];

/// Whether a field of `config.json` that nobody reads cannot change what the model computes: because of its name, or
/// because its value is null, false or empty, which is what a field says that is not in use.
pub(crate) fn is_harmless(name: &str, value: &Value) -> bool {
    let is_unused = match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        // An empty configuration of a part of the model stands for that part with its defaults.
        Value::Object(object) => object.is_empty() && !name.ends_with("_config"),
        Value::Bool(true) | Value::Number(_) => false,
    };
    is_unused || HARMLESS.contains(&name) || HARMLESS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
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
        self.faults.push(format!("`{name}` should be {expected}, found {found}"));
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
        faults.extend(left.map(|(name, value)| format!("`{name}` = {value} is not supported")));
        faults
    }

    /// As [`Self::finish`] for the object in `field`: the names of its fields follow that of `field`.
    pub fn finish_inner(self, field: &str) -> Vec<String> {
        let left = self.object.iter().filter(|(name, value)| !is_harmless(name, value));
        let mut faults: Vec<String> = left.map(|(name, _)| format!("`{field}.{name}` is not supported")).collect();
        faults.extend(self.faults);
        faults
    }

    /// Forgets the fields that are left: they belong to something that is a fault already.
    pub fn clear(&mut self) {
        self.object.clear();
    }
}
