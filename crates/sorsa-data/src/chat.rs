//! Chat templates: Jinja, rendered as Hugging Face's `apply_chat_template` does.

use std::fmt;
use std::sync::Arc;

use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::{DataError, Message};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A compiled chat template.
///
/// Templates see `messages`, `bos_token`, `eos_token` and `add_generation_prompt`; tools are not passed.
/// `strftime_now` exists only once a date is fixed with [`ChatTemplate::with_date`]: what a model is trained on should
/// not depend on the day. Templates that ask `is defined` then fall back to their own date.
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
    /// [`DataError::ChatTemplate`] when the source is not valid Jinja.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(Self::NAME, without_generation_blocks(source)).map_err(broken)?;
        Ok(Self {
            environment: Arc::new(environment),
            source: source.into(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        })
    }

    /// Gives templates a fixed day for `strftime_now` (`%Y`, `%m`, `%d`, `%B`, `%b`); `month` counts from 1.
    ///
    /// # Errors
    ///
    /// [`DataError::ChatTemplate`] when there is no such day.
    pub fn with_date(mut self, year: u16, month: u8, day: u8) -> Result<Self, DataError> {
        let name = month.checked_sub(1).and_then(|index| MONTHS.get(usize::from(index)));
        let Some(&name) = name.filter(|_| (1..=31).contains(&day)) else {
            return Err(DataError::ChatTemplate { reason: format!("{year}-{month:02}-{day:02} is not a day") });
        };
        Arc::make_mut(&mut self.environment).add_function("strftime_now", move |format: String| {
            format
                .replace("%Y", &year.to_string())
                .replace("%m", &format!("{month:02}"))
                .replace("%d", &format!("{day:02}"))
                .replace("%B", name)
                .replace("%b", &name[..3])
        });
        Ok(self)
    }

    /// The text of a conversation; with `add_generation_prompt`, followed by what opens the assistant's next turn.
    ///
    /// # Errors
    ///
    /// [`DataError::ChatTemplate`] when the template refuses the messages (`raise_exception`) or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, DataError> {
        let (bos_token, eos_token) = (&self.bos_token, &self.eos_token);
        let template = self.environment.get_template(Self::NAME).map_err(broken)?;
        template.render(context! { messages, bos_token, eos_token, add_generation_prompt }).map_err(broken)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

fn broken(error: Error) -> DataError {
    DataError::ChatTemplate { reason: error.to_string() }
}

/// `{% generation %}` marks the assistant's part for Transformers and renders nothing: a block that is always taken.
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
    fn the_date_is_the_callers_or_absent() {
        let source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}no date{% endif %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "no date");
        assert_eq!(template.clone().with_date(2024, 7, 6).unwrap().render(&[], false).unwrap(), "06 Jul 2024");
        assert!(template.with_date(2024, 13, 1).is_err());
    }

    #[test]
    fn generation_blocks_render_their_content() {
        let source = "{%- for m in messages -%}{%- generation -%}[{{ m.content }}]{%- endgeneration -%}{%- endfor -%}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        assert_eq!(template.render(&talk()[1..], false).unwrap(), "[Hi][Hello]");
    }
}
