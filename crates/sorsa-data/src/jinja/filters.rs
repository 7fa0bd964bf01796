//! Filters: `value | name(arguments)`.

use super::arguments::{Arguments, int, int_or, required, text, text_or, truth_or};
use super::interpreter::Interpreter;
use super::lexer::is_python_space;
use super::operators;
use super::string_methods::{capitalized, stripped};
use super::text::{Text, TextBuilder};
use super::{Fault, Value};

/// The names of all filters.
pub(super) const FILTERS: [&str; 46] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
];

impl Interpreter {
    /// The value that the filter `name` makes of `value`.
    pub(super) fn filter(&self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        match name {
            "tojson" => self.to_json(&value, arguments),
            "default" | "d" => {
                let [default, boolean] = arguments.bind(name, ["default_value", "boolean"])?;
                let replaced = matches!(value, Value::Undefined(_)) || (truth_or(boolean, false) && !value.is_true());
                Ok(if replaced { default.unwrap_or_else(|| Value::str("")) } else { value })
            }
            "length" | "count" => {
                arguments.none(name)?;
                if let Value::Str(text) = &value {
                    self.budget.scan(text.as_str().len())?;
                }
                Ok(Value::Int(value.length()? as i128))
            }
            "string" | "safe" => {
                arguments.none(name)?;
                Ok(Value::Str(self.print(&value)?))
            }
            "map" => self.map(value, arguments),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, value, arguments),
            "first" | "last" | "list" | "reverse" | "min" | "max" | "sum" | "sort" | "unique" | "groupby"
            | "dictsort" | "items" | "batch" | "slice" | "join" => self.list_filter(name, value, arguments),
            "abs" | "int" | "float" | "round" => self.number_filter(name, value, arguments),
            "attr" => {
                let [attribute] = arguments.bind(name, ["name"])?;
                let attribute = text(required(attribute, name, "name")?)?;
                match value {
                    // Unlike `value.name`, it looks up no items.
                    Value::Dict(_) => Ok(super::methods::method_of(&value, attribute.as_str())
                        .unwrap_or_else(|| Value::undefined("no such attribute"))),
                    other => self.attribute(&other, attribute.as_str()),
                }
            }
            _ if FILTERS.contains(&name) => self.text_filter(name, value, arguments),
            _ => Err(Fault::new(format!("unknown filter: there is no filter named {name}"))),
        }
    }

    fn text_filter(&self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        let string = self.print(&value)?;
        let whole = string.as_str();
        self.budget.allocate(2 * string.size())?;
        match name {
            "trim" => {
                let [characters] = arguments.bind(name, ["chars"])?;
                let characters = match characters {
                    None | Some(Value::None) => None,
                    Some(value) => Some(text(value)?),
                };
                Ok(Value::Str(stripped(&string, characters.as_ref(), true, true)))
            }
            "replace" => {
                let [old, new, count] = arguments.bind(name, ["old", "new", "count"])?;
                let old = self.print(&required(old, name, "old")?)?;
                let new = self.print(&required(new, name, "new")?)?;
                Ok(Value::Str(self.replaced(&string, &old, &new, int_or(count, -1)?)?))
            }
            "format" => {
                let values = if arguments.named.is_empty() {
                    Value::tuple(arguments.positional)?
                } else {
                    let entries = arguments.named.into_iter().map(|(name, value)| (Value::str(&name), value));
                    Value::dict(entries.collect())?
                };
                Ok(Value::Str(self.percent_format(&string, &values)?))
            }
            "center" => {
                let [width] = arguments.bind(name, ["width"])?;
                let positional = vec![Value::Int(int_or(width, 80)?)];
                self.string_method(&string, "center", Arguments { positional, named: Vec::new() })
            }
            "indent" => {
                let [width, first, blank] = arguments.bind(name, ["width", "first", "blank"])?;
                let indent = match width {
                    Some(Value::Str(indent)) => indent.as_str().to_owned(),
                    width => " ".repeat(usize::try_from(int_or(width, 4)?.clamp(0, 1000)).unwrap_or(0)),
                };
                self.indented(&string, &indent, truth_or(first, false), truth_or(blank, false))
            }
            _ => {
                arguments.none(name)?;
                Ok(match name {
                    "upper" => Value::Str(string.rewritten(whole.to_uppercase())),
                    "lower" => Value::Str(string.rewritten(whole.to_lowercase())),
                    "capitalize" => Value::Str(string.rewritten(capitalized(whole))),
                    "title" => Value::Str(string.rewritten(title(whole))),
                    "e" | "escape" | "forceescape" => self.escaped(&string)?,
                    "wordcount" => Value::Int(word_count(whole)),
                    _ => Value::Str(string.rewritten(self.url_encoded(whole)?)),
                })
            }
        }
    }

    fn indented(&self, string: &Text, indent: &str, first: bool, blank: bool) -> Result<Value, Fault> {
        let mut indented = TextBuilder::default();
        for (at, line) in string.as_str().split('\n').enumerate() {
            self.budget.allocate(line.len() + indent.len() + 1)?;
            if at > 0 {
                indented.push_str("\n");
            }
            let wanted = if at == 0 { first } else { blank || !line.is_empty() };
            indented.push_str(if wanted { indent } else { "" });
            indented.push(&string.part(line));
        }
        Ok(Value::Str(indented.finish()))
    }

    fn escaped(&self, string: &Text) -> Result<Value, Fault> {
        let mut escaped = TextBuilder::default();
        let mut rest = string.as_str();
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            self.budget.allocate(at + 8)?;
            escaped.push(&string.part(&rest[..at]));
            escaped.push_str(match rest.as_bytes()[at] {
                b'&' => "&amp;",
                b'<' => "&lt;",
                b'>' => "&gt;",
                b'"' => "&#34;",
                _ => "&#39;",
            });
            rest = &rest[at + 1..];
        }
        escaped.push(&string.part(rest));
        Ok(Value::Str(escaped.finish()))
    }

    fn url_encoded(&self, whole: &str) -> Result<String, Fault> {
        self.budget.allocate(3 * whole.len())?;
        let mut encoded = String::new();
        for byte in whole.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => encoded.push(byte.into()),
                _ => encoded.push_str(&format!("%{byte:02X}")),
            }
        }
        Ok(encoded)
    }

    fn number_filter(&self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        match name {
            "abs" => {
                arguments.none(name)?;
                match (value.as_int(), &value) {
                    (Some(int), _) => Ok(Value::Int(int.checked_abs().unwrap_or(i128::MAX))),
                    (None, Value::Float(float)) => Ok(Value::Float(float.abs())),
                    _ => Err(Fault::new(format!("bad operand type for abs(): '{}'", value.type_name()))),
                }
            }
            "int" => {
                let [default, base] = arguments.bind(name, ["default", "base"])?;
                let base = u32::try_from(int_or(base, 10)?).ok().filter(|base| (2..=36).contains(base));
                let base = base.ok_or_else(|| Fault::new("int() base must be >= 2 and <= 36"))?;
                let parsed = match &value {
                    Value::Float(float) if float.is_finite() => Some(float.trunc() as i128),
                    Value::Str(text) => {
                        let digits = text.as_str().trim_matches(is_python_space).replace('_', "");
                        let float = || digits.parse::<f64>().ok().filter(|float| float.is_finite());
                        i128::from_str_radix(&digits, base).ok().or_else(|| float().map(|float| float.trunc() as i128))
                    }
                    other => other.as_int(),
                };
                Ok(parsed.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
            }
            "float" => {
                let [default] = arguments.bind(name, ["default"])?;
                let parsed = match &value {
                    Value::Str(text) => text.as_str().trim_matches(is_python_space).replace('_', "").parse().ok(),
                    other => other.as_float(),
                };
                Ok(parsed.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
            }
            _ => {
                let [precision, method] = arguments.bind(name, ["precision", "method"])?;
                let precision = int_or(precision, 0)?.clamp(-300, 300) as i32;
                let method = text_or(method, "common")?;
                let number = value.as_float().ok_or_else(|| Fault::new("round needs a number"))?;
                let scale = 10f64.powi(precision);
                Ok(Value::Float(match method.as_str() {
                    "common" if (0..=100).contains(&precision) => {
                        format!("{number:.*}", precision as usize).parse().unwrap_or(number)
                    }
                    "common" => (number * scale).round_ties_even() / scale,
                    "ceil" => (number * scale).ceil() / scale,
                    "floor" => (number * scale).floor() / scale,
                    _ => return Err(Fault::new("method must be common, ceil or floor")),
                }))
            }
        }
    }

    fn map(&self, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        let items = value.elements(&self.budget)?;
        let Arguments { mut positional, mut named } = arguments;
        let mut mapped = Vec::with_capacity(items.len());
        if positional.is_empty() {
            let attribute = take_named(&mut named, "attribute");
            let attribute = required(attribute, "map", "attribute")?;
            let default = take_named(&mut named, "default");
            Arguments { positional, named }.none("map")?;
            for item in items {
                let found = self.path(&item, &attribute)?;
                mapped.push(match (&found, &default) {
                    (Value::Undefined(_), Some(default)) => default.clone(),
                    _ => found,
                });
            }
            return Ok(Value::generator(mapped));
        }
        let filter = text(positional.remove(0))?;
        for item in items {
            self.budget.step()?;
            let arguments = Arguments { positional: positional.clone(), named: named.clone() };
            mapped.push(self.budget.nested(|| self.filter(filter.as_str(), item, arguments))?);
        }
        Ok(Value::generator(mapped))
    }

    /// `select(test)`, `selectattr(attribute, test)`, and their opposites.
    fn select(&self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        let Arguments { mut positional, named } = arguments;
        let attribute = match name.ends_with("attr") {
            true if positional.is_empty() => return Err(Fault::new(format!("{name} is missing the attribute"))),
            true => Some(positional.remove(0)),
            false => None,
        };
        let test = if positional.is_empty() { None } else { Some(text(positional.remove(0))?) };
        let mut kept = Vec::new();
        for item in value.elements(&self.budget)? {
            self.budget.step()?;
            let tested = match &attribute {
                Some(attribute) => self.path(&item, attribute)?,
                None => item.clone(),
            };
            let arguments = Arguments { positional: positional.clone(), named: named.clone() };
            let passes = match &test {
                Some(test) => self.test(test.as_str(), &tested, arguments)?,
                None => tested.is_true(),
            };
            if passes == name.starts_with("select") {
                kept.push(item);
            }
        }
        Ok(Value::generator(kept))
    }

    /// The item at `a.b.0` of a value.
    pub(super) fn path(&self, value: &Value, path: &Value) -> Result<Value, Fault> {
        let Value::Str(path) = path else { return self.item(value, path) };
        let mut value = value.clone();
        for part in path.as_str().split('.') {
            self.budget.step()?;
            let key = part.parse().map_or_else(|_| Value::str(part), Value::Int);
            value = self.item(&value, &key)?;
        }
        Ok(value)
    }

    pub(super) fn compare_sorted(
        &self,
        left: &Value,
        right: &Value,
        case_sensitive: bool,
    ) -> Result<std::cmp::Ordering, Fault> {
        operators::order(&self.sort_key(left, case_sensitive), &self.sort_key(right, case_sensitive), &self.budget)
    }

    /// Texts are sorted without regard to case, unless told otherwise.
    pub(super) fn sort_key(&self, value: &Value, case_sensitive: bool) -> Value {
        match value {
            Value::Str(text) if !case_sensitive => Value::str(&text.as_str().to_lowercase()),
            other => other.clone(),
        }
    }
}

fn take_named(named: &mut Vec<(String, Value)>, name: &str) -> Option<Value> {
    let at = named.iter().position(|(known, _)| known == name)?;
    Some(named.swap_remove(at).1)
}

/// jinja2's filter `title`: a capital after blanks and opening brackets.
fn title(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut starts = true;
    for c in text.chars() {
        let is_border = is_python_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
        match starts && !is_border {
            true => result.extend(c.to_uppercase()),
            false => result.extend(c.to_lowercase()),
        }
        starts = is_border;
    }
    result
}

fn word_count(text: &str) -> i128 {
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count() as i128
}

/// The argument as integer, at least 1.
pub(super) fn positive_count(value: Option<Value>, function: &str, name: &str) -> Result<usize, Fault> {
    let count = int(&required(value, function, name)?)?;
    usize::try_from(count).ok().filter(|count| *count > 0).ok_or_else(|| Fault::new(format!("{name} must be positive")))
}
