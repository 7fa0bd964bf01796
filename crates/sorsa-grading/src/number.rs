//! Numbers as answers write them, compared as values: exactly, without rounding.

use std::sync::LazyLock;

use regex::Regex;

pub use crate::algebra::Rational;
use crate::latex::strip_string;

/// A number with its unit, if it has one.
///
/// ```
/// use sorsa_grading::number::Quantity;
///
/// let value = |text| Quantity::parse(text).expect("a number");
/// assert!(value("$1,234.50").matches(&value("2469/2")));
/// assert!(value(r"\frac{3}{4}").matches(&value("0.75")));
/// assert!(value("30 minutes").matches(&value("30")));
/// assert!(!value("30 minutes").matches(&value("30 hours")));
/// assert!(Quantity::parse("7 or 9").is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantity {
    /// The number.
    pub value: Rational,
    /// The words after it, in lower case and without a plural s; `%` is one.
    pub unit: Option<String>,
}

/// Words after a number that change its value: such an answer is no plain number.
const NOT_UNITS: [&str; 9] = ["and", "or", "pi", "dozen", "hundred", "thousand", "million", "billion", "trillion"];

impl Quantity {
    /// Reads an integer, decimal, or fraction `a/b` or `\frac{a}{b}`, with an optional `x =` and currency sign before
    /// it and an optional `%` or unit in words after it. `None` for anything else, and for more than 38 digits.
    pub fn parse(text: &str) -> Option<Self> {
        static TEXT: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}").expect("a valid pattern"));
        static FRAC: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"^([-+]?)\\frac\{(-?\d+)\}\{(\d+)\}$").expect("a valid pattern"));
        static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(
                r"(?x) ^ (?: [A-Za-z] \s* = \s* )?
                (?<sign> [-+]?) \s* [$€£]? \s* (?<a> DECIMAL) (?: \s* / \s* (?<b> DECIMAL) )?
                (?<unit> \s* % | (?: \s+ [A-Za-z]{2,} )* ) $"
                    .replace("DECIMAL", r"\d{1,3}(?:,\d{3})+(?:\.\d+)? | \d+\.?\d* | \.\d+")
                    .as_str(),
            )
            .expect("a valid pattern")
        });
        let spelled = TEXT.replace_all(text, " $1");
        let spelled = spelled.replace(r"\!", "").replace(r"\$", "$").replace(r"\%", "%");
        let normal = strip_string(&spelled);
        let spelled = match FRAC.captures(&normal) {
            Some(frac) => format!("{}{}/{}", &frac[1], &frac[2], &frac[3]),
            None => spelled,
        };
        let parts = NUMBER.captures(spelled.trim())?;
        let mut value = Rational::decimal(&format!("{}{}", &parts["sign"], &parts["a"]))?;
        if let Some(denominator) = parts.name("b") {
            value = value.divided_by(Rational::decimal(denominator.as_str())?)?;
        }
        let unit = parts["unit"].trim().to_lowercase();
        if unit.split_whitespace().any(|word| NOT_UNITS.contains(&word.trim_end_matches('s'))) {
            return None;
        }
        let unit = unit.strip_suffix('s').unwrap_or(&unit);
        Some(Self { value, unit: (!unit.is_empty()).then(|| unit.to_owned()) })
    }

    /// Whether two answers agree: equal values, and the same unit if both name one.
    pub fn matches(&self, other: &Self) -> bool {
        let same_unit = self.unit.is_none() || other.unit.is_none() || self.unit == other.unit;
        self.value == other.value && same_unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<(i128, i128)> {
        Quantity::parse(text).map(|quantity| quantity.value.parts())
    }

    #[test]
    fn spellings_of_a_number_have_one_value() {
        for text in ["1234.5", "1,234.50", "+1234.5", "$1,234.5", r"\$1,\!234.5", "2469/2", "x = 1234.5", "1234.50 kg"]
        {
            assert_eq!(value(text), Some((2469, 2)), "{text}");
        }
        for text in ["-3/4", "-.75", "-$0.75", r"-\frac{3}{4}", r"\frac{-3}{4}", r"-\dfrac34", "- 0.75"] {
            assert_eq!(value(text), Some((-3, 4)), "{text}");
        }
        assert_eq!(value("5."), Some((5, 1)));
        assert_eq!(value("0/5"), Some((0, 1)));
        assert_eq!(value("0.5/0.25"), Some((2, 1)));
        assert_eq!(value(r"5\text{ cm}"), Some((5, 1)));
    }

    #[test]
    fn what_is_no_plain_number_is_refused() {
        let refused = [
            "",
            "none",
            "7 or 9",
            "20 36",
            "1,27",
            "12,34,567",
            "50/0",
            "5x",
            "2 pi",
            "5 million",
            "2 dozens",
            "79e2",
            r"1\frac{1}{2}",
            r"\frac{x}{2}",
            "1/2/3",
            "--5",
            ".",
        ];
        for text in refused {
            assert_eq!(value(text), None, "{text}");
        }
        assert_eq!(value(&"9".repeat(40)), None, "beyond 127 bits");
    }

    #[test]
    fn units_must_agree_only_where_both_are_named() {
        let matches = |a, b| Quantity::parse(a).unwrap().matches(&Quantity::parse(b).unwrap());
        assert!(matches("5 dollars", "5"));
        assert!(matches("1 Hour", "1 hours"));
        assert!(matches("10%", "10"));
        assert!(!matches("2 hours", "2 minutes"));
        assert!(!matches("2 hours", "3 hours"));
    }

    proptest::proptest! {
        #[test]
        fn a_fraction_equals_itself_expanded(a in -10_000i128..10_000, b in 1i128..10_000, k in 1i128..1000) {
            proptest::prop_assert_eq!(Rational::new(a, b), Rational::new(-a * k, -b * k));
            proptest::prop_assert_eq!(value(&format!("{a}/{b}")), value(&format!("{}/{}", a * k, b * k)));
        }

        #[test]
        fn no_text_makes_parsing_panic(text in r"([-+.,/0-9a-z$%{}é ]|\\frac|\\text\{)*") {
            let _ = Quantity::parse(&text);
        }
    }
}
