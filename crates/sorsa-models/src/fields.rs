//! The fields of a `config.json`, taken one by one; what is wrong with them is collected, and what is left over shows.

use serde_json::{Map, Value};

/// Fields that do not change what a model computes.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "auto_map",
    "dtype",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "max_sequence_length",
    "output_attentions",
    "output_hidden_states",
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
    "unsloth_fixed",
    "unsloth_version",
];

/// Takes fields out of an object, collecting faults.
pub(crate) struct Fields {
    object: Map<String, Value>,
    pub faults: Vec<String>,
}

impl Fields {
    pub fn new(object: Map<String, Value>) -> Self {
        Self { object, faults: Vec::new() }
    }

    /// The field's value; nothing where it is missing or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null, which for some fields is not the same as missing.
    pub fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
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

    /// A size that somebody else takes; 0 where there is none up to `most`.
    pub fn peek_size(&self, name: &str, most: usize) -> usize {
        self.object.get(name).and_then(Value::as_u64).filter(|size| *size <= most as u64).unwrap_or(0) as usize
    }

    /// A name that somebody else takes.
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

    /// A size where null means none and a missing field `default`.
    pub fn optional_size(&mut self, name: &str, default: Option<usize>) -> Option<usize> {
        match self.object.get(name) {
            Some(Value::Null) => None,
            None => default,
            Some(_) => Some(self.size(name, None)),
        }
    }

    /// A positive number; `default` where there is none.
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

    /// A positive number where null means none and a missing field `default`.
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

    /// A field that may be left out and has to be `only` where it is not, since anything else is not supported.
    pub fn only(&mut self, name: &str, only: impl Into<Value>) {
        let only = only.into();
        if let Some(found) = self.take(name).filter(|value| *value != only) {
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
        let left = self
            .object
            .iter()
            .filter(|(name, value)| !value.is_null() && !name.starts_with('_') && !HARMLESS.contains(&name.as_str()));
        faults.extend(left.map(|(name, value)| format!("`{name}` = {value} is not supported")));
        faults
    }

    /// As [`Self::finish`] for an object inside a field, where nothing may be left over.
    pub fn finish_inner(self, field: &str) -> Vec<String> {
        let mut faults: Vec<String> =
            self.object.keys().map(|name| format!("`{field}.{name}` is not supported")).collect();
        faults.extend(self.faults);
        faults
    }

    /// Forgets the fields that are left: they belong to something that is a fault already.
    pub fn clear(&mut self) {
        self.object.clear();
    }
}
