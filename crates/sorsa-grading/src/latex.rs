//! The normal form of an answer of MATH: `strip_string` of Hendrycks et al. 2021 (arXiv 2103.03874), step by step.

/// Rewrites an answer so that common spellings of one expression become equal strings. Where the original raises an
/// exception (`\frac` with nothing after it, two units, `x/2`) that step leaves the string as it is.
pub fn strip_string(answer: &str) -> String {
    stripped(answer, &mut false)
}

/// [`strip_string`] as the original has it: `None` if it raises an exception.
pub(crate) fn try_strip_string(answer: &str) -> Option<String> {
    let mut raised = false;
    let stripped = stripped(answer, &mut raised);
    (!raised).then_some(stripped)
}

fn stripped(answer: &str, raised: &mut bool) -> String {
    let mut s = answer.replace('\n', "").replace(r"\!", "").replace(r"\\", r"\");
    for (from, to) in [
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        (r"\left", ""),
        (r"\right", ""),
        (r"^{\circ}", ""),
        (r"^\circ", ""),
        (r"\$", ""),
    ] {
        s = s.replace(from, to);
    }
    match s.split(r"\text{ ").collect::<Vec<_>>()[..] {
        [_] => {}
        [value, _unit] => s = value.to_owned(),
        _ => *raised = true,
    }
    s = s.replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if s.starts_with('.') {
        s.insert(0, '0');
    }
    // `x = 5` is 5.
    if let [name, value] = s.split('=').collect::<Vec<_>>()[..]
        && name.chars().count() <= 2
    {
        s = value.to_owned();
    }
    s = brace_arguments(&s, r"\sqrt", 1, raised).replace(' ', "");
    s = brace_arguments(&s, r"\frac", 2, raised);
    if s == "0.5" {
        s = r"\frac{1}{2}".to_owned();
    }
    slash_to_frac(&s, raised).unwrap_or(s)
}

/// Puts the single-character arguments of a command into braces: `\frac12` becomes `\frac{1}{2}`, `\sqrt3` `\sqrt{3}`.
/// As in the original, a first argument in braces ends the matter (`\frac{72}1` stays).
fn brace_arguments(s: &str, command: &str, arguments: usize, raised: &mut bool) -> String {
    let mut parts = s.split(command);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        result += command;
        let mut rest = part.chars();
        *raised |= part.is_empty();
        if !part.starts_with('{') && part.chars().count() < arguments {
            return s.to_owned();
        }
        for _ in 0..arguments {
            if rest.as_str().starts_with('{') {
                break;
            }
            if let Some(argument) = rest.next() {
                result.extend(['{', argument, '}']);
            }
        }
        result += rest.as_str();
    }
    result
}

/// `\frac{a}{b}` for an answer that is two plain integers with a slash between them. The original raises if Python
/// reads a part as no integer.
fn slash_to_frac(s: &str, raised: &mut bool) -> Option<String> {
    let [a, b] = s.split('/').collect::<Vec<_>>()[..] else { return None };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = |part: &str| part.strip_prefix(['-', '+']).unwrap_or(part).replace('_', "");
    *raised |= ![a, b].into_iter().all(|part| digits(&unsigned(part)));
    let plain = |part: &str| {
        let size = part.strip_prefix('-').unwrap_or(part);
        digits(size) && (size == "0" && part == "0" || !size.starts_with('0'))
    };
    (plain(a) && plain(b)).then(|| format!(r"\frac{{{a}}}{{{b}}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_expression_become_one_string() {
        for (answer, expected) in [
            (r"\dfrac12", r"\frac{1}{2}"),
            ("1/2", r"\frac{1}{2}"),
            ("0.5", r"\frac{1}{2}"),
            (".75", "0.75"),
            (r"\frac1{72}", r"\frac{1}{72}"),
            (r"\frac{72}1", r"\frac{72}1"),
            (r"2\sqrt3", r"2\sqrt{3}"),
            (r"\left( -\infty, 3 \right)", r"(-\infty,3)"),
            (r"90^\circ", "90"),
            (r"12,\!345", "12,345"),
            (r"5\text{ cm}", "5"),
            (r"\$18.90", "18.90"),
            (r"50\%", "50"),
            ("k = 7", "7"),
            ("xyz = 7", "xyz=7"),
        ] {
            assert_eq!(strip_string(answer), expected, "{answer}");
        }
    }

    #[test]
    fn what_makes_the_original_raise_stays_as_it_is() {
        for answer in ["x/2", r"\frac", r"\sqrt", r"\frac1", "1/2/3"] {
            assert_eq!(strip_string(answer), answer);
        }
        assert_eq!(strip_string(r"3\text{ ft }\text{ in}"), r"3\text{ft}\text{in}");
    }

    #[test]
    fn golden_answers_have_the_normal_form_of_the_original() {
        let Some(cases) = crate::grade::golden_cases("math") else { return };
        let mut compared = 0;
        for case in cases {
            for side in ["gold", "pred"] {
                let answer = &case[format!("{side}_extracted")];
                // No normal form if the original raises an exception; "None" if it finds nothing.
                if let (Some(answer), Some(expected)) = (answer.as_str(), case[format!("{side}_stripped")].as_str()) {
                    assert_eq!(strip_string(answer), expected, "{answer}");
                    compared += 1;
                }
            }
        }
        assert!(compared > 300, "only {compared} answers compared");
    }
}
