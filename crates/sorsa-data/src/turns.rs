//! A chat template's turns as fixed texts around the contents, for programs that have no Jinja.

use crate::{ChatTemplate, Message};

/// What a chat template writes around the content of each turn, if it is the same for every turn of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// Around a question of the user.
    pub user: Around,
    /// Around an answer of the assistant.
    pub assistant: Around,
    /// After the last question, to have the assistant write; usually what is before an answer.
    pub prompt: String,
    /// Where the system's text stands.
    pub system: SystemPlace,
    /// The system's text that the template writes if a conversation has none.
    pub default_system: Option<String>,
}

/// The texts around a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Around {
    /// Before it.
    pub before: String,
    /// After it.
    pub after: String,
}

/// Where the system's text stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemPlace {
    /// The template refuses it or leaves it out.
    Nowhere,
    /// In a turn of its own before the others.
    Turn(Around),
    /// In the first question, before the user's text, with this text between them.
    FirstQuestion(String),
}

/// Contents that no template writes itself.
const QUESTION: [&str; 2] = ["Zanzibar one", "Yucatan two"];
const ANSWER: [&str; 2] = ["Xanadu three", "Wyoming four"];
const SYSTEM: &str = "Vanuatu five";

impl Turns {
    /// The turns of `template`. `begin` is the text of the token that the tokenizer puts before a text, or empty.
    ///
    /// `None` if the template writes a turn in another way than other turns of its role, or not at all: the texts found are put
    /// together to conversations of up to four turns, with and without a system's text, and compared with the template's own.
    pub fn of(template: &ChatTemplate, begin: &str) -> Option<Self> {
        let probe = Probe { template, begin };
        // The last question, with and without the beginning of an answer.
        let asked = probe.render(&[Message::new("user", QUESTION[0])], false)?;
        let to_answer = probe.render(&[Message::new("user", QUESTION[0])], true)?;
        let (before, after_user) = asked.split_once(QUESTION[0])?;
        let prompt = to_answer.strip_prefix(asked.as_str())?;
        let long = probe.render(&conversation(None, 2), false)?;
        let (_, rest) = long.split_once(QUESTION[0])?;
        let (after_question, rest) = rest.split_once(ANSWER[0])?;
        let before_assistant = after_question.strip_prefix(after_user)?;
        let (between, rest) = rest.split_once(QUESTION[1])?;
        let (_, after_assistant) = rest.split_once(ANSWER[1])?;
        let before_user = between.strip_prefix(after_assistant)?;
        let around = |before: &str, after: &str| Around { before: before.to_owned(), after: after.to_owned() };
        let mut turns = Self {
            user: around(before_user, after_user),
            assistant: around(before_assistant, after_assistant),
            prompt: prompt.to_owned(),
            system: SystemPlace::Nowhere,
            default_system: None,
        };
        if let Some(text) = probe.render(&conversation(Some(SYSTEM), 1), false) {
            let written =
                text.split_once(SYSTEM).and_then(|(before, rest)| Some((before, rest.split_once(QUESTION[0])?.0)));
            turns.system = match written {
                Some((before, between)) => match between.strip_suffix(before_user) {
                    Some(after) => SystemPlace::Turn(around(before, after)),
                    None if before == before_user => SystemPlace::FirstQuestion(between.to_owned()),
                    None => return None,
                },
                None => SystemPlace::Nowhere,
            };
        }
        let head = before.strip_suffix(before_user)?;
        turns.default_system = match (&turns.system, head) {
            (_, "") => None,
            (SystemPlace::Turn(Around { before, after }), head) => {
                Some(head.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?.to_owned())
            }
            _ => return None,
        };
        turns.is_right(&probe).then_some(turns)
    }

    /// Whether the template writes the same.
    fn is_right(&self, probe: &Probe<'_>) -> bool {
        let systems = match self.system {
            SystemPlace::Nowhere => vec![None],
            _ => vec![None, Some(SYSTEM)],
        };
        let conversations = systems.iter().flat_map(|system| [(*system, 1), (*system, 2)]);
        let mut checked = conversations.flat_map(|(system, pairs)| {
            let messages = conversation(system, pairs);
            [(messages[..messages.len() - 1].to_vec(), true), (messages, false)]
        });
        checked.all(|(messages, prompt)| probe.render(&messages, prompt) == Some(self.render(&messages, prompt)))
    }

    /// Writes a conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> String {
        let system = messages.iter().find(|message| message.role == "system").map(|message| message.content.as_str());
        let system = system.or(self.default_system.as_deref());
        let mut text = String::new();
        let mut first_question = String::new();
        match (&self.system, system) {
            (SystemPlace::Turn(around), Some(system)) => around.write(system, &mut text),
            (SystemPlace::FirstQuestion(between), Some(system)) => first_question = format!("{system}{between}"),
            _ => {}
        }
        for message in messages {
            match message.role.as_str() {
                "user" => {
                    let content = format!("{}{}", std::mem::take(&mut first_question), &message.content);
                    self.user.write(&content, &mut text);
                }
                "assistant" => self.assistant.write(&message.content, &mut text),
                _ => {}
            }
        }
        if add_generation_prompt {
            text.push_str(&self.prompt);
        }
        text
    }
}

impl Around {
    fn write(&self, content: &str, text: &mut String) {
        for part in [&self.before, content, &self.after] {
            text.push_str(part);
        }
    }
}

/// Renders conversations without the begin token.
struct Probe<'a> {
    template: &'a ChatTemplate,
    begin: &'a str,
}

impl Probe<'_> {
    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Option<String> {
        let text = self.template.render(messages, add_generation_prompt).ok()?;
        Some(text.strip_prefix(self.begin).unwrap_or(&text).to_owned())
    }
}

/// Questions with their answers.
fn conversation(system: Option<&str>, pairs: usize) -> Vec<Message> {
    let mut messages: Vec<Message> = system.map(|text| Message::new("system", text)).into_iter().collect();
    for (question, answer) in QUESTION.into_iter().zip(ANSWER).take(pairs) {
        messages.extend([Message::new("user", question), Message::new("assistant", answer)]);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}\
        {{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    const GEMMA: &str = "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}\
        {% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for m in messages %}\
        {% set role = 'model' if m.role == 'assistant' else m.role %}{{ '<start_of_turn>' + role + '\\n' }}\
        {% if loop.first %}{{ first }}{% endif %}{{ m.content | trim }}{{ '<end_of_turn>\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";
    const LLAMA_2: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}\
        {% elif m.role == 'system' %}{{ raise_exception('no') }}{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}";

    fn turns(source: &str, bos: &str) -> Option<Turns> {
        Turns::of(&ChatTemplate::new(source, bos, "</s>").unwrap(), bos)
    }

    fn around(before: &str, after: &str) -> Around {
        Around { before: before.to_owned(), after: after.to_owned() }
    }

    #[test]
    fn turns_with_a_system_of_their_own_are_found_with_its_usual_text() {
        let found = turns(CHATML, "").unwrap();
        assert_eq!(found.user, around("<|im_start|>user\n", "<|im_end|>\n"));
        assert_eq!(found.assistant, around("<|im_start|>assistant\n", "<|im_end|>\n"));
        assert_eq!(found.system, SystemPlace::Turn(around("<|im_start|>system\n", "<|im_end|>\n")));
        assert_eq!(found.default_system.as_deref(), Some("Be kind."));
    }

    #[test]
    fn a_system_in_the_first_question_is_found() {
        let found = turns(GEMMA, "<bos>").unwrap();
        assert_eq!(found.user, around("<start_of_turn>user\n", "<end_of_turn>\n"));
        assert_eq!(found.assistant.before, "<start_of_turn>model\n");
        assert_eq!((found.system, found.default_system), (SystemPlace::FirstQuestion("\n\n".to_owned()), None));
    }

    #[test]
    fn a_template_that_writes_turns_in_several_ways_has_none() {
        // A begin token before each question, and none before the first, where the tokenizer writes it.
        assert_eq!(turns(LLAMA_2, "<s>"), None);
        // Without a begin token of the tokenizer, all questions are alike.
        let found = turns(&LLAMA_2.replace("bos_token + ", ""), "").unwrap();
        assert_eq!((found.assistant, found.prompt.as_str()), (around(" ", " </s>"), ""));
        assert_eq!(found.system, SystemPlace::Nowhere);
        let dated =
            CHATML.replace("Be kind.", "Today.").replace("m.role + '\\n'", "m.role + '\\n' + loop.index|string");
        assert_eq!(turns(&dated, ""), None);
        assert_eq!(turns("{{ raise_exception('no') }}", ""), None);
        assert_eq!(turns("always the same", ""), None);
    }
}
