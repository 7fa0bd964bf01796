//! Patterns that choose modules: names, globs and regular expressions over module paths.

use globset::{GlobBuilder, GlobMatcher};
use regex::Regex;

/// One entry of `target_modules`, `rank_pattern` or `alpha_pattern`.
#[derive(Debug, Clone)]
pub(crate) enum Pattern {
    /// Every linear layer except the output head.
    AllLinear,
    /// The last components of a path, like PEFT matches names.
    Name(String),
    Glob(GlobMatcher),
    Regex(Regex),
}

impl Pattern {
    /// Reads a pattern: `re:` starts a regular expression over the whole path, a text with one of `*?[{` is a glob, any
    /// other text is a name. The error is one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "all-linear" {
            return Ok(Self::AllLinear);
        }
        if let Some(regex) = text.strip_prefix("re:") {
            let whole = format!("^(?:{regex})$");
            return match Regex::new(&whole) {
                Ok(regex) => Ok(Self::Regex(regex)),
                Err(_) => Err(format!("`{text}` is not a regular expression")),
            };
        }
        if text.contains(['*', '?', '[', '{']) {
            return match GlobBuilder::new(text).build() {
                Ok(glob) => Ok(Self::Glob(glob.compile_matcher())),
                Err(error) => Err(format!("`{text}` is not a glob: {}", error.kind())),
            };
        }
        if text.is_empty() { Err("a module name is empty".to_owned()) } else { Ok(Self::Name(text.to_owned())) }
    }

    /// Whether the pattern matches the module at `path` (`model.layers.0.self_attn.q_proj`).
    pub fn matches(&self, path: &str) -> bool {
        match self {
            // The names of the output head in Transformers' architectures and in RWKV.
            Self::AllLinear => !matches!(path.rsplit('.').next(), Some("lm_head" | "head")),
            Self::Name(name) => {
                path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Glob(glob) => glob.is_match(path),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// Whether `text` is a pattern that matches the module at `path`.
pub(crate) fn pattern_matches(text: &str, path: &str) -> bool {
    Pattern::parse(text).is_ok_and(|pattern| pattern.matches(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(path)
    }

    #[test]
    fn a_name_matches_whole_components_at_the_end() {
        assert!(matches("q_proj", "model.layers.0.self_attn.q_proj"));
        assert!(matches("self_attn.q_proj", "model.layers.0.self_attn.q_proj"));
        assert!(!matches("q_proj", "model.layers.0.self_attn.fq_proj"));
        assert!(!matches("self_attn", "model.layers.0.self_attn.q_proj"));
    }

    #[test]
    fn globs_and_regexes_cover_the_whole_path() {
        assert!(matches("model.layers.*.mlp.{gate,up}_proj", "model.layers.3.mlp.up_proj"));
        assert!(!matches("layers.*.mlp.up_proj", "model.layers.3.mlp.up_proj"));
        assert!(matches(r"re:.*\.(q|v)_proj", "model.layers.0.self_attn.v_proj"));
        assert!(!matches(r"re:(q|v)_proj", "model.layers.0.self_attn.v_proj"));
        assert!(!matches("all-linear", "lm_head") && !matches("all-linear", "head"));
    }
}
