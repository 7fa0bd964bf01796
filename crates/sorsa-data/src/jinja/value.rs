//! Values of a template: Python's, as far as templates use them.

use std::cell::RefCell;
use std::rc::Rc;

use super::interpreter::{LoopState, Macro};
use super::text::{MarkKind, Text};
use super::{Fault, budget::Budget};

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// A name or a field that is not there; the text says which, for errors.
    Undefined(Rc<str>),
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// An integer. Python's have no limit; a larger one is an error.
    Int(i128),
    /// A float.
    Float(f64),
    /// A text.
    Str(Text),
    /// A list. The sandbox forbids to change it.
    List(Rc<Sequence>),
    /// A tuple.
    Tuple(Rc<Sequence>),
    /// A dict.
    Dict(Rc<Dict>),
    /// What `dict.items()` and the like return; the name is `dict_items`.
    View(&'static str, Rc<Sequence>),
    /// `range(start, stop, step)`
    Range { start: i128, stop: i128, step: i128 },
    /// A generator, such as the result of `map`: it can be read once.
    Generator(Rc<RefCell<Option<Vec<Value>>>>),
    /// `namespace(..)`, the only value that changes.
    Namespace(Rc<RefCell<Vec<(String, Value)>>>),
    /// A function of the environment, by its name.
    Function(&'static str),
    /// A method of a value, by its name.
    Method(Rc<(Value, String)>),
    /// A macro.
    Macro(Rc<Macro>),
    /// The variable `loop`.
    Loop(Rc<LoopState>),
}

/// The elements of a list or tuple.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(super) items: Vec<Value>,
    depth: u32,
}

/// A dict, in the order of insertion.
#[derive(Debug)]
pub(crate) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    /// Index of the message that this dict is.
    pub(super) message: Option<usize>,
    depth: u32,
}

/// Lists in lists in lists: as deep as JSON may be. Deeper ones would exhaust the stack when they are dropped.
const MAX_NESTING: u32 = 128;

impl Value {
    pub(crate) fn str(string: &str) -> Self {
        Self::Str(Text::plain(string))
    }

    pub(super) fn undefined(what: impl Into<Rc<str>>) -> Self {
        Self::Undefined(what.into())
    }

    /// A list. The caller has counted its memory.
    pub(crate) fn list(items: Vec<Value>) -> Result<Self, Fault> {
        Ok(Self::List(Rc::new(Sequence::new(items)?)))
    }

    pub(super) fn tuple(items: Vec<Value>) -> Result<Self, Fault> {
        Ok(Self::Tuple(Rc::new(Sequence::new(items)?)))
    }

    pub(super) fn dict(entries: Vec<(Value, Value)>) -> Result<Self, Fault> {
        Ok(Self::Dict(Rc::new(Dict::new(entries, None)?)))
    }

    pub(super) fn generator(items: Vec<Value>) -> Self {
        Self::Generator(Rc::new(RefCell::new(Some(items))))
    }

    /// The value of parsed JSON, whose texts are marked as being of one kind.
    pub(crate) fn from_json(json: &serde_json::Value, kind: Option<MarkKind>) -> Result<Self, Fault> {
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(int), ..) => Self::Int(int.into()),
                (_, Some(int), _) => Self::Int(int.into()),
                (_, _, float) => Self::Float(float.unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(string) => Self::Str(match kind {
                Some(kind) => Text::marked(string, kind),
                None => Text::plain(string),
            }),
            serde_json::Value::Array(items) => {
                Self::list(items.iter().map(|item| Self::from_json(item, kind)).collect::<Result<_, _>>()?)?
            }
            serde_json::Value::Object(fields) => {
                let mut entries = Vec::with_capacity(fields.len());
                for (name, value) in fields {
                    entries.push((Self::str(name), Self::from_json(value, kind)?));
                }
                Self::dict(entries)?
            }
        })
    }

    /// The message with index `index`: a dict whose texts are marked as said by it, except for its role.
    pub(crate) fn message(fields: &serde_json::Map<String, serde_json::Value>, index: usize) -> Result<Self, Fault> {
        let mut entries = Vec::with_capacity(fields.len());
        for (field, (name, value)) in fields.iter().enumerate() {
            let kind = if name == "role" { None } else { Some(MarkKind::Said { message: index, field }) };
            entries.push((Self::str(name), Self::from_json(value, kind)?));
        }
        Ok(Self::Dict(Rc::new(Dict::new(entries, Some(index))?)))
    }

    /// The name of Python's type, for errors.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(name, _) => name,
            Self::Range { .. } => "range",
            Self::Generator(_) => "generator",
            Self::Namespace(_) => "namespace",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
            Self::Macro(_) => "macro",
            Self::Loop(_) => "loop",
        }
    }

    /// An error if the value is undefined.
    pub(super) fn defined(&self) -> Result<(), Fault> {
        match self {
            Self::Undefined(what) => Err(Fault::new(format!("undefined value: {what}"))),
            _ => Ok(()),
        }
    }

    /// Python's `bool(value)`.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) => !text.as_str().is_empty(),
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => !items.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::Range { start, stop, step } => range_length(*start, *stop, *step) > 0,
            _ => true,
        }
    }

    /// The number that the value is, for arithmetic: booleans are 0 and 1.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(value) => Some(i128::from(*value)),
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    /// Python's `len(value)`.
    pub(super) fn length(&self) -> Result<usize, Fault> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Str(text) => Ok(text.as_str().chars().count()),
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => Ok(items.items.len()),
            Self::Dict(dict) => Ok(dict.entries.len()),
            Self::Range { start, stop, step } => Ok(range_length(*start, *stop, *step)),
            other => Err(Fault::new(format!("object of type '{}' has no len()", other.type_name()))),
        }
    }

    /// The elements that a loop over the value sees. A generator is empty afterwards.
    pub(super) fn elements(&self, budget: &Budget) -> Result<Vec<Value>, Fault> {
        let items = match self {
            Self::Undefined(_) => return Ok(Vec::new()),
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => {
                budget.allocate(items.items.len() * size_of::<Value>())?;
                items.items.clone()
            }
            Self::Dict(dict) => {
                budget.allocate(dict.entries.len() * size_of::<Value>())?;
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Self::Str(text) => {
                budget.allocate(text.as_str().len() * (size_of::<Value>() + 32))?;
                text.as_str().split("").filter(|part| !part.is_empty()).map(|part| Self::Str(text.part(part))).collect()
            }
            Self::Range { start, stop, step } => {
                let length = range_length(*start, *stop, *step);
                budget.allocate(length * size_of::<Value>())?;
                (0..length as i128).map(|at| Self::Int(start + at * step)).collect()
            }
            Self::Generator(items) => items.borrow_mut().take().unwrap_or_default(),
            other => return Err(Fault::new(format!("'{}' object is not iterable", other.type_name()))),
        };
        Ok(items)
    }

    /// How deep lists and dicts nest in the value.
    fn depth(&self) -> u32 {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.depth,
            Self::Dict(dict) => dict.depth,
            _ => 0,
        }
    }

    /// Whether a list, a dict or a namespace may hold the value. What could hold itself may not.
    pub(super) fn may_be_held(&self) -> Result<(), Fault> {
        match self {
            Self::Namespace(_) | Self::Generator(_) | Self::Loop(_) | Self::Method(_) => {
                Err(Fault::new(format!("a value cannot hold a {}", self.type_name())))
            }
            _ => Ok(()),
        }
    }
}

impl Sequence {
    pub(super) fn new(items: Vec<Value>) -> Result<Self, Fault> {
        let depth = depth_of(items.iter())?;
        Ok(Self { items, depth })
    }
}

impl Dict {
    pub(super) fn new(entries: Vec<(Value, Value)>, message: Option<usize>) -> Result<Self, Fault> {
        let depth = depth_of(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self { entries, message, depth })
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let matches = |key: &Value| matches!(key, Value::Str(text) if text.as_str() == name);
        self.entries.iter().find(|(key, _)| matches(key)).map(|(_, value)| value)
    }
}

fn depth_of<'a>(items: impl Iterator<Item = &'a Value>) -> Result<u32, Fault> {
    let mut depth = 0;
    for item in items {
        item.may_be_held()?;
        depth = depth.max(item.depth());
    }
    if depth >= MAX_NESTING {
        return Err(Fault::new(format!("lists nest more than {MAX_NESTING} levels deep")));
    }
    Ok(depth + 1)
}

pub(super) fn range_length(start: i128, stop: i128, step: i128) -> usize {
    let distance = if step > 0 { stop - start } else { start - stop };
    let length = if distance <= 0 { 0 } else { (distance - 1) / step.abs() + 1 };
    usize::try_from(length).unwrap_or(usize::MAX)
}
