//! An answer in LaTeX or plain text, cut into tokens. Layout that does not change the meaning is gone.

use crate::algebra::Rational;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub kind: Kind,
    /// Whether a blank comes before it.
    pub spaced: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// A number without sign; its digits, if it is a plain integer.
    Number(Rational, Option<String>),
    /// A variable of one letter.
    Letter(char),
    /// A command of LaTeX without its backslash, or a function written without one.
    Command(String),
    /// Text in words, in lower case.
    Words(String),
    /// `\begin{..}` or `\end{..}` of a matrix.
    Begin,
    End,
    /// `\\`: the end of a matrix's row.
    RowEnd,
    /// `\{` and `\}`.
    OpenSet,
    CloseSet,
    /// Anything else. Relations are `=`, `<`, `>`, `≤`, `≥`, `≠`; multiplication is `*`, a power `^`.
    Sign(char),
}

/// Longest answer that is looked into, in bytes, and in tokens.
const MAX_BYTES: usize = 2000;
const MAX_TOKENS: usize = 600;

/// Commands that only move or size what they stand before.
const LAYOUT: [&str; 19] = [
    "left",
    "right",
    "big",
    "Big",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "displaystyle",
    "textstyle",
    "quad",
    "qquad",
    "limits",
    "bigg",
    "biggl",
    "biggr",
    "hspace",
    "thinspace",
    "boldsymbol",
];

/// Commands whose argument is text in words.
const TEXT: [&str; 9] =
    ["text", "textnormal", "mbox", "textbf", "textit", "textrm", "mathrm", "operatorname", "mathbf"];

/// Names that are functions or constants even without a backslash.
const NAMES: [&str; 20] = [
    "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "log", "exp", "pi", "infty",
    "infinity", "inf", "abs", "floor", "ceil",
];

/// Cuts an answer into tokens; `None` if it is too long or holds a number beyond 127 bits.
pub(super) fn tokens(answer: &str) -> Option<Vec<Token>> {
    if answer.len() > MAX_BYTES {
        return None;
    }
    let mut scanner = Scanner { rest: answer, tokens: Vec::new(), spaced: false, depth: 0 };
    while scanner.step()? {
        if scanner.tokens.len() > MAX_TOKENS {
            return None;
        }
    }
    Some(scanner.tokens)
}

struct Scanner<'a> {
    rest: &'a str,
    tokens: Vec<Token>,
    spaced: bool,
    /// Open brackets: within them a comma always separates.
    depth: usize,
}

impl Scanner<'_> {
    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, spaced: std::mem::take(&mut self.spaced) });
    }

    /// Takes one token; whether there may be more.
    fn step(&mut self) -> Option<bool> {
        let mut chars = self.rest.chars();
        let Some(c) = chars.next() else { return Some(false) };
        if c.is_ascii_digit() || (c == '.' && chars.as_str().starts_with(|next: char| next.is_ascii_digit())) {
            self.number()?;
            return Some(true);
        }
        if c.is_alphabetic() && !matches!(c, 'π' | 'θ') {
            self.letters();
            return Some(true);
        }
        self.rest = chars.as_str();
        match c {
            '\\' => self.command()?,
            c if c.is_whitespace() => self.spaced = true,
            '~' => self.spaced = true,
            // A dollar sign before a number is money; elsewhere it is a border of mathematics.
            '$' => {
                let rest = self.rest.trim_start();
                let closes = rest.matches('$').count() % 2 == 1;
                if !closes && rest.starts_with(|next: char| next.is_ascii_digit() || next == '.') {
                    self.push(Kind::Sign('$'));
                }
            }
            '−' | '–' => self.push(Kind::Sign('-')),
            '×' | '·' | '∙' => self.push(Kind::Sign('*')),
            '÷' => self.push(Kind::Sign('/')),
            '*' if self.rest.starts_with('*') => {
                self.rest = &self.rest[1..];
                self.push(Kind::Sign('^'));
            }
            '<' | '>' if self.rest.starts_with('=') => {
                self.rest = &self.rest[1..];
                self.push(Kind::Sign(if c == '<' { '≤' } else { '≥' }));
            }
            'π' | 'θ' | '√' | '∞' | '∪' | '°' | '±' | '∈' => {
                let name = match c {
                    'π' => "pi",
                    'θ' => "theta",
                    '√' => "sqrt",
                    '∞' => "infty",
                    '∪' => "cup",
                    '°' => "degree",
                    '±' => "pm",
                    _ => "in",
                };
                self.push(Kind::Command(name.into()));
            }
            _ => {
                match c {
                    '(' | '[' => self.depth += 1,
                    ')' | ']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                self.push(Kind::Sign(c));
            }
        }
        Some(true)
    }

    fn number(&mut self) -> Option<()> {
        let bytes = self.rest.as_bytes();
        let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut end = digits(0);
        // A command without braces takes one digit: \frac12 is one half.
        let single = match &self.tokens[..] {
            [.., Token { kind: Kind::Command(name), .. }] => name == "frac",
            [.., Token { kind: Kind::Command(name), .. }, Token { kind: Kind::Number(_, Some(first)), .. }] => {
                name == "frac" && first.len() == 1
            }
            _ => false,
        };
        if single && end > 0 {
            let digit = self.rest[..1].to_owned();
            self.rest = &self.rest[1..];
            self.push(Kind::Number(Rational::decimal(&digit)?, Some(digit)));
            return Some(());
        }
        let mut text = self.rest[..end].to_owned();
        // 1,234,567 and 1{,}234 and 1,\!234; a comma alone separates within brackets.
        while text.len() <= 3 || end > text.len() {
            let group = |separator: &&&str| {
                self.rest[end..].starts_with(**separator)
                    && (**separator != "," || self.depth == 0)
                    && digits(end + separator.len()) == 3
            };
            let Some(separator) =
                [", \\! ", ",\\! ", ", \\!", "\\!,\\!", "\\!,", ",\\!", "{,}", "\\,", ","].iter().find(group)
            else {
                break;
            };
            let from = end + separator.len();
            text.push_str(&self.rest[from..from + 3]);
            end = from + 3;
        }
        let mut plain = true;
        if bytes.get(end) == Some(&b'.') {
            let fraction = digits(end + 1);
            // A full stop at the end is none of the number.
            if fraction > 0 {
                text.push_str(&self.rest[end..=end + fraction]);
                plain = false;
            }
            end += 1 + fraction;
        }
        let mut value = Rational::decimal(&text)?;
        if let Some(b'e' | b'E') = bytes.get(end) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let length = digits((end + 1 + sign).min(bytes.len()));
            if length > 0 {
                let exponent = self.rest[end + 1..end + 1 + sign + length].parse().ok()?;
                value = value.times(Rational::whole(10).power(exponent)?)?;
                end += 1 + sign + length;
                plain = false;
            }
        }
        self.rest = &self.rest[end..];
        self.push(Kind::Number(value, plain.then_some(text)));
        Some(())
    }

    /// A run of letters: a function, words, or variables side by side.
    fn letters(&mut self) {
        let end = self.rest.find(|c: char| !c.is_alphabetic()).unwrap_or(self.rest.len());
        let (run, rest) = self.rest.split_at(end);
        self.rest = rest;
        let lower = run.to_lowercase();
        if NAMES.contains(&run) {
            self.push(Kind::Command(run.to_owned()));
        } else if run.chars().count() == 1 {
            self.push(Kind::Letter(run.chars().next().unwrap_or_default()));
        } else if run.chars().count() >= 4 || matches!(&*lower, "and" | "or") || super::unit::is_unit(&lower) {
            self.push(Kind::Words(lower));
        } else {
            run.chars().for_each(|letter| self.push(Kind::Letter(letter)));
        }
    }

    fn command(&mut self) -> Option<()> {
        let mut chars = self.rest.chars();
        let end = self.rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(self.rest.len());
        if end == 0 {
            let c = chars.next();
            self.rest = chars.as_str();
            match c {
                Some('{') => {
                    self.depth += 1;
                    self.push(Kind::OpenSet);
                }
                Some('}') => {
                    self.depth = self.depth.saturating_sub(1);
                    self.push(Kind::CloseSet);
                }
                Some('\\') => self.push(Kind::RowEnd),
                Some('%') => self.push(Kind::Sign('%')),
                Some('$') => self.push(Kind::Sign('$')),
                Some('!') | None => {}
                // \( \) \[ \] are borders; \, \; \: and a blank are blanks.
                Some(_) => self.spaced = true,
            }
            return Some(());
        }
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        if LAYOUT.contains(&name) {
            return Some(());
        }
        if TEXT.contains(&name) {
            return self.text();
        }
        match name {
            "begin" | "end" => {
                self.argument()?;
                self.push(if name == "begin" { Kind::Begin } else { Kind::End });
            }
            "dfrac" | "tfrac" | "cfrac" => self.push(Kind::Command("frac".into())),
            "cdot" | "times" | "ast" => self.push(Kind::Sign('*')),
            "div" => self.push(Kind::Sign('/')),
            "le" | "leq" | "leqslant" => self.push(Kind::Sign('≤')),
            "ge" | "geq" | "geqslant" => self.push(Kind::Sign('≥')),
            "lt" => self.push(Kind::Sign('<')),
            "gt" => self.push(Kind::Sign('>')),
            "ne" | "neq" => self.push(Kind::Sign('≠')),
            "lbrace" => self.push(Kind::OpenSet),
            "rbrace" => self.push(Kind::CloseSet),
            "langle" => self.push(Kind::Sign('(')),
            "rangle" => self.push(Kind::Sign(')')),
            "lvert" | "rvert" | "vert" | "mid" => self.push(Kind::Sign('|')),
            "circ" => self.push(Kind::Command("degree".into())),
            "emptyset" => self.push(Kind::Command("varnothing".into())),
            _ => self.push(Kind::Command(name.to_owned())),
        }
        Some(())
    }

    /// The text in the braces that follow, which are taken.
    fn argument(&mut self) -> Option<String> {
        let inner = self.rest.trim_start().strip_prefix('{')?;
        let mut open = 1;
        let end = inner.find(|c| {
            open += i32::from(c == '{') - i32::from(c == '}');
            open == 0
        })?;
        self.rest = &inner[end + 1..];
        Some(inner[..end].to_owned())
    }

    /// `\text{..}`: words, unless it holds something else, such as `(A)` or a number.
    fn text(&mut self) -> Option<()> {
        let content = self.argument()?;
        // `sq. ft`, `p.m.`
        let words = content.trim().replace('.', "").to_lowercase();
        let worded = !content.contains(|c: char| c.is_ascii_digit())
            && words.chars().all(|c| c.is_alphabetic() || c.is_whitespace() || matches!(c, '\'' | '-'));
        if worded && words.chars().count() == 1 && !super::unit::is_unit(&words) {
            self.push(Kind::Letter(content.trim().chars().next()?));
        } else if worded {
            self.spaced = true;
            if !words.is_empty() {
                self.push(Kind::Words(words));
            }
        } else {
            self.tokens.extend(tokens(&content)?);
        }
        Some(())
    }
}
