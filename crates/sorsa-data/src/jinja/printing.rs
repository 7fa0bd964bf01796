//! Python's `str(value)` and `repr(value)`.

use super::interpreter::Interpreter;
use super::text::{Text, TextBuilder};
use super::{Fault, Value};

impl Interpreter {
    /// Python's `str(value)`; nothing for an undefined value.
    pub(super) fn print(&self, value: &Value) -> Result<Text, Fault> {
        match value {
            Value::Str(text) => Ok(text.clone()),
            Value::Undefined(_) => Ok(Text::plain("")),
            other => {
                let mut text = TextBuilder::default();
                self.represent(other, &mut text)?;
                Ok(text.finish())
            }
        }
    }

    /// Appends Python's `repr(value)`.
    pub(super) fn represent(&self, value: &Value, text: &mut TextBuilder) -> Result<(), Fault> {
        self.budget.allocate(8)?;
        match value {
            Value::Undefined(_) => text.push_str("Undefined"),
            Value::None => text.push_str("None"),
            Value::Bool(true) => text.push_str("True"),
            Value::Bool(false) => text.push_str("False"),
            Value::Int(value) => text.push_str(&value.to_string()),
            Value::Float(value) => text.push_str(&float(*value)),
            Value::Str(string) => {
                self.budget.allocate(string.size())?;
                text.push(&string.rewritten(quoted(string.as_str())));
            }
            Value::List(items) => self.represent_items("[", &items.items, "]", text)?,
            Value::Tuple(items) if items.items.len() == 1 => self.represent_items("(", &items.items, ",)", text)?,
            Value::Tuple(items) => self.represent_items("(", &items.items, ")", text)?,
            Value::View(name, items) => {
                text.push_str(name);
                self.represent_items("([", &items.items, "])", text)?;
            }
            Value::Dict(dict) => {
                text.push_str("{");
                for (at, (key, value)) in dict.entries.iter().enumerate() {
                    text.push_str(if at > 0 { ", " } else { "" });
                    self.represent(key, text)?;
                    text.push_str(": ");
                    self.represent(value, text)?;
                }
                text.push_str("}");
            }
            Value::Range { start, stop, step: 1 } => text.push_str(&format!("range({start}, {stop})")),
            Value::Range { start, stop, step } => text.push_str(&format!("range({start}, {stop}, {step})")),
            other => return Err(Fault::new(format!("a {} cannot be printed", other.type_name()))),
        }
        Ok(())
    }

    fn represent_items(&self, open: &str, items: &[Value], close: &str, text: &mut TextBuilder) -> Result<(), Fault> {
        text.push_str(open);
        for (at, item) in items.iter().enumerate() {
            text.push_str(if at > 0 { ", " } else { "" });
            self.represent(item, text)?;
        }
        text.push_str(close);
        Ok(())
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Python's `repr` of a string.
fn quoted(string: &str) -> String {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    let mut text = String::with_capacity(string.len() + 2);
    text.push(quote);
    for c in string.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            _ if c == quote => {
                text.push('\\');
                text.push(c);
            }
            _ if is_printable(c) => text.push(c),
            _ => match u32::from(c) {
                code @ 0..=0xff => text.push_str(&format!("\\x{code:02x}")),
                code @ 0x100..=0xffff => text.push_str(&format!("\\u{code:04x}")),
                code => text.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    text.push(quote);
    text
}

/// Python's `str.isprintable` of a character, for all but unassigned ones.
pub(super) fn is_printable(c: char) -> bool {
    let is_format = matches!(u32::from(c), 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f
        | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe000..=0xf8ff | 0xf0000.. | 0xe0001..=0xe007f);
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_format)
}
