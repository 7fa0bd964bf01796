//! Prompt templates: the text that comes before an answer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{ChatTemplate, Content, DataError, Message, Record, TextTokenizer};

const ALPACA: &str = "Below is an instruction that describes a task. \
    Write a response that appropriately completes the request.\n\n";
const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further context. \
    Write a response that appropriately completes the request.\n\n";

/// The name of a template, as recipes and options have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// Every name.
    pub const ALL: [Self; 5] = [Self::Alpaca, Self::Code, Self::Question, Self::Raw, Self::Chat];

    /// The template; `chat` is the one that comes with `tokenizer`.
    ///
    /// # Errors
    ///
    /// [`DataError::NoChatTemplate`] when the tokenizer has none.
    pub fn template(self, tokenizer: &TextTokenizer) -> Result<PromptTemplate, DataError> {
        match self {
            Self::Alpaca => Ok(PromptTemplate::Alpaca),
            Self::Code => Ok(PromptTemplate::Code),
            Self::Question => Ok(PromptTemplate::Question),
            Self::Raw => Ok(PromptTemplate::Raw),
            Self::Chat => match tokenizer.chat_template() {
                Some(template) => Ok(PromptTemplate::Chat(template.clone())),
                None => Err(DataError::NoChatTemplate),
            },
        }
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PromptTemplate::NAMES[*self as usize])
    }
}

impl FromStr for TemplateName {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        Self::ALL.into_iter().find(|template| template.to_string() == name).ok_or_else(|| DataError::UnknownName {
            what: "prompt template",
            found: name.to_owned(),
            expected: PromptTemplate::NAMES.join(", "),
        })
    }
}

/// How the prompt of a record is written.
#[derive(Debug, Clone, Default)]
pub enum PromptTemplate {
    /// The form of Alpaca, with which the published SORSA and PiSSA runs on MetaMathQA were trained.
    #[default]
    Alpaca,
    /// `@@ Instruction\n{instruction}\n\n@@ Response\n`: the published runs on code. Whether a begin token comes before
    /// it is left to the tokenizer, as there.
    Code,
    /// `Question: {instruction} Think step by step.\nAnswer:`: PEFT's comparison of methods on MetaMathQA.
    Question,
    /// The instruction as it stands, its input on the next line.
    Raw,
    /// The model's own chat template.
    Chat(ChatTemplate),
}

impl PromptTemplate {
    /// The names that [`PromptTemplate::from_name`] knows.
    pub const NAMES: [&str; 5] = ["alpaca", "code", "question", "raw", "chat"];

    /// The template called `name`; `chat` is the one that comes with `tokenizer`.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownName`], or [`DataError::NoChatTemplate`] when the tokenizer has none.
    pub fn from_name(name: &str, tokenizer: &TextTokenizer) -> Result<Self, DataError> {
        name.parse::<TemplateName>()?.template(tokenizer)
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Code => "code",
            Self::Question => "question",
            Self::Raw => "raw",
            Self::Chat(_) => "chat",
        }
    }

    /// The text of everything before the (last) answer of `record`; for plain text, that text.
    ///
    /// # Errors
    ///
    /// When a conversation meets a template other than chat, or the chat template fails.
    pub fn prompt(&self, record: &Record) -> Result<String, DataError> {
        let (instruction, input) = match (self, &record.content) {
            (_, Content::Text(text)) => return Ok(text.clone()),
            (Self::Chat(template), _) => {
                let messages = record.conversation().unwrap_or_default();
                let end = messages.iter().rposition(Message::is_assistant).unwrap_or(messages.len());
                return template.render(&messages[..end], true);
            }
            (_, Content::Chat(_)) => return Err(DataError::NeedsChatTemplate { template: self.clone() }),
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
        let record = Record::new(1, Content::Chat(turns.map(|(role, text)| Message::new(role, text)).into()));
        assert_eq!(chat.prompt(&record).unwrap(), "<user>a<assistant>b<user>c<assistant>");
        assert_eq!(chat.prompt(&with_input()).unwrap(), "<user>Add.\n\n1 2<assistant>");
        insta::assert_snapshot!(PromptTemplate::Alpaca.prompt(&record).unwrap_err(),
            @"the record is a conversation, which the alpaca template cannot render; use the chat template");
    }
}
