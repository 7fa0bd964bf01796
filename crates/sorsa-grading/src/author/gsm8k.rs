//! The GSM8K rule of SORSA's author, bug for bug (`dataset.py` and `test.py` of Gunale0926/SORSA), to reproduce the
//! paper's scores. It rounds to the nearest integer, ties to even, and reads 1,234,567 as 1,234.

use std::sync::LazyLock;

use regex::Regex;

/// The number after the last `The answer is: `, rounded. `None` if the author's code finds nothing or raises.
pub(crate) fn predicted(text: &str) -> Option<f64> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[-+]?\d*[.,/]?\d+").expect("a valid pattern"));
    let (_, rest) = text.rsplit_once("The answer is: ")?;
    let number = ascii_digits(NUMBER.find(rest)?.as_str()).replace(',', "");
    let value = match number.split_once('/') {
        Some((numerator, "0")) => numerator.parse().ok()?,
        Some((numerator, denominator)) => numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?,
        None => number.parse::<f64>().ok()?,
    };
    // Adding 0 turns -0 into the integer 0.
    value.is_finite().then(|| value.round_ties_even() + 0.0)
}

/// The gold answer of a GSM8K solution: what follows the first `#### `, without commas.
pub(crate) fn expected(solution: &str) -> Option<String> {
    static GOLD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#### (-?[0-9.,]+)").expect("a valid pattern"));
    Some(GOLD.captures(solution)?[1].replace(',', ""))
}

/// Python's `\d` and `float` know the decimal digits of every script. Unicode assigns them in runs of ten.
pub(super) fn ascii_digits(number: &str) -> String {
    static DIGIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\d$").expect("a valid pattern"));
    let is_digit = |code: u32| char::from_u32(code).is_some_and(|c| DIGIT.is_match(c.encode_utf8(&mut [0; 4])));
    let to_ascii = |c: char| {
        if c.is_ascii() {
            return c;
        }
        let run = (0..c as u32).rev().take_while(|&code| is_digit(code)).count();
        char::from(b'0' + (run % 10) as u8)
    };
    number.chars().map(to_ascii).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grade::golden_cases;

    #[test]
    fn predictions_are_rounded_as_python_rounds() {
        for (answer, value) in [
            ("12.5", Some(12.0)),
            ("3.5", Some(4.0)),
            ("1,234,567", Some(1234.0)),
            ("22/7", Some(3.0)),
            ("7/0", Some(7.0)),
            ("7/00", None),
            ("/4", None),
            ("-.2", Some(0.0)),
            ("٤٢", Some(42.0)),
            ("𝟗", Some(9.0)),
            ("about 7 or 99", Some(7.0)),
            ("none", None),
        ] {
            assert_eq!(predicted(&format!("The answer is: {answer}")), value, "{answer}");
        }
        assert_eq!(predicted("the answer is: 16"), None);
        assert_eq!(predicted("The answer is: 10\nThe answer is: "), None);
    }

    #[test]
    fn golden_gsm8k_cases_agree_with_the_author_s_code() {
        let (Some(cases), Some(golds)) = (golden_cases("gsm8k"), golden_cases("gsm8k_gold")) else { return };
        assert!(cases.len() > 100 && golds.len() > 10, "{} and {} cases", cases.len(), golds.len());
        for case in cases.iter().chain(&golds) {
            assert_eq!(
                expected(case["gold_text"].as_str().unwrap()).as_deref(),
                case["gold_extracted"].as_str(),
                "{case}"
            );
            if let Some(text) = case["prediction_text"].as_str() {
                assert_eq!(predicted(text), case["pred_extracted"].as_f64(), "{case}");
            }
        }
    }
}
