//! Finds the final answer in a text: a model's output, or a data set's worked solution.
//!
//! | rule | text | where it comes from |
//! |---|---|---|
//! | [`announced`] | `The answer is: X` | MetaMathQA |
//! | [`hashes`] | `#### X` | GSM8K |
//! | [`boxed`] | `\boxed{X}` | MATH |
//! | [`last_number`] | the last number | lm-eval's `flexible-extract`, only if asked for |
//!
//! Each takes the last occurrence that has an answer, since models correct themselves. What comes after an answer as the next
//! question or the next turn is not read: base models write on.

use std::sync::LazyLock;

use regex::Regex;

use crate::grade::AnswerKind;

/// The answer in a text: of numbers the first of [`announced`], [`hashes`] and [`boxed`] that has a digit; of expressions the
/// first of [`boxed`], [`announced`] and [`hashes`].
///
/// ```
/// use sorsa_grading::answer::final_answer;
/// use sorsa_grading::grade::AnswerKind::{Expression, Number};
///
/// assert_eq!(final_answer(Number, "Half of 36.\n#### 18"), Some("18"));
/// assert_eq!(final_answer(Expression, r"Hence the answer is: $\boxed{\frac{1}{2}}$."), Some(r"\frac{1}{2}"));
/// assert_eq!(final_answer(Number, "There are 18."), None);
/// assert_eq!(final_answer(Number, "#### 18\n\nQuestion: 1 + 1?\n#### 2"), Some("18"));
/// ```
pub fn final_answer(kind: AnswerKind, text: &str) -> Option<&str> {
    let text = before_the_next_question(text);
    match kind {
        AnswerKind::Number => {
            let number = |found: &str| found.contains(|c: char| c.is_ascii_digit());
            let found =
                last_announced(text, number).or_else(|| last_hashes(text, number)).or_else(|| last_boxed(text, number));
            // An answer without a digit is wrong, but it is what the text says.
            found.or_else(|| announced(text)).or_else(|| hashes(text)).or_else(|| boxed(text))
        }
        AnswerKind::Expression => {
            let found = last_boxed(text, |content| !content.is_empty());
            found.or_else(|| announced(text)).or_else(|| hashes(text)).or_else(|| boxed(text))
        }
    }
}

/// What follows the last `The answer is:` (any case, perhaps in bold) that has something after it: a formula or a block of code
/// whole, else the line, without what surrounds it. A `\begin{..}` that is open at the end of the line keeps the lines up to its
/// `\end`.
pub fn announced(text: &str) -> Option<&str> {
    last_announced(text, |_| true)
}

/// What follows the last `####` on its line. A heading is none: words, or the numbers 1, 2, 3 of steps with words after them.
pub fn hashes(text: &str) -> Option<&str> {
    last_hashes(text, |_| true)
}

/// The content of the last `\boxed{..}` or, if there is none, `\fbox{..}` that is not empty (if all are, empty), up to the brace that closes it.
/// `\boxed 5`, as some solutions of MATH have it, counts too. `None` if the last brace is never closed.
pub fn boxed(text: &str) -> Option<&str> {
    last_boxed(text, |content| !content.is_empty()).or_else(|| last_boxed(text, |_| true))
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

/// The text up to where the next question or turn begins after an answer.
fn before_the_next_question(text: &str) -> &str {
    /// An announcement with something after it on the line, or on a line of its own.
    static ANSWERED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)the\s+answer\s+is[\s*_]*[:：][\s*_]*[^\s*_]|\\boxed\s*\{?\s*[^\s{}]|####[\s*$€£(\\-]*\d")
            .expect("a valid pattern")
    });
    // Words of a new turn count at the start of a line, special tokens anywhere.
    static NEXT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"(?xim)
            ^ [\s>*_]* (?: \#{1,6} [\s*]* (?:instruction|input|question|problem|human|user|task|exercise|example) \b
                | (?: q | question | problem | exercise | example | human | user | instruction ) [\s*]* [\d.]* [\s*]* [:：]
                | (?: question | problem | exercise | example ) \s+ \d+ [.)]
                | \[ (?: question | problem | instruction | user ) \]
                | next \s+ (?: question | problem )
                | below \s is \s an \s instruction )
            | </?s> | <[|｜][^<>\s]{1,40}[|｜]> | <(?:eos|bos|pad|end_of_turn|start_of_turn)> | \[/?INST\]",
        )
        .expect("a valid pattern")
    });
    let Some(answered) = ANSWERED.find(text) else { return text };
    match NEXT.find_at(text, answered.end()) {
        Some(next) => &text[..next.start()],
        None => text,
    }
}

/// The parts of a text after each match of a pattern, each up to the next match.
fn parts_after<'a>(pattern: &Regex, text: &'a str) -> Vec<&'a str> {
    let marks: Vec<_> = pattern.find_iter(text).collect();
    let ends = marks.iter().skip(1).map(regex::Match::start).chain([text.len()]);
    marks.iter().zip(ends).map(|(mark, end)| &text[mark.end()..end]).collect()
}

fn last_announced(text: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    static MARKER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?i)the\s+answer\s+is[\s*_]*[:：]").expect("a valid pattern"));
    let parts = parts_after(&MARKER, text);
    let answers: Vec<&str> =
        parts.iter().filter_map(|part| clean(whole_line(part))).filter(|found| wanted(found)).collect();
    let last = *answers.last()?;
    // The last announcement repeats the one before, and the text ends in the middle of its number.
    if let [.., before, _] = answers[..]
        && text.ends_with(last)
        && before.len() > last.len()
        && before.starts_with(last)
        && before.chars().all(|c| c.is_ascii_digit() || "$-.,%".contains(c))
        && parts.len() >= 2
        && clean(parts[parts.len() - 2].trim()) == Some(before)
    {
        return Some(before);
    }
    Some(last)
}

/// The answer at the beginning of what follows an announcement, with what surrounds it.
fn whole_line(part: &str) -> &str {
    // `**The answer is:** 18`: what closes behind the announcement.
    let mut rest = part.trim_start();
    for close in ["**", "__", "*", "_"] {
        if let Some(after) = rest.strip_prefix(close).filter(|after| after.starts_with(char::is_whitespace)) {
            rest = after.trim_start();
            break;
        }
    }
    for (open, close) in [(r"\[", r"\]"), ("$$", "$$"), ("$\n", "$"), ("```", "```")] {
        if let Some((inner, _)) = rest.strip_prefix(open).and_then(|inner| inner.split_once(close)) {
            // The language of a block of code stands on its first line.
            let code = if open == "```" { inner.split_once('\n') } else { None };
            return code.map_or(inner, |(_, code)| code);
        }
    }
    let mut end = 0;
    let (mut open, mut braces) = (0usize, 0usize);
    for (index, line) in rest.split_inclusive('\n').enumerate() {
        end += line.len();
        open = (open + line.matches(r"\begin{").count()).saturating_sub(line.matches(r"\end{").count());
        braces = (braces + line.matches('{').count()).saturating_sub(line.matches('}').count());
        // A brace may stay open by mistake: then the answer is not the whole text.
        if open == 0 && (braces == 0 || index >= 3) {
            return &rest[..end];
        }
    }
    rest
}

fn last_hashes(text: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    static MARKER: LazyLock<Regex> = LazyLock::new(|| Regex::new("####+").expect("a valid pattern"));
    /// `Answer:` or `Final answer`, which is no part of the answer.
    static LABEL: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)^[\s*_]*(?:(?:the\s+)?(?:final\s+)?answer[\s*_]*(?:[:：][\s*_]*|$))").expect("a valid pattern")
    });
    static NUMBERED: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^[\s*_]*(\d+)[.)]\s+[\s*_]*\p{L}").expect("a valid pattern"));
    let parts = parts_after(&MARKER, text);
    let line = |part: &'_ str| part.trim_start().lines().next().unwrap_or_default().to_owned();
    // Steps are counted from 1 and there are several.
    let mut steps = 0;
    for part in &parts {
        let number = NUMBERED.captures(&line(part)).and_then(|found| found[1].parse::<usize>().ok());
        steps += usize::from(number == Some(steps + 1));
    }
    let mut counted = if steps > 1 { steps } else { 0 };
    for part in parts.into_iter().rev() {
        let first = part.trim_start().lines().next().unwrap_or_default();
        let number = NUMBERED.captures(first).and_then(|found| found[1].parse::<usize>().ok());
        if counted > 0 && number == Some(counted) {
            counted -= 1;
            continue;
        }
        let first = match LABEL.find(first) {
            Some(label) if label.end() < first.len() => &first[label.end()..],
            // The answer stands below its heading.
            Some(_) => part.trim_start().lines().skip(1).find(|line| !line.trim().is_empty()).unwrap_or_default(),
            None => first,
        };
        if let Some(found) = clean(first)
            && !is_heading(found)
            && wanted(found)
        {
            return Some(found);
        }
    }
    None
}

/// Whether what follows `####` is a heading: it begins with a word of two letters or more that is no currency and no variable.
fn is_heading(found: &str) -> bool {
    static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\p{L}{2,}[\s:.]").expect("a valid pattern"));
    static ABOUT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"(?i)^(?:USD|EUR|GBP|INR|Rs\.?|about|approximately|approx\.?|around|roughly|exactly|only)\s*[$€£]?[-\d]",
        )
        .expect("a valid pattern")
    });
    WORD.is_match(found) && !ABOUT.is_match(found)
}

fn last_boxed(text: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    let boxes = boxes(text);
    // A box that is never closed is an answer cut off.
    boxes.last()?.content?;
    boxes.iter().rev().filter_map(|found| found.content).find(|content| wanted(content))
}

/// The contents of the last boxes as a list, if there are several with no more than a comma or a word between them.
pub(crate) fn list_of_boxes(text: &str) -> Option<String> {
    let text = before_the_next_question(text);
    let boxes = boxes(text);
    let [.., last] = &boxes[..] else { return None };
    let mut first = boxes.len() - 1;
    while first > 0 && boxes[first - 1].is_beside(&boxes[first], text) {
        first -= 1;
    }
    last.content?;
    let contents: Vec<&str> = boxes[first..].iter().filter_map(|found| found.content).collect();
    (contents.len() > 1).then(|| contents.join(", "))
}

fn boxes(text: &str) -> Vec<Boxed<'_>> {
    static MARKER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\\boxed\b|\\boxed(?:\d)").expect("a valid pattern"));
    let mut starts: Vec<usize> = MARKER.find_iter(text).map(|mark| mark.start() + r"\boxed".len()).collect();
    if starts.is_empty() {
        starts = text.match_indices(r"\fbox").map(|(at, command)| at + command.len()).collect();
    }
    // The last ones are enough: whoever writes more boxes repeats them.
    starts[starts.len().saturating_sub(MAX_BOXES)..].iter().map(|start| Boxed::at(text, *start)).collect()
}

/// Boxes of a text that are looked at, and the longest content of one, in bytes.
const MAX_BOXES: usize = 100;
const MAX_BOX: usize = 10_000;

/// A box in a text.
struct Boxed<'a> {
    /// Where its command ends.
    start: usize,
    /// Where it ends.
    end: usize,
    /// Its content; `None` if it is not closed.
    content: Option<&'a str>,
}

impl<'a> Boxed<'a> {
    /// The box whose command ends at `start`.
    fn at(text: &'a str, start: usize) -> Self {
        let rest = &text[start..];
        let blanks = rest.len() - rest.trim_start().len();
        let Some(inner) = rest[blanks..].strip_prefix('{') else {
            // `\boxed 5`, `\boxed5`.
            let line = rest.split(['$', '\n']).next().unwrap_or_default();
            let digits = line.starts_with(|c: char| c.is_ascii_digit());
            let line = if digits { line.split([' ', ';']).next().unwrap_or_default() } else { line };
            return Self { start, end: start + line.len(), content: clean(line) };
        };
        // `\{` opens nothing. If the braces do not close without them, they count.
        let end = closing_brace(inner, false).or_else(|| closing_brace(inner, true));
        let begin = start + blanks + 1;
        Self { start, end: begin + end.map_or(inner.len(), |end| end + 1), content: end.map(|end| inner[..end].trim()) }
    }

    /// Whether no more than a separator stands between this box and the next.
    fn is_beside(&self, next: &Self, text: &str) -> bool {
        static BETWEEN: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"^[\s$]*(?:[,;]|,?\s*(?:\\text\{\s*)?(?:and|or)(?:\s*\})?)[\s$]*\\(?:boxed|fbox)$")
                .expect("a valid pattern")
        });
        self.content.is_some_and(|content| !content.is_empty()) && self.end <= next.start && {
            let between = &text[self.end..next.start];
            between.len() < 40 && BETWEEN.is_match(between)
        }
    }
}

/// Where the brace is closed that is open before `inner`.
fn closing_brace(inner: &str, escaped_count: bool) -> Option<usize> {
    let (mut open, mut escaped) = (1, false);
    for (at, byte) in inner.bytes().take(MAX_BOX).enumerate() {
        let counts = !escaped || escaped_count;
        escaped = byte == b'\\' && !escaped;
        match byte {
            b'{' if counts => open += 1,
            b'}' if counts => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

/// Takes off what surrounds an answer but does not belong to it: blanks, full stops, formulas' borders, bold and italic marks,
/// quotes, a box, end tokens.
fn clean(answer: &str) -> Option<&str> {
    const PAIRS: [(&str, &str); 13] = [
        ("$$", "$$"),
        ("$", "$"),
        (r"\(", r"\)"),
        (r"\[", r"\]"),
        ("**", "**"),
        ("__", "__"),
        ("*", "*"),
        ("_", "_"),
        ("```", "```"),
        ("`", "`"),
        ("\"", "\""),
        ("“", "”"),
        ("'", "'"),
    ];
    static END_TOKEN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"</?(?:s|think|answer|solution)>|<[|｜][^<>\s]{1,40}[|｜]>|<(?:eos|bos|pad|end_of_turn)>|\[/?INST\]",
        )
        .expect("a valid pattern")
    });
    let mut answer = END_TOKEN.split(answer.trim()).find(|part| !part.trim().is_empty())?;
    loop {
        let stripped = answer.trim_end_matches(['.', ';', ',']).trim();
        let stripped = [r"\\", r"\n"].into_iter().find_map(|end| stripped.strip_suffix(end)).unwrap_or(stripped);
        let unwrapped = PAIRS.into_iter().find_map(|(open, close)| {
            let inner = stripped.strip_prefix(open)?.strip_suffix(close)?;
            (!inner.contains(open) || inner.is_empty()).then_some(inner)
        });
        let unwrapped =
            unwrapped.or_else(|| in_command(stripped)).unwrap_or_else(|| without_lonely_end(stripped)).trim();
        if unwrapped == answer {
            return (!answer.is_empty()).then_some(answer);
        }
        answer = unwrapped;
    }
}

/// The content of a box or a text command that is all there is.
fn in_command(answer: &str) -> Option<&str> {
    let command =
        [r"\boxed{", r"\fbox{", r"\mathbf{", r"\textbf{"].into_iter().find(|command| answer.starts_with(command));
    // `\text{even}` is words, `\text{18}` a number.
    let command = command.or_else(|| Some(r"\text{").filter(|text| answer.starts_with(text)))?;
    let inner = &answer[command.len()..];
    let content = inner.get(..closing_brace(inner, false)?)?;
    let whole = content.len() + 1 == inner.len();
    let number = || content.chars().all(|c| c.is_ascii_digit() || " -.,%".contains(c));
    (whole && (command != r"\text{" || number())).then_some(content)
}

/// Without a mark at the end that opens before the answer: `**The answer is: 18**`.
fn without_lonely_end(answer: &str) -> &str {
    for mark in ["**", "__", "*", "`", "\"", "”"] {
        if let Some(inner) = answer.strip_suffix(mark).filter(|inner| !inner.contains(mark)) {
            return inner;
        }
    }
    let count = |c: char| answer.matches(c).count();
    let lonely = |open: char, close: char| answer.ends_with(close) && count(open) < count(close);
    let brackets = !answer.contains(['[', '(']) && (lonely('(', ')') || lonely('[', ']'));
    if brackets
        || (lonely('{', '}') && !answer.ends_with(r"\}"))
        || (answer.ends_with('$') && count('$') == 1 && answer.len() > 1)
    {
        return &answer[..answer.len() - 1];
    }
    answer
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
            assert_eq!(announced(text), expected, "{text:?}");
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
            (r"\boxed{4} in \boxed{}", Some("4")),
            (r"\boxed5", Some("5")),
            (r"\boxed{\left\{x\right.}", Some(r"\left\{x\right.")),
            (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", Some("3")),
            (r"\boxed{1}, no, \boxed{2}", Some("2")),
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
            for kind in [AnswerKind::Number, AnswerKind::Expression] {
                if let Some(answer) = final_answer(kind, &text) {
                    proptest::prop_assert!(text.contains(answer));
                }
            }
            if let Some(answer) = last_number(&text) {
                proptest::prop_assert!(text.contains(answer));
            }
        }
    }
}
