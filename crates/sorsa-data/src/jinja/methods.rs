//! Which methods values have, and those of dicts, lists and loops.

use std::rc::Rc;

use super::arguments::{Arguments, required};
use super::interpreter::Interpreter;
use super::operators;
use super::string_methods::STRING_METHODS;
use super::value::Sequence;
use super::{Fault, Value};

const DICT_METHODS: [&str; 5] = ["get", "items", "keys", "values", "copy"];
const LIST_METHODS: [&str; 3] = ["count", "index", "copy"];
/// Methods that change a value, which jinja2's sandbox forbids.
const FORBIDDEN: [&str; 12] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "__setitem__",
];

/// The method `name` of a value, if it has one.
pub(super) fn method_of(object: &Value, name: &str) -> Option<Value> {
    let known = match object {
        Value::Str(_) => STRING_METHODS.contains(&name),
        Value::Dict(_) => DICT_METHODS.contains(&name) || FORBIDDEN.contains(&name) && !is_list_only(name),
        Value::List(_) => LIST_METHODS.contains(&name) || FORBIDDEN.contains(&name) && !is_dict_only(name),
        Value::Tuple(_) => name == "count" || name == "index",
        Value::Loop(_) => name == "cycle" || name == "changed",
        _ => false,
    };
    known.then(|| Value::Method(Rc::new((object.clone(), name.to_owned()))))
}

fn is_list_only(name: &str) -> bool {
    matches!(name, "append" | "extend" | "insert" | "remove" | "reverse" | "sort")
}

fn is_dict_only(name: &str) -> bool {
    matches!(name, "popitem" | "setdefault" | "update")
}

impl Interpreter {
    pub(super) fn method(&self, object: &Value, name: &str, arguments: Arguments) -> Result<Value, Fault> {
        match object {
            Value::Str(text) => self.string_method(text, name, arguments),
            _ if FORBIDDEN.contains(&name) => {
                Err(Fault::new(format!("access to method '{name}' of a {} is unsafe", object.type_name())))
            }
            Value::Dict(dict) => {
                self.budget.allocate(dict.entries.len() * 2 * size_of::<Value>())?;
                match name {
                    "get" => {
                        let [key, default] = arguments.bind("get", ["key", "default"])?;
                        let found = self.dict_get(dict, &required(key, "get", "key")?)?;
                        Ok(found.or(default).unwrap_or(Value::None))
                    }
                    "copy" => {
                        arguments.none("copy")?;
                        Ok(object.clone())
                    }
                    _ => {
                        arguments.none(name)?;
                        let mut items = Vec::with_capacity(dict.entries.len());
                        for (key, value) in &dict.entries {
                            items.push(match name {
                                "keys" => key.clone(),
                                "values" => value.clone(),
                                _ => Value::tuple(vec![key.clone(), value.clone()])?,
                            });
                        }
                        let view = match name {
                            "keys" => "dict_keys",
                            "values" => "dict_values",
                            _ => "dict_items",
                        };
                        Ok(Value::View(view, Rc::new(Sequence::new(items)?)))
                    }
                }
            }
            Value::List(items) | Value::Tuple(items) => {
                if name == "copy" {
                    arguments.none("copy")?;
                    return Ok(object.clone());
                }
                let [value] = arguments.bind(name, ["value"])?;
                let value = required(value, name, "value")?;
                let mut count = 0;
                for (at, item) in items.items.iter().enumerate() {
                    self.budget.step()?;
                    if operators::equal(item, &value, &self.budget)? {
                        if name == "index" {
                            return Ok(Value::Int(at as i128));
                        }
                        count += 1;
                    }
                }
                if name == "index" { Err(Fault::new("the value is not in the list")) } else { Ok(Value::Int(count)) }
            }
            Value::Loop(state) if name == "cycle" => {
                let values = arguments.positional;
                match values.is_empty() {
                    true => Err(Fault::new("no items for cycling given")),
                    false => Ok(values[state.index.get() % values.len()].clone()),
                }
            }
            Value::Loop(state) => Ok(Value::Bool(self.loop_changed(state, arguments.positional)?)),
            other => Err(Fault::new(format!("{} has no method named {name}", other.type_name()))),
        }
    }
}
