//! Chat templates: Jinja, rendered like Hugging Face's `apply_chat_template` does.

use std::fmt;
use std::sync::Arc;

use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::{DataError, Message};

/// A compiled chat template.
///
/// A template sees `messages`, `bos_token`, `eos_token` and `add_generation_prompt`, but no tools.
///
/// Training data must not depend on the date. If a template tests whether `strftime_now is defined`, the function is
/// undefined and the template uses its own fixed date. Otherwise `strftime_now` returns 26 July 2024, the fixed date of
/// Llama's template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    const NAME: &'static str = "chat_template";

    /// Compiles `source`; `bos_token` and `eos_token` are the texts of those tokens, or empty.
    ///
    /// # Errors
    ///
    /// [`DataError::ChatTemplate`] if the source is not valid Jinja.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        if source.contains("strftime_now") && !source.contains("strftime_now is defined") {
            environment.add_function("strftime_now", strftime_of_fixed_date);
        }
        environment.add_template_owned(Self::NAME, without_generation_blocks(source)).map_err(template_error)?;
        Ok(Self {
            environment: Arc::new(environment),
            source: source.into(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        })
    }

    /// Renders a conversation. With `add_generation_prompt`, the text ends with the opening of the assistant's next turn.
    ///
    /// # Errors
    ///
    /// [`DataError::ChatTemplate`] if the template refuses the messages (`raise_exception`) or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, DataError> {
        let (bos_token, eos_token) = (&self.bos_token, &self.eos_token);
        let template = self.environment.get_template(Self::NAME).map_err(template_error)?;
        template.render(context! { messages, bos_token, eos_token, add_generation_prompt }).map_err(template_error)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

fn template_error(error: Error) -> DataError {
    DataError::ChatTemplate { reason: error.to_string() }
}

/// Python's `strftime` at midnight of 26 July 2024.
fn strftime_of_fixed_date(format: &str) -> String {
    const DATE: [(&str, &str); 8] = [
        ("%Y", "2024"),
        ("%y", "24"),
        ("%m", "07"),
        ("%d", "26"),
        ("%B", "July"),
        ("%b", "Jul"),
        ("%A", "Friday"),
        ("%a", "Fri"),
    ];
    const TIME: [(&str, &str); 3] = [("%H", "00"), ("%M", "00"), ("%S", "00")];
    DATE.iter().chain(&TIME).fold(format.to_owned(), |text, (field, value)| text.replace(field, value))
}

/// Replaces `{% generation %}` by a block that always renders. The tag marks the assistant's part for Transformers and
/// renders nothing itself.
fn without_generation_blocks(source: &str) -> String {
    let mut plain = source.to_owned();
    for open in ["{%", "{%-"] {
        plain = plain.replace(&format!("{open} generation "), &format!("{open} if true "));
        plain = plain.replace(&format!("{open} endgeneration "), &format!("{open} endif "));
    }
    plain
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
