//! Tests: `value is defined`.

use super::arguments::{Arguments, int, required, text};
use super::ast::Comparison;
use super::interpreter::Interpreter;
use super::operators;
use super::{Fault, Value};

/// The names of all tests.
const TESTS: [&str; 38] = [
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "==",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    ">=",
    "gt",
    "greaterthan",
    ">",
    "in",
    "integer",
    "iterable",
    "le",
    "<=",
    "lessthan",
    "lower",
    "lt",
    "<",
    "mapping",
    "ne",
    "!=",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

impl Interpreter {
    /// Whether the value passes the test `name`.
    pub(super) fn test(&self, name: &str, value: &Value, arguments: Arguments) -> Result<bool, Fault> {
        if !TESTS.contains(&name) {
            return Err(Fault::new(format!("unknown test: there is no test named {name}")));
        }
        let comparison = match name {
            "eq" | "equalto" | "==" => Some(Comparison::Equal),
            "ne" | "!=" => Some(Comparison::NotEqual),
            "lt" | "lessthan" | "<" => Some(Comparison::Less),
            "le" | "<=" => Some(Comparison::LessOrEqual),
            "gt" | "greaterthan" | ">" => Some(Comparison::Greater),
            "ge" | ">=" => Some(Comparison::GreaterOrEqual),
            "in" => Some(Comparison::In),
            _ => None,
        };
        if comparison.is_some() || matches!(name, "sameas" | "divisibleby") {
            let [other] = arguments.bind(name, ["other"])?;
            let other = required(other, name, "other")?;
            return match (comparison, name) {
                (Some(comparison), _) => operators::compare(comparison, value, &other, &self.budget),
                (None, "divisibleby") => match int(&other)? {
                    0 => Err(Fault::new("division by zero")),
                    divisor => Ok(int(value)? % divisor == 0),
                },
                (None, _) => same(value, &other),
            };
        }
        arguments.none(name)?;
        Ok(match name {
            "boolean" => matches!(value, Value::Bool(_)),
            "callable" => {
                matches!(value, Value::Function(_) | Value::Method(_) | Value::Macro(_) | Value::Loop(_))
            }
            "defined" => !matches!(value, Value::Undefined(_)),
            "undefined" => matches!(value, Value::Undefined(_)),
            "even" => int(value)? % 2 == 0,
            "odd" => int(value)? % 2 != 0,
            "false" => matches!(value, Value::Bool(false)),
            "true" => matches!(value, Value::Bool(true)),
            "float" => matches!(value, Value::Float(_)),
            "integer" => matches!(value, Value::Int(_)),
            "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
            "none" => matches!(value, Value::None),
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "iterable" => matches!(
                value,
                Value::Undefined(_)
                    | Value::Str(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::View(..)
                    | Value::Range { .. }
                    | Value::Generator(_)
                    | Value::Loop(_)
            ),
            "sequence" => matches!(
                value,
                Value::Undefined(_)
                    | Value::Str(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::Range { .. }
            ),
            "lower" | "upper" => {
                let value = text(Value::Str(self.print(value)?))?;
                let (mut lower, mut upper) = (value.as_str().chars(), value.as_str().chars());
                match name {
                    "lower" => lower.any(char::is_lowercase) && !upper.any(char::is_uppercase),
                    _ => upper.any(char::is_uppercase) && !lower.any(char::is_lowercase),
                }
            }
            "filter" => super::filters::FILTERS.contains(&text(value.clone())?.as_str()),
            _ => TESTS.contains(&text(value.clone())?.as_str()),
        })
    }
}

/// Python's `value is other`, for the values whose identity does not depend on how they were made.
fn same(value: &Value, other: &Value) -> Result<bool, Fault> {
    match (value, other) {
        (Value::None, Value::None) => Ok(true),
        (Value::Bool(value), Value::Bool(other)) => Ok(value == other),
        (Value::None | Value::Bool(_) | Value::Undefined(_), _) | (_, Value::None | Value::Bool(_)) => Ok(false),
        (value, _) => Err(Fault::new(format!("`is sameas` of a {} is not supported", value.type_name()))),
    }
}
