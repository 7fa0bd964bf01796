//! Prompt templates: the text that comes before an answer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::parse_name;
use crate::{ChatTemplate, Content, DataError, Message, Record, TextTokenizer};

const ALPACA: &str = "Below is an instruction that describes a task. \
    Write a response that appropriately completes the request.\n\n";
const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further context. \
    Write a response that appropriately completes the request.\n\n";

/// Name of a prompt template, as a recipe and the command line spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateName {
    /// [`PromptTemplate::Alpaca`].
    #[default]
    Alpaca,
    /// [`PromptTemplate::Code`].
    Code,
    /// [`PromptTemplate::Question`].
    Question,
    /// [`PromptTemplate::Raw`].
    Raw,
    /// [`PromptTemplate::Chat`].
    Chat,
}

impl TemplateName {
    /// All template names.
    pub const ALL: [Self; 5] = [Self::Alpaca, Self::Code, Self::Question, Self::Raw, Self::Chat];

    /// The name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Code => "code",
            Self::Question => "question",
            Self::Raw => "raw",
            Self::Chat => "chat",
        }
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TemplateName {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        parse_name("prompt template", &Self::ALL, name)
    }
}

/// Writes the prompt of a record.
#[derive(Debug, Clone, Default)]
pub enum PromptTemplate {
    /// Alpaca's prompt. The published SORSA and PiSSA runs on MetaMathQA train with it.
    #[default]
    Alpaca,
    /// `@@ Instruction\n{instruction}\n\n@@ Response\n`: the published runs on code. The tokenizer decides whether a
    /// begin token comes before it, like in those runs.
    Code,
    /// `Question: {instruction} Think step by step.\nAnswer:`: PEFT's comparison of methods on MetaMathQA.
    Question,
    /// The instruction unchanged, its input on the next line.
    Raw,
    /// The model's own chat template.
    Chat(ChatTemplate),
}

impl PromptTemplate {
    /// The template called `name`; `chat` is the tokenizer's own.
    ///
    /// # Errors
    ///
    /// [`DataError::NoChatTemplate`] if `name` is `chat` and the tokenizer has no chat template; [`DataError::ChatTemplate`] if it
    /// has one that cannot be compiled.
    pub fn new(name: TemplateName, tokenizer: &TextTokenizer) -> Result<Self, DataError> {
        match name {
            TemplateName::Alpaca => Ok(Self::Alpaca),
            TemplateName::Code => Ok(Self::Code),
            TemplateName::Question => Ok(Self::Question),
            TemplateName::Raw => Ok(Self::Raw),
            TemplateName::Chat => Ok(Self::Chat(tokenizer.chat_template()?.clone())),
        }
    }

    /// The template's name.
    pub const fn name(&self) -> TemplateName {
        match self {
            Self::Alpaca => TemplateName::Alpaca,
            Self::Code => TemplateName::Code,
            Self::Question => TemplateName::Question,
            Self::Raw => TemplateName::Raw,
            Self::Chat(_) => TemplateName::Chat,
        }
    }

    /// The text before the (last) answer of `record`. For plain text, the text itself.
    ///
    /// # Errors
    ///
    /// If the record is a conversation and the template is not `chat`, or if the chat template fails.
    pub fn prompt(&self, record: &Record) -> Result<String, DataError> {
        let (instruction, input) = match (self, &record.content) {
            (_, Content::Text(text)) => return Ok(text.clone()),
            (Self::Chat(template), _) => {
                let conversation = record.conversation().unwrap_or_default();
                let messages = &conversation.messages;
                return match messages.iter().rposition(Message::is_assistant).unwrap_or(messages.len()) {
                    // Templates may read the first message.
                    0 => Err(DataError::NoPrompt),
                    end => template.render_prompt(&conversation.first(end)),
                };
            }
            (_, Content::Chat(_)) => return Err(DataError::NeedsChatTemplate { template: self.name() }),
            (_, Content::Instruction { instruction, input, .. }) => (instruction, input),
        };
        let task = match (self, input) {
            (Self::Alpaca, Some(input)) => format!("{instruction}\n\n### Input:\n{input}"),
            (_, Some(input)) => format!("{instruction}\n{input}"),
            (_, None) => instruction.clone(),
        };
        Ok(match self {
            Self::Alpaca => {
                let preamble = if input.is_some() { ALPACA_WITH_INPUT } else { ALPACA };
                format!("{preamble}### Instruction:\n{task}\n\n### Response:")
            }
            Self::Code => format!("@@ Instruction\n{task}\n\n@@ Response\n"),
            Self::Question => format!("Question: {task} Think step by step.\nAnswer:"),
            Self::Raw | Self::Chat(_) => task,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_input() -> Record {
        let content =
            Content::Instruction { instruction: "Add.".into(), input: Some("1 2".into()), answer: "3".into() };
        Record::new(1, content)
    }

    #[test]
    fn the_published_forms_are_kept_to_the_letter() {
        let plain = Record::instruction(1, "Add 1 and 2.", "3");
        let prompt = |template: PromptTemplate, record: &Record| template.prompt(record).unwrap();
        assert_eq!(
            prompt(PromptTemplate::Alpaca, &plain),
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\nAdd 1 and 2.\n\n### Response:"
        );
        assert_eq!(
            prompt(PromptTemplate::Alpaca, &with_input()),
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n\
             ### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
        );
        assert_eq!(prompt(PromptTemplate::Code, &plain), "@@ Instruction\nAdd 1 and 2.\n\n@@ Response\n");
        assert_eq!(prompt(PromptTemplate::Question, &plain), "Question: Add 1 and 2. Think step by step.\nAnswer:");
        assert_eq!(prompt(PromptTemplate::Raw, &with_input()), "Add.\n1 2");
    }

    #[test]
    fn the_prompt_of_a_conversation_ends_before_the_last_answer() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let chat = PromptTemplate::Chat(ChatTemplate::new(source, "", "").unwrap());
        let turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
        let record = Record::new(
            1,
            Content::Chat(crate::Conversation::new(turns.map(|(role, text)| Message::new(role, text)).into())),
        );
        assert_eq!(chat.prompt(&record).unwrap(), "<user>a<assistant>b<user>c<assistant>");
        assert_eq!(chat.prompt(&with_input()).unwrap(), "<user>Add.\n\n1 2<assistant>");
        insta::assert_snapshot!(PromptTemplate::Alpaca.prompt(&record).unwrap_err(),
            @"the record is a conversation, which the alpaca template cannot render; use the chat template");
    }
}
