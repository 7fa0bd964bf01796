//! What the environment says about the hub, read as `huggingface_hub` 0.36 and 2.4 read it. A variable that is set to nothing
//! is taken for one that is not set, which differs for folders: there, it would mean the working directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::HubTimeouts;
use super::{HubOptions, TokenSource, clean_token};

/// A variable of the environment that cannot be what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} should be a whole number of seconds, found `{found}`")]
pub struct HubEnvironmentError {
    /// The variable.
    pub variable: &'static str,
    /// Its value.
    pub found: String,
}

impl HubOptions {
    /// The options that the environment gives. `variable` looks up a variable; `home` is the user's home folder.
    ///
    /// | variables | meaning |
    /// |---|---|
    /// | `HF_ENDPOINT` | address of the hub |
    /// | `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `HF_HOME/hub` | the cache |
    /// | `HF_HOME`, else `XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface` | what the others are beside |
    /// | `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN`, else the file `HF_TOKEN_PATH`, else the file `HF_HOME/token` | the token |
    /// | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | no token is sent |
    /// | `HF_HUB_OFFLINE`, else `TRANSFORMERS_OFFLINE` | models come from the cache only |
    /// | `HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT` | seconds to wait for what is asked, and for each piece of a file |
    ///
    /// In folders, `~` at the start and `$NAME` or `${NAME}` anywhere are replaced. A flag is set by 1, on, yes or true.
    ///
    /// # Errors
    ///
    /// [`HubEnvironmentError`] of a time limit that is no number.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
        home: Option<&Path>,
    ) -> Result<Self, HubEnvironmentError> {
        let environment = Environment { variable: &variable, home };
        let hf_home = environment.folder("HF_HOME").or_else(|| {
            let cache = match environment.text("XDG_CACHE_HOME") {
                Some(cache) => environment.expanded(&cache),
                None => home?.join(".cache"),
            };
            Some(cache.join("huggingface"))
        });
        let in_home = |name: &str| Some(hf_home.as_ref()?.join(name));
        let cache = environment.folder("HF_HUB_CACHE").or_else(|| environment.folder("HUGGINGFACE_HUB_CACHE"));
        let token_file = environment.folder("HF_TOKEN_PATH").or_else(|| in_home("token"));
        // A token of blanks alone hides the older variable, but not the file.
        let token = environment.text("HF_TOKEN").or_else(|| environment.text("HUGGING_FACE_HUB_TOKEN"));
        let token = match (token.as_deref().and_then(clean_token), token_file) {
            _ if environment.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") => TokenSource::None,
            (Some(token), _) => TokenSource::Given(token),
            (None, Some(file)) => TokenSource::File(file),
            (None, None) => TokenSource::None,
        };
        let offline =
            if environment.text("HF_HUB_OFFLINE").is_some() { "HF_HUB_OFFLINE" } else { "TRANSFORMERS_OFFLINE" };
        let defaults = HubTimeouts::default();
        Ok(Self {
            endpoint: environment.text("HF_ENDPOINT"),
            cache_dir: cache.or_else(|| in_home("hub")),
            token,
            offline: environment.flag(offline),
            timeouts: HubTimeouts {
                metadata: environment.seconds("HF_HUB_ETAG_TIMEOUT", defaults.metadata)?,
                download: environment.seconds("HF_HUB_DOWNLOAD_TIMEOUT", defaults.download)?,
            },
            ..Self::default()
        })
    }
}

struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    home: Option<&'a Path>,
}

impl Environment<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    fn flag(&self, name: &str) -> bool {
        let value = self.text(name).unwrap_or_default().to_uppercase();
        matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
    }

    fn seconds(&self, name: &'static str, default: Duration) -> Result<Duration, HubEnvironmentError> {
        let Some(found) = self.text(name) else { return Ok(default) };
        match found.trim().parse() {
            Ok(0u32) => Ok(default),
            Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
            Err(_) => Err(HubEnvironmentError { variable: name, found }),
        }
    }

    fn folder(&self, name: &str) -> Option<PathBuf> {
        Some(self.expanded(&self.text(name)?))
    }

    /// A path with the home folder for `~` and the values of variables for their names; unknown names stay.
    fn expanded(&self, path: &str) -> PathBuf {
        let with_home = match (path.strip_prefix('~'), self.home.and_then(Path::to_str)) {
            (Some(""), Some(home)) => home.to_owned(),
            (Some(rest), Some(home)) if rest.starts_with('/') => format!("{}{rest}", home.trim_end_matches('/')),
            _ => path.to_owned(),
        };
        let mut text = String::new();
        let mut rest = with_home.as_str();
        while let Some((before, after)) = rest.split_once('$') {
            text.push_str(before);
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let (name, behind) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
                Some((name, behind)) => (name, behind),
                None => after.split_at(after.find(|c| !is_word(c)).unwrap_or(after.len())),
            };
            match (self.variable)(name).filter(|_| !name.is_empty()) {
                Some(value) => text.push_str(&value),
                None => text.push_str(&rest[before.len()..rest.len() - behind.len()]),
            }
            rest = behind;
        }
        text.push_str(rest);
        PathBuf::from(text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    /// What `huggingface_hub` makes of an environment.
    #[derive(Deserialize)]
    struct Case {
        environment: BTreeMap<String, String>,
        endpoint: String,
        cache: String,
        offline: bool,
        token: Option<String>,
        token_file: String,
        sends_token: bool,
        etag_timeout: u64,
        download_timeout: u64,
    }

    #[test]
    fn the_environment_means_what_it_means_to_huggingface_hub() {
        let text = include_str!("../../../../tests/golden/hub_environment/cases.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert!(cases.len() > 30);
        for case in cases {
            let named = &case.environment;
            let home = named.get("HOME").map(Path::new);
            let options = HubOptions::from_environment(|name| named.get(name).cloned(), home).unwrap();
            let endpoint = options.endpoint.as_deref().unwrap_or("https://huggingface.co");
            assert_eq!(endpoint.trim_end_matches('/'), case.endpoint, "{named:?}");
            assert_eq!(options.cache_dir.as_deref(), Some(Path::new(&case.cache)), "{named:?}");
            assert_eq!(options.offline, case.offline, "{named:?}");
            let expected = match case.token {
                _ if !case.sends_token => TokenSource::None,
                Some(token) => TokenSource::Given(token),
                None => TokenSource::File(case.token_file.into()),
            };
            assert!(options.token == expected, "{named:?}");
            let timeouts = [options.timeouts.metadata, options.timeouts.download].map(|time| time.as_secs());
            assert_eq!(timeouts, [case.etag_timeout, case.download_timeout], "{named:?}");
        }
    }

    #[test]
    fn a_time_limit_that_is_no_number_is_named() {
        let error =
            HubOptions::from_environment(|name| (name == "HF_HUB_ETAG_TIMEOUT").then(|| "soon".to_owned()), None);
        let error = error.map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "HF_HUB_ETAG_TIMEOUT should be a whole number of seconds, found `soon`");
    }

    #[test]
    fn a_token_loses_blanks_and_line_ends() {
        assert_eq!(clean_token(" hf_a\r\nb\n ").as_deref(), Some("hf_ab"));
        assert_eq!(clean_token(" \n"), None);
    }
}
