//! Parses the statements of a template, with jinja2's grammar. Expressions are in [`expressions`].

mod expressions;

use std::sync::Arc;

use super::Fault;
use super::ast::{CallArguments, Expr, FilterCall, ForLoop, MacroDefinition, Statement, StatementKind, Target};
use super::lexer::{Token, TokenKind, tokenize};

/// A parsed template.
pub(super) struct Parsed {
    pub(super) body: Vec<Statement>,
    pub(super) has_generation_blocks: bool,
}

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Parsed, Fault> {
    let tokens = tokenize(source)?;
    let mut parser = Parser { tokens, at: 0, depth: 0, has_generation_blocks: false, loops: 0, operators: 0 };
    let body = parser.statements(&[])?;
    Ok(Parsed { body, has_generation_blocks: parser.has_generation_blocks })
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    /// Nested statements and expressions.
    depth: u32,
    has_generation_blocks: bool,
    /// Loops around the statement.
    loops: u32,
    /// Operators in the statement so far.
    operators: usize,
}

/// Nested statements and expressions in the source. Each costs a dozen function calls on the stack.
const MAX_DEPTH: u32 = 100;

/// Operators in a row (`a + b + c`), which nest in the tree.
const MAX_CHAIN: usize = 200;

/// Operators in a statement, which may all nest in the tree.
const MAX_OPERATORS: usize = 2000;

impl Parser {
    fn token(&self) -> &TokenKind {
        &self.tokens[self.at].kind
    }

    fn token_after(&self) -> &TokenKind {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    fn next(&mut self) -> TokenKind {
        let token = self.tokens[self.at].kind.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(format!("syntax error: {}", message.into())).at(self.line())
    }

    fn unexpected(&self, expected: &str) -> Fault {
        let found = match self.token() {
            TokenKind::Text(_) | TokenKind::VariableBegin | TokenKind::BlockBegin => "text".to_owned(),
            TokenKind::VariableEnd => "end of expression".to_owned(),
            TokenKind::BlockEnd => "end of block".to_owned(),
            TokenKind::Name(name) => format!("`{name}`"),
            TokenKind::Str(_) => "string".to_owned(),
            TokenKind::Int(_) | TokenKind::Float(_) => "number".to_owned(),
            TokenKind::Operator(operator) => format!("`{operator}`"),
            TokenKind::End => "end of template".to_owned(),
        };
        match expected {
            "" => self.fault(format!("unexpected {found}")),
            _ => self.fault(format!("unexpected {found}, expected {expected}")),
        }
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.token(), TokenKind::Operator(found) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), TokenKind::Name(found) if found == name)
    }

    /// Takes the operator if it comes next.
    fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        if found {
            self.next();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn expect_operator(&mut self, operator: &str) -> Result<(), Fault> {
        if self.skip_operator(operator) { Ok(()) } else { Err(self.unexpected(&format!("`{operator}`"))) }
    }

    fn expect_name(&mut self, what: &str) -> Result<String, Fault> {
        match self.token() {
            TokenKind::Name(name) => {
                let name = name.clone();
                self.next();
                Ok(name)
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn expect_block_end(&mut self) -> Result<(), Fault> {
        if *self.token() == TokenKind::BlockEnd {
            self.next();
            return Ok(());
        }
        Err(self.unexpected("end of block"))
    }

    /// Parses one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.depth >= MAX_DEPTH {
            return Err(self.fault(format!("the template nests more than {MAX_DEPTH} levels deep")));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    /// Parses statements until a tag with one of the names `ends`, whose name it leaves for the caller. Without names, until
    /// the end of the template.
    fn statements(&mut self, ends: &[&str]) -> Result<Vec<Statement>, Fault> {
        self.nested(|parser| parser.statements_of_level(ends))
    }

    fn statements_of_level(&mut self, ends: &[&str]) -> Result<Vec<Statement>, Fault> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            self.operators = 0;
            match self.next() {
                TokenKind::Text(text) => body.push(Statement { line, kind: StatementKind::Text(text) }),
                TokenKind::VariableBegin => {
                    let value = self.tuple_or_expression()?;
                    if *self.token() != TokenKind::VariableEnd {
                        return Err(self.unexpected("end of expression"));
                    }
                    self.next();
                    body.push(Statement { line, kind: StatementKind::Output(value) });
                }
                TokenKind::BlockBegin => {
                    if matches!(self.token(), TokenKind::Name(name) if ends.contains(&name.as_str())) {
                        return Ok(body);
                    }
                    let line = self.line();
                    let kind = self.statement()?;
                    body.push(Statement { line, kind });
                }
                _ if ends.is_empty() => return Ok(body),
                _ => return Err(self.fault(format!("unexpected end of template, expected {}", ends.join(" or ")))),
            }
        }
    }

    /// Parses the body of a block, its end tag `end`, and the end of that tag.
    fn body(&mut self, end: &str) -> Result<Vec<Statement>, Fault> {
        self.expect_block_end()?;
        let body = self.statements(&[end])?;
        self.next();
        self.expect_block_end()?;
        Ok(body)
    }

    fn statement(&mut self) -> Result<StatementKind, Fault> {
        let name = self.expect_name("a statement")?;
        match name.as_str() {
            "if" => self.conditional(),
            "for" => self.for_loop(),
            "set" => self.assignment(),
            "macro" => {
                let name = self.expect_name("the macro's name")?;
                let parameters = self.parameters()?;
                let body = self.outside_of_loops(|parser| parser.body("endmacro"))?;
                Ok(StatementKind::Macro(Arc::new(MacroDefinition { name, parameters, body })))
            }
            "call" => {
                let parameters = if self.is_operator("(") { self.parameters()? } else { Vec::new() };
                let call = self.expression()?;
                let body = self.outside_of_loops(|parser| parser.body("endcall"))?;
                let caller = Arc::new(MacroDefinition { name: "caller".to_owned(), parameters, body });
                Ok(StatementKind::Call { call, caller })
            }
            "filter" => {
                let mut filters = vec![self.filter_call()?];
                while self.skip_operator("|") {
                    filters.push(self.filter_call()?);
                }
                Ok(StatementKind::FilterBlock { filters, body: self.body("endfilter")? })
            }
            "with" => self.with_block(),
            "generation" => {
                self.has_generation_blocks = true;
                Ok(StatementKind::Generation(self.outside_of_loops(|parser| parser.body("endgeneration"))?))
            }
            "block" => {
                self.expect_name("the block's name")?;
                self.expect_block_end()?;
                let body = self.outside_of_loops(|parser| parser.statements(&["endblock"]))?;
                self.next();
                if matches!(self.token(), TokenKind::Name(_)) {
                    self.next();
                }
                self.expect_block_end()?;
                Ok(StatementKind::Block(body))
            }
            "print" => {
                let value = self.tuple_or_expression()?;
                self.expect_block_end()?;
                Ok(StatementKind::Output(value))
            }
            "break" | "continue" if self.loops == 0 => Err(self.fault(format!("`{name}` outside of a loop"))),
            "break" | "continue" => {
                self.expect_block_end()?;
                Ok(if name == "break" { StatementKind::Break } else { StatementKind::Continue })
            }
            _ => Err(self.fault(format!("unknown statement {name}"))),
        }
    }

    /// Parses what is a function of its own, out of which no loop can be left.
    fn outside_of_loops<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        let loops = std::mem::take(&mut self.loops);
        let result = parse(self);
        self.loops = loops;
        result
    }

    fn conditional(&mut self) -> Result<StatementKind, Fault> {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple_or_expression()?;
            self.expect_block_end()?;
            let body = self.statements(&["elif", "else", "endif"])?;
            branches.push((test, body));
            let end = self.expect_name("endif")?;
            if end == "elif" {
                continue;
            }
            if end == "else" {
                self.expect_block_end()?;
                otherwise = self.statements(&["endif"])?;
                self.next();
            }
            self.expect_block_end()?;
            return Ok(StatementKind::If { branches, otherwise });
        }
    }

    fn for_loop(&mut self) -> Result<StatementKind, Fault> {
        let target = self.target()?;
        if !self.skip_name("in") {
            return Err(self.unexpected("`in`"));
        }
        let iterable = self.tuple_without_condition(&["recursive"])?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.expect_block_end()?;
        self.loops += 1;
        let body = self.statements(&["else", "endfor"]);
        self.loops -= 1;
        let body = body?;
        let mut otherwise = Vec::new();
        if self.expect_name("endfor")? == "else" {
            self.expect_block_end()?;
            otherwise = self.statements(&["endfor"])?;
            self.next();
        }
        self.expect_block_end()?;
        Ok(StatementKind::For(Arc::new(ForLoop { target, iterable, condition, body, otherwise, recursive })))
    }

    fn assignment(&mut self) -> Result<StatementKind, Fault> {
        let target = self.target()?;
        if self.skip_operator("=") {
            let value = self.tuple_or_expression()?;
            self.expect_block_end()?;
            return Ok(StatementKind::Set { target, value });
        }
        let mut filters = Vec::new();
        while self.skip_operator("|") {
            filters.push(self.filter_call()?);
        }
        Ok(StatementKind::SetBlock { target, filters, body: self.body("endset")? })
    }

    fn with_block(&mut self) -> Result<StatementKind, Fault> {
        let mut assignments = Vec::new();
        while *self.token() != TokenKind::BlockEnd {
            if !assignments.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target()?;
            self.expect_operator("=")?;
            assignments.push((target, self.expression()?));
        }
        Ok(StatementKind::With { assignments, body: self.body("endwith")? })
    }

    /// A name, an attribute of a namespace, or several names.
    fn target(&mut self) -> Result<Target, Fault> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if self.skip_operator("(") {
                let inner = self.nested(Self::target)?;
                self.expect_operator(")")?;
                targets.push(inner);
            } else {
                let name = self.expect_name("a name to assign to")?;
                if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None") {
                    return Err(self.fault(format!("cannot assign to {name}")));
                }
                targets.push(match self.skip_operator(".") {
                    true => Target::Attribute(name, self.expect_name("an attribute")?),
                    false => Target::Name(name),
                });
            }
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
            if self.is_name("in") || self.is_operator("=") || self.is_operator(")") {
                break;
            }
        }
        if is_tuple {
            return Ok(Target::Tuple(targets));
        }
        targets.pop().ok_or_else(|| self.unexpected("a name"))
    }

    /// `(a, b=1)`
    fn parameters(&mut self) -> Result<Vec<(String, Option<Expr>)>, Fault> {
        self.expect_operator("(")?;
        let mut parameters: Vec<(String, Option<Expr>)> = Vec::new();
        while !self.skip_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
                if self.skip_operator(")") {
                    break;
                }
            }
            let name = self.expect_name("a parameter")?;
            let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.iter().any(|(_, default)| default.is_some()) {
                return Err(self.fault("non-default argument follows default argument"));
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    /// The name and the arguments of a filter.
    fn filter_call(&mut self) -> Result<FilterCall, Fault> {
        let name = self.dotted_name("a filter")?;
        let arguments = if self.is_operator("(") { self.arguments()? } else { CallArguments::default() };
        Ok(FilterCall { name, arguments })
    }

    fn dotted_name(&mut self, what: &str) -> Result<String, Fault> {
        let mut name = self.expect_name(what)?;
        while self.is_operator(".") && matches!(self.token_after(), TokenKind::Name(_)) {
            self.next();
            name = name + "." + &self.expect_name(what)?;
        }
        Ok(name)
    }
}
