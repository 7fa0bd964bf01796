//! How PEFT chooses modules: by the ends of their paths, and by Python's regular expressions.

use fancy_regex::Regex;

/// A pattern over the path of a module.
#[derive(Debug)]
pub(super) enum PathPattern {
    /// A text without operators but `.`, which stands for any character. It matches whole components at the end.
    Ending(String),
    /// Everything else.
    Regex(Box<Regex>),
}

impl PathPattern {
    /// A key of `rank_pattern` or `alpha_pattern`, which matches the end of a path: `re.match(rf"(.*\.)?({key})$", path)`.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with the pattern.
    pub fn key(key: &str) -> Result<Self, String> {
        let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
        // One regular expression for each module of an adapter, over each module, would take seconds.
        if !key.is_empty() && key.chars().all(is_plain) {
            return Ok(Self::Ending(key.to_owned()));
        }
        regex(key, &format!(r"^(.*\.)?({})$", translated(key)))
    }

    /// `target_modules` or `exclude_modules` as one text, which matches a whole path: `re.fullmatch(pattern, path)`.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with the pattern.
    pub fn whole(pattern: &str) -> Result<Self, String> {
        regex(pattern, &format!("^(?:{})$", translated(pattern)))
    }

    /// Whether the pattern matches `path`.
    ///
    /// # Errors
    ///
    /// One line if the search takes too long.
    pub fn matches(&self, path: &str) -> Result<bool, String> {
        match self {
            Self::Ending(text) => Ok(ends_with(text, path)),
            Self::Regex(regex) => {
                regex.is_match(path).map_err(|error| format!("`{}` on `{path}`: {error}", regex.as_str()))
            }
        }
    }
}

fn regex(pattern: &str, whole: &str) -> Result<PathPattern, String> {
    match Regex::new(whole) {
        Ok(regex) => Ok(PathPattern::Regex(Box::new(regex))),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim();
            Err(format!("`{pattern}` is not a regular expression that can be read here: {reason}"))
        }
    }
}

/// Whether `path` ends with the components of `text`, in which `.` stands for any character.
fn ends_with(text: &str, path: &str) -> bool {
    let (mut rest, mut wanted) = (path.chars().rev(), text.chars().rev());
    wanted.all(|wanted| rest.next().is_some_and(|found| wanted == '.' || wanted == found))
        && matches!(rest.next(), None | Some('.'))
}

/// Python's regular expression in the syntax of `fancy_regex`. They differ in three places: `\Z` is the end of the text in
/// Python, a bracket or an ampersand inside of a set of characters means itself, and `{,3}` is `{0,3}`.
fn translated(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut characters = pattern.chars().peekable();
    // Characters since the set of characters began, if one is open.
    let mut set: Option<usize> = None;
    while let Some(character) = characters.next() {
        match (character, set) {
            ('\\', _) => {
                let escaped = characters.next();
                match escaped {
                    Some('Z') if set.is_none() => out.push_str(r"\z"),
                    _ => out.extend(std::iter::once('\\').chain(escaped)),
                }
                set = set.map(|count| count + 1);
            }
            ('[', None) => {
                out.push('[');
                set = Some(0);
                if characters.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
            }
            // The first bracket in a set means itself.
            (']', Some(count)) if count > 0 => {
                out.push(']');
                set = None;
            }
            ('[' | ']' | '&' | '~', Some(count)) => {
                out.extend(['\\', character]);
                set = Some(count + 1);
            }
            (_, Some(count)) => {
                out.push(character);
                set = Some(count + 1);
            }
            ('{', None) if characters.peek() == Some(&',') => out.push_str("{0"),
            (_, None) => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "model.layers.3.self_attn.q_proj";

    fn key(key: &str, path: &str) -> bool {
        PathPattern::key(key).unwrap().matches(path).unwrap()
    }

    fn whole(pattern: &str, path: &str) -> bool {
        PathPattern::whole(pattern).unwrap().matches(path).unwrap()
    }

    #[test]
    fn a_key_matches_components_at_the_end_like_pythons_match() {
        // What `re.match(rf"(.*\.)?({key})$", path)` of Python 3.11 gives.
        let matching = [
            "q_proj",
            "self_attn.q_proj",
            "3.self_attn.q_proj",
            "layers.3.*q_proj",
            "self.attn.q.proj",
            r"layers\.(?!0\b)\d+\.self_attn\.q_proj",
            r"layers\.\d+\.self_attn\.(?:q|k)_proj",
            r"layers\.(?P<n>[0-9]+)\.self_attn\..*(?<=q)_proj",
            r".*layers\.3\..*",
            "q_proj|k_proj",
            r"self_attn\.q_proj\Z",
            "[]q]_proj",
            "[^[]_proj",
            "mod{,2}el.*",
            r"([a-z])_proj",
        ];
        for text in matching {
            assert!(key(text, PATH), "{text}");
        }
        for text in ["_proj", "^q_proj", "proj", "layers.3", r"layers\.(?!3\b)\d+\..*", "lf_attn.q_proj", "[&&q]proj"] {
            assert!(!key(text, PATH), "{text}");
        }
        assert!(key("q_proj", "q_proj") && !key("q_proj", "xq_proj") && !key("model.layers.3", "model.layers.13"));
    }

    #[test]
    fn a_whole_pattern_is_pythons_fullmatch() {
        assert!(whole(r".*\.(q|v)_proj", PATH) && whole(r"model\.layers\.[0-5]\..*_proj", PATH));
        assert!(!whole("q_proj", PATH) && !whole(r".*\.q", PATH) && whole("a|ab", "ab"));
        assert!(whole(
            r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?)|(?:\bmodel\.layers\.\d+\.self_attn\.q_proj)",
            PATH
        ));
    }

    #[test]
    fn a_plain_key_is_matched_like_the_same_regular_expression() {
        for plain in ["q_proj", "attn.q_proj", "3.self_attn.q_proj", "x.q_proj", "model.layers.3.self_attn.q_proj"] {
            for path in [PATH, "q_proj", "self_attn.q_proj", "a.b.q_proj", "aq_proj", "ax.q_proj", ""] {
                let slow = PathPattern::whole(&format!(r"(.*\.)?({plain})")).unwrap();
                assert_eq!(key(plain, path), slow.matches(path).unwrap(), "{plain} on {path}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_pattern_is_said() {
        for text in ["(", "(?<name", "(?(2)a|b", "[a", "*"] {
            let error = PathPattern::key(text).unwrap_err();
            assert!(
                error.starts_with(&format!("`{text}` is not a regular expression that can be read here: ")),
                "{error}"
            );
        }
        let slow = PathPattern::key("(?:(?:a|aa)+)+(?=b)c").unwrap();
        assert!(slow.matches(&"a".repeat(60)).unwrap_err().contains("(?=b)c"));
    }
}
