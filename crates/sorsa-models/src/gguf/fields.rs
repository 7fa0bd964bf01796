//! `config.json` as a set of fields that must all be accounted for.

use serde_json::{Map, Value};

use crate::fields::is_harmless;

/// Fields that a GGUF file has from elsewhere (the tokenizer), or that only fresh weights ask for.
const ELSEWHERE: &[&str] = &["bos_token_id", "eos_token_id", "initializer_range", "pad_token_id"];

/// Takes fields out of an object, collecting faults; what is left over at the end is a fault too.
pub(super) struct Fields {
    object: Map<String, Value>,
    prefix: &'static str,
    pub faults: Vec<String>,
}

impl Fields {
    /// The fields of `object`, named in faults with `prefix` before them.
    pub fn new(object: Map<String, Value>, prefix: &'static str) -> Self {
        Self { object, prefix, faults: Vec::new() }
    }

    /// The field, where it is there and not null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null, which for some is not the same as missing.
    pub fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
    }

    pub fn wrong(&mut self, name: &str, expected: &str, found: &Value) {
        self.faults.push(format!("`{}{name}` should be {expected}, found {found}", self.prefix));
    }

    /// A positive integer that fits into 32 bits, as llama.cpp keeps sizes.
    pub fn size(&mut self, name: &str, default: Option<usize>) -> usize {
        match (self.optional_size(name), default) {
            (Some(size), _) | (None, Some(size)) => size,
            (None, None) => {
                self.faults.push(format!("`{}{name}` is missing", self.prefix));
                1
            }
        }
    }

    /// As [`Fields::size`], nothing where the field is absent.
    pub fn optional_size(&mut self, name: &str) -> Option<usize> {
        let value = self.take(name)?;
        let size = value.as_u64().filter(|size| (1..1 << 31).contains(size));
        if size.is_none() {
            self.wrong(name, "a positive integer below 2^31", &value);
        }
        Some(size.unwrap_or(1) as usize)
    }

    pub fn number(&mut self, name: &str, default: f64) -> f64 {
        self.optional_number(name).unwrap_or(default)
    }

    /// A positive number, nothing where the field is absent.
    pub fn optional_number(&mut self, name: &str) -> Option<f64> {
        let value = self.take(name)?;
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        if number.is_none() {
            self.wrong(name, "a positive number", &value);
        }
        number
    }

    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(value) = self.take(name) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.wrong(name, "true or false", &value);
            default
        })
    }

    /// Numbers, nothing where the field is absent.
    pub fn numbers(&mut self, name: &str) -> Option<Vec<f32>> {
        let value = self.take(name)?;
        let number = |value: &Value| value.as_f64().map(|number| number as f32);
        let numbers = value.as_array().and_then(|list| list.iter().map(number).collect());
        if numbers.is_none() {
            self.wrong(name, "a list of numbers", &value);
        }
        numbers
    }

    /// A field that must be one of `allowed`, where it is there.
    pub fn only(&mut self, name: &str, allowed: &[Value]) {
        let expected = || allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
        if let Some(found) = self.take(name).filter(|value| !allowed.contains(value)) {
            self.wrong(name, &expected(), &found);
        }
    }

    /// Everything wrong, fields that nobody took included.
    pub fn finish(mut self) -> Vec<String> {
        let unknown =
            self.object.iter().filter(|(name, value)| !is_harmless(name, value) && !ELSEWHERE.contains(&name.as_str()));
        let unknown = unknown.map(|(name, value)| format!("`{}{name}` = {value} is not supported", self.prefix));
        self.faults.extend(unknown.collect::<Vec<_>>());
        self.faults
    }
}
