//! What an answer is: a value, several values, an interval, a matrix, a relation, or words.

use super::parse::expression;
use super::token::{Kind, Token, tokens};
use super::unit::canonical;
use crate::algebra::{Expr, Rational, has_variable};

/// An answer, read as far as its form goes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// A value, with the name of its unit, if it has one.
    Quantity(Expr, Option<String>),
    /// Values side by side, in no order: `3, 5`.
    List(Vec<Answer>),
    /// `\{3, 5\}`.
    Set(Vec<Answer>),
    /// A point or an interval, with its brackets: `(1, 2]`.
    Bracketed(char, Vec<Answer>, char),
    /// Sets joined by `\cup`.
    Union(Vec<Answer>),
    /// Rows of a matrix.
    Matrix(Vec<Vec<Answer>>),
    /// Sides and the relations between them: `1 < x ≤ 3`.
    Relation(Vec<Expr>, Vec<char>),
    /// What a name stands for: `x = 3`, `f(x) = x^2`, `x \in [0, 1]`.
    Named(String, Box<Answer>),
    /// `2:3:4`, or a time of day with what stands after it: `8:34 pm`.
    Ratio(Vec<Expr>, Option<String>),
    /// Digits in a base: `1011_2`.
    Based(String, String),
    /// Words, in lower case.
    Words(String),
}

/// Deepest nesting of answers within answers.
const MAX_DEPTH: usize = 12;

impl Answer {
    /// Reads an answer; `None` for what has none of the forms.
    pub fn parse(text: &str) -> Option<Self> {
        Reader.answer(&tokens(text)?, MAX_DEPTH)
    }

    /// The interval that an inequality of one variable with a number stands for: `x > 3` is `(3, ∞)`.
    pub fn as_interval(&self) -> Option<Self> {
        let Self::Relation(sides, relations) = self else { return None };
        let bound = |expr: &Expr| (!has_variable(expr)).then(|| expr.clone());
        let plain = |expr: Expr| Self::Quantity(expr, None);
        let infinity = |negative: bool| match negative {
            true => Expr::Negated(Box::new(Expr::Infinity)),
            false => Expr::Infinity,
        };
        let open = |relation: char| if matches!(relation, '≤' | '≥') { ['[', ']'] } else { ['(', ')'] };
        match (&sides[..], &relations[..]) {
            ([low, Expr::Variable(_), high], [first @ ('<' | '≤'), second @ ('<' | '≤')]) => {
                Some(Self::Bracketed(open(*first)[0], vec![plain(bound(low)?), plain(bound(high)?)], open(*second)[1]))
            }
            ([Expr::Variable(_), limit], [relation]) | ([limit, Expr::Variable(_)], [relation]) => {
                let first = matches!(sides[0], Expr::Variable(_));
                let below = match relation {
                    '<' | '≤' => first,
                    '>' | '≥' => !first,
                    _ => return None,
                };
                let limit = plain(bound(limit)?);
                Some(if below {
                    Self::Bracketed('(', vec![plain(infinity(true)), limit], open(*relation)[1])
                } else {
                    Self::Bracketed(open(*relation)[0], vec![limit, plain(infinity(false))], ')')
                })
            }
            _ => None,
        }
    }
}

/// Finds the form of an answer from its outside to its inside.
struct Reader;

impl Reader {
    fn answer(&self, tokens: &[Token], depth: usize) -> Option<Answer> {
        let depth = depth.checked_sub(1)?;
        if tokens.is_empty() {
            return None;
        }
        let pieces = |tokens: &[Token], separates: fn(&Kind) -> bool| -> Option<Vec<Answer>> {
            split(tokens, separates).into_iter().map(|piece| self.answer(piece, depth)).collect()
        };
        let parts = split(tokens, is_separator);
        if parts.len() > 1 {
            // `3, and 5`: an empty piece between two separators is none; an answer of separators alone is no list.
            let full: Vec<&[Token]> = parts.into_iter().filter(|piece| !piece.is_empty()).collect();
            return match &full[..] {
                [] => None,
                [one] => self.answer(one, depth),
                _ => {
                    let read: Option<Vec<Answer>> = full.iter().map(|piece| self.answer(piece, depth)).collect();
                    Some(Answer::List(read?))
                }
            };
        }
        if let Some(named) = self.relation(tokens, depth) {
            return named;
        }
        let sets = split(tokens, |kind| is_command(kind, "cup"));
        if sets.len() > 1 {
            return pieces(tokens, |kind| is_command(kind, "cup")).map(Answer::Union);
        }
        if let Some(bracketed) = self.bracketed(tokens, depth) {
            return bracketed;
        }
        if tokens.iter().any(|token| matches!(&token.kind, Kind::Command(name) if name == "pm" || name == "mp")) {
            let both = [true, false].map(|plus| quantity(tokens, plus));
            let [Some(plus), Some(minus)] = both else { return None };
            return Some(Answer::List(vec![plus, minus]));
        }
        // `no solution` is no product of n and o in solutions; `x cm` is x with its unit.
        let strange = |token: &Token| matches!(&token.kind, Kind::Words(words) if words.split(' ').any(|word| !super::unit::is_unit(word)));
        let said = if tokens.iter().any(strange) { words(tokens) } else { None };
        said.or_else(|| based(tokens))
            .or_else(|| ratio(tokens))
            .or_else(|| quantity(tokens, true))
            .or_else(|| words(tokens))
    }

    /// Points, intervals, sets, matrices: what one pair of brackets holds, all of it.
    #[allow(clippy::option_option, reason = "not this form, or this form but unreadable")]
    fn bracketed(&self, tokens: &[Token], depth: usize) -> Option<Option<Answer>> {
        let [first, inner @ .., last] = tokens else { return None };
        if closing(tokens)? + 1 != tokens.len() {
            return None;
        }
        let items = |separates: fn(&Kind) -> bool| -> Option<Vec<Answer>> {
            split(inner, separates).into_iter().map(|piece| self.answer(piece, depth)).collect()
        };
        match (&first.kind, &last.kind) {
            (Kind::OpenSet, Kind::CloseSet) if inner.is_empty() => Some(Some(Answer::Set(Vec::new()))),
            (Kind::OpenSet, Kind::CloseSet) => Some(items(is_comma).map(Answer::Set)),
            (Kind::Sign(open @ ('(' | '[')), Kind::Sign(close @ (')' | ']'))) => {
                let several = split(inner, is_comma).len() > 1;
                several.then(|| items(is_comma).map(|items| Answer::Bracketed(*open, items, *close)))
            }
            (Kind::Begin, Kind::End) => {
                let mut rows = Vec::new();
                for row in split(inner, |kind| *kind == Kind::RowEnd) {
                    // A row end after the last row begins no other.
                    if row.is_empty() {
                        continue;
                    }
                    let cells = split(row, |kind| *kind == Kind::Sign('&'));
                    match cells.into_iter().map(|cell| self.answer(cell, depth)).collect() {
                        Some(cells) => rows.push(cells),
                        None => return Some(None),
                    }
                }
                Some(Some(Answer::Matrix(rows)))
            }
            _ => None,
        }
    }

    /// Equations, inequalities and memberships.
    #[allow(clippy::option_option, reason = "not this form, or this form but unreadable")]
    fn relation(&self, tokens: &[Token], depth: usize) -> Option<Option<Answer>> {
        let sides = split(tokens, is_relation);
        if sides.len() < 2 {
            return None;
        }
        let mut at = 0;
        let relations: Vec<char> = sides[..sides.len() - 1]
            .iter()
            .map(|side| {
                at += side.len() + 1;
                match &tokens[at - 1].kind {
                    Kind::Sign(sign) => *sign,
                    _ => '∈',
                }
            })
            .collect();
        if let ([name, value], ['=' | '∈']) = (&sides[..], &relations[..])
            && let Some(name) = name_of(name)
        {
            return Some(self.answer(value, depth).map(|value| Answer::Named(name, Box::new(value))));
        }
        let read = |side: &&[Token]| expression(side, true).map(|parsed| parsed.expr);
        let sides: Option<Vec<Expr>> = sides.iter().map(read).collect();
        Some(sides.filter(|_| !relations.contains(&'∈')).map(|sides| Answer::Relation(sides, relations)))
    }
}

/// A value with what stands around it: currency before it, `%`, units and words of quantity after it.
fn quantity(tokens: &[Token], plus: bool) -> Option<Answer> {
    let mut tokens = tokens;
    let mut unit = None;
    let mut sign = Vec::new();
    if let [minus, money, rest @ ..] = tokens
        && minus.kind == Kind::Sign('-')
        && currency(&money.kind).is_some()
    {
        sign.push(minus.clone());
        unit = currency(&money.kind).map(str::to_owned);
        tokens = rest;
    } else if let [money, rest @ ..] = tokens
        && let Some(name) = currency(&money.kind)
    {
        unit = Some(name.to_owned());
        tokens = rest;
    }
    let end = unit_start(tokens);
    let (value, after) = tokens.split_at(end);
    let (after, factor) = unit_name(after);
    let mut all = sign;
    all.extend_from_slice(value);
    let parsed = expression(&all, plus)?;
    if unit.is_none() {
        unit = after;
    }
    if parsed.degrees && unit.is_none() {
        unit = Some("degree".into());
    }
    let expr = match factor == Rational::ONE {
        true => parsed.expr,
        false => Expr::Product(vec![parsed.expr, Expr::Number(factor)]),
    };
    Some(Answer::Quantity(expr, unit))
}

fn currency(kind: &Kind) -> Option<&'static str> {
    match kind {
        Kind::Sign('$') => Some("dollar"),
        Kind::Sign('€') => Some("euro"),
        Kind::Sign('£') => Some("pound sterling"),
        _ => None,
    }
}

/// Where the unit at the end begins: words, `%`, currency, powers of a word, words over words.
fn unit_start(tokens: &[Token]) -> usize {
    let mut end = tokens.len();
    loop {
        let is_word = |at: usize| matches!(&tokens[at].kind, Kind::Words(_));
        let small = |at: usize| matches!(&tokens[at].kind, Kind::Number(_, Some(digits)) if digits.len() == 1);
        let sign = |at: usize, sign| tokens[at].kind == Kind::Sign(sign);
        end = if end >= 1 && (is_word(end - 1) || sign(end - 1, '%') || currency(&tokens[end - 1].kind).is_some()) {
            end - 1
        } else if end >= 3 && small(end - 1) && sign(end - 2, '^') && is_word(end - 3) {
            end - 3
        } else if end >= 5
            && sign(end - 1, '}')
            && small(end - 2)
            && sign(end - 3, '{')
            && sign(end - 4, '^')
            && is_word(end - 5)
        {
            end - 5
        } else if end >= 2 && end < tokens.len() && sign(end - 1, '/') && is_word(end - 2) {
            end - 2
        } else {
            return end;
        };
    }
}

/// The name of the unit in these tokens, and what its words of quantity multiply by.
fn unit_name(tokens: &[Token]) -> (Option<String>, Rational) {
    let mut text = String::new();
    for (index, token) in tokens.iter().enumerate() {
        match &token.kind {
            Kind::Words(words) => {
                let power = tokens[index + 1..].iter().take_while(|token| !matches!(token.kind, Kind::Words(_)));
                let power = power.into_iter().find_map(|token| match &token.kind {
                    Kind::Number(_, Some(digits)) => Some(digits.clone()),
                    _ => None,
                });
                match power.as_deref() {
                    Some("2") => text.push_str("square "),
                    Some("3") => text.push_str("cubic "),
                    _ => {}
                }
                text.push_str(words);
                text.push(' ');
            }
            Kind::Sign('%') => text.push_str("percent "),
            Kind::Sign('/') => text.push_str("per "),
            kind => text.push_str(currency(kind).unwrap_or_default()),
        }
    }
    let (name, factor) = canonical(&text);
    ((!name.is_empty()).then_some(name), factor)
}

/// Words alone.
fn words(tokens: &[Token]) -> Option<Answer> {
    let mut text = String::new();
    for token in tokens {
        if token.spaced {
            text.push(' ');
        }
        match &token.kind {
            Kind::Words(words) => text.push_str(words),
            Kind::Letter(letter) => text.extend(letter.to_lowercase()),
            _ => return None,
        }
    }
    let text: Vec<&str> = text.split_whitespace().collect();
    Some(Answer::Words(text.join(" ")))
}

/// `1011_2`, `1011_{2}`: digits in a base.
fn based(tokens: &[Token]) -> Option<Answer> {
    let digits = |token: &Token| match &token.kind {
        Kind::Number(_, Some(digits)) => Some(digits.clone()),
        _ => None,
    };
    let sign = |token: &Token, sign| token.kind == Kind::Sign(sign);
    match tokens {
        [number, line, base] if sign(line, '_') => Some(Answer::Based(digits(number)?, digits(base)?)),
        [number, line, open, base, close] if sign(line, '_') && sign(open, '{') && sign(close, '}') => {
            Some(Answer::Based(digits(number)?, digits(base)?))
        }
        _ => None,
    }
}

/// `2:3`: values with colons between them.
fn ratio(tokens: &[Token]) -> Option<Answer> {
    let (tokens, after) = tokens.split_at(unit_start(tokens));
    let parts = split(tokens, |kind| *kind == Kind::Sign(':'));
    if parts.len() < 2 {
        return None;
    }
    let parts: Option<Vec<Expr>> = parts.into_iter().map(|part| Some(expression(part, true)?.expr)).collect();
    Some(Answer::Ratio(parts?, unit_name(after).0))
}

/// The name on the left of `=` or `\in`: a variable, a function of one, or two capitals (a segment).
fn name_of(tokens: &[Token]) -> Option<String> {
    let letter = |token: &Token| match &token.kind {
        Kind::Letter(letter) => Some(letter.to_string()),
        Kind::Command(name) if !super::is_function(name) && !super::is_constant(name) => Some(format!("\\{name}")),
        _ => None,
    };
    let sign = |token: &Token, sign| token.kind == Kind::Sign(sign);
    match tokens {
        [name] => letter(name),
        [a, b] => {
            let capitals = [a, b].iter().all(|token| matches!(token.kind, Kind::Letter(c) if c.is_uppercase()));
            capitals.then(|| Some(letter(a)? + &letter(b)?)).flatten()
        }
        [name, open, argument, close] if sign(open, '(') && sign(close, ')') => {
            Some(format!("{}({})", letter(name)?, letter(argument)?))
        }
        [name, line, index] if sign(line, '_') => match &index.kind {
            Kind::Number(_, Some(digits)) => Some(format!("{}_{digits}", letter(name)?)),
            _ => Some(format!("{}_{}", letter(name)?, letter(index)?)),
        },
        _ => None,
    }
}

fn is_comma(kind: &Kind) -> bool {
    matches!(kind, Kind::Sign(',' | ';'))
}

fn is_separator(kind: &Kind) -> bool {
    is_comma(kind) || matches!(kind, Kind::Words(word) if word == "and" || word == "or")
}

fn is_relation(kind: &Kind) -> bool {
    matches!(kind, Kind::Sign('=' | '<' | '>' | '≤' | '≥' | '≠')) || is_command(kind, "in")
}

fn is_command(kind: &Kind, name: &str) -> bool {
    matches!(kind, Kind::Command(found) if found == name)
}

/// How a token changes the nesting. A bracket of either form closes a bracket of either form: `[0, 1)`.
fn nesting(kind: &Kind) -> i32 {
    match kind {
        Kind::Sign('(' | '[' | '{') | Kind::OpenSet | Kind::Begin => 1,
        Kind::Sign(')' | ']' | '}') | Kind::CloseSet | Kind::End => -1,
        _ => 0,
    }
}

/// The pieces between separators outside all brackets.
fn split(tokens: &[Token], separates: impl Fn(&Kind) -> bool) -> Vec<&[Token]> {
    let mut depth = 0;
    let outside = |token: &Token| {
        depth += nesting(&token.kind);
        depth == 0 && separates(&token.kind)
    };
    tokens.split(outside).collect()
}

/// Where the bracket that the first token opens is closed; `None` if it opens none.
fn closing(tokens: &[Token]) -> Option<usize> {
    (nesting(&tokens.first()?.kind) == 1).then_some(())?;
    let mut depth = 0;
    tokens.iter().position(|token| {
        depth += nesting(&token.kind);
        depth == 0
    })
}
