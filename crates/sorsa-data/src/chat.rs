//! Chat templates: Jinja, rendered like Hugging Face's `apply_chat_template` does.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::assistant_spans::{AssistantSpans, assistant_spans};
use crate::conversation::has_text;
use crate::jinja::{Limits, MarkKind, Rendered, Template};
use crate::{Conversation, DataError, Message, jinja};

/// A compiled chat template.
///
/// A template sees what it sees in Transformers: `messages`, `tools`, `documents`, `add_generation_prompt`, the special tokens
/// by their names, and the other variables of the conversation.
///
/// Training data must not depend on the date. If a template tests whether `strftime_now is defined`, the function is
/// undefined and the template uses its own fixed date. Otherwise `strftime_now` returns 26 July 2024, the fixed date of
/// Llama's template.
///
/// A template that takes too many steps, makes too much text or nests too deep ends with an error.
#[derive(Clone)]
pub struct ChatTemplate {
    template: Arc<Template>,
    source: Arc<str>,
    /// Special tokens by their names: `bos_token`.
    special_tokens: Map<String, Value>,
    /// The template for conversations with tools, if it is another.
    for_tools: Option<Arc<Self>>,
}

impl ChatTemplate {
    /// Compiles `source`; `bos_token` and `eos_token` are the texts of those tokens, or empty if there are none.
    ///
    /// # Errors
    ///
    /// [`DataError::ChatTemplate`] if the source is not valid Jinja.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, DataError> {
        let mut special_tokens = Map::new();
        for (name, token) in [("bos_token", bos_token), ("eos_token", eos_token)] {
            if !token.is_empty() {
                special_tokens.insert(name.to_owned(), token.into());
            }
        }
        Self::with_special_tokens(source, special_tokens)
    }

    /// Compiles `source` for a tokenizer with these special tokens: `bos_token`, `pad_token`, `additional_special_tokens`.
    ///
    /// # Errors
    ///
    /// [`DataError::ChatTemplate`] if the source is not valid Jinja.
    pub fn with_special_tokens(source: &str, special_tokens: Map<String, Value>) -> Result<Self, DataError> {
        let template = Arc::new(Template::compile(source).map_err(template_error)?);
        Ok(Self { template, source: source.into(), special_tokens, for_tools: None })
    }

    /// Renders messages. With `add_generation_prompt`, the text ends with the opening of the assistant's next turn.
    ///
    /// # Errors
    ///
    /// [`DataError::ChatTemplate`] if the template refuses the messages (`raise_exception`) or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, DataError> {
        let conversation = Conversation::new(messages.to_vec());
        Ok(self.render_marked(&conversation, add_generation_prompt)?.text)
    }

    /// Renders a conversation.
    ///
    /// # Errors
    ///
    /// Those of [`render`](Self::render).
    pub fn render_conversation(&self, conversation: &Conversation) -> Result<String, DataError> {
        Ok(self.render_marked(conversation, false)?.text)
    }

    /// Renders a conversation, with the end that lets the assistant write its next turn.
    ///
    /// # Errors
    ///
    /// Those of [`render`](Self::render).
    pub fn render_prompt(&self, conversation: &Conversation) -> Result<String, DataError> {
        Ok(self.render_marked(conversation, true)?.text)
    }

    /// Renders a conversation, with the bytes of the text that the assistant writes in its trained turns: what comes after the
    /// prompt of a turn, up to its end, the end token included.
    ///
    /// # Errors
    ///
    /// Those of [`render`](Self::render); [`DataError::AmbiguousTurn`] if a turn cannot be told from the rest.
    pub fn render_with_assistant_spans(
        &self,
        conversation: &Conversation,
    ) -> Result<(String, Vec<Range<usize>>), DataError> {
        let AssistantSpans { rendered, trained } = assistant_spans(self, conversation)?;
        Ok((rendered.text, trained))
    }

    /// Renders a conversation. The marks say where the parts of the text come from.
    pub(crate) fn render_marked(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Rendered, DataError> {
        let rendered = self.render_as_it_is(conversation, add_generation_prompt)?;
        self.check_null_contents(conversation, add_generation_prompt, &rendered)?;
        Ok(rendered)
    }

    fn render_as_it_is(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<Rendered, DataError> {
        let chosen = self.chosen(conversation);
        let variables = chosen.variables(conversation, add_generation_prompt).map_err(template_error)?;
        let limits = Limits::for_input(conversation.size());
        chosen.template.render(variables, limits).map_err(template_error)
    }

    /// Refuses the word `None` that a template writes for a content that is null.
    fn check_null_contents(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
        rendered: &Rendered,
    ) -> Result<(), DataError> {
        let is_null = |message: &Message| message.fields.get("content").is_some_and(Value::is_null);
        let Some(first) = conversation.messages.iter().position(is_null) else { return Ok(()) };
        let words = |text: &str| text.matches("None").count();
        if words(&rendered.text) == 0 {
            return Ok(());
        }
        let mut with_text = conversation.clone();
        for message in with_text.messages.iter_mut().filter(|message| is_null(message)) {
            message.fields.insert("content".to_owned(), Value::String(String::new()));
        }
        match self.render_as_it_is(&with_text, add_generation_prompt) {
            Ok(other) if words(&other.text) < words(&rendered.text) => {
                let reason = format!("it writes `None` for the content of message {}, which is null", first + 1);
                Err(DataError::ChatTemplate { reason })
            }
            _ => Ok(()),
        }
    }

    /// Fields of the messages whose text the template writes nowhere: their names, and the role of a message whose content
    /// is left out.
    ///
    /// # Errors
    ///
    /// Those of [`render`](Self::render).
    pub fn unwritten_fields(&self, conversation: &Conversation) -> Result<Vec<String>, DataError> {
        let rendered = self.render_marked(conversation, false)?;
        let mut written = HashSet::new();
        for mark in &rendered.marks {
            if let MarkKind::Said { message, field } = mark.kind {
                written.insert((message, field));
            }
        }
        let (mut names, mut used) = (Vec::new(), HashSet::new());
        for (index, message) in conversation.messages.iter().enumerate() {
            for (field, (name, value)) in message.fields.iter().enumerate() {
                let label = match name.as_str() {
                    "content" => format!("content of the role {}", message.role),
                    "role" | "id" | "tool_call_id" | "name" | "type" => continue,
                    other => other.to_owned(),
                };
                if written.contains(&(index, field)) {
                    used.insert(label);
                } else if has_text(value) && !names.contains(&label) {
                    names.push(label);
                }
            }
        }
        names.retain(|name| !used.contains(name));
        Ok(names)
    }

    /// Whether the template marks what the assistant writes in this conversation, with `{% generation %}`.
    pub(crate) fn has_generation_blocks(&self, conversation: &Conversation) -> bool {
        self.chosen(conversation).template.has_generation_blocks()
    }

    /// Has another template render conversations with tools.
    pub(crate) fn use_for_tools(&mut self, template: &Self) {
        self.for_tools = Some(Arc::new(template.clone()));
    }

    fn chosen(&self, conversation: &Conversation) -> &Self {
        match &self.for_tools {
            Some(template) if conversation.variables.contains_key("tools") => template,
            _ => self,
        }
    }

    fn variables(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Vec<(String, jinja::Value)>, jinja::Fault> {
        let mut messages = Vec::with_capacity(conversation.messages.len());
        for (index, message) in conversation.messages.iter().enumerate() {
            messages.push(jinja::Value::message(&message.fields, index)?);
        }
        let mut variables = vec![
            ("messages".to_owned(), jinja::Value::list(messages)?),
            ("add_generation_prompt".to_owned(), jinja::Value::Bool(add_generation_prompt)),
            ("tools".to_owned(), jinja::Value::None),
            ("documents".to_owned(), jinja::Value::None),
        ];
        if self.source.contains("strftime_now") && !self.source.contains("strftime_now is defined") {
            variables.push(("strftime_now".to_owned(), jinja::Value::Function("strftime_now")));
        }
        for (name, value) in self.special_tokens.iter().chain(&conversation.variables) {
            let value = jinja::Value::from_json(value, None)?;
            match variables.iter_mut().find(|(known, _)| known == name) {
                Some((_, old)) => *old = value,
                None => variables.push((name.clone(), value)),
            }
        }
        Ok(variables)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

fn template_error(error: jinja::Fault) -> DataError {
    DataError::ChatTemplate { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> [Message; 3] {
        [Message::new("system", " Be brief. "), Message::new("user", "Hi"), Message::new("assistant", "Hello")]
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_trims_them() {
        let source = "{{ bos_token }}\n{% for message in messages %}\n    {% if message['role'] != 'system' %}\n\
                      <{{ message['role'] }}> {{ message['content'].strip() }}{{ eos_token }}\n    {% endif %}\n{% endfor %}\n\
                      {% if add_generation_prompt %}<assistant>{% endif %}\n";
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        assert_eq!(template.render(&talk(), false).unwrap(), "<s>\n<user> Hi</s>\n<assistant> Hello</s>\n");
        assert_eq!(template.render(&talk()[..2], true).unwrap(), "<s>\n<user> Hi</s>\n<assistant>");
    }

    #[test]
    fn python_methods_slices_namespaces_and_loop_controls_work() {
        let source = "{%- set ns = namespace(system='') -%}\
            {%- if messages[0].role == 'system' -%}{%- set ns.system = messages[0].content.strip().upper() -%}{%- set messages = messages[1:] -%}{%- endif -%}\
            {{- ns.system -}}{%- for m in messages -%}{%- if m.content.startswith('Hello') -%}{%- break -%}{%- endif -%}|{{- m.content -}}{%- endfor -%}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert_eq!(template.render(&talk(), false).unwrap(), "BE BRIEF.|Hi");
    }

    #[test]
    fn a_template_can_refuse_a_conversation() {
        let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok";
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert_eq!(template.render(&talk()[1..], false).unwrap(), "ok");
        let refusal = template.render(&talk(), false).unwrap_err().to_string();
        assert!(refusal.contains("no system role") && refusal.contains(":1)"), "{refusal}");
        assert!(ChatTemplate::new("{% if %}", "", "").is_err());
    }

    #[test]
    fn the_date_is_the_template_s_own_or_always_the_same() {
        let render = |source: &str| ChatTemplate::new(source, "", "").unwrap().render(&[], false).unwrap();
        let asks = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}no date{% endif %}";
        assert_eq!(render(asks), "no date");
        assert_eq!(render("{% set today = strftime_now('%Y-%m-%d, %A') %}{{ today }}"), "2024-07-26, Friday");
    }

    #[test]
    fn generation_blocks_render_their_content() {
        let source = "{%- for m in messages -%}{%- generation -%}[{{ m.content }}]{%- endgeneration -%}{%- endfor -%}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert_eq!(template.render(&talk()[1..], false).unwrap(), "[Hi][Hello]");
    }
}
