//! Operators, with Python's rules.

use std::cmp::Ordering;

use super::ast::{Arithmetic, Comparison};
use super::budget::Budget;
use super::interpreter::Interpreter;
use super::text::{Text, TextBuilder};
use super::value::Sequence;
use super::{Fault, Value};

impl Interpreter {
    pub(super) fn arithmetic(&self, operator: Arithmetic, left: &Value, right: &Value) -> Result<Value, Fault> {
        left.defined()?;
        right.defined()?;
        match (operator, left, right) {
            (Arithmetic::Add, Value::Str(left), Value::Str(right)) => {
                self.budget.allocate(left.size() + right.size())?;
                let mut text = TextBuilder::default();
                text.push(left);
                text.push(right);
                Ok(Value::Str(text.finish()))
            }
            (Arithmetic::Add, Value::List(left), Value::List(right)) => Value::list(self.joined(left, right)?),
            (Arithmetic::Add, Value::Tuple(left), Value::Tuple(right)) => Value::tuple(self.joined(left, right)?),
            (Arithmetic::Modulo, Value::Str(format), values) => Ok(Value::Str(self.percent_format(format, values)?)),
            (Arithmetic::Multiply, Value::Str(text), count) | (Arithmetic::Multiply, count, Value::Str(text))
                if count.as_int().is_some() =>
            {
                Ok(Value::Str(self.repeated_text(text, count.as_int().unwrap_or_default())?))
            }
            (Arithmetic::Multiply, Value::List(items), count) | (Arithmetic::Multiply, count, Value::List(items))
                if count.as_int().is_some() =>
            {
                Value::list(self.repeated(items, count.as_int().unwrap_or_default())?)
            }
            (Arithmetic::Multiply, Value::Tuple(items), count) | (Arithmetic::Multiply, count, Value::Tuple(items))
                if count.as_int().is_some() =>
            {
                Value::tuple(self.repeated(items, count.as_int().unwrap_or_default())?)
            }
            _ => numbers(operator, left, right),
        }
    }

    fn joined(&self, left: &Sequence, right: &Sequence) -> Result<Vec<Value>, Fault> {
        self.budget.allocate((left.items.len() + right.items.len()) * size_of::<Value>())?;
        Ok(left.items.iter().chain(&right.items).cloned().collect())
    }

    fn times(&self, count: i128, size: usize) -> Result<usize, Fault> {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        self.budget.allocate(count.saturating_mul(size))?;
        Ok(count)
    }

    fn repeated_text(&self, text: &Text, count: i128) -> Result<Text, Fault> {
        let mut repeated = TextBuilder::default();
        if text.as_str().is_empty() {
            return Ok(repeated.finish());
        }
        for _ in 0..self.times(count, text.size())? {
            repeated.push(text);
        }
        Ok(repeated.finish())
    }

    fn repeated(&self, items: &Sequence, count: i128) -> Result<Vec<Value>, Fault> {
        let items = &items.items;
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let count = self.times(count, items.len() * size_of::<Value>())?;
        Ok(items.iter().cycle().take(items.len() * count).cloned().collect())
    }
}

fn numbers(operator: Arithmetic, left: &Value, right: &Value) -> Result<Value, Fault> {
    let sign = match operator {
        Arithmetic::Add => "+",
        Arithmetic::Subtract => "-",
        Arithmetic::Multiply => "*",
        Arithmetic::Divide => "/",
        Arithmetic::FloorDivide => "//",
        Arithmetic::Modulo => "%",
        Arithmetic::Power => "**",
    };
    let unsupported = || {
        let (left, right) = (left.type_name(), right.type_name());
        Fault::new(format!("unsupported operand types for {sign}: '{left}' and '{right}'"))
    };
    let overflow = || Fault::new(format!("a number is too large for {sign}"));
    let by_zero = || Fault::new("division by zero");
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        let result = match operator {
            Arithmetic::Add => left.checked_add(right),
            Arithmetic::Subtract => left.checked_sub(right),
            Arithmetic::Multiply => left.checked_mul(right),
            Arithmetic::Divide if right == 0 => return Err(by_zero()),
            Arithmetic::Divide => return Ok(Value::Float(left as f64 / right as f64)),
            Arithmetic::FloorDivide | Arithmetic::Modulo if right == 0 => return Err(by_zero()),
            // Python rounds down; the remainder has the divisor's sign.
            Arithmetic::FloorDivide => {
                let down = i128::from(left % right != 0 && (left < 0) != (right < 0));
                left.checked_div(right).map(|quotient| quotient - down)
            }
            Arithmetic::Modulo => left
                .checked_rem(right)
                .map(|rest| if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest }),
            Arithmetic::Power if right < 0 => return Ok(Value::Float((left as f64).powf(right as f64))),
            Arithmetic::Power => u32::try_from(right).ok().and_then(|right| left.checked_pow(right)),
        };
        return result.map(Value::Int).ok_or_else(overflow);
    }
    let (Some(left), Some(right)) = (left.as_float(), right.as_float()) else { return Err(unsupported()) };
    Ok(Value::Float(match operator {
        Arithmetic::Add => left + right,
        Arithmetic::Subtract => left - right,
        Arithmetic::Multiply => left * right,
        Arithmetic::Divide | Arithmetic::FloorDivide | Arithmetic::Modulo if right == 0.0 => return Err(by_zero()),
        Arithmetic::Divide => left / right,
        Arithmetic::FloorDivide => (left / right).floor(),
        Arithmetic::Modulo => {
            let rest = left % right;
            if rest != 0.0 && (rest < 0.0) != (right < 0.0) { rest + right } else { rest }
        }
        Arithmetic::Power => left.powf(right),
    }))
}

pub(super) fn negative(value: &Value) -> Result<Value, Fault> {
    value.defined()?;
    match (value, value.as_int()) {
        (_, Some(int)) => int.checked_neg().map(Value::Int).ok_or_else(|| Fault::new("a number is too large for -")),
        (Value::Float(float), _) => Ok(Value::Float(-float)),
        _ => Err(Fault::new(format!("bad operand type for unary -: '{}'", value.type_name()))),
    }
}

pub(super) fn positive(value: &Value) -> Result<Value, Fault> {
    value.defined()?;
    match (value, value.as_int()) {
        (_, Some(int)) => Ok(Value::Int(int)),
        (Value::Float(_), _) => Ok(value.clone()),
        _ => Err(Fault::new(format!("bad operand type for unary +: '{}'", value.type_name()))),
    }
}

pub(super) fn compare(comparison: Comparison, left: &Value, right: &Value, budget: &Budget) -> Result<bool, Fault> {
    match comparison {
        Comparison::Equal => equal(left, right, budget),
        Comparison::NotEqual => Ok(!equal(left, right, budget)?),
        Comparison::In => contains(right, left, budget),
        Comparison::NotIn => Ok(!contains(right, left, budget)?),
        _ => {
            left.defined()?;
            right.defined()?;
            let is_nan = |value: &Value| matches!(value, Value::Float(float) if float.is_nan());
            if is_nan(left) || is_nan(right) {
                return Ok(false);
            }
            let order = order(left, right, budget)?;
            Ok(match comparison {
                Comparison::Less => order.is_lt(),
                Comparison::LessOrEqual => order.is_le(),
                Comparison::Greater => order.is_gt(),
                _ => order.is_ge(),
            })
        }
    }
}

/// Python's `left == right`.
pub(super) fn equal(left: &Value, right: &Value, budget: &Budget) -> Result<bool, Fault> {
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Ok(left == right);
    }
    if let (Some(left), Some(right)) = (left.as_float(), right.as_float()) {
        return Ok(left == right);
    }
    match (left, right) {
        (Value::None, Value::None) | (Value::Undefined(_), Value::Undefined(_)) => Ok(true),
        (Value::Str(left), Value::Str(right)) => {
            budget.scan(left.as_str().len().min(right.as_str().len()))?;
            Ok(left.as_str() == right.as_str())
        }
        (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => {
            if left.items.len() != right.items.len() {
                return Ok(false);
            }
            budget.scan(64 * left.items.len())?;
            for (left, right) in left.items.iter().zip(&right.items) {
                if !equal(left, right, budget)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Value::Dict(left), Value::Dict(right)) => {
            if left.entries.len() != right.entries.len() {
                return Ok(false);
            }
            for (key, value) in &left.entries {
                budget.scan(64 * right.entries.len())?;
                let mut found = false;
                for (other, other_value) in &right.entries {
                    if equal(key, other, budget)? {
                        found = equal(value, other_value, budget)?;
                        break;
                    }
                }
                if !found {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The order of two values of the same kind.
pub(super) fn order(left: &Value, right: &Value, budget: &Budget) -> Result<Ordering, Fault> {
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Ok(left.cmp(&right));
    }
    if let (Some(left), Some(right)) = (left.as_float(), right.as_float()) {
        return Ok(left.partial_cmp(&right).unwrap_or(Ordering::Equal));
    }
    match (left, right) {
        (Value::Str(left), Value::Str(right)) => {
            budget.scan(left.as_str().len().min(right.as_str().len()))?;
            Ok(left.as_str().cmp(right.as_str()))
        }
        (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => {
            budget.scan(64 * left.items.len().min(right.items.len()))?;
            for (left, right) in left.items.iter().zip(&right.items) {
                if !equal(left, right, budget)? {
                    return order(left, right, budget);
                }
            }
            Ok(left.items.len().cmp(&right.items.len()))
        }
        _ => {
            let (left, right) = (left.type_name(), right.type_name());
            Err(Fault::new(format!("'<' not supported between instances of '{left}' and '{right}'")))
        }
    }
}

/// Python's `item in container`.
pub(super) fn contains(container: &Value, item: &Value, budget: &Budget) -> Result<bool, Fault> {
    match (container, item) {
        (Value::Str(text), Value::Str(part)) => {
            budget.scan(text.as_str().len())?;
            Ok(text.as_str().contains(part.as_str()))
        }
        (Value::Str(_), other) => {
            other.defined()?;
            Err(Fault::new(format!("'in <string>' requires string as left operand, not {}", other.type_name())))
        }
        (Value::Dict(dict), Value::Str(name)) => {
            budget.scan(64 * dict.entries.len())?;
            Ok(dict.get(name.as_str()).is_some())
        }
        (Value::Namespace(_) | Value::Macro(_) | Value::Function(_) | Value::Method(_) | Value::Loop(_), _) => {
            Err(Fault::new(format!("argument of type '{}' is not iterable", container.type_name())))
        }
        (container, item) => {
            for element in container.elements(budget)? {
                budget.step()?;
                if equal(&element, item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}
