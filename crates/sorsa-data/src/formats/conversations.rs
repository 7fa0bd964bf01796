//! Conversations in rows: OpenAI's `messages`, ShareGPT's `conversations`, and the columns beside them.

use serde_json::{Map, Value, json};

use super::{RowFields, json_type};
use crate::{Content, Conversation, Message, Record};

/// Fields of a message that say whether it is trained: OpenAI's, axolotl's (two), ms-swift's.
const TRAINED: [&str; 4] = ["weight", "train", "training", "loss"];

/// Fields of a row that change what the model reads or should write. A row whose format does not use them is reported.
const MEANINGFUL: [&str; 27] = [
    "system",
    "system_prompt",
    "history",
    "context",
    "label",
    "tools",
    "functions",
    "tool_calls",
    "function_call",
    "documents",
    "chat_template_kwargs",
    "images",
    "image",
    "videos",
    "audios",
    "input",
    "weight",
    "train",
    "chosen",
    "rejected",
    "reasoning",
    "reasoning_content",
    "thinking",
    "knowledge",
    "persona",
    "choices",
    "conversations",
];

impl RowFields {
    /// The conversation in the list `name`, with the columns beside it that a chat template sees.
    pub(super) fn conversation(&mut self, name: &'static str) -> Conversation {
        let mut messages = match self.take(name) {
            Some(list @ Value::Array(_)) => self.messages(name, list),
            Some(other) => {
                let found = json_type(&other);
                self.problems.push(format!("`{name}` should be a list of {{role, content}}, found {found}"));
                return Conversation::default();
            }
            None => {
                self.problems.push(format!("no field `{name}`"));
                return Conversation::default();
            }
        };
        if !messages.iter().any(Message::is_assistant) && self.problems.is_empty() {
            self.problems.push(format!("`{name}` has no turn of the assistant"));
        }
        if let Some(system) = self.system() {
            match messages.first() {
                Some(first) if first.role == "system" => {
                    self.problems.push("`system` is given, and a message has the role system too".to_owned());
                }
                _ => messages.insert(0, Message::new("system", system)),
            }
        }
        Conversation { messages, variables: self.template_variables() }
    }

    /// The column `system`, if it has text.
    fn system(&mut self) -> Option<String> {
        self.optional("system").filter(|system| !system.trim().is_empty())
    }

    /// Columns that are variables of the chat template.
    fn template_variables(&mut self) -> Map<String, Value> {
        let mut variables = match self.take("chat_template_kwargs") {
            Some(Value::Object(variables)) => variables,
            _ => Map::new(),
        };
        for name in ["tools", "documents"] {
            if let Some(list) = self.list(name) {
                variables.insert(name.to_owned(), Value::Array(list));
            }
        }
        // OpenAI's older name; a tool is a function with its type beside it.
        if let Some(functions) = self.list("functions") {
            let tools =
                functions.into_iter().map(|function| json!({"type": "function", "function": function})).collect();
            variables.insert("tools".to_owned(), Value::Array(tools));
        }
        variables
    }

    /// A column that is a list, or the JSON text of one. `None` if it is absent or empty.
    fn list(&mut self, name: &str) -> Option<Vec<Value>> {
        let value = match self.take(name)? {
            Value::String(text) if text.trim().is_empty() => return None,
            Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            other => other,
        };
        match value {
            Value::Null => None,
            Value::Array(list) if list.is_empty() => None,
            Value::Array(list) => Some(list),
            other => {
                self.problems.push(format!("`{name}` should be a list, found {}", json_type(&other)));
                None
            }
        }
    }

    fn messages(&mut self, name: &str, list: Value) -> Vec<Message> {
        let Value::Array(list) = list else { return Vec::new() };
        let mut messages = Vec::with_capacity(list.len());
        for (index, value) in list.into_iter().enumerate() {
            match message(value) {
                Ok(message) if message.is_assistant() && !message.says_anything() => {
                    self.problems.push(format!("message {} (assistant) is empty", index + 1));
                }
                Ok(message) => messages.push(message),
                Err(problem) => self.problems.push(format!("`{name}`, message {}: {problem}", index + 1)),
            }
        }
        messages
    }

    /// TRL's `prompt` and `completion` as lists of messages: only the completion is trained.
    pub(super) fn prompt_and_completion(
        &mut self,
        prompt: &'static str,
        completion: &'static str,
    ) -> Option<Conversation> {
        if !self.row.get(prompt).is_some_and(Value::is_array) || !self.row.get(completion).is_some_and(Value::is_array)
        {
            return None;
        }
        let mut before = self.take(prompt).map(|list| self.messages(prompt, list)).unwrap_or_default();
        before.iter_mut().for_each(|message| message.trained = false);
        let conversation = self.conversation(completion);
        before.extend(conversation.messages);
        Some(Conversation { messages: before, ..conversation })
    }

    /// Turns an instruction into a conversation if the row has a system text or earlier turns.
    pub(super) fn with_system_and_history(&mut self, record: &mut Record) {
        let system = self.system();
        let history = self.list("history").unwrap_or_default();
        if system.is_none() && history.is_empty() {
            return;
        }
        let mut messages: Vec<Message> = system.into_iter().map(|system| Message::new("system", system)).collect();
        for (index, pair) in history.into_iter().enumerate() {
            match serde_json::from_value::<(String, String)>(pair) {
                Ok((question, answer)) => {
                    messages.extend([Message::new("user", question), Message::new("assistant", answer)]);
                }
                Err(_) => self.problems.push(format!("`history`, entry {}: expected [question, answer]", index + 1)),
            }
        }
        if let Some(exchange) = record.conversation() {
            messages.extend(exchange.messages.iter().cloned());
        }
        record.content = Content::Chat(Conversation::new(messages));
    }

    /// Refuses an example of what not to write (`label` of KTO).
    pub(super) fn refuse_bad_example(&mut self) {
        match self.row.get("label") {
            Some(Value::Bool(false)) => {
                self.problems.push("`label` is false: an example of what not to write".to_owned());
            }
            Some(Value::Bool(true)) => drop(self.take("label")),
            _ => {}
        }
    }

    /// The fields that have a meaning and were not taken.
    pub(super) fn unused(&self) -> Vec<&'static str> {
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.trim().is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        let unused = |name: &&str| self.row.get(*name).is_some_and(|value| !is_empty(value));
        MEANINGFUL.into_iter().filter(unused).collect()
    }
}

/// A message of a row: `role` and `content`, or ShareGPT's `from` and `value`.
fn message(value: Value) -> Result<Message, String> {
    let Value::Object(row) = value else {
        return Err(format!("expected {{role, content}}, found {}", json_type(&value)));
    };
    let mut fields = Map::new();
    let mut trained = true;
    let mut is_call = false;
    let share_gpt = !row.contains_key("role") && row.contains_key("from");
    for (name, value) in row {
        match (name.as_str(), value) {
            (name, value) if TRAINED.contains(&name) => trained &= is_trained(name, &value)?,
            ("from", Value::String(role)) if share_gpt => {
                is_call = role == "function_call";
                fields.insert("role".to_owned(), Value::from(share_gpt_role(&role)));
            }
            ("value", value) if share_gpt => drop(fields.insert("content".to_owned(), value)),
            // Files of tables have every field in every row.
            (name, Value::Null) if name != "content" => {}
            (_, value) => drop(fields.insert(name, value)),
        }
    }
    let role = match fields.get("role") {
        Some(Value::String(role)) => role.clone(),
        Some(other) => return Err(format!("`role` should be text, found {}", json_type(other))),
        None => return Err("no field `role`".to_owned()),
    };
    let content = match fields.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().map(part_text).collect::<Result<String, String>>()?,
        Some(other) => return Err(format!("`content` should be text, found {}", json_type(other))),
    };
    if matches!(fields.get("content"), Some(Value::Array(_))) {
        fields.insert("content".to_owned(), Value::String(content.clone()));
    }
    if is_call {
        return call(&content, fields, trained);
    }
    let may_be_without = fields.contains_key("tool_calls") || fields.contains_key("function_call");
    if matches!(fields.get("content"), None | Some(Value::Null)) && !may_be_without && role != "assistant" {
        return Err("no text in `content`".to_owned());
    }
    Ok(Message { role, content, fields, trained })
}

/// ShareGPT's `function_call`, whose text is the JSON of a call or of several.
fn call(text: &str, mut fields: Map<String, Value>, trained: bool) -> Result<Message, String> {
    let calls = match serde_json::from_str(text) {
        Ok(Value::Array(calls)) => calls,
        Ok(call @ Value::Object(_)) => vec![call],
        _ => return Err("a function_call should be a JSON object with name and arguments".to_owned()),
    };
    let calls = calls.into_iter().map(|function| json!({"type": "function", "function": function})).collect();
    fields.insert("content".to_owned(), Value::String(String::new()));
    fields.insert("tool_calls".to_owned(), Value::Array(calls));
    Ok(Message { role: "assistant".to_owned(), content: String::new(), fields, trained })
}

fn share_gpt_role(role: &str) -> &str {
    match role {
        "human" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "bot" | "model" | "function_call" => "assistant",
        "observation" | "function_response" | "ipython" => "tool",
        other => other,
    }
}

/// Whether the value of a field such as `weight` means that the message is trained.
fn is_trained(name: &str, value: &Value) -> Result<bool, String> {
    match value {
        Value::Null => Ok(true),
        Value::Bool(trained) => Ok(*trained),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        other => Err(format!("`{name}` should be 0 or 1, found {other}")),
    }
}

/// The text of a part of a content.
fn part_text(part: &Value) -> Result<&str, String> {
    if let Value::String(text) = part {
        return Ok(text);
    }
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (None | Some("text"), Some(text)) => Ok(text),
        (Some(kind), _) => Err(format!("`content` has a part of type {kind}; only text is supported")),
        (None, None) => Err("`content` has a part without text".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, LoadOptions};

    fn convert(row: &Value) -> Result<(Record, Vec<&'static str>), String> {
        let format = Format::recognise(row).expect("a known format");
        let row = format.record(1, row.clone(), &LoadOptions::default())?;
        Ok((row.record, row.unused_fields))
    }

    fn conversation(row: &Value) -> Conversation {
        match convert(row).unwrap().0.content {
            Content::Chat(conversation) => conversation,
            other => panic!("not a conversation: {other:?}"),
        }
    }

    fn turns(row: &Value) -> Vec<(String, String)> {
        conversation(row).messages.into_iter().map(|message| (message.role, message.content)).collect()
    }

    fn pairs(turns: &[(&str, &str)]) -> Vec<(String, String)> {
        turns.iter().map(|&(role, text)| (role.to_owned(), text.to_owned())).collect()
    }

    #[test]
    fn share_gpt_and_openai_rows_are_the_same_conversation() {
        let open_ai = json!({"messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
        let share_gpt =
            json!({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]});
        assert_eq!(conversation(&open_ai), conversation(&share_gpt));
        let both = json!({"system": "s", "messages": [{"role": "system", "content": "t"}, {"role": "assistant", "content": "a"}]});
        assert_eq!(convert(&both).unwrap_err(), "`system` is given, and a message has the role system too");
    }

    #[test]
    fn weight_and_train_say_what_is_trained() {
        let of = |field: &str, value: Value| {
            let row = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", field: value}]});
            convert(&row).map(|_| conversation(&row).messages[1].trained)
        };
        for field in TRAINED {
            assert_eq!(of(field, json!(0)), Ok(false), "{field}");
            assert_eq!(of(field, json!(false)), Ok(false), "{field}");
            assert_eq!(of(field, json!(1.0)), Ok(true), "{field}");
            assert_eq!(of(field, json!(null)), Ok(true), "{field}");
        }
        assert_eq!(
            of("weight", json!(0.5)).unwrap_err(),
            "`messages`, message 2: `weight` should be 0 or 1, found 0.5"
        );
    }

    #[test]
    fn tools_functions_and_variables_reach_the_template() {
        let messages = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let variables = |row: Value| Value::Object(conversation(&row).variables);
        assert_eq!(variables(json!({"messages": messages, "tools": [tool]})), json!({"tools": [tool]}));
        assert_eq!(variables(json!({"messages": messages, "tools": tool.to_string()[..0]})), json!({}));
        assert_eq!(
            variables(json!({"messages": messages, "tools": json!([tool]).to_string()})),
            json!({"tools": [tool]})
        );
        assert_eq!(variables(json!({"messages": messages, "functions": [{"name": "f"}]})), json!({"tools": [tool]}));
        let kwargs = json!({"messages": messages, "chat_template_kwargs": {"enable_thinking": false}});
        assert_eq!(variables(kwargs), json!({"enable_thinking": false}));
        assert_eq!(
            convert(&json!({"messages": messages, "tools": 3})).unwrap_err(),
            "`tools` should be a list, found a number"
        );
    }

    #[test]
    fn a_content_is_text_parts_of_text_or_nothing_beside_a_call() {
        let parts = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
            {"role": "assistant", "content": null, "name": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]});
        let conversation = conversation(&parts);
        assert_eq!(conversation.messages[0].fields["content"], "ab");
        assert!(!conversation.messages[1].fields.contains_key("name"));
        assert!(conversation.messages[1].fields["content"].is_null());
        let reason = |message: Value| {
            convert(&json!({"messages": [message, {"role": "assistant", "content": "a"}]})).unwrap_err()
        };
        assert_eq!(
            reason(json!({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]})),
            "`messages`, message 1: `content` has a part of type image_url; only text is supported"
        );
        assert_eq!(reason(json!({"role": "user"})), "`messages`, message 1: no text in `content`");
        assert_eq!(reason(json!({"content": "x"})), "`messages`, message 1: no field `role`");
        assert_eq!(reason(json!({"role": "assistant", "content": null})), "message 1 (assistant) is empty");
    }

    #[test]
    fn a_call_of_share_gpt_is_a_tool_call() {
        let row = json!({"conversations": [{"from": "human", "value": "q"},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}, {"from": "observation", "value": "2"}]});
        let conversation = conversation(&row);
        let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
        assert_eq!(conversation.messages[1].fields["tool_calls"], call);
        assert_eq!(conversation.messages[2].role, "tool");
    }

    #[test]
    fn system_history_and_context_become_part_of_the_prompt() {
        let alpaca = json!({"instruction": "i", "input": "", "output": "a", "system": "s", "history": [["q", "b"]]});
        let expected = [("system", "s"), ("user", "q"), ("assistant", "b"), ("user", "i"), ("assistant", "a")];
        assert_eq!(turns(&alpaca), pairs(&expected));
        let plain = json!({"instruction": "i", "input": "x", "output": "a", "system": "", "history": []});
        assert!(matches!(convert(&plain).unwrap().0.content, Content::Instruction { .. }));
        let (context, unused) = convert(&json!({"context": "c", "question": "q", "answer": "a"})).unwrap();
        let Content::Instruction { input, .. } = context.content else { panic!("an instruction") };
        assert_eq!((input.as_deref(), unused), (Some("c"), vec![]));
    }

    #[test]
    fn bad_examples_are_refused_and_unused_fields_are_named() {
        let kto = |label: bool| convert(&json!({"prompt": "q", "completion": "a", "label": label}));
        assert_eq!(kto(false).unwrap_err(), "`label` is false: an example of what not to write");
        assert!(kto(true).unwrap().1.is_empty());
        let unused = |row: Value| convert(&row).unwrap().1;
        assert_eq!(
            unused(json!({"query": "q", "response": "a", "system": "s", "tools": [1], "history": []})),
            ["system", "tools"]
        );
        assert!(unused(json!({"query": "q", "response": "a", "id": 3, "original_question": "q"})).is_empty());
    }

    #[test]
    fn of_prompt_and_completion_as_lists_only_the_completion_is_trained() {
        let row = json!({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}],
            "completion": [{"role": "assistant", "content": "b"}]});
        let trained: Vec<bool> = conversation(&row).messages.iter().map(|message| message.trained).collect();
        assert_eq!(trained, [false, false, false, true]);
        assert_eq!(turns(&row).len(), 4);
    }
}
