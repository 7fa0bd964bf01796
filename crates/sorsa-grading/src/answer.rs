//! Finds the final answer in a text: a model's output, or a data set's worked solution.
//!
//! | rule | text | where it comes from |
//! |---|---|---|
//! | [`answer_is`] | `The answer is: X` | MetaMathQA |
//! | [`hashes`] | `#### X` | GSM8K |
//! | [`boxed`] | `\boxed{X}` | MATH |
//! | [`last_number`] | the last number | lm-eval's `flexible-extract`, only if asked for |
//!
//! Each takes the last occurrence, since models correct themselves.

use std::sync::LazyLock;

use regex::Regex;

/// The answer by the first of [`answer_is`], [`hashes`] and [`boxed`] that finds one.
///
/// ```
/// use sorsa_grading::answer::final_answer;
///
/// assert_eq!(final_answer("Half of 36.\n#### 18"), Some("18"));
/// assert_eq!(final_answer(r"Hence the answer is: $\boxed{\frac{1}{2}}$."), Some(r"\frac{1}{2}"));
/// assert_eq!(final_answer("There are 18."), None);
/// ```
pub fn final_answer(text: &str) -> Option<&str> {
    answer_is(text).or_else(|| hashes(text)).or_else(|| boxed(text))
}

/// What follows the last `The answer is:` (any case) on its line, without the full stop. A `\begin{..}` that is open at
/// the end of the line keeps the lines up to its `\end`.
pub fn answer_is(text: &str) -> Option<&str> {
    static MARKER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?i)the answer is:").expect("a valid pattern"));
    let rest = text[MARKER.find_iter(text).last()?.end()..].trim();
    let whole = |end: &usize| rest[..*end].matches(r"\begin{").count() <= rest[..*end].matches(r"\end{").count();
    let end = rest.match_indices('\n').map(|(end, _)| end).find(whole).unwrap_or(rest.len());
    clean(&rest[..end])
}

/// What follows the last `####` on its line.
pub fn hashes(text: &str) -> Option<&str> {
    let (_, rest) = text.rsplit_once("####")?;
    clean(rest.trim_start().lines().next()?)
}

/// The content of the last `\boxed{..}` or, if there is none, `\fbox{..}`, up to the brace that closes it.
/// `\boxed 5`, as some solutions of MATH have it, counts too. `None` if the brace is never closed.
pub fn boxed(text: &str) -> Option<&str> {
    let (_, rest) = text.rsplit_once(r"\boxed").or_else(|| text.rsplit_once(r"\fbox"))?;
    let Some(inner) = rest.trim_start().strip_prefix('{') else {
        return clean(rest.strip_prefix(' ')?.split(['$', '\n']).next()?);
    };
    let mut open = 1;
    let end = inner.find(|c| {
        open += i32::from(c == '{') - i32::from(c == '}');
        open == 0
    })?;
    Some(inner[..end].trim())
}

/// The last number of a text, with its sign, currency sign and thousands separators. A sign between two digits is taken
/// for a dash.
pub fn last_number(text: &str) -> Option<&str> {
    static NUMBER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"-?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)").expect("a valid pattern"));
    let found = NUMBER.find_iter(text).last()?;
    let dash = text[..found.start()].ends_with(|c: char| c.is_ascii_digit());
    Some(if dash { found.as_str().trim_start_matches('-') } else { found.as_str() })
}

/// Takes off what surrounds an answer but does not belong to it: blanks, full stops, `$..$`, `**..**`, `\boxed{..}`.
fn clean(answer: &str) -> Option<&str> {
    let mut answer = answer.trim();
    loop {
        let stripped = answer.trim_end_matches('.').trim();
        let unwrapped = [("$", "$"), ("**", "**"), (r"\(", r"\)"), (r"\boxed{", "}")]
            .into_iter()
            .find_map(|(open, close)| stripped.strip_prefix(open)?.strip_suffix(close))
            .unwrap_or(stripped)
            .trim();
        if unwrapped == answer {
            return (!answer.is_empty()).then_some(answer);
        }
        answer = unwrapped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_announced_answer_counts() {
        let cases = [
            ("The answer is: 16\nNo wait. The answer is: 500", Some("500")),
            ("the answer is:32", Some("32")),
            ("The answer is: 3.50.", Some("3.50")),
            ("The answer is: **3430**\nSome trailing text", Some("3430")),
            ("The answer is: $5", Some("$5")),
            (r"The answer is: $\boxed{x^{2}}$.", Some("x^{2}")),
            ("The answer is:  \n 593 \n", Some("593")),
            ("The answer is: \\begin{pmatrix}\n1 \\\\ 2\n\\end{pmatrix}.\nDone", {
                Some("\\begin{pmatrix}\n1 \\\\ 2\n\\end{pmatrix}")
            }),
            ("The answer is: ", None),
            ("The answer is 30", None),
        ];
        for (text, expected) in cases {
            assert_eq!(answer_is(text), expected, "{text:?}");
        }
    }

    #[test]
    fn hashes_take_the_last_mark() {
        assert_eq!(hashes("#### 7 #### 8,000\nThanks"), Some("8,000"));
        assert_eq!(hashes("####5"), Some("5"));
        assert_eq!(hashes("#### "), None);
        assert_eq!(hashes("### 5"), None);
    }

    #[test]
    fn boxes_are_closed_by_their_own_brace() {
        let cases = [
            (r"First $\boxed{0}$, then $\boxed{\frac{1}{2}}$.", Some(r"\frac{1}{2}")),
            (r"\fbox{\text{even}}", Some(r"\text{even}")),
            (r"\boxed{\{1,2\}}", Some(r"\{1,2\}")),
            (r"so $\boxed 5$ it is", Some("5")),
            (r"\boxed{}", Some("")),
            (r"\boxed{\frac{1}{2", None),
            ("no box", None),
        ];
        for (text, expected) in cases {
            assert_eq!(boxed(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_last_number_keeps_its_sign_and_separators() {
        let cases = [
            ("It costs $1,234.50.", Some("$1,234.50")),
            ("from 10 to -3", Some("-3")),
            ("in 2024-05", Some("05")),
            ("16, or .5", Some(".5")),
            ("none", None),
        ];
        for (text, expected) in cases {
            assert_eq!(last_number(text), expected, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_extraction_panic(text in r"(The answer is:|####|\\boxed|\\fbox|[{} $.\n*0-9,é-])*") {
            for answer in [final_answer(&text), boxed(&text), last_number(&text)].into_iter().flatten() {
                proptest::prop_assert!(text.contains(answer));
            }
        }
    }
}
