//! What a chat template writes after an answer, which is what the model learns to end with.

use crate::{Message, PromptTemplate, TextTokenizer};

/// What ends an answer of the assistant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnEnd {
    /// A token: `<|im_end|>`, `<end_of_turn>`, the end token.
    Token(u32),
    /// A text that is no token.
    Text(String),
    /// Nothing: the model learns no end.
    Nothing,
}

impl PromptTemplate {
    /// What the template ends an answer with. `None` if it is no chat template, or if it does not render a question and an
    /// answer.
    pub fn turn_end(&self, tokenizer: &TextTokenizer) -> Option<TurnEnd> {
        const ANSWER: &str = "Zanzibar";
        let Self::Chat(template) = self else { return None };
        let messages = [Message::new("user", "Where is it?"), Message::new("assistant", ANSWER)];
        let text = template.render(&messages, false).ok()?;
        let (_, rest) = text.rsplit_once(ANSWER)?;
        let (head, token) = match tokenizer.first_added_token(rest) {
            Some((start, token)) => (&rest[..start], Some(token)),
            None => (rest, None),
        };
        Some(match (head.trim(), token) {
            ("", Some(token)) => TurnEnd::Token(token),
            ("", None) => TurnEnd::Nothing,
            (text, _) => TurnEnd::Text(text.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatTemplate;
    use crate::tokenizer::tests::bytes_with;

    #[test]
    fn the_end_of_a_turn_is_a_token_a_text_or_nothing() {
        let tokenizer =
            bytes_with(r#"{"eos_token": "</s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}"#);
        let end = |answer: &str| {
            let source = format!("{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{answer}{{% endfor %}}");
            PromptTemplate::Chat(ChatTemplate::new(&source, "", "").unwrap()).turn_end(&tokenizer)
        };
        assert_eq!(end("{{ m.content }}<|im_end|>\n"), Some(TurnEnd::Token(259)));
        assert_eq!(end("{{ m.content }} </s>"), Some(TurnEnd::Token(1)));
        assert_eq!(end("{{ m.content }}\n"), Some(TurnEnd::Nothing));
        assert_eq!(end("{{ m.content }}[END]\n"), Some(TurnEnd::Text("[END]".into())));
        assert_eq!(end(""), None);
        assert_eq!(PromptTemplate::Raw.turn_end(&tokenizer), None);
    }
}
