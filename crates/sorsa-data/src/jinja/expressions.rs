//! Evaluates expressions.

use std::rc::Rc;

use super::arguments::Arguments;
use super::ast::{CallArguments, Comparison, Expr, FilterCall};
use super::interpreter::{Interpreter, LoopState, Scope};
use super::methods::method_of;
use super::operators;
use super::text::TextBuilder;
use super::value::{Dict, range_length};
use super::{Fault, Value};

/// Functions that every template has.
const FUNCTIONS: [&str; 4] = ["range", "dict", "namespace", "raise_exception"];

impl Interpreter {
    pub(super) fn evaluate(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value, Fault> {
        self.budget.step()?;
        self.budget.nested(|| match expr {
            Expr::None => Ok(Value::None),
            Expr::Bool(value) => Ok(Value::Bool(*value)),
            Expr::Int(value) => Ok(Value::Int(*value)),
            Expr::Float(value) => Ok(Value::Float(*value)),
            Expr::Str(text) => {
                self.budget.allocate(text.len())?;
                Ok(Value::str(text))
            }
            Expr::Name(name) => Ok(self.name(name, scope)),
            Expr::List(items) => Value::list(self.values(items, scope)?),
            Expr::Tuple(items) => Value::tuple(self.values(items, scope)?),
            Expr::Dict(entries) => self.dict(entries, scope),
            Expr::Attribute(object, name) => self.attribute(&self.evaluate(object, scope)?, name),
            Expr::Item(object, key) => self.item(&self.evaluate(object, scope)?, &self.evaluate(key, scope)?),
            Expr::Slice(object, bounds) => self.slice(object, bounds, scope),
            Expr::Call(callee, arguments) => {
                let callee = self.evaluate(callee, scope)?;
                let arguments = self.arguments(arguments, scope)?;
                self.call(callee, arguments)
            }
            Expr::Filter(value, filter) => {
                let value = self.evaluate(value, scope)?;
                let arguments = self.arguments(&filter.arguments, scope)?;
                self.filter(&filter.name, value, arguments)
            }
            Expr::Test(value, test) => self.tested(value, test, scope),
            Expr::Not(value) => Ok(Value::Bool(!self.evaluate(value, scope)?.is_true())),
            Expr::Negative(value) => operators::negative(&self.evaluate(value, scope)?),
            Expr::Positive(value) => operators::positive(&self.evaluate(value, scope)?),
            Expr::Arithmetic(operator, left, right) => {
                let left = self.evaluate(left, scope)?;
                let right = self.evaluate(right, scope)?;
                self.arithmetic(*operator, &left, &right)
            }
            Expr::Concat(parts) => self.concat(parts, scope),
            Expr::Compare(left, comparisons) => self.compare(left, comparisons, scope),
            Expr::And(left, right) => {
                let left = self.evaluate(left, scope)?;
                if left.is_true() { self.evaluate(right, scope) } else { Ok(left) }
            }
            Expr::Or(left, right) => {
                let left = self.evaluate(left, scope)?;
                if left.is_true() { Ok(left) } else { self.evaluate(right, scope) }
            }
            Expr::Conditional { test, then, otherwise } => match (self.evaluate(test, scope)?.is_true(), otherwise) {
                (true, _) => self.evaluate(then, scope),
                (false, Some(otherwise)) => self.evaluate(otherwise, scope),
                (false, None) => Ok(Value::undefined("the `if` expression has no `else`")),
            },
        })
    }

    fn name(&self, name: &str, scope: &Scope) -> Value {
        match (scope.get(name), FUNCTIONS.into_iter().find(|function| *function == name)) {
            (Some(value), _) => value,
            (None, Some(function)) => Value::Function(function),
            (None, None) => Value::undefined(format!("'{name}' is undefined")),
        }
    }

    fn values(&self, items: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>, Fault> {
        self.budget.allocate(items.len() * size_of::<Value>())?;
        items.iter().map(|item| self.evaluate(item, scope)).collect()
    }

    fn dict(&self, entries: &[(Expr, Expr)], scope: &Rc<Scope>) -> Result<Value, Fault> {
        self.budget.allocate(entries.len() * size_of::<(Value, Value)>())?;
        let mut evaluated = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            evaluated.push((self.evaluate(key, scope)?, self.evaluate(value, scope)?));
        }
        self.new_dict(evaluated)
    }

    /// A dict; of entries with the same key, the last one counts.
    pub(super) fn new_dict(&self, entries: Vec<(Value, Value)>) -> Result<Value, Fault> {
        let mut unique: Vec<(Value, Value)> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            match self.position(&unique, &key)? {
                Some(at) => unique[at].1 = value,
                None => unique.push((key, value)),
            }
        }
        Value::dict(unique)
    }

    /// Where an entry with this key stands.
    fn position(&self, entries: &[(Value, Value)], key: &Value) -> Result<Option<usize>, Fault> {
        if matches!(key, Value::List(_) | Value::Dict(_)) {
            return Err(Fault::new(format!("unhashable type: '{}'", key.type_name())));
        }
        self.budget.scan(entries.len())?;
        for (at, (known, _)) in entries.iter().enumerate() {
            if operators::equal(known, key, &self.budget)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    pub(super) fn dict_get(&self, dict: &Dict, key: &Value) -> Result<Option<Value>, Fault> {
        let position = self.position(&dict.entries, key)?;
        Ok(position.map(|at| dict.entries[at].1.clone()))
    }

    pub(super) fn arguments(&self, arguments: &CallArguments, scope: &Rc<Scope>) -> Result<Arguments, Fault> {
        let mut positional = self.values(&arguments.positional, scope)?;
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, value) in &arguments.named {
            named.push((name.clone(), self.evaluate(value, scope)?));
        }
        if let Some(list) = &arguments.list {
            positional.extend(self.evaluate(list, scope)?.elements(&self.budget)?);
        }
        if let Some(dict) = &arguments.dict {
            let Value::Dict(dict) = self.evaluate(dict, scope)? else {
                return Err(Fault::new("the argument after ** must be a mapping"));
            };
            self.budget.allocate(dict.entries.len() * size_of::<(String, Value)>())?;
            for (key, value) in &dict.entries {
                let Value::Str(name) = key else { return Err(Fault::new("keywords must be strings")) };
                named.push((name.as_str().to_owned(), value.clone()));
            }
        }
        Ok(Arguments { positional, named })
    }

    fn tested(&self, value: &Expr, test: &FilterCall, scope: &Rc<Scope>) -> Result<Value, Fault> {
        let value = self.evaluate(value, scope)?;
        let arguments = self.arguments(&test.arguments, scope)?;
        Ok(Value::Bool(self.test(&test.name, &value, arguments)?))
    }

    fn concat(&self, parts: &[Expr], scope: &Rc<Scope>) -> Result<Value, Fault> {
        let mut text = TextBuilder::default();
        for part in parts {
            let part = self.print(&self.evaluate(part, scope)?)?;
            self.budget.allocate(part.size())?;
            text.push(&part);
        }
        Ok(Value::Str(text.finish()))
    }

    /// `a < b < c` is `a < b and b < c`.
    fn compare(&self, left: &Expr, comparisons: &[(Comparison, Expr)], scope: &Rc<Scope>) -> Result<Value, Fault> {
        let mut left = self.evaluate(left, scope)?;
        for (comparison, right) in comparisons {
            let right = self.evaluate(right, scope)?;
            if !operators::compare(*comparison, &left, &right, &self.budget)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// `object.name`: Python's attribute, otherwise the item of that name.
    pub(super) fn attribute(&self, object: &Value, name: &str) -> Result<Value, Fault> {
        object.defined()?;
        if let Some(method) = method_of(object, name) {
            return Ok(method);
        }
        match object {
            Value::Dict(dict) => {
                self.budget.scan(dict.entries.len())?;
                Ok(dict.get(name).cloned().unwrap_or_else(|| missing("dict", name)))
            }
            Value::Namespace(fields) => {
                let fields = fields.borrow();
                let found = fields.iter().find(|(known, _)| known == name);
                Ok(found.map_or_else(|| missing("namespace", name), |(_, value)| value.clone()))
            }
            Value::Loop(state) => Ok(loop_attribute(state, name)),
            Value::Macro(called) if name == "name" => Ok(Value::str(&called.definition.name)),
            other => Ok(missing(other.type_name(), name)),
        }
    }

    /// `object[key]`: the item, otherwise Python's attribute of that name.
    pub(super) fn item(&self, object: &Value, key: &Value) -> Result<Value, Fault> {
        object.defined()?;
        let found = match (object, key.as_int()) {
            (Value::Dict(dict), _) => self.dict_get(dict, key)?,
            (Value::List(items) | Value::Tuple(items), Some(index)) => {
                index_of(index, items.items.len()).map(|index| items.items[index].clone())
            }
            (Value::Range { start, stop, step }, Some(index)) => index_of(index, range_length(*start, *stop, *step))
                .map(|index| Value::Int(start + index as i128 * step)),
            (Value::Str(text), Some(index)) => {
                self.budget.scan(text.as_str().len())?;
                let string = text.as_str();
                let length = if index < 0 { string.chars().count() } else { usize::MAX };
                let index = index_of(index, length);
                let found = index.and_then(|index| string.char_indices().nth(index));
                found.map(|(at, c)| Value::Str(text.slice(at..at + c.len_utf8())))
            }
            _ => None,
        };
        match (found, key) {
            (Some(value), _) => Ok(value),
            (None, Value::Str(name)) if !matches!(object, Value::Dict(_)) => self.attribute(object, name.as_str()),
            (None, Value::Str(name)) => {
                Ok(method_of(object, name.as_str()).unwrap_or_else(|| missing("dict", name.as_str())))
            }
            (None, _) => Ok(missing(object.type_name(), &format!("{key:?}").chars().take(40).collect::<String>())),
        }
    }

    fn slice(&self, object: &Expr, bounds: &[Option<Expr>; 3], scope: &Rc<Scope>) -> Result<Value, Fault> {
        let object = self.evaluate(object, scope)?;
        let mut values = [None; 3];
        for (value, bound) in values.iter_mut().zip(bounds) {
            if let Some(bound) = bound {
                *value = match self.evaluate(bound, scope)? {
                    Value::None => None,
                    bound => Some(super::arguments::int(&bound)?),
                };
            }
        }
        object.defined()?;
        let slice = |length: usize| slice_indices(values, length);
        match &object {
            Value::Str(text) => {
                let string = text.as_str();
                self.budget.allocate(string.len())?;
                let starts: Vec<usize> = string.char_indices().map(|(at, _)| at).chain([string.len()]).collect();
                let indices = slice(starts.len() - 1)?;
                if let (Some(&first), Some(&last), 1) = (indices.first(), indices.last(), values[2].unwrap_or(1)) {
                    return Ok(Value::Str(text.slice(starts[first]..starts[last + 1])));
                }
                let mut picked = TextBuilder::default();
                for index in indices {
                    picked.push(&text.slice(starts[index]..starts[index + 1]));
                }
                Ok(Value::Str(picked.finish()))
            }
            Value::List(items) | Value::Tuple(items) => {
                let indices = slice(items.items.len())?;
                self.budget.allocate(indices.len() * size_of::<Value>())?;
                let picked = indices.into_iter().map(|index| items.items[index].clone()).collect();
                if matches!(object, Value::Tuple(_)) { Value::tuple(picked) } else { Value::list(picked) }
            }
            other => Err(Fault::new(format!("'{}' object cannot be sliced", other.type_name()))),
        }
    }
}

fn missing(what: &str, name: &str) -> Value {
    Value::undefined(format!("'{what}' has no '{name}'"))
}

fn index_of(index: i128, length: usize) -> Option<usize> {
    let index = if index < 0 { index + length as i128 } else { index };
    usize::try_from(index).ok().filter(|index| *index < length)
}

/// The indices of Python's slice `[start:stop:step]` of a sequence.
fn slice_indices([start, stop, step]: [Option<i128>; 3], length: usize) -> Result<Vec<usize>, Fault> {
    let length = length as i128;
    let step = step.unwrap_or(1).clamp(-length - 1, length + 1);
    if step == 0 {
        return Err(Fault::new("slice step cannot be zero"));
    }
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(bound) if bound < 0 => (bound + length).max(lowest),
        Some(bound) => bound.min(highest),
    };
    let (first, end) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (mut at, stop) = (bound(start, first), bound(stop, end));
    let mut indices = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        indices.push(at as usize);
        at += step;
    }
    Ok(indices)
}

fn loop_attribute(state: &LoopState, name: &str) -> Value {
    let (index, length) = (state.index.get(), state.items.len());
    let int = |value: usize| Value::Int(value as i128);
    let neighbour = |at: Option<usize>, which: &str| match at.and_then(|at| state.items.get(at)) {
        Some(item) => item.clone(),
        None => Value::undefined(format!("there is no {which} item")),
    };
    match name {
        "index" => int(index + 1),
        "index0" => int(index),
        "revindex" => int(length - index),
        "revindex0" => int(length - index - 1),
        "first" => Value::Bool(index == 0),
        "last" => Value::Bool(index + 1 == length),
        "length" => int(length),
        "depth" => int(state.depth + 1),
        "depth0" => int(state.depth),
        "previtem" => neighbour(index.checked_sub(1), "previous"),
        "nextitem" => neighbour(Some(index + 1), "next"),
        _ => missing("loop", name),
    }
}
