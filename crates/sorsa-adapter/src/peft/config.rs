//! `adapter_config.json`: every field is either used, known to change nothing, or an error.

use serde_json::{Map, Value, json};

use crate::{Init, Method, MethodConfig};

/// PEFT's `init_lora_weights`: how the factors started, and so to which weights they are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeftInit {
    /// To the original weights.
    Lora(Init),
    /// To the residual of the weights' leading singular triplets.
    Pissa,
    /// To the residual of triplets that this many iterations from a random start approximated (`pissa_niter_*`).
    PissaApproximate(u32),
    /// To the residual of the weights' QR decomposition.
    Olora,
}

/// One of the methods that PEFT counts among LoRA's variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeftVariant {
    /// `init_lora_weights`.
    pub init: PeftInit,
    /// `use_dora`.
    pub dora: bool,
}

/// The configuration of a PEFT adapter of type `LORA`.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// Rank (`r`), if `rank_pattern` gives no other.
    pub rank: usize,
    /// Numerator of the scale (`lora_alpha`), if `alpha_pattern` gives no other.
    pub alpha: f64,
    /// `lora_dropout`.
    pub dropout: f64,
    /// Whether the scale is `alpha / sqrt(rank)` (`use_rslora`).
    pub rank_stabilized: bool,
    /// Whether there are magnitudes (`use_dora`).
    pub dora: bool,
    /// `init_lora_weights`.
    pub init: PeftInit,
    /// Names or paths of the adapted modules. Only informative: the modules that have tensors are adapted.
    pub target_modules: Vec<String>,
    /// Ranks by regular expression over the end of a module's path; the first that matches decides.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas, by the same rule.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that are trained whole.
    pub modules_to_save: Vec<String>,
    /// `base_model_name_or_path`.
    pub base_model: Option<String>,
}

/// Fields that change nothing for an adapter whose tensors exist.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

impl PeftConfig {
    /// Reads the JSON; the error lists everything that is wrong or not supported.
    ///
    /// # Errors
    ///
    /// One line.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let object: Map<String, Value> =
            serde_json::from_slice(json).map_err(|error| format!("should be a JSON object: {error}"))?;
        let mut fields = JsonFields { object, faults: Vec::new() };
        match fields.take("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(found) => return Err(format!("`peft_type` should be \"LORA\", found {found}")),
            None => return Err("`peft_type` is missing: not an adapter's configuration".to_owned()),
        }
        let config = Self {
            rank: fields.required("r", "a positive integer", size).unwrap_or(1),
            alpha: fields.required("lora_alpha", "a positive number", positive).unwrap_or(1.0),
            dropout: fields.optional("lora_dropout", "a number from 0 to 1", probability).unwrap_or(0.0),
            rank_stabilized: fields.optional("use_rslora", "true or false", Value::as_bool).unwrap_or(false),
            dora: fields.optional("use_dora", "true or false", Value::as_bool).unwrap_or(false),
            init: fields
                .optional("init_lora_weights", "true, false, gaussian, orthogonal, eva, pissa or olora", init)
                .unwrap_or(PeftInit::Lora(Init::Kaiming)),
            target_modules: fields.optional("target_modules", "a name or a list of names", names).unwrap_or_default(),
            rank_pattern: fields
                .optional("rank_pattern", "an object of positive integers", |value| pattern(value, size))
                .unwrap_or_default(),
            alpha_pattern: fields
                .optional("alpha_pattern", "an object of positive numbers", |value| pattern(value, positive))
                .unwrap_or_default(),
            modules_to_save: fields.optional("modules_to_save", "a list of names", names).unwrap_or_default(),
            base_model: fields.optional("base_model_name_or_path", "a name", |value| value.as_str().map(str::to_owned)),
        };
        fields.optional("fan_in_fan_out", "false: the weights of linear layers are [d_out, d_in]", no);
        fields.optional("bias", "\"none\": biases are not trained", |value| (value == "none").then_some(()));
        let keys =
            config.rank_pattern.iter().map(|(key, _)| key).chain(config.alpha_pattern.iter().map(|(key, _)| key));
        let broken = keys.filter(|key| ending(key).is_none());
        fields.faults.extend(broken.map(|key| format!("`{key}` of a pattern is not a regular expression")));
        if config.dora && !matches!(config.init, PeftInit::Lora(_)) {
            fields.faults.push("`use_dora` with weights that were split is not supported".to_owned());
        }
        let idle = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        let unknown = fields.object.iter().filter(|(name, value)| !HARMLESS.contains(&name.as_str()) && !idle(value));
        let unknown: Vec<_> = unknown.map(|(name, value)| format!("`{name}` = {value} is not supported")).collect();
        fields.faults.extend(unknown);
        if fields.faults.is_empty() { Ok(config) } else { Err(fields.faults.join("; ")) }
    }

    /// The JSON that PEFT reads.
    pub fn to_json(&self) -> Value {
        let pairs = |pairs: Vec<(&String, Value)>| -> Map<String, Value> {
            pairs.into_iter().map(|(key, value)| (key.clone(), value)).collect()
        };
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.rank_stabilized,
            "use_dora": self.dora,
            "init_lora_weights": match self.init {
                PeftInit::Lora(Init::Kaiming) => Value::Bool(true),
                PeftInit::Lora(Init::Gaussian) => "gaussian".into(),
                PeftInit::Lora(Init::Orthogonal) => "orthogonal".into(),
                PeftInit::Pissa => "pissa".into(),
                PeftInit::PissaApproximate(iterations) => format!("pissa_niter_{iterations}").into(),
                PeftInit::Olora => "olora".into(),
            },
            "target_modules": self.target_modules,
            "modules_to_save": match self.modules_to_save.as_slice() {
                [] => Value::Null,
                names => names.into(),
            },
            "rank_pattern": pairs(self.rank_pattern.iter().map(|(key, rank)| (key, (*rank).into())).collect()),
            "alpha_pattern": pairs(self.alpha_pattern.iter().map(|(key, alpha)| (key, number(*alpha))).collect()),
            "layers_to_transform": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
        })
    }

    /// The method of this adapter.
    pub fn method(&self) -> Method {
        self.method_config().method()
    }

    /// The method with its settings.
    pub(super) fn method_config(&self) -> MethodConfig {
        MethodConfig::from_peft(PeftVariant { init: self.init, dora: self.dora })
    }

    /// The rank of the module at `path`.
    pub(super) fn rank(&self, path: &str) -> usize {
        first(&self.rank_pattern, path).unwrap_or(self.rank)
    }

    /// The scale of the module at `path`, whose factors have rank `rank`.
    pub fn scale(&self, path: &str, rank: usize) -> f64 {
        let alpha = first(&self.alpha_pattern, path).unwrap_or(self.alpha);
        alpha / if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 }
    }
}

/// The regular expression that PEFT makes of a pattern's key.
fn ending(key: &str) -> Option<regex::Regex> {
    regex::Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).ok()
}

fn first<T: Copy>(pattern: &[(String, T)], path: &str) -> Option<T> {
    let mut matching = pattern.iter().filter(|(key, _)| ending(key).is_some_and(|regex| regex.is_match(path)));
    matching.next().map(|(_, value)| *value)
}

/// PEFT's field is an integer if the number is one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { Value::from(value) }
}

fn size(value: &Value) -> Option<usize> {
    value.as_u64().filter(|size| (1..1 << 32).contains(size)).map(|size| size as usize)
}

fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite() && *number > 0.0)
}

fn probability(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| (0.0..1.0).contains(number))
}

fn no(value: &Value) -> Option<()> {
    (value == &Value::Bool(false)).then_some(())
}

fn names(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(name) => Some(vec![name.clone()]),
        Value::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn pattern<T>(value: &Value, one: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    value.as_object()?.iter().map(|(key, value)| Some((key.clone(), one(value)?))).collect()
}

fn init(value: &Value) -> Option<PeftInit> {
    match value {
        Value::Bool(_) => Some(PeftInit::Lora(Init::Kaiming)),
        Value::String(name) => match name.as_str() {
            "gaussian" => Some(PeftInit::Lora(Init::Gaussian)),
            "orthogonal" => Some(PeftInit::Lora(Init::Orthogonal)),
            // EVA does not change the weights at the start.
            "eva" => Some(PeftInit::Lora(Init::Kaiming)),
            "olora" => Some(PeftInit::Olora),
            "pissa" => Some(PeftInit::Pissa),
            name => name.strip_prefix("pissa_niter_")?.parse().ok().map(PeftInit::PissaApproximate),
        },
        _ => None,
    }
}

/// Takes fields out of the object, collecting faults.
struct JsonFields {
    object: Map<String, Value>,
    faults: Vec<String>,
}

impl JsonFields {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    fn optional<T>(&mut self, name: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(name)?;
        let read = read(&value);
        if read.is_none() {
            self.faults.push(format!("`{name}` should be {expected}, found {value}"));
        }
        read
    }

    fn required<T>(&mut self, name: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        if self.object.get(name).is_none_or(Value::is_null) {
            self.faults.push(format!("`{name}` is missing"));
        }
        self.optional(name, expected, read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: Value) -> Result<PeftConfig, String> {
        PeftConfig::parse(json.to_string().as_bytes())
    }

    #[test]
    fn ranks_and_alphas_follow_the_first_pattern_that_ends_the_path() {
        let config = parse(json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"q_proj": 4, r"layers\.\d+\.self_attn\.q_proj": 2}, "alpha_pattern": {"layers.1.*": 1.5},
        }))
        .unwrap();
        assert_eq!(config.rank("model.layers.0.self_attn.q_proj"), 4);
        assert_eq!(config.rank("model.layers.0.self_attn.fq_proj"), 8);
        assert_eq!(config.scale("model.layers.0.self_attn.v_proj", 8), 2.0);
        assert_eq!(config.scale("model.layers.1.self_attn.v_proj", 8), 0.1875);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let config = parse(json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 12.5, "lora_dropout": 0.1, "use_rslora": true,
            "init_lora_weights": "pissa_niter_16", "target_modules": "q_proj", "modules_to_save": ["lm_head"],
            "rank_pattern": {"b": 1, "a": 2}, "alpha_pattern": {"a": 3}, "base_model_name_or_path": "some/model",
        }))
        .unwrap();
        assert_eq!(config.init, PeftInit::PissaApproximate(16));
        assert_eq!(parse(config.to_json()).unwrap(), config);
    }

    #[test]
    fn everything_that_is_not_supported_is_reported_at_once() {
        let error = parse(json!({
            "peft_type": "LORA", "lora_alpha": -1, "bias": "all", "fan_in_fan_out": true, "lora_bias": true,
            "init_lora_weights": "corda", "layer_replication": [[0, 1]], "rank_pattern": {"(": 2}, "use_qalora": false,
            "new_option": 3, "target_parameters": [],
        }))
        .unwrap_err();
        assert_eq!(error.matches("; ").count() + 1, 9, "{error}");
        assert!(parse(json!({"peft_type": "VERA"})).unwrap_err().contains("VERA"));
    }
}
