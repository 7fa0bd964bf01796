//! An expression from tokens, by recursive descent. Juxtaposition multiplies; `1\frac{1}{2}` and `1 1/2` are mixed
//! numbers.

use super::token::{Kind, Token};
use crate::algebra::{Expr, Function, Rational};

/// Deepest nesting of brackets and commands.
const MAX_DEPTH: usize = 40;

/// The parsed expression, and whether it ends in degrees as a unit rather than as an angle within a function.
pub(super) struct Parsed {
    pub expr: Expr,
    pub degrees: bool,
}

/// Reads all tokens as one expression. `plus` is what `\pm` stands for.
pub(super) fn expression(tokens: &[Token], plus: bool) -> Option<Parsed> {
    let mut parser = Parser { tokens, at: 0, plus, depth: 0, angle: false, degrees: false };
    let expr = parser.sum()?;
    (parser.at == tokens.len()).then_some(Parsed { expr, degrees: parser.degrees })
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    plus: bool,
    depth: usize,
    /// Within the argument of a function: degrees are an angle there.
    angle: bool,
    degrees: bool,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    fn take_sign(&mut self, sign: char) -> Option<()> {
        (self.peek()? == &Kind::Sign(sign)).then(|| self.at += 1)
    }

    fn take_command(&mut self, name: &str) -> Option<()> {
        matches!(self.peek()?, Kind::Command(found) if found == name).then(|| self.at += 1)
    }

    /// `+`, `-`, `\pm`, `\mp`: whether it is a minus.
    fn take_plus_or_minus(&mut self) -> Option<bool> {
        let minus = match self.peek()? {
            Kind::Sign('+') => false,
            Kind::Sign('-') => true,
            Kind::Command(name) if name == "pm" => !self.plus,
            Kind::Command(name) if name == "mp" => self.plus,
            _ => return None,
        };
        self.at += 1;
        Some(minus)
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.depth += 1;
        let parsed = if self.depth <= MAX_DEPTH { parse(self) } else { None };
        self.depth -= 1;
        parsed
    }

    fn sum(&mut self) -> Option<Expr> {
        self.nested(|parser| {
            let mut terms = vec![parser.signed_product()?];
            while let Some(minus) = parser.take_plus_or_minus() {
                let term = parser.signed_product()?;
                terms.push(if minus { Expr::Negated(Box::new(term)) } else { term });
            }
            Some(single_or(terms, Expr::Sum))
        })
    }

    fn signed_product(&mut self) -> Option<Expr> {
        let mut negative = false;
        while let Some(minus) = self.take_plus_or_minus() {
            negative ^= minus;
        }
        let product = self.product()?;
        Some(if negative { Expr::Negated(Box::new(product)) } else { product })
    }

    /// Factors with `*`, `/` or nothing between them, from left to right.
    fn product(&mut self) -> Option<Expr> {
        let mut factors = vec![self.power()?];
        loop {
            if self.take_sign('*').is_some() {
                factors.push(self.signed_power()?);
            } else if self.take_sign('/').is_some() {
                let below = self.signed_power()?;
                let above = single_or(std::mem::take(&mut factors), Expr::Product);
                factors.push(Expr::Quotient(Box::new(above), Box::new(below)));
            } else if self.starts_factor() {
                factors.push(self.power()?);
            } else {
                return Some(single_or(factors, Expr::Product));
            }
        }
    }

    fn signed_power(&mut self) -> Option<Expr> {
        match self.take_plus_or_minus() {
            Some(minus) => {
                let power = self.power()?;
                Some(if minus { Expr::Negated(Box::new(power)) } else { power })
            }
            None => self.power(),
        }
    }

    /// Whether what comes next can be multiplied with by juxtaposition. Two numbers side by side cannot.
    fn starts_factor(&self) -> bool {
        let after_number =
            matches!(self.tokens.get(self.at.wrapping_sub(1)), Some(Token { kind: Kind::Number(..), .. }));
        match self.peek() {
            Some(Kind::Number(..)) => !after_number,
            Some(Kind::Letter(_) | Kind::Sign('(' | '{' | '[')) => true,
            Some(Kind::Command(name)) => {
                !matches!(&**name, "cup" | "cap" | "in" | "pm" | "mp" | "degree" | "rfloor" | "rceil")
            }
            _ => false,
        }
    }

    /// A factor with what stands after it: powers, factorials, degrees.
    fn power(&mut self) -> Option<Expr> {
        self.nested(|parser| {
            let mut base = parser.atom()?;
            loop {
                if parser.take_sign('!').is_some() {
                    base = Expr::Call(Function::Factorial, Box::new(base));
                } else if parser.take_degrees() {
                    if parser.angle {
                        base = Expr::Call(Function::Degrees, Box::new(base));
                    } else {
                        parser.degrees = true;
                    }
                } else if parser.take_sign('^').is_some() {
                    let exponent = parser.exponent()?;
                    return Some(Expr::Power(Box::new(base), Box::new(exponent)));
                } else {
                    return Some(base);
                }
            }
        })
    }

    /// `^\circ`, `^{\circ}` or a degree sign.
    fn take_degrees(&mut self) -> bool {
        let degree = |at: usize| matches!(self.tokens.get(at), Some(Token { kind: Kind::Command(name), .. }) if name == "degree");
        let sign = |at: usize, sign| self.tokens.get(at).is_some_and(|token| token.kind == Kind::Sign(sign));
        let length = if degree(self.at) {
            1
        } else if sign(self.at, '^') && degree(self.at + 1) {
            2
        } else if sign(self.at, '^') && sign(self.at + 1, '{') && degree(self.at + 2) && sign(self.at + 3, '}') {
            4
        } else {
            return false;
        };
        self.at += length;
        true
    }

    fn exponent(&mut self) -> Option<Expr> {
        match self.take_plus_or_minus() {
            Some(minus) => {
                let power = self.power()?;
                Some(if minus { Expr::Negated(Box::new(power)) } else { power })
            }
            None => self.power(),
        }
    }

    fn group(&mut self, open: char, close: char) -> Option<Expr> {
        self.take_sign(open)?;
        let inner = self.sum()?;
        self.take_sign(close)?;
        Some(inner)
    }

    /// The argument of a command: a group in braces, or the next factor.
    fn argument(&mut self) -> Option<Expr> {
        self.nested(|parser| match parser.peek()? {
            Kind::Sign('{') => parser.group('{', '}'),
            Kind::Sign('(') => parser.group('(', ')'),
            _ => parser.atom(),
        })
    }

    fn atom(&mut self) -> Option<Expr> {
        match self.peek()?.clone() {
            Kind::Number(value, digits) => {
                self.at += 1;
                let part = if digits.is_some() { self.mixed_part() } else { None };
                Some(match part {
                    Some(part) => Expr::Number(value.plus(part)?),
                    None => Expr::Number(value),
                })
            }
            Kind::Letter(letter) => {
                self.at += 1;
                Some(match (letter, self.subscript()) {
                    ('i', None) => Expr::I,
                    ('e', None) => Expr::E,
                    (letter, None) => Expr::Variable(letter.to_string()),
                    (letter, Some(index)) => Expr::Variable(format!("{letter}_{index}")),
                })
            }
            Kind::Sign('(') => self.group('(', ')'),
            Kind::Sign('{') => self.group('{', '}'),
            Kind::Sign('[') => self.group('[', ']'),
            Kind::Sign('|') => {
                let inner = self.group('|', '|')?;
                Some(Expr::Call(Function::Abs, Box::new(inner)))
            }
            Kind::Command(name) => {
                self.at += 1;
                self.command(&name)
            }
            _ => None,
        }
    }

    /// `_1`, `_{10}`, `_n`.
    fn subscript(&mut self) -> Option<String> {
        let at = self.at;
        self.take_sign('_')?;
        let braced = self.take_sign('{').is_some();
        let mut index = String::new();
        loop {
            match self.peek() {
                Some(Kind::Number(_, Some(digits))) => index.push_str(digits),
                Some(Kind::Letter(letter)) => index.push(*letter),
                Some(Kind::Words(words)) => index.push_str(words),
                _ => break,
            }
            self.at += 1;
            if !braced {
                break;
            }
        }
        if index.is_empty() || (braced && self.take_sign('}').is_none()) {
            self.at = at;
            return None;
        }
        Some(index)
    }

    /// The fraction of a mixed number, after its whole part: `\frac{1}{2}`, or a blank and `1/2`.
    fn mixed_part(&mut self) -> Option<Rational> {
        let kind = |offset: usize| self.tokens.get(self.at + offset).map(|token| &token.kind);
        let whole = |offset: usize| match kind(offset)? {
            Kind::Number(value, Some(_)) => Some(*value),
            _ => None,
        };
        let braced = |offset: usize| {
            let closed = kind(offset)? == &Kind::Sign('{') && kind(offset + 2)? == &Kind::Sign('}');
            closed.then(|| whole(offset + 1)).flatten()
        };
        let operand = |offset: usize| braced(offset).map(|value| (value, 3)).or_else(|| Some((whole(offset)?, 1)));
        let (above, below, length) = match kind(0)? {
            Kind::Command(name) if name == "frac" => {
                let (above, first) = operand(1)?;
                let (below, second) = operand(1 + first)?;
                (above, below, 1 + first + second)
            }
            Kind::Number(..) if self.tokens[self.at].spaced && kind(1)? == &Kind::Sign('/') => {
                (whole(0)?, whole(2)?, 3)
            }
            _ => return None,
        };
        // 3\frac{8}{2} is a product: a mixed number's fraction is a proper one.
        let proper = above.parts().0 < below.parts().0;
        let part = above.divided_by(below).filter(|_| proper)?;
        self.at += length;
        Some(part)
    }

    fn command(&mut self, name: &str) -> Option<Expr> {
        let call = |function, x| Expr::Call(function, Box::new(x));
        let function = match name {
            "frac" => {
                let (above, below) = (self.argument()?, self.argument()?);
                return Some(Expr::Quotient(Box::new(above), Box::new(below)));
            }
            "binom" | "dbinom" | "tbinom" => {
                let (n, k) = (self.argument()?, self.argument()?);
                return Some(Expr::Binomial(Box::new(n), Box::new(k)));
            }
            "sqrt" => {
                let degree = match self.peek()? {
                    Kind::Sign('[') => self.group('[', ']')?,
                    _ => Expr::whole(2),
                };
                let x = self.argument()?;
                return Some(Expr::Root(Box::new(degree), Box::new(x)));
            }
            "pi" => return Some(Expr::Pi),
            "infty" | "infinity" | "inf" => return Some(Expr::Infinity),
            "lfloor" | "lceil" => {
                let x = self.sum()?;
                let (close, function) =
                    if name == "lfloor" { ("rfloor", Function::Floor) } else { ("rceil", Function::Ceiling) };
                self.take_command(close)?;
                return Some(call(function, x));
            }
            "log" => {
                let base = match self.take_sign('_') {
                    Some(()) => self.argument()?,
                    None => Expr::whole(10),
                };
                let x = self.function_argument()?;
                return Some(Expr::Log(Box::new(base), Box::new(x)));
            }
            "sin" => Function::Sin,
            "cos" => Function::Cos,
            "tan" => Function::Tan,
            "cot" => Function::Cot,
            "sec" => Function::Sec,
            "csc" => Function::Csc,
            "arcsin" => Function::Asin,
            "arccos" => Function::Acos,
            "arctan" => Function::Atan,
            "ln" => Function::Ln,
            "exp" => Function::Exp,
            "abs" => Function::Abs,
            "floor" => Function::Floor,
            "ceil" => Function::Ceiling,
            // Greek letters and other symbols are variables.
            _ => {
                let index = self.subscript().map_or_else(String::new, |index| format!("_{index}"));
                return Some(Expr::Variable(format!("\\{name}{index}")));
            }
        };
        // \sin^2 x
        let exponent = match self.take_sign('^') {
            Some(()) => Some(self.exponent()?),
            None => None,
        };
        let applied = call(function, self.function_argument()?);
        Some(match exponent {
            Some(exponent) => Expr::Power(Box::new(applied), Box::new(exponent)),
            None => applied,
        })
    }

    /// What a function without braces takes: a group, or factors up to the next sign or function.
    fn function_argument(&mut self) -> Option<Expr> {
        let outer = std::mem::replace(&mut self.angle, true);
        let argument = self.nested(|parser| {
            if matches!(parser.peek()?, Kind::Sign('(' | '{' | '[')) {
                return parser.power();
            }
            let mut factors = vec![parser.signed_power()?];
            while parser.starts_factor() && !parser.at_function() {
                factors.push(parser.power()?);
            }
            Some(single_or(factors, Expr::Product))
        });
        self.angle = outer;
        argument
    }

    fn at_function(&self) -> bool {
        matches!(self.peek(), Some(Kind::Command(name)) if super::is_function(name))
    }
}

fn single_or(mut parts: Vec<Expr>, join: impl FnOnce(Vec<Expr>) -> Expr) -> Expr {
    if parts.len() == 1 { parts.remove(0) } else { join(parts) }
}
