//! The part of sympy's `parse_expr` that answers use: Python's arithmetic over integers, decimals, names and the usual
//! functions.
//!
//! Covered: `+ - * / **`, brackets, `!`, `^` (bitwise on integers, as Python has it, or a power, as `sympify` has it),
//! decimals, exponents, `1j`; `pi E I True False`; `sqrt exp log ln sin cos tan cot sec csc asin acos atan Abs floor
//! ceiling factorial binomial`; any other name as a symbol. Not covered, and taken as not parsed: relations, tuples,
//! sets, undefined functions and the rest of sympy's names. Whether a difference simplifies to zero is decided by its
//! values (see [`crate::algebra`]), which can only find more equalities than sympy's `simplify` does.

use crate::algebra::{Expr, Function, Rational, constant};

/// What `^` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caret {
    /// `parse_expr`: Python's exclusive or, which only integers have.
    Xor,
    /// `sympify`: a power.
    Power,
}

/// Longest expression in bytes, and deepest nesting.
const MAX_BYTES: usize = 2000;
const MAX_DEPTH: usize = 50;

/// Python's keywords, and names of sympy that are no symbols.
const NO_SYMBOLS: [&str; 20] = [
    "and", "or", "not", "in", "is", "if", "else", "for", "lambda", "None", "N", "S", "O", "Q", "beta", "gamma", "zeta",
    "oo", "zoo", "nan",
];

/// Parses a Python expression.
pub(super) fn parse(text: &str, caret: Caret) -> Option<Expr> {
    if text.len() > MAX_BYTES {
        return None;
    }
    // A comment is none of it.
    let text = text.split('#').next()?;
    let mut parser = Parser { rest: text, caret, depth: 0 };
    let expr = parser.xor()?;
    parser.blank();
    parser.rest.is_empty().then_some(expr)
}

struct Parser<'a> {
    rest: &'a str,
    caret: Caret,
    depth: usize,
}

impl Parser<'_> {
    fn blank(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, sign: &str) -> Option<()> {
        self.blank();
        self.rest = self.rest.strip_prefix(sign)?;
        Some(())
    }

    /// `*` or `/`, but not `**` or `//`.
    fn take_single(&mut self, sign: char) -> Option<()> {
        self.blank();
        let rest = self.rest.strip_prefix(sign)?;
        (!rest.starts_with(sign)).then(|| self.rest = rest)
    }

    fn xor(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut left = self.sum()?;
        while self.caret == Caret::Xor && self.take("^").is_some() {
            let whole = |expr: &Expr| constant(expr)?.exact?.integer();
            left = Expr::Number(Rational::new(whole(&left)? ^ whole(&self.sum()?)?, 1)?);
        }
        self.depth -= 1;
        Some(left)
    }

    fn sum(&mut self) -> Option<Expr> {
        let mut terms = vec![self.product()?];
        loop {
            if self.take("+").is_some() {
                terms.push(self.product()?);
            } else if self.take("-").is_some() {
                terms.push(Expr::Negated(Box::new(self.product()?)));
            } else {
                return Some(if terms.len() == 1 { terms.remove(0) } else { Expr::Sum(terms) });
            }
        }
    }

    fn product(&mut self) -> Option<Expr> {
        let mut left = vec![self.signed()?];
        loop {
            if self.take_single('*').is_some() {
                left.push(self.signed()?);
            } else if self.take_single('/').is_some() {
                let below = self.signed()?;
                left = vec![Expr::Quotient(Box::new(Expr::Product(left)), Box::new(below))];
            } else {
                return Some(if left.len() == 1 { left.remove(0) } else { Expr::Product(left) });
            }
        }
    }

    fn signed(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let expr = if self.take("-").is_some() {
            Expr::Negated(Box::new(self.signed()?))
        } else if self.take("+").is_some() {
            self.signed()?
        } else {
            let base = self.postfix()?;
            let raised = self.take("**").or_else(|| if self.caret == Caret::Power { self.take("^") } else { None });
            match raised {
                Some(()) => Expr::Power(Box::new(base), Box::new(self.signed()?)),
                None => base,
            }
        };
        self.depth -= 1;
        Some(expr)
    }

    fn postfix(&mut self) -> Option<Expr> {
        let atom = self.atom()?;
        match self.take("!") {
            Some(()) => Some(Expr::Call(Function::Factorial, Box::new(atom))),
            None => Some(atom),
        }
    }

    fn atom(&mut self) -> Option<Expr> {
        self.blank();
        let first = self.rest.chars().next()?;
        if first == '(' {
            self.take("(")?;
            let inner = self.xor()?;
            self.take(")")?;
            return Some(inner);
        }
        if first.is_ascii_digit() || first == '.' {
            return self.number();
        }
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() || NO_SYMBOLS.contains(&name) {
            return None;
        }
        self.rest = rest;
        if self.take("(").is_some() {
            return self.call(name);
        }
        Some(match name {
            "pi" => Expr::Pi,
            "E" => Expr::E,
            "I" => Expr::I,
            "True" => Expr::whole(1),
            "False" => Expr::whole(0),
            _ => Expr::Variable(name.to_owned()),
        })
    }

    fn number(&mut self) -> Option<Expr> {
        let digits = |text: &str| text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'_').count();
        let mut end = digits(self.rest);
        let mut whole = true;
        if self.rest[end..].starts_with('.') {
            end += 1 + digits(&self.rest[end + 1..]);
            whole = false;
        }
        let mantissa = self.rest[..end].replace('_', "");
        // Python refuses 007, but not 007.5 or 00.
        if whole && mantissa.len() > 1 && mantissa.starts_with('0') && mantissa.bytes().any(|byte| byte != b'0') {
            return None;
        }
        let mut value = Rational::decimal(&mantissa)?;
        if let Some(power) = self.rest[end..].strip_prefix(['e', 'E']) {
            let sign = usize::from(power.starts_with(['+', '-']));
            let length = digits(&power[sign..]);
            let exponent = power[..sign + length].parse().ok()?;
            value = value.times(Rational::whole(10).power(exponent)?)?;
            end += 1 + sign + length;
        }
        self.rest = &self.rest[end..];
        let number = Expr::Number(value);
        match self.rest.strip_prefix(['j', 'J']) {
            Some(rest) => {
                self.rest = rest;
                Some(Expr::Product(vec![number, Expr::I]))
            }
            // 37x is a syntax error.
            None => (!self.rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')).then_some(number),
        }
    }

    fn call(&mut self, name: &str) -> Option<Expr> {
        let x = self.xor()?;
        let second = match self.take(",") {
            Some(()) => Some(self.xor()?),
            None => None,
        };
        self.take(")")?;
        let function = match (name, second) {
            ("log" | "ln", Some(base)) => return Some(Expr::Log(Box::new(base), Box::new(x))),
            ("binomial", Some(k)) => return Some(Expr::Binomial(Box::new(x), Box::new(k))),
            (_, Some(_)) => return None,
            ("sqrt", None) => return Some(Expr::Root(Box::new(Expr::whole(2)), Box::new(x))),
            ("log" | "ln", None) => Function::Ln,
            ("exp", None) => Function::Exp,
            ("sin", None) => Function::Sin,
            ("cos", None) => Function::Cos,
            ("tan", None) => Function::Tan,
            ("cot", None) => Function::Cot,
            ("sec", None) => Function::Sec,
            ("csc", None) => Function::Csc,
            ("asin", None) => Function::Asin,
            ("acos", None) => Function::Acos,
            ("atan", None) => Function::Atan,
            ("Abs" | "abs", None) => Function::Abs,
            ("floor", None) => Function::Floor,
            ("ceiling", None) => Function::Ceiling,
            ("factorial", None) => Function::Factorial,
            _ => return None,
        };
        Some(Expr::Call(function, Box::new(x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, caret: Caret) -> Option<f64> {
        Some(constant(&parse(text, caret)?)?.approx.re)
    }

    #[test]
    fn arithmetic_has_python_s_precedence() {
        for (text, expected) in [
            ("-2**2", -4.0),
            ("2**-1", 0.5),
            ("2**3**2", 512.0),
            ("10^3", 9.0),
            ("1+2^3", 0.0),
            ("5!/3!", 20.0),
            ("1e3", 1000.0),
            ("--3", 3.0),
            ("sqrt(16)*(1+1)", 8.0),
            ("log(8, 2)", 3.0),
            ("True", 1.0),
        ] {
            let found = value(text, Caret::Xor).unwrap_or(f64::NAN);
            assert!((found - expected).abs() < 1e-12, "{text}: {found}");
        }
        assert_eq!(value("1+2^3", Caret::Power), Some(9.0));
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in ["37x", "007", r"\pi", "x>3", "(1,2)", "43 and 50", "f(x)", "x^2", "2(3)", "{1}", "", "1 2", "5:30"]
        {
            assert_eq!(parse(text, Caret::Xor), None, "{text}");
        }
    }
}
