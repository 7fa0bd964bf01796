//! Graders: does a generated text give the expected answer?

use serde::{Deserialize, Serialize};

use crate::answer::{final_answer, last_number, list_of_boxes};
use crate::author;
use crate::faithful::same_answer;
use crate::latex::strip_string;
use crate::number::Quantity;
use crate::reading::{formula_readings, number_readings};
use crate::stats::Proportion;

/// A rule that decides whether an answer is right. Scores by different rules cannot be compared: several points of
/// accuracy lie between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grader {
    /// The rule of SORSA's author, bug for bug: GSM8K by the first number after `The answer is: `, rounded; MATH by equal
    /// strings, numbers within 1e-4 (or a hundredfold), or expressions that sympy reads.
    Author,
    /// Equal strings in the normal form of the MATH paper; in plain numbers, thousands separators, currency signs and
    /// `%` do not count.
    Strict,
    /// Compares answers by their meaning, numbers exactly: see [`same_answer`].
    Faithful,
    /// The last number of the text, compared as [`Faithful`](Self::Faithful) does: for models that were never taught to
    /// announce an answer (`flexible-extract` of lm-eval).
    LastNumber,
}

/// Kind of a problem. The author's grader has a rule for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// Numbers: GSM8K, SVAMP, the embedded task.
    #[default]
    Number,
    /// Expressions: MATH.
    Expression,
}

/// Verdict of a grader on one generated text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The answer it found in the text.
    pub extracted: Option<String>,
    /// Whether this is the expected one. A text without an answer is wrong.
    pub correct: bool,
}

impl Grader {
    /// Every grader.
    pub const ALL: [Self; 4] = [Self::Author, Self::Strict, Self::Faithful, Self::LastNumber];

    /// The name used in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Author => "author",
            Self::Strict => "strict",
            Self::Faithful => "faithful",
            Self::LastNumber => "last_number",
        }
    }

    /// Grades a number in `generated` against `expected`: a worked solution with its [`final_answer`], or the bare
    /// answer.
    ///
    /// ```
    /// use sorsa_grading::grade::Grader;
    ///
    /// let verdict = Grader::Faithful.grade("#### 1,250", "So the answer is: $1250.00.");
    /// assert!(verdict.correct);
    /// assert_eq!(verdict.extracted.as_deref(), Some("$1250.00"));
    /// ```
    pub fn grade(self, expected: &str, generated: &str) -> Verdict {
        self.grade_as(AnswerKind::Number, expected, generated)
    }

    /// Grades an answer of the given kind in `generated` against `expected`: a worked solution or the bare answer.
    ///
    /// ```
    /// use sorsa_grading::grade::{AnswerKind, Grader};
    ///
    /// let right = |grader: Grader, gold, text| grader.grade_as(AnswerKind::Expression, gold, text).correct;
    /// assert!(right(Grader::Faithful, r"\boxed{x^2+2x+1}", "The answer is: (x+1)^2"));
    /// // The author's code cannot read `x/2`, and compares the gold answer with itself.
    /// assert!(right(Grader::Author, r"\boxed{x/2}", "The answer is: 5"));
    /// ```
    pub fn grade_as(self, kind: AnswerKind, expected: &str, generated: &str) -> Verdict {
        let gold = final_answer(kind, expected).unwrap_or(expected.trim());
        let judge = |found: Option<&str>, same: fn(&str, &str) -> bool| Verdict {
            extracted: found.map(str::to_owned),
            correct: found.is_some_and(|found| same(gold, found)),
        };
        match (self, kind) {
            (Self::Strict, _) => judge(final_answer(kind, generated), same_string),
            (Self::Faithful, _) => match final_answer(kind, generated) {
                Some(found) => faithful(kind, gold, found, generated),
                None => judge(None, same_answer),
            },
            (Self::LastNumber, _) => judge(last_number(generated), same_answer),
            (Self::Author, AnswerKind::Number) => {
                let found = author::gsm8k::predicted(generated);
                let gold = author::gsm8k::expected(expected).unwrap_or_else(|| gold.replace(',', ""));
                Verdict {
                    extracted: found.map(|number| format!("{number:.0}")),
                    correct: found.is_some() && found == gold.parse().ok(),
                }
            }
            (Self::Author, AnswerKind::Expression) => {
                let found = author::math::predicted(generated);
                let solution = [r"\boxed", r"\fbox"].iter().any(|command| expected.contains(command));
                let gold = if solution { author::math::expected(expected) } else { Some(expected) };
                Verdict { extracted: found.map(str::to_owned), correct: author::math::is_equivalent(gold, found) }
            }
        }
    }
}

/// Score of many texts by one grader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Right answers.
    pub correct: Proportion,
    /// Texts in which no answer was found.
    pub unanswered: Proportion,
}

impl Score {
    /// Counts verdicts.
    pub fn of<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>) -> Self {
        let (mut total, mut correct, mut unanswered) = (0, 0, 0);
        for verdict in verdicts {
            total += 1;
            correct += u64::from(verdict.correct);
            unanswered += u64::from(verdict.extracted.is_none());
        }
        Self {
            correct: Proportion { successes: correct, total },
            unanswered: Proportion { successes: unanswered, total },
        }
    }
}

/// Compares an answer of a text as it stands. If it is another one, compares its other readings.
fn faithful(kind: AnswerKind, gold: &str, found: &str, text: &str) -> Verdict {
    let verdict = |answer: &str, correct| Verdict { extracted: Some(answer.to_owned()), correct };
    if same_answer(gold, found) {
        return verdict(found, true);
    }
    // A gold answer with a unit asks for the unit.
    let number = Quantity::parse(gold).is_some_and(|gold| gold.unit.is_none());
    let mut readings = if number { number_readings(found) } else { formula_readings(found) };
    readings.extend(list_of_boxes(text).filter(|_| kind == AnswerKind::Expression));
    match readings.iter().find(|reading| same_answer(gold, reading)) {
        Some(reading) => verdict(reading, true),
        None => verdict(found, false),
    }
}

pub(crate) fn same_string(gold: &str, found: &str) -> bool {
    normalize(gold) == normalize(found)
}

/// [`strip_string`], after what decorates a plain number is gone: `+$1,234.50%` is `1234.50`.
fn normalize(answer: &str) -> String {
    let plain: String = strip_string(answer).chars().filter(|c| !matches!(c, ',' | '$' | '%' | '+')).collect();
    let is_number = plain.starts_with(|c: char| matches!(c, '-' | '.') || c.is_ascii_digit())
        && Quantity::parse(&strip_string(answer)).is_some_and(|quantity| quantity.unit.is_none_or(|unit| unit == "%"));
    strip_string(if is_number { &plain } else { answer })
}

/// The cases of one task in the folder of reference results that `SORSA_GOLDEN` names; `None` without one.
#[cfg(test)]
pub(crate) fn golden_cases(task: &str) -> Option<Vec<serde_json::Value>> {
    let path = std::path::PathBuf::from(std::env::var_os("SORSA_GOLDEN")?).join("grading/cases.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let cases = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    Some(cases.filter(|case| case["task"] == task).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graders_differ_where_their_rules_do() {
        let cases = [
            // expected, generated, [author, strict, faithful, last_number]
            ("#### 6,600", "The answer is: 6600", [true, true, true, true]),
            ("#### 5", "The answer is: $5.", [true, true, true, true]),
            ("#### 10", "The answer is: 10%", [true, true, true, true]),
            ("18", "The answer is: 18.4", [true, false, false, false]),
            ("18", "The answer is: 18.0", [true, false, true, true]),
            ("100", "The answer is: 200/2", [true, false, true, false]),
            ("30", "The answer is: 30 dollars", [true, false, true, true]),
            ("7", "The answer is: about 7 or 99", [true, false, false, false]),
            ("1,234,567", "The answer is: 1,234,567", [false, true, true, true]),
            ("9", "Therefore she has 9 apples.", [false, false, false, true]),
            ("9", "#### 9", [false, true, true, true]),
            (r"so \boxed{\dfrac{1}{2}}", "The answer is: 0.5", [false, true, true, true]),
            (r"\boxed{(-\infty, 3)}", r"we get \boxed{\left(-\infty,3\right)}", [false, true, true, false]),
            (r"\boxed{(1,234)}", r"\boxed{(1234)}", [false, false, false, false]),
            ("5", "", [false, false, false, false]),
        ];
        for (expected, generated, right) in cases {
            let found = Grader::ALL.map(|grader| grader.grade(expected, generated).correct);
            assert_eq!(found, right, "{expected:?} and {generated:?}");
        }
    }

    #[test]
    fn scores_count_right_and_missing_answers() {
        let verdicts = ["The answer is: 4", "The answer is: 5", "four"].map(|text| Grader::Strict.grade("4", text));
        let score = Score::of(&verdicts);
        assert_eq!((score.correct.successes, score.unanswered.successes, score.correct.total), (1, 1, 3));
    }

    #[test]
    fn golden_gsm8k_verdicts_agree_with_the_author_s_code() {
        let Some(cases) = golden_cases("gsm8k") else { return };
        for case in cases {
            let verdict =
                Grader::Author.grade(case["gold_text"].as_str().unwrap(), case["prediction_text"].as_str().unwrap());
            assert_eq!(verdict.correct, case["equal"].as_bool().unwrap(), "{case}");
            assert_eq!(
                verdict.extracted.map(|number| number.parse::<f64>().unwrap()),
                case["pred_extracted"].as_f64(),
                "{case}"
            );
        }
    }

    #[test]
    fn golden_gsm8k_predictions_that_rounding_made_right_are_wrong() {
        let Some(cases) = golden_cases("gsm8k") else { return };
        let mut rounded = 0;
        for case in cases {
            let text = |field: &str| case[field].as_str().unwrap();
            let (gold, found) = (text("gold_text"), text("prediction_text"));
            let number = |text: &str| text.replace(',', "").parse::<f64>().ok();
            // Where the text is a plain number, only an equal one is right.
            let Some((gold_value, found_value)) = number(final_answer(AnswerKind::Number, gold).unwrap())
                .zip(final_answer(AnswerKind::Number, found).and_then(number))
            else {
                continue;
            };
            let verdict = Grader::Faithful.grade(gold, found);
            if found.ends_with(&format!("1,{gold_value}")) {
                continue; // `1,27` is no number
            }
            assert_eq!(verdict.correct, gold_value == found_value, "{case}");
            rounded += usize::from(case["equal"] == true && !verdict.correct);
        }
        assert!(rounded > 3, "only {rounded} verdicts came from rounding");
    }

    #[test]
    fn golden_math_verdicts_of_the_exception_branch_are_put_right() {
        let Some(cases) = golden_cases("math") else { return };
        let mut corrected = 0;
        for case in cases.iter().filter(|case| case["via_except_branch"] == true) {
            let text = |field: &str| case[field].as_str().unwrap();
            let verdict = Grader::Faithful.grade_as(AnswerKind::Expression, text("gold_text"), text("prediction_text"));
            // The one pair of these that is equal.
            let equal = final_answer(AnswerKind::Expression, text("gold_text")) == Some(r"\frac{x}{2}");
            assert_eq!(verdict.correct, equal, "{case}");
            corrected += usize::from(case["equal"] == true && !verdict.correct);
        }
        assert!(corrected > 5, "only {corrected} verdicts put right");
    }

    #[test]
    fn golden_math_answers_agree_with_string_equality() {
        let Some(cases) = golden_cases("math") else { return };
        let (mut compared, mut wider) = (0, Vec::new());
        for case in cases {
            let sides = (case["gold_extracted"].as_str(), case["pred_extracted"].as_str());
            let (Some(same), (Some(gold), Some(found))) = (case["strings_equal_after_strip"].as_bool(), sides) else {
                continue;
            };
            compared += 1;
            if same_string(gold, found) != same {
                wider.push((gold.to_owned(), found.to_owned()));
            }
        }
        assert!(compared > 100, "only {compared} pairs compared");
        // Beyond the original, plain numbers may differ in separators and signs.
        for (gold, found) in wider {
            let digits = |text: &str| strip_string(text).replace([',', '$', '%', '+'], "");
            assert_eq!(digits(&gold), digits(&found));
        }
    }
}
