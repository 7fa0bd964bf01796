//! Conversations: the messages, and what a chat template sees beside them.

use serde_json::{Map, Value};

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conversation {
    /// The messages, in order.
    pub messages: Vec<Message>,
    /// Variables of the chat template beside the messages: `tools`, `documents`, `enable_thinking`.
    pub variables: Map<String, Value>,
}

impl Conversation {
    /// A conversation without tools or other variables.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, variables: Map::new() }
    }

    /// The first `count` messages, with all variables.
    pub(crate) fn first(&self, count: usize) -> Self {
        Self { messages: self.messages[..count].to_vec(), variables: self.variables.clone() }
    }

    /// Bytes of all texts, roughly.
    pub(crate) fn size(&self) -> usize {
        let messages = self.messages.iter().flat_map(|message| message.fields.values());
        messages.chain(self.variables.values()).map(size).sum()
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum::<usize>() + 1,
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + size(value)).sum::<usize>() + 1,
        _ => 8,
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`. A chat template may know more roles.
    pub role: String,
    /// Text of the turn; the joined texts if the content has several parts, empty if it is `null`.
    pub content: String,
    /// All fields as the chat template sees them, role and content among them: `tool_calls`, `name`, `reasoning_content`.
    pub fields: Map<String, Value>,
    /// Whether the loss counts the turn, if the assistant writes it.
    pub trained: bool,
}

impl Message {
    /// A turn of `role` with nothing but text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let (role, content) = (role.into(), content.into());
        let mut fields = Map::new();
        fields.insert("role".to_owned(), Value::String(role.clone()));
        fields.insert("content".to_owned(), Value::String(content.clone()));
        Self { role, content, fields, trained: true }
    }

    pub(crate) fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// Whether the message has a text besides its role.
    pub(crate) fn says_anything(&self) -> bool {
        self.fields.iter().any(|(name, value)| name != "role" && has_text(value))
    }
}

/// Whether there is text anywhere in the value.
pub(crate) fn has_text(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => items.iter().any(has_text),
        Value::Object(fields) => fields.values().any(has_text),
        _ => false,
    }
}
