//! One row of data, from any file.

use std::borrow::Cow;

use crate::{Conversation, Message};

/// One row of data: the text to learn from, and what an evaluation needs to grade it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Number of the row in its file, from 1: the line of a text file, otherwise the element or row.
    pub row: usize,
    /// Text that the model reads and writes.
    pub content: Content,
    /// The short answer for grading, if the format has one: `72`, `\frac{1}{2}`.
    pub final_answer: Option<String>,
    /// The difficulty, in the words of MATH: `Level 5`.
    pub level: Option<String>,
    /// The kind of problem: `Algebra`, `GSM_Rephrased`.
    pub kind: Option<String>,
}

/// Text that the model reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An instruction and its answer. The loss counts the answer.
    Instruction {
        /// The instruction.
        instruction: String,
        /// The input of the instruction, if the format has it as a field of its own.
        input: Option<String>,
        /// Text that the model learns to write.
        answer: String,
    },
    /// A conversation. The loss counts the assistant's turns.
    Chat(Conversation),
    /// Plain text. The loss counts all of it.
    Text(String),
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

    /// The text that the model learns to write: the answer, or the assistant's last turn. `None` for plain text.
    pub fn answer(&self) -> Option<&str> {
        match &self.content {
            Content::Instruction { answer, .. } => Some(answer),
            Content::Chat(Conversation { messages, .. }) => {
                messages.iter().rev().find(|message| message.is_assistant()).map(|message| message.content.as_str())
            }
            Content::Text(_) => None,
        }
    }

    /// The record as a conversation. An instruction becomes one exchange. `None` for plain text.
    pub(crate) fn conversation(&self) -> Option<Cow<'_, Conversation>> {
        match &self.content {
            Content::Chat(conversation) => Some(Cow::Borrowed(conversation)),
            Content::Instruction { instruction, input, answer } => {
                let question = match input {
                    Some(input) => format!("{instruction}\n\n{input}"),
                    None => instruction.clone(),
                };
                let messages = vec![Message::new("user", question), Message::new("assistant", answer)];
                Some(Cow::Owned(Conversation::new(messages)))
            }
            Content::Text(_) => None,
        }
    }
}
