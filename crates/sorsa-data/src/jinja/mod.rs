//! Jinja, the language of chat templates, as Transformers runs it: jinja2's sandbox with `trim_blocks`, `lstrip_blocks`, loop
//! controls and the tag `generation`.
//!
//! The engine is this crate's own for three reasons. It prints Python's values as Python does (`(1, 'a')`, `None`). It limits the
//! work and the memory of a template, so that no template runs for ever. And its texts know where they come from: a
//! [`Mark`] says which bytes of the output are a message's own, which the template writes while it is at that
//! message, and which stand between `{% generation %}` and `{% endgeneration %}`.
//!
//! A template that needs what the engine lacks ends with an error, never with another text.

mod arguments;
mod ast;
mod budget;
mod calls;
mod expressions;
mod filters;
mod formatting;
mod interpreter;
mod json;
mod lexer;
mod list_filters;
mod methods;
mod operators;
mod parser;
mod predicates;
mod printing;
mod string_methods;
mod text;
mod value;

use std::fmt;

pub(crate) use budget::Limits;
pub(crate) use text::{Mark, MarkKind};
pub(crate) use value::Value;

/// Why a template does not compile or does not render.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Fault {
    message: String,
    /// Line in the template, from 1, once it is known.
    line: Option<u32>,
}

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), line: None }
    }

    /// Adds the line, unless the fault has one already.
    fn at(mut self, line: u32) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.line {
            Some(line) => write!(f, " (in chat_template:{line})"),
            None => Ok(()),
        }
    }
}

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Template {
    body: Vec<ast::Statement>,
    has_generation_blocks: bool,
}

/// The output of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// The text.
    pub(crate) text: String,
    /// Where its parts come from, in the order in which the parts end.
    pub(crate) marks: Vec<Mark>,
}

impl Template {
    /// Compiles a template.
    pub(crate) fn compile(source: &str) -> Result<Self, Fault> {
        let parsed = parser::parse(source)?;
        Ok(Self { body: parsed.body, has_generation_blocks: parsed.has_generation_blocks })
    }

    /// Whether the tag `generation` stands anywhere in the template.
    pub(crate) fn has_generation_blocks(&self) -> bool {
        self.has_generation_blocks
    }

    /// Renders the template with the variables `globals`.
    pub(crate) fn render(&self, globals: Vec<(String, Value)>, limits: Limits) -> Result<Rendered, Fault> {
        interpreter::render(&self.body, globals, limits)
    }
}

#[cfg(test)]
mod tests;
