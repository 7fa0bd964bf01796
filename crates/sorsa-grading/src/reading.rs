//! Other readings of an answer that is no plain value as it stands: without marks of a layout, without the words and sentences
//! after it. A reading is made only if the answer leaves no doubt: one number, one formula, one letter.

use std::sync::LazyLock;

use regex::Regex;

/// A number as answers write it, with what belongs to it: its sign, `million`, `%`.
const NUMBER: &str = r"(?x)
    (?<sign> [-+−–]? ) \s? (?<currency> (?: US | [ACS] | HK )? \$ | [€£¥₹] | (?: USD | EUR | GBP | INR | Rs\.? ) \s? )? \s? (?<inner> [-−–]? )
    (?<value>
        \d+ \s \d{1,3} / \d{1,3}
        | (?: \d{1,3} (?: ,\d{3} )+ | \d{1,3} (?: [\u{A0}\u{202F}\x20] \d{3} )+ | \d+ ) (?: \.\d+ )? (?: \s? / \s? \d+ )?
        | \.\d+
    )
    (?<exponent> [eE][-+]?\d+ | \s? (?: [*x×·] | \\times | \\cdot ) \s? 10 \s? \^ \s? (?: \{-?\d+\} | -?\d+ ) )?
    (?<word> \s? % | \s? (?: dozen | hundred | thousand | million | billion | trillion | percent ) s? \b )?";

/// The other readings of an answer that should be a number.
pub(crate) fn number_readings(answer: &str) -> Vec<String> {
    static FRACTION: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^(\$?-?\d*\s?\\[dt]?frac.*[\d}]\$?)(?:\s+[a-zA-Z]{2,})+$").expect("a valid pattern")
    });
    let mut readings = formula_readings(answer);
    let sentence = first_sentence(&without_marks(answer));
    // A fraction with its unit.
    readings.extend(FRACTION.captures(&sentence).map(|found| found[1].to_owned()));
    readings.extend(number_in(&sentence).or_else(|| number_in(answer)));
    readings
}

/// The other readings of an answer that may be any expression.
pub(crate) fn formula_readings(answer: &str) -> Vec<String> {
    static FORMULA: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\$([^$]+)\$|\\\(((?s:.+?))\\\)|\\\[((?s:.+?))\\\]").expect("a valid pattern"));
    static CHOICE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^(?:\(([A-Ja-j])\)|([A-Ja-j])\)|([A-J])[.:])\s|^\\(?:text|textbf|textrm|mathrm|mathbf)\{\s*\(?([A-J])[).:]?\s*\}[\s~\\]*\S")
            .expect("a valid pattern")
    });
    /// `(x, y) = (1, 2)`.
    static POINT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)\s*=\s*([^=]+)$").expect("a valid pattern"));
    let plain = without_marks(answer);
    let sentence = first_sentence(&plain);
    let mut readings = Vec::new();
    // One formula in words.
    let formulas: Vec<_> = FORMULA.captures_iter(&sentence).collect();
    if let [formula] = &formulas[..] {
        let outside = FORMULA.replace(&sentence, "");
        let content = formula.iter().skip(1).flatten().next().map(|content| content.as_str().trim());
        if let Some(content) =
            content.filter(|_| !outside.contains(|c: char| c.is_ascii_digit() || "=<>+*/^\\".contains(c)))
        {
            readings.push(content.to_owned());
        }
    }
    if let Some(choice) = CHOICE.captures(&sentence) {
        readings.extend(choice.iter().skip(1).flatten().next().map(|letter| letter.as_str().to_owned()));
    }
    readings.extend(POINT.captures(&sentence).map(|point| point[1].to_owned()));
    if sentence != plain {
        readings.push(sentence.clone());
    }
    if plain != answer {
        readings.push(plain);
    }
    readings
}

/// Without bold, italic and code marks, and with one kind of minus sign. `2**10` keeps its power, `3*5` its product.
fn without_marks(answer: &str) -> String {
    static MARKS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(\*\*|__)([^\s*_](?:[^*_]*[^\s*_])?)(\*\*|__)").expect("a valid pattern"));
    static ITALIC: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^([*_])([^\s*_](?:[^*_]*[^\s*_])?)[*_](\W|$)").expect("a valid pattern"));
    static CODE: LazyLock<Regex> = LazyLock::new(|| Regex::new("`([^`]*)`").expect("a valid pattern"));
    static HTML: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)</?(?:b|i|u|em|strong|code|span|p|br|answer)\s*/?>").expect("a valid pattern")
    });
    /// `<<9*2=18>>`, GSM8K's calculator; arrows before an answer.
    static CALCULATOR: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"<<[^<>]*>>|^(?:[=-]>|→|⇒)\s*").expect("a valid pattern"));
    let text = CALCULATOR.replace_all(answer, "");
    let text = HTML.replace_all(&text, "");
    let text = MARKS.replace_all(&text, "$2");
    let text = ITALIC.replace(&text, "$2$3");
    let text = CODE.replace_all(&text, "$1");
    text.replace(['−', '–'], "-").trim().to_owned()
}

/// The answer up to where a sentence, a clause or a remark in brackets begins after it.
fn first_sentence(answer: &str) -> String {
    static END: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?x) [.;:] \s+ \p{L} | ,? \s+ (?: because | since | so | which | where | as ) \s | , \s+ (?: in | a | an | the | for | after | with | per | total | altogether | not ) \b | \s+ \( [^()]* \) \s* $ | \n\s*\n | \s+ (?: -- | — ) \s+")
            .expect("a valid pattern")
    });
    let first = END.find(answer).map_or(answer, |end| &answer[..end.start()]);
    let first = first.trim().trim_end_matches(['.', ',', ';']).trim_end();
    if first.is_empty() { answer.to_owned() } else { first.to_owned() }
}

/// The only number of a sentence: what an equation ends in, or a number with words around it.
fn number_in(sentence: &str) -> Option<String> {
    static FOUND: LazyLock<Regex> = LazyLock::new(|| Regex::new(NUMBER).expect("a valid pattern"));
    /// Words before a number that make it another one, or none.
    static OTHER_BEFORE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"(?ix) \b (?: not | no | never | least | most | than | over | under | below | above | between | from | half | twice | double | triple
            | nearly | almost | step | steps | equation | part | question | problem | case | option | chapter | example | either | or | minus | negative | up \s to ) \b",
        )
        .expect("a valid pattern")
    });
    /// Words after a number that make it another one.
    static OTHER_AFTER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?ix) \b (?: or | half | quarter | third | thirds | quarters | to | out \s of | dozen | hundred | thousand | million | billion | cents? ) \b | [=<>^*+/√π] | \\(?:frac|sqrt|pi|times|cdot|pm) | \b [b-fj-kn-rt-z] \b")
            .expect("a valid pattern")
    });
    static CHOICE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^(?:\([A-Ja-j]\)|[A-Ja-j]\)|[A-J][.:])\s+").expect("a valid pattern"));
    static LAYOUT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\\(?:text|mathrm|mbox|textbf|mathbf)\{([^{}]*)\}|\\[,;:! ]|\\(?:quad|qquad|left|right)\b|[{}]|~")
            .expect("a valid pattern")
    });
    let sentence = CHOICE.replace(sentence, "");
    let mut sentence = sentence.replace(r"\$", "$").replace(r"\%", "%");
    if !sentence.contains(r"\frac")
        && !sentence.contains(r"\dfrac")
        && !sentence.contains(r"\sqrt")
        && !sentence.contains('^')
    {
        sentence = LAYOUT.replace_all(&sentence, " $1 ").replace("  ", " ").trim().to_owned();
    }
    // The power of a unit is no number of its own.
    static POWER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\b([kcm]?m|ft|in|yd|mi|feet|meters?|inches)\s?\^\s?\{?[23]\}?").expect("a valid pattern")
    });
    sentence = POWER.replace_all(&sentence, "$1").into_owned();
    // A dollar sign that borders a formula: `$18$`, `$x = 18$`.
    if sentence.matches('$').count() == 2 {
        sentence = sentence.replace('$', " ");
    }
    let mut rest = sentence.as_str();
    if let Some((left, right)) = rest.rsplit_once(['=', '≈']) {
        // `2x = 10` says something else of x.
        static COEFFICIENT: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"\d\s?[a-zA-Z]\s*$").expect("a valid pattern"));
        if COEFFICIENT.is_match(left) || left.ends_with(['<', '>', '!', '≠']) {
            return None;
        }
        rest = right.trim();
    }
    // Without a remark in brackets.
    let rest = rest.split(" (").next().unwrap_or(rest);
    let mut numbers = FOUND.captures_iter(rest);
    let found = numbers.next()?;
    let all = found.get(0)?;
    let start = all.end() - all.as_str().trim_start().len();
    if numbers.next().is_some() {
        return None;
    }
    let before = &rest[..start];
    // `/hour`, ` m^2`: units.
    static UNIT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^(?:/\s?[a-zA-Z]{2,}|\s?°\s?[CF]\b|\s?(?:km|m|mi|ft)\s?/\s?(?:h|hr|hour|s|sec|second|min|minute)\b|\s?(?:[kcm]?m|ft|in|yd|mi)[²³]?(?:\s|$)|\s?\^\s?\{?\\circ\}?)")
            .expect("a valid pattern")
    });
    let after = &rest[all.end()..];
    let after = &after[UNIT.find(after).map_or(0, |unit| unit.end())..];
    let joined = |c: char| c.is_alphanumeric() || ".,:/^_\\".contains(c);
    let unit_follows = is_attached_unit(after);
    if before.ends_with(joined) || (after.starts_with(joined) && !unit_follows && !is_end(after)) {
        return None;
    }
    // A dash between words is no sign.
    if OTHER_BEFORE.is_match(before)
        || OTHER_AFTER.is_match(after)
        || after.contains('!')
        || before.trim_end().ends_with(['<', '>', '+', '*', '/'])
    {
        return None;
    }
    let part = |name: &str| found.name(name).map_or("", |part| part.as_str().trim());
    let dash = !before.trim().is_empty() && part("sign") == "-" && all.as_str().starts_with("- ");
    let sign = if (part("sign") == "-" && !dash) || part("inner") == "-" { "-" } else { "" };
    let value: String = part("value").chars().filter(|c| *c != ',').collect();
    let value = match value.split_once('/') {
        Some((whole, _)) if whole.trim().contains(' ') => mixed(&value)?,
        Some(_) => value.replace(' ', ""),
        None => value.chars().filter(|c| !c.is_whitespace()).collect(),
    };
    let exponent = part("exponent").replace(['x', '×', '·'], "*");
    Some(format!("{sign}{value}{exponent} {}", part("word")).trim().to_owned())
}

/// `1 1/2` as `3/2`.
fn mixed(value: &str) -> Option<String> {
    let (whole, fraction) = value.split_once(char::is_whitespace)?;
    let (top, bottom) = fraction.split_once('/')?;
    let [whole, top, bottom]: [u64; 3] = [whole.parse().ok()?, top.trim().parse().ok()?, bottom.trim().parse().ok()?];
    let top = whole.checked_mul(bottom)?.checked_add(top)?;
    Some(format!("{top}/{bottom}"))
}

/// Whether a unit follows a number without a blank: `18kg`, `40°`.
fn is_attached_unit(after: &str) -> bool {
    static UNIT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^(?:[kcm]?m|[km]?g|[km]?l|kWh|lbs?|oz|ft|in|yd|mi|mph|kmh?|hrs?|h|min|s|sec|USD|usd|c)(?:\b|[²³/])|^[°€£¥₹%²³]").expect("a valid pattern")
    });
    UNIT.is_match(after)
}

/// Whether a full stop, comma or slash with a unit ends the number: `18.`, `18, in all`, `$18/hour`.
fn is_end(after: &str) -> bool {
    static END: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^(?:[.,:](?:\s|$)|/\s?[a-zA-Z]{2,}|\\$)").expect("a valid pattern"));
    END.is_match(after)
}
