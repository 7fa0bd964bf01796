//! Units and words of quantity: their spellings, and what they multiply by.

use crate::algebra::Rational;

/// Spellings of one unit: the first is its name.
const UNITS: [&[&str]; 40] = [
    &["dollar", "usd", "buck"],
    &["euro", "eur"],
    &["pound sterling", "gbp"],
    &["cent"],
    &["degree", "deg"],
    &["percent", "percentage", "pct", "percentage point"],
    &["meter", "metre", "m"],
    &["centimeter", "centimetre", "cm"],
    &["millimeter", "millimetre", "mm"],
    &["kilometer", "kilometre", "km"],
    &["inch", "inche", "in"],
    &["foot", "feet", "ft"],
    &["yard", "yd"],
    &["mile", "mi"],
    &["gram", "g"],
    &["kilogram", "kg"],
    &["milligram", "mg"],
    &["pound", "lb"],
    &["ounce", "oz"],
    &["ton", "tonne"],
    &["liter", "litre", "l"],
    &["milliliter", "millilitre", "ml"],
    &["gallon", "gal"],
    &["second", "sec", "s"],
    &["minute", "min"],
    &["hour", "hr", "h"],
    &["day"],
    &["week"],
    &["month"],
    &["year", "yr"],
    &["mph", "mile per hour"],
    &["kph", "km/h", "kmh", "kilometer per hour"],
    &["unit"],
    &["radian", "rad"],
    &["am"],
    &["pm"],
    &["people", "person"],
    &["child", "children"],
    &["piece", "pc"],
    &["man", "men"],
];

/// Words that multiply the number before them.
const MULTIPLIERS: [(&str, i64); 5] =
    [("dozen", 12), ("hundred", 100), ("thousand", 1000), ("million", 1_000_000), ("billion", 1_000_000_000)];

/// Whether a word in lower case is a unit or a word of quantity. Single letters, which are variables more often, are not.
pub(super) fn is_unit(word: &str) -> bool {
    let known = |word: &str| {
        UNITS.iter().any(|spellings| spellings.contains(&word)) || MULTIPLIERS.iter().any(|(name, _)| *name == word)
    };
    let power = ["sq", "cu", "square", "cubic"].contains(&word);
    word.len() > 1 && (power || known(word) || known(word.strip_suffix('s').unwrap_or(word)))
}

/// The name of a unit in words, and what its words of quantity multiply by.
///
/// `sq` is `square`, a plural is a singular, an abbreviation is written out; `per` and other small words stay.
pub(super) fn canonical(words: &str) -> (String, Rational) {
    let (mut names, mut factor) = (Vec::new(), 1i64);
    for word in words.split_whitespace() {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric() && c != '/');
        let singular = word.strip_suffix('s').filter(|rest| rest.len() > 1).unwrap_or(word);
        if let Some((_, times)) = MULTIPLIERS.iter().find(|(name, _)| *name == singular) {
            factor = factor.saturating_mul(*times);
            continue;
        }
        match singular {
            "" | "of" | "the" | "a" => continue,
            "sq" | "squared" => names.push("square"),
            "cu" | "cubed" => names.push("cubic"),
            _ => names.push(named(word).or_else(|| named(singular)).unwrap_or(singular)),
        }
    }
    let joined = names.join(" ");
    (named(&joined).map_or(joined.clone(), str::to_owned), Rational::whole(factor))
}

fn named(word: &str) -> Option<&'static str> {
    UNITS.iter().find(|spellings| spellings.contains(&word)).map(|spellings| spellings[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_unit_have_one_name() {
        for (a, b) in [("cm", "centimeters"), ("square inches", "sq in"), ("mph", "miles per hour"), ("ft", "Feet")] {
            assert_eq!(canonical(&a.to_lowercase()), canonical(&b.to_lowercase()), "{a} and {b}");
        }
        assert_ne!(canonical("square inches").0, canonical("m").0);
        assert_eq!(canonical("million dollars"), ("dollar".into(), Rational::whole(1_000_000)));
        assert!(is_unit("cm") && is_unit("hours") && !is_unit("m") && !is_unit("ab"));
    }
}
