//! Writes to standard output and standard error; no other file does. If the stream is a terminal, control characters are written as
//! escapes: generated text, names in files and file names may hold sequences that set a title, fill the clipboard or hide text.
//!
//! `eprintln!` means [`say`] in this crate (see `main.rs`).

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// Writes a text to standard output, and flushes it. Unlike with `print!`, a closed pipe is an error and no panic.
pub fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() { visible(text) } else { text.into() };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to standard error. Unlike with the standard `eprintln!`, a closed pipe is no panic.
pub fn say(line: impl Display) {
    let mut err = io::stderr().lock();
    let line = line.to_string();
    let line = if err.is_terminal() { visible(&line) } else { Cow::from(&line) };
    let _ = writeln!(err, "{line}");
}

/// The text with its control characters as escapes, like `\u001b`, which JSON reads too. Line breaks and tabs stay. Characters that
/// change the direction of the text after them count as well.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return text.into();
    }
    let mut visible = String::new();
    for c in text.chars() {
        if is_control(c) {
            visible.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            visible.push(c);
        }
    }
    visible.into()
}

fn is_control(c: char) -> bool {
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control() && !matches!(c, '\n' | '\t')
}

/// `text` as one word of a command line for a shell.
pub fn shell_word(text: &str) -> String {
    // Only a text with a zero byte cannot be written, and no argument holds one.
    shlex::try_quote(text).map_or_else(|_| text.replace('\0', ""), Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_as_escapes_and_everything_else_stays() {
        assert_eq!(visible("\u{1b}]0;owned\u{7}\u{1b}[8m"), "\\u001b]0;owned\\u0007\\u001b[8m");
        assert_eq!(visible("a\rb\u{8}\u{7f}\u{9b}31m\u{202e}"), "a\\u000db\\u0008\\u007f\\u009b31m\\u202e");
        let plain = "two\nlines\tand a tab, ünïcödé, 日本語, עברית, 👩‍👩‍👧";
        assert!(matches!(visible(plain), Cow::Borrowed(text) if text == plain));
    }

    #[test]
    fn escapes_in_json_are_read_back() {
        let json = serde_json::to_string("\u{1b}[8m\u{9b}\u{7f}").unwrap();
        assert_eq!(serde_json::from_str::<String>(&visible(&json)).unwrap(), "\u{1b}[8m\u{9b}\u{7f}");
    }

    #[test]
    fn paths_are_quoted_for_a_shell_only_if_they_need_it() {
        assert_eq!(shell_word("runs/base-sorsa-r8"), "runs/base-sorsa-r8");
        assert_eq!(shell_word("my runs/it's; rm -r ~"), "\"my runs/it's; rm -r ~\"");
        assert_eq!(shell_word("$(id)"), "'$(id)'");
    }
}
