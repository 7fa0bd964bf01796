//! The chat templates of a tokenizer's folder, by their names.

use serde_json::{Map, Value};

use crate::{ChatTemplate, DataError};

/// The template that is used unless another is asked for.
const DEFAULT: &str = "default";
/// The template for conversations with tools, if there is one of this name.
const TOOL_USE: &str = "tool_use";
/// Special tokens that a template sees by their names.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Chat templates by their names; one without a name is the default.
#[derive(Debug, Clone, Default)]
pub(super) struct ChatTemplates {
    compiled: Vec<(String, Result<ChatTemplate, String>)>,
}

impl ChatTemplates {
    /// Compiles the templates of `sources` for a tokenizer with this configuration.
    pub(super) fn compile(sources: Vec<(String, String)>, config: &Map<String, Value>) -> Self {
        let tokens = special_tokens(config);
        let compile = |source: &str| {
            ChatTemplate::with_special_tokens(source, tokens.clone()).map_err(|error| match error {
                DataError::ChatTemplate { reason } => reason,
                other => other.to_string(),
            })
        };
        let compiled = sources.into_iter().map(|(name, source)| (name, compile(&source)));
        let mut templates = Self { compiled: compiled.collect() };
        let with_tools = templates.find(TOOL_USE).and_then(|template| template.as_ref().ok()).cloned();
        for (name, template) in &mut templates.compiled {
            if let (DEFAULT, Ok(template), Some(with_tools)) = (name.as_str(), template, &with_tools) {
                template.use_for_tools(with_tools);
            }
        }
        templates
    }

    fn find(&self, name: &str) -> Option<&Result<ChatTemplate, String>> {
        self.compiled.iter().find(|(known, _)| known == name).map(|(_, template)| template)
    }

    /// The default template.
    ///
    /// # Errors
    ///
    /// [`DataError::NoChatTemplate`] if there is none at all, [`DataError::UnknownChatTemplate`] if there are only others, and
    /// [`DataError::ChatTemplate`] if it cannot be compiled.
    pub(super) fn default(&self) -> Result<&ChatTemplate, DataError> {
        if self.compiled.is_empty() { Err(DataError::NoChatTemplate) } else { self.named(DEFAULT) }
    }

    /// The template called `name`.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownChatTemplate`] with the names that there are, [`DataError::ChatTemplate`] if it cannot be compiled.
    pub(super) fn named(&self, name: &str) -> Result<&ChatTemplate, DataError> {
        match self.find(name) {
            Some(Ok(template)) => Ok(template),
            Some(Err(reason)) => Err(DataError::ChatTemplate { reason: reason.clone() }),
            None => {
                let mut found: Vec<String> = self.compiled.iter().map(|(name, _)| name.clone()).collect();
                found.sort();
                Err(DataError::UnknownChatTemplate { name: name.to_owned(), found })
            }
        }
    }
}

/// The templates in a value of `chat_template`: one without a name, or a list of `name` and `template`.
pub(super) fn configured(value: Option<&Value>) -> Vec<(String, String)> {
    let named = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        Some((text("name")?, text("template")?))
    };
    match value {
        Some(Value::String(source)) => vec![(DEFAULT.to_owned(), source.clone())],
        Some(Value::Array(list)) => list.iter().filter_map(named).collect(),
        Some(Value::Object(templates)) => {
            let named = |(name, source): (&String, &Value)| Some((name.clone(), source.as_str()?.to_owned()));
            templates.iter().filter_map(named).collect()
        }
        _ => Vec::new(),
    }
}

/// The name of the template in this file of the folder, if it is one.
pub(super) fn name_of_file(file: &str) -> Option<String> {
    file.strip_suffix(".jinja").map(str::to_owned)
}

/// The special tokens by their names, as a template sees them.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |token: &Value| match token {
        Value::String(text) => Some(Value::String(text.clone())),
        other => other.get("content").filter(|content| content.is_string()).cloned(),
    };
    let mut tokens = Map::new();
    for name in SPECIAL_TOKENS {
        if let Some(token) = config.get(name).and_then(text) {
            tokens.insert(name.to_owned(), token);
        }
    }
    let list = |key: &str| config.get(key).and_then(Value::as_array).filter(|list| !list.is_empty());
    if let Some(additional) = list("additional_special_tokens").or_else(|| list("extra_special_tokens")) {
        let additional = additional.iter().filter_map(text).collect();
        tokens.insert("additional_special_tokens".to_owned(), Value::Array(additional));
    }
    // Tokens with names of the model's own: `image_token`.
    if let Some(Value::Object(named)) = config.get("extra_special_tokens") {
        tokens.extend(named.iter().filter_map(|(name, token)| Some((name.clone(), text(token)?))));
    }
    tokens
}
