//! Errors of this crate. Each says what is wrong and where.

use std::fmt;
use std::path::PathBuf;

use crate::{Format, TemplateName};

/// Errors between a file and a batch.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The path is a folder, not a file.
    #[error("{} is a folder; expected one file: .jsonl, .json, .parquet or .txt", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// The path is a pipe, a device or a socket.
    #[error("{} is not a regular file; data are read from files only", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A kind of file that is known and not read.
    #[error("{} is {found}; {advice}", path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it is: `compressed by xz`, `UTF-16 text`.
        found: &'static str,
        /// What makes it readable.
        advice: &'static str,
    },
    /// Neither the name nor the first bytes tell what the file is.
    #[error("{} is neither JSON lines, a JSON array, parquet, .csv, .tsv nor .txt", path.display())]
    UnknownFile {
        /// The file.
        path: PathBuf,
    },
    /// The file as a whole, not one of its rows, is broken.
    #[error("{} is not valid {kind}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Expected type of the file.
        kind: &'static str,
        /// Where and why reading stopped.
        reason: String,
    },
    /// The rows are readable, but have the fields of no known format.
    #[error(
        "{}: no format has the fields of its first row ({}); the formats are:\n{}",
        path.display(), first_names(found), Format::describe_all()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The fields of its first row.
        found: Vec<String>,
    },
    /// Rows that do not fit their format.
    #[error(
        "{}: {} of {rows_read} rows cannot be used as {format}:\n{bad}",
        path.display(), bad.count
    )]
    BadRows {
        /// The file.
        path: PathBuf,
        /// The format that was named or recognised.
        format: Format,
        /// Number of all rows.
        rows_read: usize,
        /// The rows.
        bad: BadRows,
    },
    /// A file without a single usable row.
    #[error("{} holds no data", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// An unknown name.
    #[error("unknown {what} `{found}`; expected one of {expected}")]
    UnknownName {
        /// What the name is for: `format`, `prompt template`.
        what: &'static str,
        /// The unknown name.
        found: String,
        /// The known names.
        expected: String,
    },
    /// A tokenizer that cannot be used, with every problem.
    #[error("cannot use the tokenizer in {place}:\n  {}", problems.join("\n  "))]
    Tokenizer {
        /// Its folder, or `memory`.
        place: String,
        /// One line for each problem.
        problems: Vec<String>,
    },
    /// A text that the tokenizer refuses, or ids that it cannot turn back into text.
    #[error("the tokenizer failed: {reason}")]
    Tokenize {
        /// Error of the tokenizer.
        reason: String,
    },
    /// A chat template that does not compile or does not render.
    #[error("chat template: {reason}")]
    ChatTemplate {
        /// The template engine's message, with the line.
        reason: String,
    },
    /// The caller asks for the chat template, and the tokenizer has none.
    #[error(
        "the tokenizer has no chat template: neither `chat_template.jinja` nor `chat_template` in tokenizer_config.json"
    )]
    NoChatTemplate,
    /// The tokenizer has chat templates, but none of this name.
    #[error("the tokenizer has no chat template named `{name}`; it has {}", found.join(", "))]
    UnknownChatTemplate {
        /// The name that is asked for.
        name: String,
        /// The names that there are.
        found: Vec<String>,
    },
    /// A conversation under a template that knows only instructions.
    #[error("the record is a conversation, which the {template} template cannot render; use the chat template")]
    NeedsChatTemplate {
        /// The template in use.
        template: TemplateName,
    },
    /// The encoder cannot tell which tokens of a conversation are the assistant's.
    #[error(
        "the assistant's part of message {message} cannot be told from the rest: {reason}; mark it in the chat template with \
         {{% generation %}} and {{% endgeneration %}}, or train on one exchange a record"
    )]
    AmbiguousTurn {
        /// The assistant message, counted from 1.
        message: usize,
        /// Why.
        reason: String,
    },
    /// A conversation that begins with the answer.
    #[error("no message comes before the assistant's answer, so there is no prompt")]
    NoPrompt,
    /// A record that is so long that only a part of it was made tokens.
    #[error(
        "more than {tokens} tokens ({bytes} bytes), at most {max_length} are allowed; raise max_length or choose another truncation"
    )]
    MuchTooLong {
        /// Bytes of its text.
        bytes: usize,
        /// Tokens of the part.
        tokens: usize,
        /// The limit.
        max_length: usize,
    },
    /// A prompt that does not fit.
    #[error("{}{tokens} tokens, at most {longest} fit the model's context", if *partial { "more than " } else { "" })]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Whether only a part of the prompt was made tokens.
        partial: bool,
        /// The limit.
        longest: usize,
    },
    /// A record with too many tokens, under [`Truncation::Error`](crate::Truncation::Error).
    #[error("{tokens} tokens, at most {max_length} are allowed; raise max_length or choose another truncation")]
    TooLong {
        /// Tokens of the record, its begin and end tokens included.
        tokens: usize,
        /// The limit.
        max_length: usize,
    },
    /// A token that the model's embedding has no row for: the tokenizer has more tokens than the model.
    #[error("token {token} is beyond the model's vocabulary of {vocabulary} tokens")]
    BeyondVocabulary {
        /// The first such token.
        token: u32,
        /// Number of rows of the embedding.
        vocabulary: usize,
    },
    /// Records that could not be encoded.
    #[error("{} of {records} records cannot be encoded:\n{bad}", bad.count)]
    Encode {
        /// Number of all records.
        records: usize,
        /// The records, by their row in the file.
        bad: BadRows,
    },
    /// Options that contradict each other or the data.
    #[error("{}", problems.join("; "))]
    Options {
        /// One sentence for each.
        problems: Vec<String>,
    },
}

/// A prompt that leaves no room for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongPrompt {
    /// Number of its row.
    pub row: usize,
    /// Its tokens.
    pub tokens: usize,
    /// Whether only a part of the prompt was made tokens.
    pub partial: bool,
}

impl fmt::Display for LongPrompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.partial { "more than " } else { "" };
        write!(f, "row {} has {more}{} tokens", self.row, self.tokens)
    }
}

/// A row that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Number of the row, from 1: the line of a text file, otherwise the element or row.
    pub row: usize,
    /// What the format expects and what the row has.
    pub reason: String,
}

/// The first bad rows, and the number of all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadRows {
    /// The first bad rows, at most [`BadRows::SHOWN`], in order.
    pub first: Vec<BadRow>,
    /// Number of all bad rows.
    pub count: usize,
    /// `line` for files that are read by lines, otherwise `row`.
    pub unit: &'static str,
}

impl BadRows {
    /// Maximum number of rows in [`BadRows::first`].
    pub const SHOWN: usize = 20;

    /// Longest reason, in characters.
    const MAX_REASON: usize = 300;

    /// No bad rows yet, in a file whose rows are called `unit`.
    pub fn new(unit: &'static str) -> Self {
        Self { unit, ..Self::default() }
    }

    /// Counts a row, and keeps it if it is among the first.
    pub fn push(&mut self, row: usize, reason: String) {
        self.count += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(BadRow { row, reason: shortened(reason, Self::MAX_REASON) });
        }
    }

    /// Adds the rows of another part of the same file.
    pub fn extend(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.sort_by_key(|bad| bad.row);
        self.first.truncate(Self::SHOWN);
    }

    /// One line: the first five rows with their reasons, and the number of the others.
    pub fn in_a_line(&self) -> String {
        let shown: Vec<String> =
            self.first.iter().take(5).map(|bad| format!("{} {}: {}", self.unit, bad.row, bad.reason)).collect();
        match self.count - shown.len() {
            0 => shown.join("; "),
            rest => format!("{}; and {rest} more", shown.join("; ")),
        }
    }
}

/// The first `length` characters of a text that may have any length.
pub(crate) fn shortened(text: String, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

/// The first five names, and the number of the others.
pub(crate) fn first_names<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|name| shortened(name.as_ref().to_owned(), 60)).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        rest => format!("{} and {rest} more", shown.join(", ")),
    }
}

impl fmt::Display for BadRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> =
            self.first.iter().map(|bad| format!("  {} {}: {}", self.unit, bad.row, bad.reason)).collect();
        f.write_str(&lines.join("\n"))?;
        match self.count - self.first.len() {
            0 => Ok(()),
            rest => write!(f, "\n  and {rest} more"),
        }
    }
}
