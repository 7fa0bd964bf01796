//! Arguments of a call.

use super::text::Text;
use super::{Fault, Value};

/// The values that a function, filter or macro is called with.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

impl Arguments {
    /// The arguments of the parameters `names`, in this order.
    pub(super) fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> Result<[Option<Value>; N], Fault> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            let count = self.positional.len();
            return Err(Fault::new(format!("{function} takes at most {N} arguments ({count} given)")));
        }
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(at) = names.iter().position(|known| *known == name) else {
                return Err(Fault::new(format!("{function} got an unexpected keyword argument '{name}'")));
            };
            if bound[at].replace(value).is_some() {
                return Err(Fault::new(format!("{function} got multiple values for argument '{name}'")));
            }
        }
        Ok(bound)
    }

    /// Fails if there is any argument.
    pub(super) fn none(self, function: &str) -> Result<(), Fault> {
        self.bind(function, []).map(drop)
    }
}

/// The argument, which must be given.
pub(super) fn required(value: Option<Value>, function: &str, name: &str) -> Result<Value, Fault> {
    value.ok_or_else(|| Fault::new(format!("{function} is missing the argument '{name}'")))
}

/// The argument as text; the default if it is absent or `None`.
pub(super) fn text_or(value: Option<Value>, default: &str) -> Result<Text, Fault> {
    match value {
        None | Some(Value::None) => Ok(Text::plain(default)),
        Some(value) => text(value),
    }
}

/// The argument as text.
pub(super) fn text(value: Value) -> Result<Text, Fault> {
    match value {
        Value::Str(text) => Ok(text),
        other => {
            other.defined()?;
            Err(Fault::new(format!("expected str, found {}", other.type_name())))
        }
    }
}

/// The argument as integer; the default if it is absent or `None`.
pub(super) fn int_or(value: Option<Value>, default: i128) -> Result<i128, Fault> {
    match value {
        None | Some(Value::None) => Ok(default),
        Some(value) => int(&value),
    }
}

/// The argument as integer.
pub(super) fn int(value: &Value) -> Result<i128, Fault> {
    value.defined()?;
    match value.as_int() {
        Some(int) => Ok(int),
        None => Err(Fault::new(format!("expected int, found {}", value.type_name()))),
    }
}

/// Whether the argument is true; the default if it is absent.
pub(super) fn truth_or(value: Option<Value>, default: bool) -> bool {
    value.map_or(default, |value| value.is_true())
}
