//! Compares answers by their meaning.
//!
//! [`token`] cuts an answer into tokens. [`answer`] finds its form from the outside in: a list, a set, a point or interval,
//! a union, a matrix, a relation, a named value, a ratio, a quantity with its unit, words. [`parse`] reads the expressions
//! in it, and [`crate::algebra`] compares them as values. An answer without any of these forms is compared like the strict
//! grader does.
//!
//! The work is bounded: 2,000 bytes, 600 tokens, 40 levels; each side is read once, and lists are matched in at most the
//! product of their lengths.

mod answer;
mod parse;
mod token;
mod unit;

use answer::Answer;

use crate::algebra::{Expr, Rational, proportional, same_expression};
use crate::grade::same_string;

/// Whether two answers mean the same. `gold` may name a unit that `found` leaves out, and the other way round.
///
/// ```
/// use sorsa_grading::same_answer;
///
/// assert!(same_answer(r"1\frac{1}{2}", "1.5"));
/// assert!(same_answer(r"\{1, 2\}", r"\{2, 1\}"));
/// assert!(same_answer("(x+1)^2", "x^2 + 2x + 1"));
/// assert!(same_answer(r"50\%", "0.5"));
/// assert!(!same_answer(r"\frac{1}{3}", "0.33333333"));
/// assert!(!same_answer("(1, 2)", "(2, 1)"));
/// ```
pub fn same_answer(gold: &str, found: &str) -> bool {
    let (gold, found) = (unwrapped(gold), unwrapped(found));
    if gold == found {
        return true;
    }
    match (Answer::parse(gold), Answer::parse(found)) {
        (Some(gold), Some(found)) => same(&gold, &found),
        // Units in an answer that cannot be read are no matter of spelling.
        _ => !gold.contains(r"\text") && !found.contains(r"\text") && same_string(gold, found),
    }
}

/// Without what surrounds an answer: blanks, a full stop, `$..$`.
fn unwrapped(answer: &str) -> &str {
    let answer = answer.trim().trim_end_matches('.').trim_end();
    match answer.strip_prefix('$').and_then(|inner| inner.strip_suffix('$')) {
        Some(inner) => inner.trim(),
        None => answer,
    }
}

fn same(gold: &Answer, found: &Answer) -> bool {
    use Answer::*;
    match (gold, found) {
        (Quantity(a, unit_a), Quantity(b, unit_b)) => same_quantity((a, unit_a.as_deref()), (b, unit_b.as_deref())),
        // Braces around a list are no more than a list.
        (List(a) | Set(a), List(b) | Set(b)) => same_unordered(a, b),
        (Union(a), Union(b)) => same_unordered(a, b),
        (Bracketed(open_a, a, close_a), Bracketed(open_b, b, close_b)) => {
            open_a == open_b && close_a == close_b && same_ordered(a, b)
        }
        (Matrix(a), Matrix(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_ordered(a, b)),
        (Named(name_a, a), Named(name_b, b)) => (name_a == name_b && same(a, b)) || same_equation(gold, found),
        (Named(..), Relation(..)) | (Relation(..), Named(..)) => same_equation(gold, found),
        (Named(_, value), other) | (other, Named(_, value)) => same(value, other),
        (Relation(..), Relation(..)) => same_relation(gold, found),
        (Relation(..), other) | (other, Relation(..)) => {
            let interval = if matches!(gold, Relation(..)) { gold.as_interval() } else { found.as_interval() };
            interval.is_some_and(|interval| same(&interval, other))
        }
        (Ratio(a, None), Ratio(b, None)) => same_ratio(a, b),
        // Times of day.
        (Ratio(a, unit_a), Ratio(b, unit_b)) => {
            let same_unit = unit_a.is_none() || unit_b.is_none() || unit_a == unit_b;
            same_unit && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_expression(a, b))
        }
        (Ratio(parts, None), Quantity(value, None)) | (Quantity(value, None), Ratio(parts, None)) => {
            let [above, below] = &parts[..] else { return false };
            same_expression(&Expr::Quotient(Box::new(above.clone()), Box::new(below.clone())), value)
        }
        (Based(..), Based(..)) => gold == found,
        (Words(a), Words(b)) => a == b,
        // A choice: the words `a` and the letter A.
        (Words(word), Quantity(Expr::Variable(name), None)) | (Quantity(Expr::Variable(name), None), Words(word)) => {
            name.to_lowercase() == *word
        }
        _ => false,
    }
}

/// Equal values, and the same unit if both name one. A percentage is its number or a hundredth of it: if only one side has
/// the sign, either reading counts.
fn same_quantity((a, unit_a): (&Expr, Option<&str>), (b, unit_b): (&Expr, Option<&str>)) -> bool {
    let hundredth =
        |x: &Expr| Expr::Product(vec![x.clone(), Expr::Number(Rational::new(1, 100).unwrap_or(Rational::ONE))]);
    // The same text in another layout needs no value: 2^{2008} has none in double precision.
    let same_expression = |a: &Expr, b: &Expr| a == b || same_expression(a, b);
    match (unit_a, unit_b) {
        (Some("percent"), None) => same_expression(a, b) || same_expression(&hundredth(a), b),
        (None, Some("percent")) => same_expression(a, b) || same_expression(a, &hundredth(b)),
        (Some(unit_a), Some(unit_b)) => unit_a == unit_b && same_expression(a, b),
        _ => same_expression(a, b),
    }
}

fn same_ordered(a: &[Answer], b: &[Answer]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

/// Equal in any order: each of `a` takes one of `b` for itself.
fn same_unordered(a: &[Answer], b: &[Answer]) -> bool {
    let mut left: Vec<&Answer> = b.iter().collect();
    a.len() == b.len()
        && a.iter().all(|a| match left.iter().position(|b| same(a, b)) {
            Some(place) => {
                left.swap_remove(place);
                true
            }
            None => false,
        })
}

/// Both sides of an equation as one expression that is 0.
fn equation(answer: &Answer) -> Option<Expr> {
    let difference = |a: &Expr, b: &Expr| Expr::Sum(vec![a.clone(), Expr::Negated(Box::new(b.clone()))]);
    match answer {
        Answer::Named(name, value) if name.chars().count() == 1 => match &**value {
            Answer::Quantity(value, None) => Some(difference(&Expr::Variable(name.clone()), value)),
            _ => None,
        },
        Answer::Relation(sides, relations) if relations[..] == ['='] => Some(difference(&sides[0], &sides[1])),
        _ => None,
    }
}

fn same_equation(a: &Answer, b: &Answer) -> bool {
    matches!((equation(a), equation(b)), (Some(a), Some(b)) if proportional(&a, &b).is_some())
}

/// Equations with the same solutions by a constant factor, inequalities likewise with the sign of the factor, and chains
/// read from either end.
fn same_relation(a: &Answer, b: &Answer) -> bool {
    let (Answer::Relation(sides_a, relations_a), Answer::Relation(sides_b, relations_b)) = (a, b) else { return false };
    let turned = |relation: &char| match relation {
        '<' => '>',
        '>' => '<',
        '≤' => '≥',
        '≥' => '≤',
        other => *other,
    };
    if let ([first, second], [relation_a], [third, fourth], [relation_b]) =
        (&sides_a[..], &relations_a[..], &sides_b[..], &relations_b[..])
    {
        let difference = |a: &Expr, b: &Expr| Expr::Sum(vec![a.clone(), Expr::Negated(Box::new(b.clone()))]);
        return match proportional(&difference(first, second), &difference(third, fourth)) {
            Some(true) => relation_a == relation_b,
            Some(false) => turned(relation_a) == *relation_b,
            None => false,
        };
    }
    let all = |sides: &mut dyn Iterator<Item = &Expr>, relations: Vec<char>| {
        relations == *relations_a && sides.zip(sides_a).all(|(b, a)| same_expression(a, b))
    };
    sides_a.len() == sides_b.len()
        && (all(&mut sides_b.iter(), relations_b.clone())
            || all(&mut sides_b.iter().rev(), relations_b.iter().rev().map(turned).collect()))
}

/// The same up to a common factor.
fn same_ratio(a: &[Expr], b: &[Expr]) -> bool {
    let over = |x: &Expr, first: &Expr| Expr::Quotient(Box::new(x.clone()), Box::new(first.clone()));
    let ([first_a, rest_a @ ..], [first_b, rest_b @ ..]) = (a, b) else { return false };
    rest_a.len() == rest_b.len()
        && rest_a.iter().zip(rest_b).all(|(a, b)| same_expression(&over(a, first_a), &over(b, first_b)))
}

/// Commands that are functions of what follows them.
fn is_function(name: &str) -> bool {
    let names = ["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "log", "exp"];
    names.contains(&name)
}

/// Commands that are values or layout and therefore name nothing.
fn is_constant(name: &str) -> bool {
    ["pi", "infty", "infinity", "inf", "frac", "sqrt", "binom", "pm", "mp", "degree"].contains(&name)
}
