//! The MATH rule of SORSA's author, bug for bug (`test.py`, `inference/util.py` and `inference/grader.py` of
//! Gunale0926/SORSA), in the environment of the paper, which lacks sympy's parser of LaTeX and has its parser of
//! Python expressions alone.
//!
//! Known faults, kept: two missing answers are equal, as both read `None`; numbers count within 1e-4, and also a hundred
//! times or a hundredth of the right one; round and curly brackets do not count; if normalising raises an exception,
//! the gold answer is compared with itself.

use super::gsm8k::ascii_digits;
use super::python::{self, Caret};
use crate::algebra::{Expr, constant, same_expression};
use crate::latex::try_strip_string;

/// The gold answer: what the last `\boxed{` (else `\fbox{`) of a solution holds. `None` also for `\boxed {5}`,
/// `\boxed 5` and every `\fbox`.
pub(crate) fn expected(solution: &str) -> Option<&str> {
    let start = solution.rfind(r"\boxed").or_else(|| solution.rfind(r"\fbox"))?;
    let boxed = &solution[start..];
    let mut open = 0;
    let end = boxed.find(|c| {
        open += i32::from(c == '{') - i32::from(c == '}');
        c == '}' && open == 0
    })?;
    boxed[..end].strip_prefix(r"\boxed{")
}

/// The predicted answer: what follows the last `The answer is: `, up to a full stop at the end of a line.
pub(crate) fn predicted(text: &str) -> Option<&str> {
    let (_, rest) = text.rsplit_once("The answer is: ")?;
    let answer = rest.split(".\n").next()?.trim();
    Some(answer.strip_suffix('.').unwrap_or(answer).trim())
}

/// The verdict on an answer; `None` is a missing one.
pub(crate) fn is_equivalent(gold: Option<&str>, found: Option<&str>) -> bool {
    let [gold, found] = [gold, found].map(|answer| answer.unwrap_or("None"));
    match (try_strip_string(gold), try_strip_string(found)) {
        (Some(gold), Some(found)) => math_equal(&gold, &found, 0) || gold == found,
        _ => math_equal(gold, gold, 0) || gold == found,
    }
}

/// Deepest nesting of brackets that is compared part by part.
const MAX_DEPTH: usize = 60;

fn math_equal(a: &str, b: &str, depth: usize) -> bool {
    if let (Some(a), Some(b)) = (float(&a.replace(',', "")), float(&b.replace(',', ""))) {
        return [b / 100.0, b, b * 100.0].into_iter().any(|b| is_close(b, a, 1e-4));
    }
    if a.is_empty() || depth > MAX_DEPTH {
        return false;
    }
    let (a, b) = (a.trim(), b.trim());
    let within = |text: &str, open: char, close: char| text.starts_with(open) && text.ends_with(close);
    let (mut bare_a, mut bare_b) = (a, b);
    if (within(a, '[', ']') && !b.starts_with('(')) || (within(a, '(', ')') && !b.starts_with('[')) {
        let brackets = ['[', ']', '(', ')'];
        (bare_a, bare_b) = (a.trim_matches(brackets), b.trim_matches(brackets));
    }
    if bare_a.replace(['{', '}', '(', ')'], "") == bare_b.replace(['{', '}', '(', ')'], "") {
        return true;
    }
    let both = |open, close| within(a, open, close) && within(b, open, close);
    if (both('[', ']') || both('(', ')')) && a.len() > 1 && b.len() > 1 {
        let parts = |text: &str| text[1..text.len() - 1].split(',').map(str::to_owned).collect::<Vec<_>>();
        let (parts_a, parts_b) = (parts(a), parts(b));
        if parts_a.len() == parts_b.len() && parts_a.iter().zip(&parts_b).all(|(a, b)| math_equal(a, b, depth + 1)) {
            return true;
        }
    }
    symbolic_equal(a, b)
}

/// `simplify(a - b) == 0`, or both numbers and within 1e-3. See [`python`] for the part of sympy that is covered.
fn symbolic_equal(a: &str, b: &str) -> bool {
    let parsed = [a, b].map(|text| python::parse(text, Caret::Xor));
    if let [Some(a), Some(b)] = &parsed
        && same_expression(a, b)
    {
        return true;
    }
    // What cannot be parsed stays a string, which sympy's `N` parses once more, with `^` as a power.
    let number = |parsed: &Option<Expr>, text: &str| {
        let value = match parsed {
            Some(expr) => constant(expr),
            None => constant(&python::parse(text, Caret::Power)?),
        };
        value.filter(|value| value.approx.im == 0.0).map(|value| value.approx.re)
    };
    match (number(&parsed[0], a), number(&parsed[1], b)) {
        (Some(a), Some(b)) => is_close(a, b, 1e-3),
        _ => false,
    }
}

/// Python's `float(text)`.
fn float(text: &str) -> Option<f64> {
    let text = ascii_digits(text.trim());
    // An underscore may stand between two digits.
    let digit = |at: Option<usize>| at.and_then(|at| text.as_bytes().get(at)).is_some_and(u8::is_ascii_digit);
    let misplaced = text.match_indices('_').any(|(at, _)| !digit(at.checked_sub(1)) || !digit(at.checked_add(1)));
    if misplaced { None } else { text.replace('_', "").parse().ok() }
}

/// Python's `math.isclose`.
fn is_close(a: f64, b: f64, relative: f64) -> bool {
    a == b || (a.is_finite() && b.is_finite() && (a - b).abs() <= relative * a.abs().max(b.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grade::golden_cases;

    #[test]
    fn known_faults_are_reproduced() {
        for (gold, found, equal) in [
            (Some("x/2"), Some("5"), true),
            (Some("9"), Some(r"\sqrt"), true),
            (Some("50"), Some("0.5"), false),
            (Some("16"), Some("0.16"), true),
            (Some("5"), Some("500"), true),
            (Some("(A)"), Some("A"), true),
            (Some(r"\frac{1}{3}"), Some("0.33333333"), false),
            (Some("10**3"), Some("1000"), true),
            (Some("10^3"), Some("1000"), false),
            (Some("10^3"), Some("9"), true),
            (None, None, true),
            (None, Some("None"), true),
            (None, Some("5"), false),
        ] {
            assert_eq!(is_equivalent(gold, found), equal, "{gold:?} and {found:?}");
        }
    }

    #[test]
    fn golden_math_cases_agree_with_the_author_s_code() {
        let Some(cases) = golden_cases("math") else { return };
        assert!(cases.len() > 200, "{} cases", cases.len());
        let mut wrong = Vec::new();
        for case in cases {
            let text = |field: &str| case[field].as_str();
            let (gold, found) = (expected(text("gold_text").unwrap()), predicted(text("prediction_text").unwrap()));
            assert_eq!(gold, text("gold_extracted"), "{case}");
            assert_eq!(found, text("pred_extracted"), "{case}");
            let raised = [gold, found].into_iter().any(|answer| try_strip_string(answer.unwrap_or("None")).is_none());
            assert_eq!(raised, case["via_except_branch"].as_bool().unwrap(), "{case}");
            if is_equivalent(gold, found) != case["equal"].as_bool().unwrap() {
                wrong.push((gold.map(str::to_owned), found.map(str::to_owned)));
            }
        }
        assert!(wrong.is_empty(), "verdicts differ: {wrong:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_pair_makes_the_rule_panic(a in r"([-+.,/0-9a-z$%{}()\[\]^*!é ]|\\frac|\\sqrt|\\text\{ |\*\*)*", b in ".*") {
            let _ = is_equivalent(Some(&a), Some(&b));
            let _ = is_equivalent(Some(&b), Some(&a));
            let _ = (expected(&a), predicted(&b));
        }
    }

    #[test]
    fn deep_and_long_answers_end_soon() {
        let deep = "(".repeat(5000) + "1" + &")".repeat(5000);
        assert!(!is_equivalent(Some(&deep), Some(&deep.replace('1', "2"))));
        let powers = "2**".repeat(3000) + "2";
        assert!(!is_equivalent(Some(&powers), Some("7")));
    }
}
