//! `adapter_config.json`: every field is either used, known to change nothing, or an error.

use serde_json::{Map, Value, json};

use super::pattern::PathPattern;
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
    /// Names or paths of the adapted modules, or one regular expression. Only informative: the modules that have tensors
    /// are adapted.
    pub target_modules: Vec<String>,
    /// What else chooses the adapted modules. Only informative.
    pub selection: PeftSelection,
    /// Ranks by regular expression over the end of a module's path; the first that matches decides. Only informative:
    /// the tensors have the rank.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas, by the same rule.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that are trained whole.
    pub modules_to_save: Vec<String>,
    /// `base_model_name_or_path`.
    pub base_model: Option<String>,
    /// Revision of the base on the hub.
    pub revision: Option<String>,
}

/// What chooses modules beside the names in `target_modules`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PeftSelection {
    /// Whether `target_modules` is one text: a regular expression over the whole path, or `all-linear`.
    pub by_pattern: bool,
    /// Names or paths of modules that are left out (`exclude_modules`), or one regular expression.
    pub exclude: Vec<String>,
    /// Whether `exclude_modules` is one text, a regular expression.
    pub exclude_by_pattern: bool,
    /// The layers whose modules are adapted (`layers_to_transform`); absent: all.
    pub layers: Option<Vec<usize>>,
    /// Names of the lists of layers (`layers_pattern`); empty: any.
    pub layer_lists: Vec<String>,
}

/// Fields that change nothing for an adapter whose tensors exist.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
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
            Some(found) => {
                return Err(format!(
                    "`peft_type` should be \"LORA\", found {found}: merge the adapter into its model with PEFT \
                     (`merge_and_unload`), and use that"
                ));
            }
            None => return Err("`peft_type` is missing: not an adapter's configuration".to_owned()),
        }
        let init = fields.take("init_lora_weights").map(|value| init(&value));
        let selection = PeftSelection {
            by_pattern: fields.object.get("target_modules").is_some_and(Value::is_string),
            exclude_by_pattern: fields.object.get("exclude_modules").is_some_and(Value::is_string),
            exclude: fields.optional("exclude_modules", "a name or a list of names", names).unwrap_or_default(),
            layers: fields.optional("layers_to_transform", "an index or a list of indexes", indexes),
            layer_lists: fields.optional("layers_pattern", "a name or a list of names", names).unwrap_or_default(),
        };
        let config = Self {
            rank: fields.required("r", "a positive integer", size).unwrap_or(1),
            alpha: fields.required("lora_alpha", "a positive number", positive).unwrap_or(1.0),
            dropout: fields.optional("lora_dropout", "a number from 0 to 1", probability).unwrap_or(0.0),
            rank_stabilized: fields.optional("use_rslora", "true or false", Value::as_bool).unwrap_or(false),
            dora: fields.optional("use_dora", "true or false", Value::as_bool).unwrap_or(false),
            init: match init {
                None => PeftInit::Lora(Init::Kaiming),
                Some(Ok(init)) => init,
                Some(Err(fault)) => {
                    fields.faults.push(fault);
                    PeftInit::Lora(Init::Kaiming)
                }
            },
            selection,
            target_modules: fields.optional("target_modules", "a name or a list of names", names).unwrap_or_default(),
            rank_pattern: fields
                .optional("rank_pattern", "an object of positive integers", |value| pattern(value, size))
                .unwrap_or_default(),
            alpha_pattern: fields
                .optional("alpha_pattern", "an object of positive numbers", |value| pattern(value, positive))
                .unwrap_or_default(),
            modules_to_save: fields.optional("modules_to_save", "a list of names", names).unwrap_or_default(),
            base_model: fields.optional("base_model_name_or_path", "a name", text),
            revision: fields.optional("revision", "a name", text),
        };
        fields.optional("fan_in_fan_out", "false: the weights of linear layers are [d_out, d_in]", no);
        // Whether there are biases is seen in the tensors.
        fields.optional("bias", "\"none\", \"all\" or \"lora_only\"", |value| {
            ["none", "all", "lora_only"].iter().any(|kind| value == kind).then_some(())
        });
        let keys =
            config.rank_pattern.iter().map(|(key, _)| key).chain(config.alpha_pattern.iter().map(|(key, _)| key));
        fields.faults.extend(keys.filter_map(|key| PathPattern::key(key).err()));
        if config.dora && !matches!(config.init, PeftInit::Lora(_)) {
            fields.faults.push("`use_dora` with weights that were split is not supported".to_owned());
        }
        let idle = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            Value::String(text) => text.is_empty() || text == "none",
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::Bool(true) => false,
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
            "revision": self.revision,
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
            "target_modules": list_or_text(&self.target_modules, self.selection.by_pattern),
            "exclude_modules": match self.selection.exclude.as_slice() {
                [] => Value::Null,
                names => list_or_text(names, self.selection.exclude_by_pattern),
            },
            "modules_to_save": match self.modules_to_save.as_slice() {
                [] => Value::Null,
                names => names.into(),
            },
            "rank_pattern": pairs(self.rank_pattern.iter().map(|(key, rank)| (key, (*rank).into())).collect()),
            "alpha_pattern": pairs(self.alpha_pattern.iter().map(|(key, alpha)| (key, number(*alpha))).collect()),
            "layers_to_transform": self.selection.layers,
            "layers_pattern": match self.selection.layer_lists.as_slice() {
                [] => Value::Null,
                names => names.into(),
            },
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

    /// The rank that the configuration gives the module at `path`.
    pub(super) fn rank(&self, path: &str) -> usize {
        first(&self.rank_pattern, path).unwrap_or(self.rank)
    }

    /// The scale of the module at `path`, whose factors have rank `rank`.
    pub fn scale(&self, path: &str, rank: usize) -> f64 {
        let alpha = first(&self.alpha_pattern, path).unwrap_or(self.alpha);
        alpha / if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 }
    }
}

/// The value of the first key that matches `path`. The import has compared every key with every path before.
fn first<T: Copy>(pattern: &[(String, T)], path: &str) -> Option<T> {
    let matches = |key: &str| PathPattern::key(key).and_then(|key| key.matches(path)) == Ok(true);
    pattern.iter().find(|(key, _)| matches(key)).map(|(_, value)| *value)
}

fn list_or_text(names: &[String], by_pattern: bool) -> Value {
    match names {
        [text] if by_pattern => text.as_str().into(),
        names => names.into(),
    }
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

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
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

fn indexes(value: &Value) -> Option<Vec<usize>> {
    let index = |value: &Value| value.as_u64().map(|index| index as usize);
    match value {
        Value::Array(indexes) => indexes.iter().map(index).collect(),
        one => index(one).map(|index| vec![index]),
    }
}

fn pattern<T>(value: &Value, one: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    value.as_object()?.iter().map(|(key, value)| Some((key.clone(), one(value)?))).collect()
}

/// How the factors started, or why the adapter cannot be used. What matters is whether the base was changed then.
fn init(value: &Value) -> Result<PeftInit, String> {
    let name = match value {
        Value::Null | Value::Bool(_) => return Ok(PeftInit::Lora(Init::Kaiming)),
        Value::String(name) => name.as_str(),
        _ => "",
    };
    let changed = |how: &str| {
        Err(format!(
            "`init_lora_weights` = {value}: {how}, which the adapter's files do not tell: merge the adapter with PEFT \
             (`merge_and_unload`), or save it there as a plain LoRA (`path_initial_model_for_weight_conversion`)"
        ))
    };
    // PEFT takes some of the names in any case.
    match name.to_lowercase().as_str() {
        "gaussian" => return Ok(PeftInit::Lora(Init::Gaussian)),
        "olora" => return Ok(PeftInit::Olora),
        // Its factors start at the weight's smallest singular vectors. The base is as it was.
        "mica" => return Ok(PeftInit::Lora(Init::Kaiming)),
        _ => {}
    }
    let iterations = name.strip_prefix("pissa_niter_").and_then(|count| count.parse().ok());
    match (name, iterations) {
        ("orthogonal", _) => Ok(PeftInit::Lora(Init::Orthogonal)),
        // EVA does not change the weights at the start.
        ("eva", _) => Ok(PeftInit::Lora(Init::Kaiming)),
        ("pissa", _) => Ok(PeftInit::Pissa),
        (_, Some(iterations)) => Ok(PeftInit::PissaApproximate(iterations)),
        ("loftq", _) => changed("LoftQ quantized the base at the start"),
        ("lora_ga", _) => changed("LoRA-GA subtracted from the base at the start what gradients of the data gave"),
        (name, _) if name.starts_with("corda") => {
            changed("CorDA subtracted from the base at the start what covariances of the data gave")
        }
        _ => Err(format!(
            "`init_lora_weights` should be true, false, gaussian, orthogonal, eva, mica, pissa, pissa_niter_N or olora, \
             found {value}"
        )),
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
            "exclude_modules": ["lm_head"], "layers_to_transform": 2, "layers_pattern": "layers", "revision": "0123",
        }))
        .unwrap();
        assert_eq!(config.init, PeftInit::PissaApproximate(16));
        assert_eq!(parse(config.to_json()).unwrap(), config);
    }

    #[test]
    fn everything_that_is_not_supported_is_reported_at_once() {
        let error = parse(json!({
            "peft_type": "LORA", "lora_alpha": -1, "bias": "some", "fan_in_fan_out": true, "lora_bias": true,
            "init_lora_weights": "corda", "layer_replication": [[0, 1]], "rank_pattern": {"(": 2}, "use_qalora": false,
            "new_option": 3, "target_parameters": [],
        }))
        .unwrap_err();
        assert_eq!(error.matches("; ").count() + 1, 9, "{error}");
        assert!(parse(json!({"peft_type": "VERA"})).unwrap_err().contains("VERA"));
    }

    fn with(fields: Value) -> Result<PeftConfig, String> {
        let mut json = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]});
        json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        parse(json)
    }

    #[test]
    fn names_of_starts_are_those_of_peft_and_a_changed_base_is_refused_with_the_way_out() {
        for (name, init) in [
            ("Gaussian", PeftInit::Lora(Init::Gaussian)),
            ("OLoRA", PeftInit::Olora),
            ("MiCA", PeftInit::Lora(Init::Kaiming)),
            ("eva", PeftInit::Lora(Init::Kaiming)),
            ("orthogonal", PeftInit::Lora(Init::Orthogonal)),
            ("pissa_niter_4", PeftInit::PissaApproximate(4)),
        ] {
            assert_eq!(with(json!({"init_lora_weights": name})).unwrap().init, init, "{name}");
        }
        for name in ["loftq", "corda", "lora_ga"] {
            let error = with(json!({"init_lora_weights": name})).unwrap_err();
            assert!(error.contains("the base at the start") && error.contains("merge_and_unload"), "{error}");
        }
        for name in ["PiSSA", "pissa_niter_x", "Orthogonal", "zeros"] {
            assert!(with(json!({"init_lora_weights": name})).unwrap_err().contains("should be true, false"), "{name}");
        }
    }

    #[test]
    fn settings_of_a_newer_peft_that_are_not_in_use_are_none() {
        let idle = json!({
            "bias": "all", "kasa_config": null, "use_bdlora": null, "new_list": [], "new_switch": false, "new_weight": 0.0,
            "new_kind": "none", "new_name": "", "lora_ga_config": {"direction": "ArB2r"}, "megatron_config": {"a": 1},
        });
        with(idle).unwrap();
        for used in [json!({"kasa_config": {"beta": 1}}), json!({"new_weight": 0.1}), json!({"new_kind": "both"})] {
            assert!(with(used).unwrap_err().ends_with("is not supported"));
        }
    }
}
