//! Python's `'%s' % value` and `'{}'.format(value)`.

use super::arguments::Arguments;
use super::interpreter::Interpreter;
use super::printing::float;
use super::text::{Text, TextBuilder};
use super::{Fault, Value};

/// `[[fill]align][sign][#][0][width][,][.precision][type]`
#[derive(Debug, Clone, Copy, Default)]
struct Specification {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    comma: bool,
    precision: Option<usize>,
    kind: Option<char>,
}

/// The widest field.
const MAX_WIDTH: usize = 10_000;

impl Interpreter {
    /// `format % values`; several values are a tuple, named ones a dict.
    pub(super) fn percent_format(&self, format: &Text, values: &Value) -> Result<Text, Fault> {
        self.budget.scan(format.as_str().len())?;
        let mut text = TextBuilder::default();
        let single = [values.clone()];
        let list: &[Value] = match values {
            Value::Tuple(items) => &items.items,
            _ => &single,
        };
        let mut list = list.iter();
        let mut used_name = false;
        let mut rest = format.as_str();
        while let Some(at) = rest.find('%') {
            text.push(&format.part(&rest[..at]));
            rest = &rest[at + 1..];
            let mut name = None;
            if let Some(after) = rest.strip_prefix('(') {
                let end = after.find(')').ok_or_else(|| Fault::new("incomplete format key"))?;
                name = Some(&after[..end]);
                rest = &after[end + 1..];
            }
            let (specification, length) = percent_specification(rest)?;
            rest = &rest[length..];
            if specification.kind == Some('%') {
                text.push_str("%");
                continue;
            }
            let value = match (name, values) {
                (Some(name), Value::Dict(dict)) => {
                    used_name = true;
                    dict.get(name).cloned().ok_or_else(|| Fault::new(format!("format: no key '{name}'")))?
                }
                (Some(_), _) => return Err(Fault::new("format requires a mapping")),
                (None, _) => {
                    let value = list.next().ok_or_else(|| Fault::new("not enough arguments for format string"))?;
                    value.clone()
                }
            };
            let field = self.percent_field(&value, specification)?;
            self.budget.allocate(field.size())?;
            text.push(&field);
        }
        text.push(&format.part(rest));
        let is_mapping = used_name || matches!(values, Value::Dict(_));
        if list.next().is_some() && !is_mapping {
            return Err(Fault::new("not all arguments converted during string formatting"));
        }
        Ok(text.finish())
    }

    fn percent_field(&self, value: &Value, specification: Specification) -> Result<Text, Fault> {
        match specification.kind {
            Some(kind @ ('s' | 'r')) => {
                let text = if kind == 's' { self.print(value)? } else { self.represented(value)? };
                self.padded(cut(&text, specification.precision), specification, '>')
            }
            Some('d' | 'i' | 'u') => {
                let int = match value {
                    Value::Float(float) => float.trunc() as i128,
                    other => super::arguments::int(other)?,
                };
                let specification = Specification { kind: Some('d'), precision: None, ..specification };
                self.number(&Value::Int(int), specification)
            }
            Some('c') => {
                let text = match value {
                    Value::Int(code) => {
                        let c = u32::try_from(*code).ok().and_then(char::from_u32);
                        Text::plain(&c.ok_or_else(|| Fault::new("%c needs a character"))?.to_string())
                    }
                    other => self.print(other)?,
                };
                self.padded(text, specification, '>')
            }
            _ => self.number(value, specification),
        }
    }

    fn represented(&self, value: &Value) -> Result<Text, Fault> {
        let mut text = TextBuilder::default();
        self.represent(value, &mut text)?;
        Ok(text.finish())
    }

    /// `'{} {0} {name}'.format(..)`
    pub(super) fn brace_format(&self, format: &Text, arguments: &Arguments) -> Result<Text, Fault> {
        self.budget.scan(format.as_str().len())?;
        let mut text = TextBuilder::default();
        let mut rest = format.as_str();
        let mut automatic = 0;
        while let Some(at) = rest.find(['{', '}']) {
            text.push(&format.part(&rest[..at]));
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if rest.starts_with(brace) {
                text.push_str(brace);
                rest = &rest[1..];
                continue;
            }
            let end = rest.find('}').filter(|_| brace == "{");
            let end = end.ok_or_else(|| Fault::new("single brace in format string"))?;
            let field = &rest[..end];
            rest = &rest[end + 1..];
            let (name, specification) = field.split_once(':').unwrap_or((field, ""));
            let (name, conversion) = name.split_once('!').unwrap_or((name, ""));
            if specification.contains('{') {
                return Err(Fault::new("nested fields of a format string are not supported"));
            }
            let value = self.field_value(name, &mut automatic, arguments)?;
            let value = match conversion {
                "" => value,
                "r" => Value::Str(self.represented(&value)?),
                "s" => Value::Str(self.print(&value)?),
                _ => return Err(Fault::new(format!("unknown conversion !{conversion}"))),
            };
            let field = self.formatted(&value, specification)?;
            self.budget.allocate(field.size())?;
            text.push(&field);
        }
        text.push(&format.part(rest));
        Ok(text.finish())
    }

    /// The value of `name`, `0` or nothing, with `.attribute` and `[item]` after it.
    fn field_value(&self, field: &str, automatic: &mut usize, arguments: &Arguments) -> Result<Value, Fault> {
        let end = field.find(['.', '[']).unwrap_or(field.len());
        let (name, mut rest) = field.split_at(end);
        let index = if name.is_empty() {
            *automatic += 1;
            Some(*automatic - 1)
        } else {
            name.parse().ok()
        };
        let value = match index {
            Some(index) => arguments.positional.get(index),
            None => arguments.named.iter().find(|(known, _)| known == name).map(|(_, value)| value),
        };
        let mut value = value.cloned().ok_or_else(|| Fault::new(format!("format: no argument '{name}'")))?;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = self.attribute(&value, &after[..end])?;
                rest = &after[end..];
            } else {
                let end = rest.find(']').ok_or_else(|| Fault::new("missing ']' in format string"))?;
                let key = &rest[1..end];
                let key = key.parse().map_or_else(|_| Value::str(key), Value::Int);
                value = self.item(&value, &key)?;
                rest = &rest[end + 1..];
            }
        }
        Ok(value)
    }

    fn formatted(&self, value: &Value, specification: &str) -> Result<Text, Fault> {
        let parsed = brace_specification(specification)?;
        match value {
            Value::Int(_) | Value::Float(_) | Value::Bool(_) if !specification.is_empty() => self.number(value, parsed),
            _ if matches!(parsed.kind, None | Some('s')) => {
                self.padded(cut(&self.print(value)?, parsed.precision), parsed, '<')
            }
            other => Err(Fault::new(format!("unknown format '{specification}' for {}", other.type_name()))),
        }
    }

    fn number(&self, value: &Value, specification: Specification) -> Result<Text, Fault> {
        value.defined()?;
        let precision = specification.precision.unwrap_or(6);
        let fault = || Fault::new(format!("a {} cannot be formatted like this", value.type_name()));
        let as_float = || value.as_float().ok_or_else(fault);
        let as_int = || value.as_int().ok_or_else(fault);
        let alternate = |prefix: &'static str| if specification.alternate { prefix } else { "" };
        let (negative, mut digits) = match specification.kind {
            None if matches!(value, Value::Float(_)) && specification.precision.is_none() => {
                let number = as_float()?;
                (number.is_sign_negative(), float(number.abs()))
            }
            None | Some('d' | 'n') if value.as_int().is_some() => {
                let number = as_int()?;
                (number < 0, number.unsigned_abs().to_string())
            }
            Some(kind @ ('x' | 'X' | 'o' | 'b')) => {
                let (number, magnitude) = (as_int()?, as_int()?.unsigned_abs());
                let digits = match kind {
                    'x' => format!("{}{magnitude:x}", alternate("0x")),
                    'X' => format!("{}{magnitude:X}", alternate("0X")),
                    'o' => format!("{}{magnitude:o}", alternate("0o")),
                    _ => format!("{}{magnitude:b}", alternate("0b")),
                };
                (number < 0, digits)
            }
            Some('f' | 'F') => {
                let number = as_float()?;
                (number.is_sign_negative(), format!("{:.precision$}", number.abs()))
            }
            Some('%') => {
                let number = as_float()? * 100.0;
                (number.is_sign_negative(), format!("{:.precision$}%", number.abs()))
            }
            Some('e' | 'E') => {
                let number = as_float()?;
                (number.is_sign_negative(), exponent(&format!("{:.precision$e}", number.abs())))
            }
            None | Some('g' | 'G') => {
                let number = as_float()?;
                (number.is_sign_negative(), general(number.abs(), precision))
            }
            _ => return Err(fault()),
        };
        if matches!(specification.kind, Some('E' | 'G')) {
            digits = digits.to_uppercase();
        }
        if specification.comma {
            digits = with_commas(&digits);
        }
        let sign = match (negative, specification.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            (false, _) => "",
        };
        if specification.zero && specification.align.is_none() {
            let zeros = specification.width.saturating_sub(digits.len() + sign.len());
            return Ok(Text::plain(&format!("{sign}{}{digits}", "0".repeat(zeros))));
        }
        self.padded(Text::plain(&format!("{sign}{digits}")), specification, '>')
    }

    fn padded(&self, text: Text, specification: Specification, default_align: char) -> Result<Text, Fault> {
        let missing = specification.width.saturating_sub(text.as_str().chars().count());
        if missing == 0 {
            return Ok(text);
        }
        let before = match specification.align.unwrap_or(default_align) {
            '<' => 0,
            '^' => missing / 2,
            _ => missing,
        };
        let fill = specification.fill.unwrap_or(' ').to_string();
        self.budget.allocate(missing * fill.len())?;
        let mut padded = TextBuilder::default();
        padded.push_str(&fill.repeat(before));
        padded.push(&text);
        padded.push_str(&fill.repeat(missing - before));
        Ok(padded.finish())
    }
}

fn cut(text: &Text, precision: Option<usize>) -> Text {
    let end = precision.and_then(|precision| text.as_str().char_indices().nth(precision));
    match end {
        Some((end, _)) => text.slice(0..end),
        None => text.clone(),
    }
}

fn width(digits: &str) -> Result<usize, Fault> {
    let width = digits.parse().ok().filter(|width| *width <= MAX_WIDTH);
    width.ok_or_else(|| Fault::new(format!("a format is wider than {MAX_WIDTH}")))
}

/// The digits at the start of `text`.
fn leading_digits(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())]
}

/// The specification after a `%`, and its length.
fn percent_specification(text: &str) -> Result<(Specification, usize), Fault> {
    let mut specification = Specification::default();
    let mut rest = text;
    while let Some(flag) = rest.chars().next().filter(|c| matches!(c, '-' | '+' | ' ' | '#' | '0')) {
        match flag {
            '-' => specification.align = Some('<'),
            '0' => specification.zero = true,
            '#' => specification.alternate = true,
            sign => specification.sign = Some(sign),
        }
        rest = &rest[1..];
    }
    let digits = leading_digits(rest);
    if !digits.is_empty() {
        specification.width = width(digits)?;
        rest = &rest[digits.len()..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let digits = leading_digits(after);
        specification.precision = Some(if digits.is_empty() { 0 } else { width(digits)? });
        rest = &after[digits.len()..];
    }
    let kind = rest.chars().next().ok_or_else(|| Fault::new("incomplete format"))?;
    if !"srdiucxXofFeEgG%".contains(kind) {
        return Err(Fault::new(format!("unsupported format character {kind:?}")));
    }
    specification.kind = Some(kind);
    Ok((specification, text.len() - rest.len() + kind.len_utf8()))
}

fn brace_specification(text: &str) -> Result<Specification, Fault> {
    let mut specification = Specification::default();
    let mut rest = text;
    let is_align = |c: Option<char>| c.filter(|c| matches!(c, '<' | '>' | '^' | '='));
    let mut chars = rest.chars();
    let (first, second) = (chars.next(), chars.next());
    if let (Some(fill), Some(align)) = (first, is_align(second)) {
        (specification.fill, specification.align) = (Some(fill), Some(align));
        rest = &rest[fill.len_utf8() + 1..];
    } else if let Some(align) = is_align(first) {
        specification.align = Some(align);
        rest = &rest[1..];
    }
    if let Some(sign) = rest.chars().next().filter(|c| matches!(c, '+' | '-' | ' ')) {
        specification.sign = Some(sign);
        rest = &rest[1..];
    }
    for (flag, set) in [("#", &mut specification.alternate), ("0", &mut specification.zero)] {
        if let Some(after) = rest.strip_prefix(flag) {
            *set = true;
            rest = after;
        }
    }
    let digits = leading_digits(rest);
    if !digits.is_empty() {
        specification.width = width(digits)?;
        rest = &rest[digits.len()..];
    }
    if let Some(after) = rest.strip_prefix(',') {
        specification.comma = true;
        rest = after;
    }
    if let Some(after) = rest.strip_prefix('.') {
        let digits = leading_digits(after);
        specification.precision = Some(width(digits)?);
        rest = &after[digits.len()..];
    }
    let mut kinds = rest.chars();
    specification.kind = kinds.next();
    match (specification.kind, kinds.next(), specification.align) {
        (_, None, Some('=')) => Err(Fault::new("the alignment '=' is not supported")),
        (None, None, _) => Ok(specification),
        (Some(kind), None, _) if "sdnxXobfFeEgG%".contains(kind) => Ok(specification),
        _ => Err(Fault::new(format!("invalid format specifier '{text}'"))),
    }
}

/// `1.5e7` as Python writes it: `1.5e+07`.
fn exponent(scientific: &str) -> String {
    let (digits, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// C's `%g`.
fn general(value: f64, precision: usize) -> String {
    let precision = precision.max(1);
    let scientific = format!("{value:.*e}", precision - 1);
    let power: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or_default();
    let without_zeros = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        return exponent(&format!("{}e{power}", without_zeros(digits)));
    }
    let decimals = (precision as i32 - 1 - power).max(0) as usize;
    without_zeros(&format!("{value:.decimals$}"))
}

fn with_commas(digits: &str) -> String {
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut grouped = String::new();
    for (at, digit) in digits[..end].chars().enumerate() {
        if at > 0 && (end - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &digits[end..]
}
