//! Formats of rows: their fields, and how they become records.

mod conversations;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::first_names;
use crate::names::parse_name;
use crate::parquet_rows::BYTES;
use crate::{Content, DataError, LoadOptions, Record};

/// Format of the rows of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A conversation: `messages`, a list of `role` and `content`.
    Messages,
    /// A conversation in ShareGPT's form: `conversations`, a list of `from` and `value`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// MetaMathQA: `query`, `response`, and maybe `type`.
    #[serde(rename = "metamathqa")]
    MetaMathQa,
    /// GSM8K: `question`, and `answer` ending in `#### N`.
    Gsm8k,
    /// MATH: `problem`, `solution`, and maybe `level`, `type`, `answer`.
    Math,
    /// SVAMP: `Body`, `Question`, `Answer`, and maybe `Type`.
    Svamp,
    /// Alpaca: `instruction`, `output`, and maybe `input`.
    Alpaca,
    /// Any of the usual pairs: `prompt` and `completion` or `response`; `query` or `question` and `answer`.
    PromptCompletion,
    /// Plain text: `text`. A .txt file is one record of this format.
    Text,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AnswerStyle {
    /// Like in the file.
    #[default]
    AsIs,
    /// With a last line `The answer is: X`, like in MetaMathQA, if the short answer X is known.
    TheAnswerIs,
}

const PAIRS: [(&str, &str); 4] =
    [("prompt", "completion"), ("prompt", "response"), ("query", "answer"), ("question", "answer")];

impl Format {
    /// All formats, in the order in which [`load`](crate::load) tries them.
    pub const ALL: [Self; 9] = {
        use Format::*;
        [Messages, ShareGpt, MetaMathQa, Gsm8k, Math, Svamp, Alpaca, PromptCompletion, Text]
    };

    /// The name, as a recipe and the command line spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::MetaMathQa => "metamathqa",
            Self::Gsm8k => "gsm8k",
            Self::Math => "math",
            Self::Svamp => "svamp",
            Self::Alpaca => "alpaca",
            Self::PromptCompletion => "prompt-completion",
            Self::Text => "text",
        }
    }

    const fn fields(self) -> &'static str {
        match self {
            Self::Messages => "messages [{role, content}, ..] [, tools, system]",
            Self::ShareGpt => "conversations [{from, value}, ..] [, tools, system]",
            Self::MetaMathQa => "query, response [, type]",
            Self::Gsm8k => "question, answer ending in `#### N`",
            Self::Math => "problem, solution [, answer, level, type]",
            Self::Svamp => "Body, Question, Answer [, Type]",
            Self::Alpaca => "instruction, output [, input, system, history]",
            Self::PromptCompletion => "prompt, completion | prompt, response | query, answer | question, answer",
            Self::Text => "text",
        }
    }

    pub(crate) fn describe_all() -> String {
        let lines = Self::ALL.map(|format| format!("  {:<17} {}", format.as_str(), format.fields()));
        lines.join("\n")
    }

    /// The format whose fields `row` has, if any.
    pub fn recognise(row: &Value) -> Option<Self> {
        let row = row.as_object()?;
        let has = |names: &[&str]| names.iter().all(|name| row.contains_key(*name));
        Self::ALL.into_iter().find(|format| match format {
            Self::Messages => has(&["messages"]),
            Self::ShareGpt => has(&["conversations"]),
            Self::MetaMathQa => has(&["query", "response"]),
            Self::Gsm8k => {
                has(&["question"]) && row.get("answer").and_then(Value::as_str).and_then(gsm8k_final).is_some()
            }
            Self::Math => has(&["problem", "solution"]),
            Self::Svamp => has(&["Body", "Question", "Answer"]),
            Self::Alpaca => has(&["instruction", "output"]),
            Self::PromptCompletion => PAIRS.iter().any(|&(prompt, answer)| has(&[prompt, answer])),
            Self::Text => has(&["text"]),
        })
    }

    /// Converts the row `value`, whose number is `row`. The error is one line with every problem.
    pub(crate) fn record(self, row: usize, value: Value, options: &LoadOptions) -> Result<ConvertedRow, String> {
        let mut fields = RowFields::new(value)?;
        fields.refuse_bad_example();
        let record = match self {
            Self::Messages => Record::new(row, Content::Chat(fields.conversation("messages"))),
            Self::ShareGpt => Record::new(row, Content::Chat(fields.conversation("conversations"))),
            Self::Text => Record::new(row, Content::Text(fields.text("text"))),
            _ => self.exchange(row, &mut fields, options),
        };
        let unused_fields = fields.unused();
        if fields.problems.is_empty() {
            Ok(ConvertedRow { record, unused_fields })
        } else {
            Err(fields.problems.join("; "))
        }
    }

    /// An instruction and its answer.
    fn exchange(self, row: usize, fields: &mut RowFields, options: &LoadOptions) -> Record {
        let (instruction, answer) = match self {
            Self::MetaMathQa => ("query", "response"),
            Self::Gsm8k => ("question", "answer"),
            Self::Math => ("problem", "solution"),
            Self::Svamp => ("Question", "Answer"),
            Self::Alpaca => ("instruction", "output"),
            _ => fields.pair(),
        };
        if let Some(conversation) = fields.prompt_and_completion(instruction, answer) {
            return Record::new(row, Content::Chat(conversation));
        }
        let mut record = Record::instruction(row, fields.text(instruction), fields.text(answer));
        if let Content::Instruction { instruction, input, answer } = &mut record.content {
            self.finish(fields, instruction, input, answer, &mut record.final_answer, options);
        }
        if matches!(self, Self::Alpaca | Self::PromptCompletion) {
            fields.with_system_and_history(&mut record);
        }
        record.level = fields.optional("level");
        record.kind = fields.optional("type").or_else(|| fields.optional("Type"));
        record
    }

    /// Applies the rules of the format to instruction, input and answers.
    fn finish(
        self,
        fields: &mut RowFields,
        instruction: &mut String,
        input: &mut Option<String>,
        answer: &mut String,
        final_answer: &mut Option<String>,
        options: &LoadOptions,
    ) {
        match self {
            Self::Gsm8k => {
                *final_answer = gsm8k_final(answer).map(str::to_owned);
                if final_answer.is_none() && !answer.is_empty() {
                    fields.problems.push("`answer` does not end in `#### N`".to_owned());
                }
                *answer = strip_calculator(answer).into_owned();
            }
            Self::Math => {
                *final_answer = fields.optional("answer").or_else(|| last_boxed(answer).map(str::to_owned));
            }
            Self::Svamp => {
                *instruction = format!("{} {instruction}", fields.text("Body").trim_end());
                *final_answer = Some(answer.clone());
            }
            Self::Alpaca => *input = fields.optional("input").filter(|input| !input.trim().is_empty()),
            // What a question is about.
            Self::PromptCompletion => *input = fields.optional("context").filter(|context| !context.trim().is_empty()),
            _ => {}
        }
        if let (AnswerStyle::TheAnswerIs, Some(short)) = (options.answer_style, final_answer) {
            *answer = match self {
                Self::Svamp => format!("The answer is: {short}"),
                _ => format!("{answer}\nThe answer is: {short}"),
            };
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        parse_name("format", &Self::ALL, name)
    }
}

/// A record, and the fields of its row that the format does not use although they change its meaning.
#[derive(Debug)]
pub(crate) struct ConvertedRow {
    pub(crate) record: Record,
    pub(crate) unused_fields: Vec<&'static str>,
}

/// The fields of one row, and the problems found in them.
struct RowFields {
    row: Map<String, Value>,
    problems: Vec<String>,
}

impl RowFields {
    fn new(row: Value) -> Result<Self, String> {
        match row {
            Value::Object(row) => Ok(Self { row, problems: Vec::new() }),
            other => Err(format!("expected an object with named fields, found {}", json_type(&other))),
        }
    }

    /// Takes the value of a field. The name stays in the row, so that errors can list it.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.row.get_mut(name).map(Value::take)
    }

    /// Takes a field that must hold text and must not be blank. A number becomes its decimal text.
    fn text(&mut self, name: &str) -> String {
        let problem = match self.take(name) {
            Some(Value::String(text)) if !text.trim().is_empty() => return text,
            Some(Value::String(_)) => format!("`{name}` is empty"),
            Some(Value::Number(number)) => return plain_number(&number),
            Some(other) => format!("`{name}` should be text, found {}", json_type(&other)),
            None => {
                let found: Vec<&str> = self.row.keys().map(String::as_str).collect();
                format!("no field `{name}` (found: {})", first_names(&found))
            }
        };
        self.problems.push(problem);
        String::new()
    }

    /// Takes a field that may be absent or null.
    fn optional(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(plain_number(&number)),
            Value::Null => None,
            other => {
                self.problems.push(format!("`{name}` should be text, found {}", json_type(&other)));
                None
            }
        }
    }

    /// The names of the first of [`PAIRS`] that the row has.
    fn pair(&self) -> (&'static str, &'static str) {
        let has = |name| self.row.contains_key(name);
        PAIRS.into_iter().find(|&(prompt, answer)| has(prompt) && has(answer)).unwrap_or(PAIRS[0])
    }
}

/// A number as text. `51.0` becomes `51`, because SVAMP stores whole numbers as floats.
fn plain_number(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if !number.is_i64() && !number.is_u64() => float.to_string(),
        _ => number.to_string(),
    }
}

/// The type of a JSON value, for errors.
fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(fields) if fields.contains_key(BYTES) => "bytes that are not UTF-8",
        Value::Object(_) => "an object",
    }
}

/// The `N` of a last line `#### N`.
fn gsm8k_final(answer: &str) -> Option<&str> {
    let last = answer.trim_end().lines().last()?;
    let short = last.trim().strip_prefix("####")?.trim();
    (!short.is_empty()).then_some(short)
}

/// Removes GSM8K's calculator annotations, `<<48/2=24>>`.
fn strip_calculator(answer: &str) -> Cow<'_, str> {
    if !answer.contains("<<") {
        return Cow::Borrowed(answer);
    }
    let mut plain = String::with_capacity(answer.len());
    let mut rest = answer;
    while let Some((before, after)) = rest.split_once("<<") {
        let Some((_, after)) = after.split_once(">>") else { break };
        plain.push_str(before);
        rest = after;
    }
    Cow::Owned(plain + rest)
}

/// The content of the last `\boxed{..}`, with balanced braces.
fn last_boxed(solution: &str) -> Option<&str> {
    const OPEN: &str = r"\boxed{";
    let inside = &solution[solution.rfind(OPEN)? + OPEN.len()..];
    let mut depth = 1;
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inside[..at]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(value: Value) -> Record {
        let format = Format::recognise(&value).expect("a known format");
        format.record(1, value, &LoadOptions::default()).expect("a good row").record
    }

    #[test]
    fn every_format_is_recognised_by_its_fields_and_by_its_name() {
        let rows = [
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            json!({"query": "q", "response": "a", "type": "GSM_Rephrased"}),
            json!({"question": "q", "answer": "a\n#### 1"}),
            json!({"problem": "q", "solution": "a"}),
            json!({"Body": "b.", "Question": "q", "Answer": 1.0}),
            json!({"instruction": "q", "input": "", "output": "a"}),
            json!({"question": "q", "answer": "a, not numbered"}),
            json!({"text": "t"}),
        ];
        for (row, format) in rows.iter().zip(Format::ALL) {
            assert_eq!(Format::recognise(row), Some(format), "{row}");
            assert_eq!(format.as_str().parse::<Format>().unwrap(), format);
        }
        assert_eq!(Format::recognise(&json!({"prompt": "only half of a pair"})), None);
    }

    #[test]
    fn gsm8k_loses_its_calculator_and_keeps_its_final_answer() {
        let row = json!({"question": "q", "answer": "48/2 = <<48/2=24>>24, so <<24*50=1,200>>1,200.\n#### 1,200"});
        let record = record(row);
        assert_eq!(record.answer(), Some("48/2 = 24, so 1,200.\n#### 1,200"));
        assert_eq!(record.final_answer.as_deref(), Some("1,200"));
        assert_eq!(strip_calculator("1 << 2"), "1 << 2");
    }

    #[test]
    fn the_answer_is_appended_where_a_short_answer_is_known() {
        let options = LoadOptions { answer_style: AnswerStyle::TheAnswerIs, ..LoadOptions::default() };
        let answer = |value: Value| {
            let format = Format::recognise(&value).unwrap();
            format.record(1, value, &options).unwrap().record.answer().unwrap().to_owned()
        };
        assert_eq!(answer(json!({"question": "q", "answer": "a\n#### 3"})), "a\n#### 3\nThe answer is: 3");
        let boxed = r"so \boxed{1} and \boxed{\frac{1}{2}}.";
        assert_eq!(
            answer(json!({"problem": "q", "solution": boxed})),
            format!("{boxed}\nThe answer is: \\frac{{1}}{{2}}")
        );
        assert_eq!(answer(json!({"Body": "b", "Question": "q", "Answer": 51.0})), "The answer is: 51");
        assert_eq!(answer(json!({"query": "q", "response": "a"})), "a");
    }

    #[test]
    fn metadata_and_input_are_kept() {
        let math =
            record(json!({"problem": "q", "solution": "a", "level": "Level 5", "type": "Algebra", "answer": "0"}));
        assert_eq!((math.level.as_deref(), math.kind.as_deref()), (Some("Level 5"), Some("Algebra")));
        assert_eq!(math.final_answer.as_deref(), Some("0"));
        let alpaca = record(json!({"instruction": "q", "input": "i", "output": "a"}));
        let Content::Instruction { input, .. } = alpaca.content else { panic!("not an instruction") };
        assert_eq!(input.as_deref(), Some("i"));
    }

    #[test]
    fn all_that_is_wrong_with_a_row_is_said() {
        let reasons = |format: Format, value| format.record(1, value, &LoadOptions::default()).unwrap_err();
        insta::assert_snapshot!(reasons(Format::Alpaca, json!({"instruction": 1, "output": " ", "input": []})),
            @"`output` is empty; `input` should be text, found a list");
        insta::assert_snapshot!(reasons(Format::Gsm8k, json!({"answer": "no number"})),
            @"no field `question` (found: answer); `answer` does not end in `#### N`");
        insta::assert_snapshot!(reasons(Format::Text, json!("bare")),
            @"expected an object with named fields, found text");
        insta::assert_snapshot!(reasons(Format::Messages, json!({"messages": [{"role": "user", "content": "q"}]})),
            @"`messages` has no turn of the assistant");
    }

    #[test]
    fn an_unknown_format_name_lists_the_names() {
        insta::assert_snapshot!("gsm".parse::<Format>().unwrap_err(),
            @"unknown format `gsm`; expected one of messages, sharegpt, metamathqa, gsm8k, math, svamp, alpaca, prompt-completion, text");
    }
}
