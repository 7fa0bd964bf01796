//! Recipe fields in the form that arms and sweeps use: dotted paths with TOML values.

use std::fmt;

use toml::{Table, Value};

use super::sweep::SweepMode;
use crate::Recipe;

/// A dotted field of a recipe and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldValue {
    /// The dotted path.
    pub field: String,
    /// The value, in TOML.
    pub value: Value,
}

impl FieldValue {
    /// A field and its value.
    pub fn new(field: &str, value: impl Into<Value>) -> Self {
        Self { field: field.to_owned(), value: value.into() }
    }
}

/// `field=value`, the form that the command line takes. The value is TOML.
impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.field, self.value)
    }
}

/// A field with a short name in reports. Reports name every other field by its path.
#[derive(Debug)]
pub struct NamedField {
    /// The dotted path.
    pub field: &'static str,
    /// Heading of its column in tables and in `results.csv`.
    pub label: &'static str,
    /// Prefix of its value in the names of runs.
    pub short: &'static str,
    /// Its meaning, for captions.
    pub meaning: &'static str,
    /// Mode of a sweep that names none.
    pub mode: SweepMode,
}

/// The method of the adapter.
pub const METHOD: &str = "adapter.method";
/// The rank of the adapter.
pub const RANK: &str = "adapter.rank";
/// The peak learning rate.
pub const LEARNING_RATE: &str = "train.optimizer.learning_rate";
/// The seed of the data's order and of dropout.
pub const TRAIN_SEED: &str = "train.seed";
/// The seed of the adapter's random start.
pub const ADAPTER_SEED: &str = "adapter.seed";
/// The weight of SORSA's regularizer.
pub const GAMMA: &str = "train.regularizer.gamma";
/// The weight of the regularizer in methods that have none of their own.
const ORTHOGONAL_GAMMA: &str = "train.regularizer.orthogonal_gamma";

/// The named fields, in the order in which the names of runs hold them.
pub const NAMED_FIELDS: [NamedField; 2] = [
    NamedField { field: RANK, label: "rank", short: "r", meaning: "rank", mode: SweepMode::SearchEach },
    NamedField {
        field: GAMMA,
        label: "gamma",
        short: "g",
        meaning: "the weight of its regularizer",
        mode: SweepMode::AtBestRate,
    },
];

/// Fields that must be equal in all runs of a comparison, with the reason. A name that ends in a dot stands for all fields below it.
const COMMON_FIELDS: [(&str, &str); 14] = [
    (TRAIN_SEED, "a comparison has seeds of its own, for all runs"),
    (ADAPTER_SEED, "a comparison has seeds of its own, for all runs"),
    ("model.path", "all runs start from one model"),
    ("model.adapter", "all runs start from one model"),
    ("model.continue_from", "all runs start from one model"),
    ("data.train", "all runs train on the same data"),
    ("data.format", "all runs train on the same data"),
    ("data.validation", "all runs are validated on the same data"),
    ("data.validation_rows", "all runs are validated on the same data"),
    ("data.test", "all runs answer the same problems"),
    ("data.template", "all runs answer the same prompts"),
    ("data.chat_template", "all runs answer the same prompts"),
    ("data.skip_bad_rows", "all runs train on the same data"),
    ("eval.", "all runs are tested the same way"),
];

/// Why an arm or a sweep may not set a field; `None` if it may.
pub fn reason_against(field: &str) -> Option<&'static str> {
    let matches = |common: &str| field == common || (common.ends_with('.') && field.starts_with(common));
    COMMON_FIELDS.iter().find(|(common, _)| matches(common)).map(|(_, reason)| *reason)
}

/// Whether a field changes anything in a run of `recipe`, whose method may have no factors or no regularizer.
pub fn takes_effect(field: &str, recipe: &Recipe) -> bool {
    let method = recipe.adapter.method();
    if field.starts_with("train.regularizer.") {
        return match field {
            GAMMA => recipe.adapter.method.is_regularized(),
            ORTHOGONAL_GAMMA => method.orthogonality_fault().is_none(),
            _ => recipe.adapter.method.is_regularized() || recipe.train.regularizer.orthogonal_gamma > 0.0,
        };
    }
    if field == "svd.band" {
        return method.setting_names().contains(&"band");
    }
    if field.starts_with("svd.") {
        return method.is_factored();
    }
    match field {
        METHOD | "adapter.target_modules" | "adapter.modules_to_save" => true,
        _ => method.is_factored() || !field.starts_with("adapter."),
    }
}

/// Whether a field decides the number of a run's steps, or of the tokens in a step.
pub fn decides_steps(field: &str) -> bool {
    let steps = ["train.batch_size", "train.accumulation", "train.epochs", "train.max_steps", "train.early_stopping"];
    steps.contains(&field) || field.starts_with("data.")
}

/// The entry of a field in [`NAMED_FIELDS`]; `None` if it has none.
pub fn named_field(field: &str) -> Option<&'static NamedField> {
    NAMED_FIELDS.iter().find(|named| named.field == field)
}

/// Names of the sweeps that the results always list, with no run if the comparison has no such sweep.
pub fn listed_sweeps() -> Vec<String> {
    let at_best_rate = NAMED_FIELDS.iter().filter(|named| named.mode == SweepMode::AtBestRate);
    at_best_rate.map(|named| format!("{}s", named.label)).collect()
}

/// The heading of a field's column: its own name, or the last part of its path.
pub fn label(field: &str) -> &str {
    match named_field(field) {
        Some(named) => named.label,
        None => field.rsplit('.').next().unwrap_or(field),
    }
}

/// The value of a field in the TOML form of a recipe. `None` if the recipe leaves it out.
pub fn value_of(recipe: &Table, field: &str) -> Option<Value> {
    let (mut table, mut rest) = (recipe, field);
    while let Some((first, below)) = rest.split_once('.') {
        (table, rest) = (table.get(first)?.as_table()?, below);
    }
    table.get(rest).cloned()
}

/// The value of a field as a number, if it is one.
pub fn number_of(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::Integer(number) => Some(*number as f64),
        _ => None,
    }
}

/// A value for tables and sentences: `4e-4`, `0`, `16`, `linear`.
pub fn value_text(value: &Value) -> String {
    match value {
        Value::Float(number) if number.fract() != 0.0 || number.abs() >= 1e6 => number_text(*number),
        Value::Float(number) => format!("{number}"),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `4e-4`, and `0` for 0.
pub fn number_text(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:e}") }
}

/// A value in the name of a folder: floats in scientific notation; only letters, digits and `.-_` are kept.
pub fn value_for_name(value: &Value) -> String {
    let text = match value {
        Value::Float(number) => format!("{number:e}"),
        other => value_text(other),
    };
    text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')).collect()
}

/// Reads a TOML value. A text that is no TOML is a string, so `linear` needs no quotes.
pub fn parse_value(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().filter(|table| table.len() == 1);
    match parsed.and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        None => Value::String(text.to_owned()),
    }
}

/// Splits at commas outside of brackets and quotes.
pub fn split_at_commas(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut quote) = (Vec::new(), 0, 0_usize, None);
    for (index, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            (None, _) => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The values in a table of TOML by their dotted fields. `adapter.rank = 4` and `"adapter.rank" = 4` mean the same.
pub fn flattened(table: &Table) -> Vec<FieldValue> {
    let mut fields = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => fields.extend(
                flattened(inner)
                    .into_iter()
                    .map(|below| FieldValue { field: format!("{name}.{}", below.field), value: below.value }),
            ),
            value => fields.push(FieldValue { field: name.clone(), value: value.clone() }),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_split_at_commas_outside_of_brackets_and_quotes() {
        assert_eq!(split_at_commas("a=1,b=[1, 2],c=\"x,y\""), ["a=1", "b=[1, 2]", "c=\"x,y\""]);
        assert_eq!(split_at_commas(""), [""]);
    }

    #[test]
    fn a_value_is_toml_or_a_string() {
        assert_eq!(parse_value("16"), Value::Integer(16));
        assert_eq!(parse_value("4e-4"), Value::Float(4e-4));
        assert_eq!(parse_value("linear"), Value::String("linear".into()));
        assert_eq!(parse_value("1\nx = 2"), Value::String("1\nx = 2".into()));
        let field = FieldValue::new("train.schedule.kind", "linear");
        assert_eq!(field.to_string(), "train.schedule.kind=\"linear\"");
    }

    #[test]
    fn values_are_shown_short() {
        let shown = [Value::Float(4e-4), Value::Float(0.0), Value::Float(32.0), Value::Integer(16)];
        assert_eq!(shown.each_ref().map(value_text), ["4e-4", "0", "32", "16"]);
        assert_eq!(shown.each_ref().map(value_for_name), ["4e-4", "0e0", "3.2e1", "16"]);
        assert_eq!(value_for_name(&parse_value("[\"q_proj\", \"v_proj\"]")), "q_projv_proj");
    }

    #[test]
    fn nested_and_dotted_fields_mean_the_same() {
        let table: Table = "adapter.rank = 4\n\"train.regularizer.gamma\" = 0".parse().unwrap();
        let expected = [FieldValue::new(RANK, 4), FieldValue::new(GAMMA, 0)];
        assert_eq!(flattened(&table), expected);
    }

    #[test]
    fn a_setting_of_the_regularizer_takes_effect_in_methods_that_have_it() {
        let recipe = |text: &str| Recipe::from_table(text.parse().unwrap(), "r").unwrap();
        let form = "train.regularizer.form";
        let sorsa = recipe("adapter.method = \"sorsa\"");
        let pissa = recipe("adapter.method = \"pissa\"");
        let regularized = recipe("adapter.method = \"pissa\"\ntrain.regularizer.orthogonal_gamma = 1e-4");
        let full = recipe("adapter.method = \"full\"");
        let effects = |field| [&sorsa, &pissa, &regularized, &full].map(|recipe| takes_effect(field, recipe));
        assert_eq!(effects(GAMMA), [true, false, false, false]);
        assert_eq!(effects(ORTHOGONAL_GAMMA), [false, true, true, false]);
        assert_eq!(effects(form), [true, false, true, false]);
    }

    #[test]
    fn a_comparison_keeps_model_data_and_seeds_for_itself() {
        for field in ["model.path", "data.train", "train.seed", "eval.problems"] {
            assert!(reason_against(field).is_some(), "{field}");
        }
        for field in [METHOD, GAMMA, "data.max_length", "train.batch_size", LEARNING_RATE] {
            assert_eq!(reason_against(field), None, "{field}");
        }
    }
}
