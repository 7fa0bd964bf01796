//! Calls of functions, methods and macros.

use std::cell::RefCell;
use std::rc::Rc;

use super::arguments::{Arguments, int, required, text};
use super::interpreter::Interpreter;
use super::value::range_length;
use super::{Fault, Value};

/// The largest range that jinja2's sandbox allows.
const MAX_RANGE: usize = 100_000;

impl Interpreter {
    pub(super) fn call(&self, callee: Value, arguments: Arguments) -> Result<Value, Fault> {
        callee.defined()?;
        match callee {
            Value::Function(name) => self.function(name, arguments),
            Value::Method(method) => self.method(&method.0, &method.1, arguments),
            Value::Macro(called) => self.call_macro(&called, arguments),
            Value::Loop(state) => {
                let Some((for_loop, scope)) = &state.recursive else {
                    return Err(Fault::new("the loop must have the marker `recursive` to be called"));
                };
                let [items] = arguments.bind("loop", ["iterable"])?;
                let items = required(items, "loop", "iterable")?;
                self.capture(|| self.for_loop(for_loop, items, scope, state.depth + 1))
            }
            other => Err(Fault::new(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    fn function(&self, name: &'static str, arguments: Arguments) -> Result<Value, Fault> {
        match name {
            "raise_exception" => {
                let [message] = arguments.bind(name, ["message"])?;
                let message = self.print(&required(message, name, "message")?)?;
                Err(Fault::new(format!("invalid operation: {}", message.as_str())))
            }
            "range" => range(arguments),
            "namespace" => {
                let mut fields = Vec::new();
                let first = arguments.positional.into_iter().next();
                let entries = match first {
                    Some(Value::Dict(dict)) => dict.entries.clone(),
                    Some(_) => return Err(Fault::new("namespace takes a dict or keyword arguments")),
                    None => Vec::new(),
                };
                for (key, value) in entries {
                    fields.push((self.print(&key)?.as_str().to_owned(), value));
                }
                fields.extend(arguments.named);
                for (_, value) in &fields {
                    value.may_be_held()?;
                }
                self.budget.allocate(fields.len() * size_of::<(String, Value)>())?;
                Ok(Value::Namespace(Rc::new(RefCell::new(fields))))
            }
            "dict" => {
                let mut entries = Vec::new();
                for value in arguments.positional {
                    match value {
                        Value::Dict(dict) => entries.extend(dict.entries.iter().cloned()),
                        other => {
                            for pair in other.elements(&self.budget)? {
                                match <[Value; 2]>::try_from(pair.elements(&self.budget)?) {
                                    Ok([key, value]) => entries.push((key, value)),
                                    Err(_) => return Err(Fault::new("dict takes a dict or a list of pairs")),
                                }
                            }
                        }
                    }
                }
                entries.extend(arguments.named.into_iter().map(|(name, value)| (Value::str(&name), value)));
                self.budget.allocate(entries.len() * size_of::<(Value, Value)>())?;
                self.new_dict(entries)
            }
            "strftime_now" => {
                let [format] = arguments.bind(name, ["format"])?;
                let format = text(required(format, name, "format")?)?;
                Ok(Value::str(&strftime_of_fixed_date(format.as_str())?))
            }
            _ => Err(Fault::new(format!("unknown function {name}"))),
        }
    }
}

fn range(arguments: Arguments) -> Result<Value, Fault> {
    let [start, stop, step] = arguments.bind("range", ["start", "stop", "step"])?;
    let start = required(start, "range", "stop")?;
    let (start, stop) = match stop {
        Some(stop) => (int(&start)?, int(&stop)?),
        None => (0, int(&start)?),
    };
    let step = match step {
        Some(step) => int(&step)?,
        None => 1,
    };
    let limit = i128::from(i64::MAX);
    if step == 0 || [start, stop, step].iter().any(|value| value.abs() > limit) {
        return Err(Fault::new("range has a step of zero or a number that is too large"));
    }
    if range_length(start, stop, step) > MAX_RANGE {
        return Err(Fault::new(format!("range too big, the sandbox blocks ranges larger than {MAX_RANGE}")));
    }
    Ok(Value::Range { start, stop, step })
}

/// Python's `strftime` at midnight of 26 July 2024.
fn strftime_of_fixed_date(format: &str) -> Result<String, Fault> {
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        // `%-d` is the day without a leading zero.
        let mut code = chars.next();
        let no_padding = code == Some('-');
        if no_padding {
            code = chars.next();
        }
        let field = match code {
            Some('Y') => "2024",
            Some('y') => "24",
            Some('m') => "07",
            Some('d' | 'e') => "26",
            Some('B') => "July",
            Some('b' | 'h') => "Jul",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('j') => "208",
            Some('u' | 'w') => "5",
            Some('H' | 'M' | 'S') => "00",
            Some('I') => "12",
            Some('p') => "AM",
            Some('F') => "2024-07-26",
            Some('T' | 'X') => "00:00:00",
            Some('D' | 'x') => "07/26/24",
            Some('c') => "Fri Jul 26 00:00:00 2024",
            Some('Z' | 'z') => "",
            Some('%') => "%",
            _ => return Err(Fault::new(format!("strftime_now does not know the format {format:?}"))),
        };
        let field = match no_padding {
            true if field == "00" => "0",
            true => field.strip_prefix('0').unwrap_or(field),
            false => field,
        };
        text.push_str(field);
    }
    Ok(text)
}
