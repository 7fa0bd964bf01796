//! The syntax tree of a template.

use std::sync::Arc;

/// A statement and its line.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: u32,
    pub(super) kind: StatementKind,
}

#[derive(Debug)]
pub(super) enum StatementKind {
    Text(String),
    Output(Expr),
    If {
        branches: Vec<(Expr, Vec<Statement>)>,
        otherwise: Vec<Statement>,
    },
    For(Arc<ForLoop>),
    Set {
        target: Target,
        value: Expr,
    },
    /// `{% set x %}..{% endset %}`
    SetBlock {
        target: Target,
        filters: Vec<FilterCall>,
        body: Vec<Statement>,
    },
    Macro(Arc<MacroDefinition>),
    /// `{% call f() %}..{% endcall %}`
    Call {
        call: Expr,
        caller: Arc<MacroDefinition>,
    },
    FilterBlock {
        filters: Vec<FilterCall>,
        body: Vec<Statement>,
    },
    With {
        assignments: Vec<(Target, Expr)>,
        body: Vec<Statement>,
    },
    Generation(Vec<Statement>),
    Block(Vec<Statement>),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct ForLoop {
    pub(super) target: Target,
    pub(super) iterable: Expr,
    pub(super) condition: Option<Expr>,
    pub(super) body: Vec<Statement>,
    pub(super) otherwise: Vec<Statement>,
    pub(super) recursive: bool,
}

#[derive(Debug)]
pub(super) struct MacroDefinition {
    pub(super) name: String,
    /// Parameters with their defaults.
    pub(super) parameters: Vec<(String, Option<Expr>)>,
    pub(super) body: Vec<Statement>,
}

/// What `for` and `set` assign to.
#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    /// `namespace.attribute`
    Attribute(String, String),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    Name(String),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, String),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, CallArguments),
    Filter(Box<Expr>, FilterCall),
    Test(Box<Expr>, FilterCall),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Arithmetic(Arithmetic, Box<Expr>, Box<Expr>),
    /// `a ~ b ~ c`
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Conditional {
        test: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
}

/// A filter or a test, with its arguments.
#[derive(Debug)]
pub(super) struct FilterCall {
    pub(super) name: String,
    pub(super) arguments: CallArguments,
}

#[derive(Debug, Default)]
pub(super) struct CallArguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(String, Expr)>,
    /// `*list`
    pub(super) list: Option<Box<Expr>>,
    /// `**dict`
    pub(super) dict: Option<Box<Expr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}
