//! One row of data, whatever file it came from.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// One row of data: what to learn from, and what an evaluation wants to know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stood in its file, counted from 1: the line of a text file, else the element or row.
    pub row: usize,
    /// What the model reads and writes.
    pub content: Content,
    /// The short answer that grading compares with, where the format has one: `72`, `\frac{1}{2}`.
    pub final_answer: Option<String>,
    /// The difficulty, as MATH gives it: `Level 5`.
    pub level: Option<String>,
    /// The kind of problem: `Algebra`, `GSM_Rephrased`.
    pub kind: Option<String>,
}

/// What the model reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A task and its answer; the loss is on the answer.
    Instruction {
        /// What is asked.
        instruction: String,
        /// What it is asked about, where the format keeps it apart.
        input: Option<String>,
        /// What the model is to write.
        answer: String,
    },
    /// A conversation; the loss is on the assistant's turns.
    Chat(Vec<Message>),
    /// Plain text; the loss is on all of it.
    Text(String),
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`; the template decides which others it knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    pub(crate) fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

impl Record {
    /// A record without metadata.
    pub fn new(row: usize, content: Content) -> Self {
        Self { row, content, final_answer: None, level: None, kind: None }
    }

    /// An instruction without input, and its answer.
    pub fn instruction(row: usize, instruction: impl Into<String>, answer: impl Into<String>) -> Self {
        Self::new(row, Content::Instruction { instruction: instruction.into(), input: None, answer: answer.into() })
    }

    /// The text that the model is to write: the answer, or the assistant's last turn; `None` for plain text.
    pub fn answer(&self) -> Option<&str> {
        match &self.content {
            Content::Instruction { answer, .. } => Some(answer),
            Content::Chat(messages) => {
                messages.iter().rev().find(|message| message.is_assistant()).map(|message| message.content.as_str())
            }
            Content::Text(_) => None,
        }
    }

    /// The record as a conversation, an instruction being one exchange; `None` for plain text.
    pub(crate) fn conversation(&self) -> Option<Cow<'_, [Message]>> {
        match &self.content {
            Content::Chat(messages) => Some(Cow::Borrowed(messages)),
            Content::Instruction { instruction, input, answer } => {
                let question = match input {
                    Some(input) => format!("{instruction}\n\n{input}"),
                    None => instruction.clone(),
                };
                Some(Cow::Owned(vec![Message::new("user", question), Message::new("assistant", answer)]))
            }
            Content::Text(_) => None,
        }
    }
}
