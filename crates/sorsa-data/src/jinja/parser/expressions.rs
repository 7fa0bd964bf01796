//! Expressions, from the weakest operator to the strongest.

use super::super::ast::{Arithmetic, CallArguments, Comparison, Expr, FilterCall};
use super::super::lexer::TokenKind;
use super::{Fault, MAX_CHAIN, MAX_OPERATORS, Parser};

impl Parser {
    /// An expression, or several with commas between them, which are a tuple.
    pub(super) fn tuple_or_expression(&mut self) -> Result<Expr, Fault> {
        self.tuple(true, &[])
    }

    /// The same without `a if b else c`, up to one of the names `ends`.
    pub(super) fn tuple_without_condition(&mut self, ends: &[&str]) -> Result<Expr, Fault> {
        self.tuple(false, ends)
    }

    fn tuple(&mut self, with_condition: bool, ends: &[&str]) -> Result<Expr, Fault> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                if !self.skip_operator(",") {
                    break;
                }
                is_tuple = true;
            }
            let ended = match self.token() {
                TokenKind::VariableEnd | TokenKind::BlockEnd | TokenKind::Operator(")") => true,
                TokenKind::Name(name) => ends.contains(&name.as_str()),
                _ => false,
            };
            if ended {
                break;
            }
            items.push(if with_condition { self.expression()? } else { self.nested(Self::or_expression)? });
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            Some(last) => {
                items.push(last);
                Ok(Expr::Tuple(items))
            }
            None => Err(self.unexpected("")),
        }
    }

    pub(super) fn expression(&mut self) -> Result<Expr, Fault> {
        self.nested(Self::conditional_expression)
    }

    fn conditional_expression(&mut self) -> Result<Expr, Fault> {
        let mut value = self.or_expression()?;
        let mut chain = 0;
        while self.skip_name("if") {
            self.count_chain(&mut chain)?;
            let test = Box::new(self.or_expression()?);
            let otherwise = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            value = Expr::Conditional { test, then: Box::new(value), otherwise };
        }
        Ok(value)
    }

    fn count_chain(&mut self, chain: &mut usize) -> Result<(), Fault> {
        *chain += 1;
        self.operators += 1;
        if *chain > MAX_CHAIN {
            return Err(self.fault(format!("more than {MAX_CHAIN} operators in a row")));
        }
        if self.operators > MAX_OPERATORS {
            return Err(self.fault(format!("more than {MAX_OPERATORS} operators in a statement")));
        }
        Ok(())
    }

    fn or_expression(&mut self) -> Result<Expr, Fault> {
        let mut left = self.and_expression()?;
        let mut chain = 0;
        while self.skip_name("or") {
            self.count_chain(&mut chain)?;
            left = Expr::Or(Box::new(left), Box::new(self.and_expression()?));
        }
        Ok(left)
    }

    fn and_expression(&mut self) -> Result<Expr, Fault> {
        let mut left = self.not_expression()?;
        let mut chain = 0;
        while self.skip_name("and") {
            self.count_chain(&mut chain)?;
            left = Expr::And(Box::new(left), Box::new(self.not_expression()?));
        }
        Ok(left)
    }

    fn not_expression(&mut self) -> Result<Expr, Fault> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not_expression)?)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr, Fault> {
        let left = self.sum()?;
        let mut comparisons = Vec::new();
        loop {
            let comparison = match self.token() {
                TokenKind::Operator("==") => Comparison::Equal,
                TokenKind::Operator("!=") => Comparison::NotEqual,
                TokenKind::Operator("<") => Comparison::Less,
                TokenKind::Operator("<=") => Comparison::LessOrEqual,
                TokenKind::Operator(">") => Comparison::Greater,
                TokenKind::Operator(">=") => Comparison::GreaterOrEqual,
                TokenKind::Name(name) if name == "in" => Comparison::In,
                TokenKind::Name(name) if name == "not" => {
                    if !matches!(self.token_after(), TokenKind::Name(name) if name == "in") {
                        break;
                    }
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            comparisons.push((comparison, self.sum()?));
        }
        Ok(if comparisons.is_empty() { left } else { Expr::Compare(Box::new(left), comparisons) })
    }

    fn sum(&mut self) -> Result<Expr, Fault> {
        let mut left = self.concatenation()?;
        let mut chain = 0;
        loop {
            let operator = match self.token() {
                TokenKind::Operator("+") => Arithmetic::Add,
                TokenKind::Operator("-") => Arithmetic::Subtract,
                _ => return Ok(left),
            };
            self.next();
            self.count_chain(&mut chain)?;
            left = Expr::Arithmetic(operator, Box::new(left), Box::new(self.concatenation()?));
        }
    }

    fn concatenation(&mut self) -> Result<Expr, Fault> {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Result<Expr, Fault> {
        let mut left = self.power()?;
        let mut chain = 0;
        loop {
            let operator = match self.token() {
                TokenKind::Operator("*") => Arithmetic::Multiply,
                TokenKind::Operator("/") => Arithmetic::Divide,
                TokenKind::Operator("//") => Arithmetic::FloorDivide,
                TokenKind::Operator("%") => Arithmetic::Modulo,
                _ => return Ok(left),
            };
            self.next();
            self.count_chain(&mut chain)?;
            left = Expr::Arithmetic(operator, Box::new(left), Box::new(self.power()?));
        }
    }

    fn power(&mut self) -> Result<Expr, Fault> {
        let mut left = self.unary()?;
        let mut chain = 0;
        while self.skip_operator("**") {
            self.count_chain(&mut chain)?;
            left = Expr::Arithmetic(Arithmetic::Power, Box::new(left), Box::new(self.unary()?));
        }
        Ok(left)
    }

    /// A signed value. Filters and tests bind to the value with its sign.
    fn unary(&mut self) -> Result<Expr, Fault> {
        let value = self.signed()?;
        self.filters_and_tests(value)
    }

    fn signed(&mut self) -> Result<Expr, Fault> {
        if self.skip_operator("-") {
            return Ok(Expr::Negative(Box::new(self.nested(Self::signed)?)));
        }
        if self.skip_operator("+") {
            return Ok(Expr::Positive(Box::new(self.nested(Self::signed)?)));
        }
        let value = self.primary()?;
        self.postfix(value)
    }

    fn primary(&mut self) -> Result<Expr, Fault> {
        match self.token().clone() {
            TokenKind::Name(name) => {
                self.next();
                Ok(match name.as_str() {
                    "true" | "True" => Expr::Bool(true),
                    "false" | "False" => Expr::Bool(false),
                    "none" | "None" => Expr::None,
                    _ => Expr::Name(name),
                })
            }
            TokenKind::Str(mut text) => {
                self.next();
                while let TokenKind::Str(more) = self.token() {
                    text.push_str(more);
                    self.next();
                }
                Ok(Expr::Str(text))
            }
            TokenKind::Int(value) => {
                self.next();
                Ok(Expr::Int(value))
            }
            TokenKind::Float(value) => {
                self.next();
                Ok(Expr::Float(value))
            }
            TokenKind::Operator("(") => {
                self.next();
                if self.skip_operator(")") {
                    return Ok(Expr::Tuple(Vec::new()));
                }
                let value = self.tuple_or_expression()?;
                self.expect_operator(")")?;
                Ok(value)
            }
            TokenKind::Operator("[") => {
                self.next();
                let mut items = Vec::new();
                while !self.skip_operator("]") {
                    if !items.is_empty() {
                        self.expect_operator(",")?;
                        if self.skip_operator("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                Ok(Expr::List(items))
            }
            TokenKind::Operator("{") => self.dict(),
            _ => Err(self.unexpected("")),
        }
    }

    fn dict(&mut self) -> Result<Expr, Fault> {
        self.next();
        let mut entries = Vec::new();
        while !self.skip_operator("}") {
            if !entries.is_empty() {
                self.expect_operator(",")?;
                if self.skip_operator("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_operator(":")?;
            entries.push((key, self.expression()?));
        }
        Ok(Expr::Dict(entries))
    }

    /// `.name`, `[item]` and `(arguments)` after a value.
    fn postfix(&mut self, mut value: Expr) -> Result<Expr, Fault> {
        let mut chain = 0;
        loop {
            match self.token() {
                TokenKind::Operator(".") => {
                    self.next();
                    value = match self.next() {
                        TokenKind::Name(name) => Expr::Attribute(Box::new(value), name),
                        TokenKind::Int(index) => Expr::Item(Box::new(value), Box::new(Expr::Int(index))),
                        _ => return Err(self.fault("expected name or number after `.`")),
                    };
                }
                TokenKind::Operator("[") => {
                    self.next();
                    value = self.subscript(value)?;
                }
                TokenKind::Operator("(") => value = Expr::Call(Box::new(value), self.arguments()?),
                _ => return Ok(value),
            }
            self.count_chain(&mut chain)?;
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr, Fault> {
        let mut parts = [None, None, None];
        let mut part = 0;
        let mut colons = 0;
        loop {
            if self.skip_operator("]") {
                break;
            }
            if self.skip_operator(":") {
                colons += 1;
                part += 1;
                if colons > 2 {
                    return Err(self.unexpected("`]`"));
                }
                continue;
            }
            if parts[part].is_some() {
                return Err(self.unexpected("`]`"));
            }
            parts[part] = Some(self.expression()?);
            if self.is_operator(",") {
                return Err(self.fault("several items in `[]` are not supported"));
            }
        }
        if colons > 0 {
            return Ok(Expr::Slice(Box::new(value), Box::new(parts)));
        }
        let [item, ..] = parts;
        match item {
            Some(item) => Ok(Expr::Item(Box::new(value), Box::new(item))),
            None => Err(self.fault("expected an item in `[]`")),
        }
    }

    fn filters_and_tests(&mut self, mut value: Expr) -> Result<Expr, Fault> {
        let mut chain = 0;
        loop {
            if self.skip_operator("|") {
                value = Expr::Filter(Box::new(value), self.filter_call()?);
            } else if self.skip_name("is") {
                value = self.test(value)?;
            } else if self.is_operator("(") {
                value = Expr::Call(Box::new(value), self.arguments()?);
            } else {
                return Ok(value);
            }
            self.count_chain(&mut chain)?;
        }
    }

    fn test(&mut self, value: Expr) -> Result<Expr, Fault> {
        let negated = self.skip_name("not");
        let name = self.dotted_name("a test")?;
        let mut arguments = CallArguments::default();
        let takes_value = match self.token() {
            TokenKind::Operator("(") => {
                arguments = self.arguments()?;
                false
            }
            TokenKind::Name(name) if name == "is" => return Err(self.fault("tests cannot be chained with `is`")),
            TokenKind::Name(name) => {
                !matches!(name.as_str(), "else" | "or" | "and" | "if" | "not" | "in" | "recursive")
            }
            TokenKind::Str(_) | TokenKind::Int(_) | TokenKind::Float(_) => true,
            TokenKind::Operator(operator) => matches!(*operator, "[" | "{"),
            _ => false,
        };
        if takes_value {
            let argument = self.primary()?;
            arguments.positional.push(self.postfix(argument)?);
        }
        let test = Expr::Test(Box::new(value), FilterCall { name, arguments });
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    /// `(a, name=b, *list, **dict)`
    pub(super) fn arguments(&mut self) -> Result<CallArguments, Fault> {
        self.expect_operator("(")?;
        let mut arguments = CallArguments::default();
        let mut first = true;
        while !self.skip_operator(")") {
            if !first {
                self.expect_operator(",")?;
                if self.skip_operator(")") {
                    break;
                }
            }
            first = false;
            let named = matches!(self.token(), TokenKind::Name(_)) && *self.token_after() == TokenKind::Operator("=");
            if self.skip_operator("**") {
                arguments.dict = Some(Box::new(self.expression()?));
            } else if self.skip_operator("*") {
                arguments.list = Some(Box::new(self.expression()?));
            } else if named {
                let name = self.expect_name("an argument")?;
                self.next();
                arguments.named.push((name, self.expression()?));
            } else if arguments.named.is_empty() && arguments.list.is_none() {
                arguments.positional.push(self.expression()?);
            } else {
                return Err(self.fault("invalid syntax for function call expression"));
            }
        }
        Ok(arguments)
    }
}
