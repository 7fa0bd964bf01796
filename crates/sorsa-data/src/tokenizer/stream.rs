//! Text of tokens that arrive one by one.

use super::{TextTokenizer, added_text};
use crate::DataError;

/// Turns tokens into text as they arrive. It holds tokens back until they complete a character.
#[derive(Debug, Clone)]
pub struct DecodeStream<'a> {
    tokenizer: &'a TextTokenizer,
    /// The tokens of the last output, then the held-back tokens. The former decide whether a space comes next.
    ids: Vec<u32>,
    /// Number of `ids` that are already output.
    shown: usize,
    /// Text of the `shown` ids.
    shown_text: String,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, prompt: &[u32]) -> Result<Self, DataError> {
        Ok(Self { tokenizer, ids: prompt.to_vec(), shown: prompt.len(), shown_text: tokenizer.decode(prompt)? })
    }

    /// Takes the next token and returns the text that it completes, which may be empty.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, DataError> {
        self.ids.push(id);
        // The next token may take a blank away.
        let ends_open = |text: &str| text.ends_with(char::REPLACEMENT_CHARACTER) || self.tokenizer.cleans_up;
        let text = self.tokenizer.decode(&self.ids)?;
        if ends_open(&text) {
            return Ok(String::new());
        }
        let Some(new) = text.strip_prefix(&self.shown_text).filter(|new| !new.is_empty()).map(str::to_owned) else {
            return Ok(String::new());
        };
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        self.shown_text = self.tokenizer.decode(&self.ids)?;
        Ok(new)
    }

    /// Returns the text of the held-back tokens: the beginning of a character that no token completed.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenize`] if the tokenizer's decoder fails.
    pub fn finish(self) -> Result<String, DataError> {
        let text = self.tokenizer.decode(&self.ids)?;
        match text.strip_prefix(&self.shown_text) {
            Some(new) => Ok(new.to_owned()),
            None if self.tokenizer.cleans_up => Ok(added_text(&self.shown_text, &text).to_owned()),
            // The bytes of an unfinished character make those before them unreadable, which were output already.
            None => self.tokenizer.decode(&self.ids[self.shown..]),
        }
    }
}

/// Ends a text before the first of some texts. It holds back what may be the beginning of one.
#[derive(Debug, Clone, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopFilter {
    /// A filter that ends before any of `stops`. Empty texts end nothing.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), ..Self::default() }
    }

    /// Takes more of the text and returns what can be shown of it.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins_a_stop = |rest: &str| self.stops.iter().any(|stop| stop.starts_with(rest));
        let open = self.held.char_indices().map(|(at, _)| at).find(|at| begins_a_stop(&self.held[*at..]));
        let rest = self.held.split_off(open.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether one of the texts came.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Returns what was held back.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_before_the_first_stop_wherever_its_parts_end() {
        let stops = ["\n\n".to_owned(), "Question:".to_owned(), String::new()];
        let text = "4\nQuest 5\nQuestion: 6\n\n";
        for size in 1..text.len() {
            let mut filter = StopFilter::new(&stops);
            let parts: Vec<String> =
                text.as_bytes().chunks(size).map(|part| filter.push(std::str::from_utf8(part).unwrap())).collect();
            assert_eq!(parts.concat(), "4\nQuest 5\n", "{size}");
            assert!(filter.stopped() && filter.finish().is_empty());
        }
    }

    #[test]
    fn what_only_begins_like_a_stop_is_shown_in_the_end() {
        let mut filter = StopFilter::new(&["Question:".to_owned()]);
        assert_eq!([filter.push("a Quest"), filter.push("ion")], ["a ", ""]);
        assert!(!filter.stopped());
        assert_eq!(filter.finish(), "Question");
    }
}
