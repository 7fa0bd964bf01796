//! The filter `tojson`: Python's `json.dumps`, with `ensure_ascii=False` unless told otherwise.

use super::arguments::{Arguments, text, truth_or};
use super::interpreter::Interpreter;
use super::operators;
use super::printing::float;
use super::text::TextBuilder;
use super::{Fault, Value};

struct Style {
    ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Interpreter {
    pub(super) fn to_json(&self, value: &Value, arguments: Arguments) -> Result<Value, Fault> {
        let [ascii, indent, separators, sort_keys] =
            arguments.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent.as_str().to_owned()),
            Some(width) => {
                let width = super::arguments::int(&width)?.clamp(0, 1000);
                Some(" ".repeat(usize::try_from(width).unwrap_or_default()))
            }
        };
        let (item_separator, key_separator) = match separators {
            None | Some(Value::None) if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None | Some(Value::None) => (", ".to_owned(), ": ".to_owned()),
            Some(pair) => match <[Value; 2]>::try_from(pair.elements(&self.budget)?) {
                Ok([item, key]) => (text(item)?.as_str().to_owned(), text(key)?.as_str().to_owned()),
                Err(_) => return Err(Fault::new("tojson needs two separators")),
            },
        };
        let (ascii, sort_keys) = (truth_or(ascii, false), truth_or(sort_keys, false));
        let style = Style { ascii, indent, item_separator, key_separator, sort_keys };
        let mut json = TextBuilder::default();
        self.write_json(value, &style, 0, &mut json)?;
        Ok(Value::Str(json.finish()))
    }

    fn write_json(&self, value: &Value, style: &Style, level: usize, json: &mut TextBuilder) -> Result<(), Fault> {
        self.budget.allocate(8)?;
        match value {
            Value::None => json.push_str("null"),
            Value::Bool(value) => json.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => json.push_str(&value.to_string()),
            Value::Float(value) => json.push_str(&json_float(*value)),
            Value::Str(text) => {
                self.budget.allocate(text.size())?;
                json.push(&text.rewritten(quoted(text.as_str(), style.ascii)));
            }
            Value::List(items) | Value::Tuple(items) => {
                let write = |item: &Value, json: &mut TextBuilder| self.write_json(item, style, level + 1, json);
                self.write_items(["[", "]"], &items.items, style, level, json, write)?;
            }
            Value::Dict(dict) => {
                let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
                if style.sort_keys {
                    for pair in dict.entries.windows(2) {
                        operators::order(&pair[0].0, &pair[1].0, &self.budget)?;
                    }
                    let order = |left: &Value, right: &Value| operators::order(left, right, &self.budget);
                    entries.sort_by(|left, right| order(&left.0, &right.0).unwrap_or(std::cmp::Ordering::Equal));
                }
                let write = |entry: &&(Value, Value), json: &mut TextBuilder| {
                    json.push_str(&quoted(&key_text(&entry.0)?, style.ascii));
                    json.push_str(&style.key_separator);
                    self.write_json(&entry.1, style, level + 1, json)
                };
                self.write_items(["{", "}"], &entries, style, level, json, write)?;
            }
            other => {
                return Err(Fault::new(format!("object of type {} is not JSON serializable", other.type_name())));
            }
        }
        Ok(())
    }

    fn write_items<T>(
        &self,
        [open, close]: [&str; 2],
        items: &[T],
        style: &Style,
        level: usize,
        json: &mut TextBuilder,
        write: impl Fn(&T, &mut TextBuilder) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let new_line = |json: &mut TextBuilder, level: usize| {
            let Some(indent) = &style.indent else { return Ok(()) };
            self.budget.allocate(indent.len() * level + 1)?;
            json.push_str("\n");
            json.push_str(&indent.repeat(level));
            Ok(())
        };
        json.push_str(open);
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.budget.allocate(style.item_separator.len())?;
                json.push_str(&style.item_separator);
            }
            new_line(json, level + 1)?;
            write(item, json)?;
        }
        if !items.is_empty() {
            new_line(json, level)?;
        }
        json.push_str(close);
        Ok(())
    }
}

/// A key as `json.dumps` writes it.
fn key_text(key: &Value) -> Result<String, Fault> {
    match key {
        Value::Str(text) => Ok(text.as_str().to_owned()),
        Value::Int(value) => Ok(value.to_string()),
        Value::Float(value) => Ok(json_float(*value)),
        Value::Bool(value) => Ok(value.to_string()),
        Value::None => Ok("null".to_owned()),
        other => Err(Fault::new(format!("keys must be str, int, float, bool or None, not {}", other.type_name()))),
    }
}

fn json_float(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => float(value),
    }
}

fn quoted(string: &str, ascii: bool) -> String {
    let mut json = String::with_capacity(string.len() + 2);
    json.push('"');
    for c in string.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\x08' => json.push_str("\\b"),
            '\x0c' => json.push_str("\\f"),
            c if c < ' ' || (ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    json.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => json.push(c),
        }
    }
    json.push('"');
    json
}
