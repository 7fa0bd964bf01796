//! Texts of errors about files from outside: not longer than people read.

use serde_json::Value;

/// Faults that one message lists.
const FAULTS: usize = 5;
/// Characters of a value that a message quotes.
const VALUE: usize = 120;

/// The first five faults, and how many more there are.
pub(crate) fn listed(faults: &[String]) -> String {
    let mut text = faults.iter().take(FAULTS).map(String::as_str).collect::<Vec<_>>().join("; ");
    if faults.len() > FAULTS {
        text += &format!("; and {} more", faults.len() - FAULTS);
    }
    text
}

/// A value of a JSON file, or its beginning.
pub(crate) fn quoted(value: &Value) -> String {
    // Of a long text, serialised, no more than this can be needed.
    let text = match value {
        Value::String(text) => Value::from(text.chars().take(VALUE).collect::<String>()).to_string(),
        value => value.to_string(),
    };
    match text.char_indices().nth(VALUE) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

/// A name of a field, or its beginning.
pub(crate) fn name(name: &str) -> String {
    match name.char_indices().nth(VALUE) {
        Some((end, _)) => format!("{}..", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_short() {
        let faults: Vec<String> = (0..2_000_000).map(|i| format!("fault {i}")).collect();
        assert_eq!(listed(&faults), "fault 0; fault 1; fault 2; fault 3; fault 4; and 1999995 more");
        assert_eq!(listed(&faults[..2]), "fault 0; fault 1");
        for long in [Value::from("é".repeat(5000)), (0..100_000).collect()] {
            assert!(quoted(&long).chars().count() == VALUE + 2, "{}", quoted(&long));
        }
        assert_eq!(quoted(&serde_json::json!({"a": "b"})), r#"{"a":"b"}"#);
    }
}
