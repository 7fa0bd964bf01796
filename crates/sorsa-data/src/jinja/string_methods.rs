//! Methods of strings. Indices count characters, as in Python.

use super::arguments::{Arguments, int, int_or, required, text, text_or, truth_or};
use super::interpreter::Interpreter;
use super::lexer::is_python_space;
use super::text::{Text, TextBuilder};
use super::{Fault, Value};

/// The methods of Python's `str`; some can be asked for, but not called.
pub(super) const STRING_METHODS: [&str; 44] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "title",
    "upper",
];

impl Interpreter {
    pub(super) fn string_method(&self, string: &Text, name: &str, arguments: Arguments) -> Result<Value, Fault> {
        let text_of = string.as_str();
        self.budget.scan(text_of.len())?;
        match name {
            "strip" | "lstrip" | "rstrip" => {
                let [characters] = arguments.bind(name, ["chars"])?;
                let characters = match characters {
                    None | Some(Value::None) => None,
                    Some(value) => Some(text(value)?),
                };
                self.copied(stripped(string, characters.as_ref(), name != "rstrip", name != "lstrip"))
            }
            "split" | "rsplit" => self.split(string, name, arguments),
            "splitlines" => {
                let [keep] = arguments.bind(name, ["keepends"])?;
                self.texts(string, split_lines(text_of, truth_or(keep, false)))
            }
            "partition" | "rpartition" => {
                let [separator] = arguments.bind(name, ["sep"])?;
                let separator = text(required(separator, name, "sep")?)?;
                let separator = separator.as_str();
                let at = if name == "partition" { text_of.find(separator) } else { text_of.rfind(separator) };
                let (first, middle, last) = match (at, separator) {
                    (_, "") => return Err(Fault::new("empty separator")),
                    (Some(at), _) => {
                        (&text_of[..at], &text_of[at..at + separator.len()], &text_of[at + separator.len()..])
                    }
                    (None, _) if name == "partition" => (text_of, &text_of[..0], &text_of[..0]),
                    (None, _) => (&text_of[..0], &text_of[..0], text_of),
                };
                Value::tuple([first, middle, last].map(|part| Value::Str(string.part(part))).into())
            }
            "replace" => {
                let [old, new, count] = arguments.bind(name, ["old", "new", "count"])?;
                let (old, new) = (text(required(old, name, "old")?)?, text(required(new, name, "new")?)?);
                Ok(Value::Str(self.replaced(string, &old, &new, int_or(count, -1)?)?))
            }
            "startswith" | "endswith" => {
                let [affix, start, end] =
                    arguments.bind(name, [if name == "startswith" { "prefix" } else { "suffix" }, "start", "end"])?;
                let part = char_range(text_of, int_or(start, 0)?, int_or(end, i128::MAX)?);
                let affixes = match required(affix, name, "affix")? {
                    Value::Tuple(items) => items.items.clone(),
                    one => vec![one],
                };
                for affix in affixes {
                    let affix = text(affix)?;
                    let (part, affix) = (part.unwrap_or_default(), affix.as_str());
                    if if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) } {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            "find" | "rfind" | "index" | "rindex" | "count" => {
                let [part, start, end] = arguments.bind(name, ["sub", "start", "end"])?;
                let part = text(required(part, name, "sub")?)?;
                self.searched(text_of, name, part.as_str(), int_or(start, 0)?, int_or(end, i128::MAX)?)
            }
            "join" => {
                let [items] = arguments.bind(name, ["iterable"])?;
                let items = required(items, name, "iterable")?.elements(&self.budget)?;
                let items = items.into_iter().map(text).collect::<Result<Vec<Text>, Fault>>()?;
                Ok(Value::Str(self.joined_texts(string, &items)?))
            }
            "removeprefix" | "removesuffix" => {
                let [affix] = arguments.bind(name, ["affix"])?;
                let affix = text(required(affix, name, "affix")?)?;
                let rest = match name {
                    "removeprefix" => text_of.strip_prefix(affix.as_str()),
                    _ => text_of.strip_suffix(affix.as_str()),
                };
                self.copied(string.part(rest.unwrap_or(text_of)))
            }
            "center" | "ljust" | "rjust" => {
                let [width, fill] = arguments.bind(name, ["width", "fillchar"])?;
                let missing = int(&required(width, name, "width")?)? - text_of.chars().count() as i128;
                let missing = usize::try_from(missing.clamp(0, 1 << 40)).unwrap_or(0);
                let fill = text_or(fill, " ")?;
                if fill.as_str().chars().count() != 1 {
                    return Err(Fault::new("the fill character must be exactly one character long"));
                }
                self.budget.allocate(missing * fill.as_str().len() + string.size())?;
                let before = match name {
                    "ljust" => 0,
                    "rjust" => missing,
                    // Python puts the odd blank on the left if the width is odd.
                    _ => missing / 2 + (missing & (missing + text_of.chars().count()) & 1),
                };
                let mut padded = TextBuilder::default();
                padded.push_str(&fill.as_str().repeat(before));
                padded.push(string);
                padded.push_str(&fill.as_str().repeat(missing - before));
                Ok(Value::Str(padded.finish()))
            }
            "format" => Ok(Value::Str(self.brace_format(string, &arguments)?)),
            "upper" | "lower" | "casefold" | "capitalize" | "title" => {
                arguments.none(name)?;
                self.budget.allocate(3 * string.size())?;
                Ok(Value::Str(string.rewritten(match name {
                    "upper" => text_of.to_uppercase(),
                    "capitalize" => capitalized(text_of),
                    "title" => title(text_of),
                    _ => text_of.to_lowercase(),
                })))
            }
            _ => {
                let Some(holds) = character_test(text_of, name) else {
                    return Err(Fault::new(format!("the method {name} of a string is not supported")));
                };
                arguments.none(name)?;
                Ok(Value::Bool(holds))
            }
        }
    }

    fn copied(&self, text: Text) -> Result<Value, Fault> {
        self.budget.allocate(text.size())?;
        Ok(Value::Str(text))
    }

    /// A list of parts of a string.
    fn texts<'a>(&self, whole: &Text, parts: impl IntoIterator<Item = &'a str>) -> Result<Value, Fault> {
        let mut list = Vec::new();
        for part in parts {
            self.budget.allocate(part.len() + size_of::<Value>() + 32)?;
            list.push(Value::Str(whole.part(part)));
        }
        Value::list(list)
    }

    fn split(&self, string: &Text, name: &str, arguments: Arguments) -> Result<Value, Fault> {
        let [separator, limit] = arguments.bind(name, ["sep", "maxsplit"])?;
        let limit = int_or(limit, -1)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX - 1);
        let whole = string.as_str();
        let separator = match separator {
            None | Some(Value::None) => return self.texts(string, split_at_spaces(whole, limit, name == "rsplit")),
            Some(separator) => text(separator)?,
        };
        match (separator.as_str(), name) {
            ("", _) => Err(Fault::new("empty separator")),
            (separator, "split") => self.texts(string, whole.splitn(limit + 1, separator)),
            (separator, _) => {
                let mut parts: Vec<&str> = whole.rsplitn(limit + 1, separator).collect();
                parts.reverse();
                self.texts(string, parts)
            }
        }
    }

    pub(super) fn replaced(&self, string: &Text, old: &Text, new: &Text, count: i128) -> Result<Text, Fault> {
        let whole = string.as_str();
        let mut replaced = TextBuilder::default();
        let mut last = 0;
        let limit = usize::try_from(count).unwrap_or(usize::MAX);
        for (at, found) in whole.match_indices(old.as_str()).take(limit) {
            self.budget.allocate(at - last + new.size())?;
            replaced.push(&string.slice(last..at));
            replaced.push(new);
            last = at + found.len();
        }
        self.budget.allocate(string.size())?;
        replaced.push(&string.slice(last..whole.len()));
        Ok(replaced.finish())
    }

    pub(super) fn joined_texts(&self, separator: &Text, items: &[Text]) -> Result<Text, Fault> {
        let mut joined = TextBuilder::default();
        for (at, item) in items.iter().enumerate() {
            self.budget.allocate(item.size() + separator.size())?;
            if at > 0 {
                joined.push(separator);
            }
            joined.push(item);
        }
        Ok(joined.finish())
    }

    fn searched(&self, whole: &str, name: &str, part: &str, start: i128, end: i128) -> Result<Value, Fault> {
        let Some(within) = char_range(whole, start, end) else {
            return match name {
                "count" => Ok(Value::Int(0)),
                "find" | "rfind" => Ok(Value::Int(-1)),
                _ => Err(Fault::new("substring not found")),
            };
        };
        if name == "count" {
            let count = if part.is_empty() { within.chars().count() + 1 } else { within.matches(part).count() };
            return Ok(Value::Int(count as i128));
        }
        let found = if name.starts_with('r') { within.rfind(part) } else { within.find(part) };
        let before = within.as_ptr() as usize - whole.as_ptr() as usize;
        match found {
            Some(at) => Ok(Value::Int(whole[..before + at].chars().count() as i128)),
            None if name.ends_with("find") => Ok(Value::Int(-1)),
            None => Err(Fault::new("substring not found")),
        }
    }
}

/// The characters from `start` to `end`, counted from the end if negative. `None` if `start` is beyond the end.
fn char_range(whole: &str, start: i128, end: i128) -> Option<&str> {
    let length = if start != 0 || end != i128::MAX { whole.chars().count() as i128 } else { return Some(whole) };
    let index = |at: i128| if at < 0 { (at + length).max(0) } else { at.min(length) };
    if start > length || index(start) > index(end) {
        return None;
    }
    let byte = |at: i128| whole.char_indices().nth(at as usize).map_or(whole.len(), |(byte, _)| byte);
    Some(&whole[byte(index(start))..byte(index(end))])
}

pub(super) fn stripped(string: &Text, characters: Option<&Text>, left: bool, right: bool) -> Text {
    let takes = |c: char| match characters {
        Some(characters) => characters.as_str().contains(c),
        None => is_python_space(c),
    };
    let mut part = string.as_str();
    if left {
        part = part.trim_start_matches(takes);
    }
    if right {
        part = part.trim_end_matches(takes);
    }
    string.part(part)
}

fn split_at_spaces(whole: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let trim = |text| {
        if from_right {
            str::trim_end_matches(text, is_python_space)
        } else {
            str::trim_start_matches(text, is_python_space)
        }
    };
    let mut rest = trim(whole);
    while !rest.is_empty() {
        let border = if from_right { rest.rfind(is_python_space) } else { rest.find(is_python_space) };
        match border {
            Some(at) if parts.len() < limit => {
                let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                let (part, others) =
                    if from_right { (&rest[after..], &rest[..after]) } else { (&rest[..at], &rest[at..]) };
                parts.push(part);
                rest = trim(others);
            }
            _ => {
                parts.push(rest);
                break;
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

fn split_lines(whole: &str, keep_ends: bool) -> Vec<&str> {
    let is_break =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = whole;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_break) else {
            lines.push(rest);
            break;
        };
        let length =
            if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if keep_ends { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    lines
}

pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase(),
        None => String::new(),
    }
}

/// Python's `str.title`: each run of letters begins with a capital.
fn title(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut after_letter = false;
    for c in text.chars() {
        match after_letter {
            true => result.extend(c.to_lowercase()),
            false => result.extend(c.to_uppercase()),
        }
        after_letter = c.is_alphabetic();
    }
    result
}

/// `isdigit` and the like. `None` for a method that is not one of them.
fn character_test(text: &str, name: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let cased = |test: fn(char) -> bool, other: fn(char) -> bool| text.chars().any(test) && !text.chars().any(other);
    Some(match name {
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isspace" => all(is_python_space),
        "isascii" => text.is_ascii(),
        "isdigit" | "isdecimal" => all(|c| c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric())),
        "isnumeric" => all(char::is_numeric),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "isprintable" => text.chars().all(super::printing::is_printable),
        "isidentifier" => all(|c| c == '_' || c.is_alphanumeric()) && !text.starts_with(|c: char| c.is_numeric()),
        _ => return None,
    })
}
