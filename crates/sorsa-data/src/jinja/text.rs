//! Texts that know where their parts come from.

use std::ops::Range;
use std::rc::Rc;

/// Where a part of a text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Bytes of the text.
    pub(crate) range: Range<usize>,
    /// What they are.
    pub(crate) kind: MarkKind,
}

/// What a part of a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkKind {
    /// Text of a field of a message, except for its role. Both are counted from 0.
    Said {
        /// The message.
        message: usize,
        /// The field, in the order of the message.
        field: usize,
    },
    /// Written while a loop over the messages was at this one.
    Turn(usize),
    /// Written inside `{% generation %}`.
    Generation,
}

/// A text with marks.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    string: Rc<str>,
    marks: Option<Rc<[Mark]>>,
}

impl Text {
    /// A text without marks.
    pub(crate) fn plain(string: &str) -> Self {
        Self { string: string.into(), marks: None }
    }

    /// A text that is all of one kind.
    pub(crate) fn marked(string: &str, kind: MarkKind) -> Self {
        let mark = Mark { range: 0..string.len(), kind };
        let marks = (!string.is_empty()).then(|| Rc::from([mark]));
        Self { string: string.into(), marks }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.string
    }

    pub(super) fn marks(&self) -> &[Mark] {
        self.marks.as_deref().unwrap_or_default()
    }

    /// Bytes that the text and its marks take.
    pub(super) fn size(&self) -> usize {
        self.string.len() + std::mem::size_of_val(self.marks())
    }

    /// The part of the text in `range`, with its marks.
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        if range == (0..self.string.len()) {
            return self.clone();
        }
        let mut part = TextBuilder::default();
        part.push_slice(self, range);
        part.finish()
    }

    /// The part of this text that `part` is, a slice of its string.
    pub(super) fn part(&self, part: &str) -> Self {
        let start = part.as_ptr() as usize - self.string.as_ptr() as usize;
        self.slice(start..start + part.len())
    }

    /// `string`, made from all of this text: each mark covers all of it, unless the length is the same.
    pub(super) fn rewritten(&self, string: String) -> Self {
        if self.marks.is_none() || string.is_empty() {
            return Self::plain(&string);
        }
        let same_length = string.len() == self.string.len();
        let range = |mark: &Mark| if same_length { mark.range.clone() } else { 0..string.len() };
        let mut marks: Vec<Mark> = Vec::new();
        for mark in self.marks() {
            let mark = Mark { range: range(mark), kind: mark.kind };
            if !marks.contains(&mark) {
                marks.push(mark);
            }
        }
        Self { string: string.into(), marks: Some(marks.into()) }
    }
}

impl From<&str> for Text {
    fn from(string: &str) -> Self {
        Self::plain(string)
    }
}

/// A text that grows.
#[derive(Debug, Default)]
pub(super) struct TextBuilder {
    string: String,
    marks: Vec<Mark>,
}

impl TextBuilder {
    pub(super) fn len(&self) -> usize {
        self.string.len()
    }

    pub(super) fn push_str(&mut self, string: &str) {
        self.string.push_str(string);
    }

    pub(super) fn push(&mut self, text: &Text) {
        self.push_slice(text, 0..text.string.len());
    }

    fn push_slice(&mut self, text: &Text, range: Range<usize>) {
        let at = self.string.len();
        self.string.push_str(&text.string[range.clone()]);
        for mark in text.marks() {
            let (start, end) = (mark.range.start.max(range.start), mark.range.end.min(range.end));
            if start < end {
                self.mark(at + start - range.start..at + end - range.start, mark.kind);
            }
        }
    }

    /// Marks bytes that are already there.
    pub(super) fn mark(&mut self, range: Range<usize>, kind: MarkKind) {
        if let Some(last) = self.marks.last_mut()
            && last.kind == kind
            && last.range.end == range.start
            && matches!(kind, MarkKind::Said { .. })
        {
            last.range.end = range.end;
        } else if !range.is_empty() {
            self.marks.push(Mark { range, kind });
        }
    }

    pub(super) fn finish(self) -> Text {
        let marks = (!self.marks.is_empty()).then(|| self.marks.into());
        Text { string: self.string.into(), marks }
    }

    pub(super) fn into_parts(self) -> (String, Vec<Mark>) {
        (self.string, self.marks)
    }
}
