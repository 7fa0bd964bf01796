//! Names of enum variants, as recipes and the command line spell them.

use std::fmt::Display;

use crate::DataError;

/// The one of `all` whose name is `name`; `what` says in the error what the name is for.
pub(crate) fn parse_name<T: Copy + Display>(what: &'static str, all: &[T], name: &str) -> Result<T, DataError> {
    match all.iter().find(|value| value.to_string() == name) {
        Some(value) => Ok(*value),
        None => {
            let names: Vec<String> = all.iter().map(T::to_string).collect();
            Err(DataError::UnknownName { what, found: name.to_owned(), expected: names.join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::str::FromStr;

    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use crate::{DataError, Format, TemplateName, Truncation};

    fn check<T>(all: &[T])
    where
        T: Copy + Debug + PartialEq + ToString + FromStr<Err = DataError> + Serialize + DeserializeOwned,
    {
        for value in all {
            let name = value.to_string();
            assert_eq!(name.parse::<T>().unwrap(), *value);
            assert_eq!(serde_json::to_value(value).unwrap(), name);
            assert_eq!(serde_json::from_value::<T>(name.into()).unwrap(), *value);
        }
    }

    #[test]
    fn text_and_serde_spell_every_name_alike() {
        check(&Format::ALL);
        check(&TemplateName::ALL);
        check(&Truncation::ALL);
        assert_eq!(Truncation::ALL.map(Truncation::as_str), ["error", "drop-row", "keep-end", "author-each"]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        insta::assert_snapshot!("maybe".parse::<Truncation>().unwrap_err(),
            @"unknown truncation `maybe`; expected one of error, drop-row, keep-end, author-each");
        insta::assert_snapshot!("gpt".parse::<TemplateName>().unwrap_err(),
            @"unknown prompt template `gpt`; expected one of alpaca, code, question, raw, chat");
    }
}
