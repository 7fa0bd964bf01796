//! Compares chat templates with Transformers: `tests/golden/chat_templates`, and the file of other templates in
//! `SORSA_CHAT_TEMPLATES` if there is one. `make_chat_templates.py` makes both.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use serde_json::{Map, Value};
use sorsa_data::{
    ChatTemplate, Content, Conversation, DataError, EncodeOptions, Encoder, Message, PromptTemplate, Record,
    TextTokenizer,
};

#[derive(Deserialize)]
struct Cases {
    tokens: Map<String, Value>,
    templates: Vec<Template>,
    expressions: Option<Expressions>,
}

#[derive(Deserialize)]
struct Template {
    name: String,
    source: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Map<String, Value>>,
    tools: Option<Value>,
    /// What Transformers renders, or its error.
    text: Option<String>,
    prompt: Option<String>,
    error: Option<String>,
    /// Bytes of the text that the assistant writes, if it is known.
    spans: Option<Vec<[usize; 2]>>,
    /// Token ids of the text, and a digit for each: whether the assistant writes it.
    ids: Option<String>,
    mask: Option<String>,
}

#[derive(Deserialize)]
struct Expressions {
    messages: Vec<Map<String, Value>>,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    source: String,
    text: Option<String>,
}

fn conversation(messages: &[Map<String, Value>], tools: Option<&Value>) -> Conversation {
    let text = |fields: &Map<String, Value>, name: &str| fields[name].as_str().unwrap_or_default().to_owned();
    let message = |fields: &Map<String, Value>| Message {
        role: text(fields, "role"),
        content: text(fields, "content"),
        fields: fields.clone(),
        trained: true,
    };
    let variables = tools.map(|tools| ("tools".to_owned(), tools.clone())).into_iter().collect();
    Conversation { messages: messages.iter().map(message).collect(), variables }
}

fn read(path: &Path) -> Cases {
    serde_json::from_slice(&std::fs::read(path).expect("the cases")).expect("JSON of cases")
}

fn golden() -> Cases {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat_templates/cases.json"))
}

/// How a template compares: cases alike of all, in text and in what is trained.
#[derive(Default)]
struct Comparison {
    texts: [usize; 2],
    spans: [usize; 2],
    tokens: [usize; 2],
    /// Cases in which the assistant's part cannot be told, and why.
    refused: Vec<String>,
    differences: Vec<String>,
}

impl Comparison {
    fn count(&mut self, what: &str, counts: fn(&mut Self) -> &mut [usize; 2], difference: Option<String>) {
        let counted = counts(self);
        counted[1] += 1;
        match difference {
            None => counted[0] += 1,
            Some(difference) => self.differences.push(format!("{what}: {difference}")),
        }
    }
}

fn different<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Option<String> {
    (found != expected).then(|| format!("found    {found:?}\n    expected {expected:?}"))
}

/// The tokens of a conversation and the mask of the targets, like the cases have them.
fn encoded(template: &ChatTemplate, conversation: &Conversation) -> Result<(String, String), DataError> {
    static TOKENIZER: LazyLock<Arc<TextTokenizer>> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/base");
        Arc::new(TextTokenizer::from_dir(folder).unwrap())
    });
    let options = EncodeOptions { max_length: usize::MAX, append_eos: false, ..EncodeOptions::default() };
    let encoder = Encoder::new(Arc::clone(&TOKENIZER), PromptTemplate::Chat(template.clone()), options)?;
    let record = Record::new(1, Content::Chat(conversation.clone()));
    // Nothing is encoded if the assistant says nothing.
    let Some(example) = encoder.encode(&record)?.pop() else { return Ok(Default::default()) };
    let ids: Vec<String> = example.ids.iter().map(u32::to_string).collect();
    Ok((ids.join(" "), example.target_mask.iter().map(|target| if *target { '1' } else { '0' }).collect()))
}

fn compare(template: &Template, tokens: &Map<String, Value>) -> Comparison {
    let mut comparison = Comparison::default();
    let compiled = match ChatTemplate::with_special_tokens(&template.source, tokens.clone()) {
        Ok(compiled) => compiled,
        Err(error) => {
            comparison.count("compile", |counts| &mut counts.texts, Some(error.to_string()));
            return comparison;
        }
    };
    for case in &template.cases {
        let conversation = conversation(&case.messages, case.tools.as_ref());
        let found = compiled.render_conversation(&conversation);
        let (Some(text), Some(prompt)) = (&case.text, &case.prompt) else {
            let refused = if found.is_err() { None } else { Some(format!("expected the error {:?}", case.error)) };
            comparison.count(&case.name, |counts| &mut counts.texts, refused);
            continue;
        };
        let texts = found.and_then(|text| Ok((text, compiled.render_prompt(&conversation)?)));
        let difference = match texts {
            Ok((found_text, found_prompt)) => different(&found_text, text).or(different(&found_prompt, prompt)),
            Err(error) => Some(error.to_string()),
        };
        comparison.count(&case.name, |counts| &mut counts.texts, difference);
        let Some(spans) = &case.spans else { continue };
        let trained = |spans: &[[usize; 2]]| -> Vec<String> {
            let part = |[start, end]: &[usize; 2]| text.get(*start..*end).unwrap_or("no characters").to_owned();
            spans.iter().map(part).collect()
        };
        let difference = match compiled.render_with_assistant_spans(&conversation) {
            Ok((_, found)) => {
                let found: Vec<[usize; 2]> =
                    found.iter().filter(|span| !span.is_empty()).map(|span| [span.start, span.end]).collect();
                match different(trained(&found), trained(spans)) {
                    None => different(found, spans.clone()),
                    difference => difference,
                }
            }
            Err(error @ DataError::AmbiguousTurn { .. }) => {
                comparison.refused.push(format!("{}: {error}", case.name));
                continue;
            }
            Err(error) => Some(error.to_string()),
        };
        let is_same = difference.is_none();
        comparison.count(&case.name, |counts| &mut counts.spans, difference);
        if let (true, Some(ids), Some(mask)) = (is_same && !spans.is_empty(), &case.ids, &case.mask) {
            let difference = match encoded(&compiled, &conversation) {
                Ok(found) => different(found, (ids.clone(), mask.clone())),
                Err(error) => Some(error.to_string()),
            };
            comparison.count(&case.name, |counts| &mut counts.tokens, difference);
        }
    }
    comparison
}

#[test]
fn texts_and_what_the_assistant_says_are_those_of_transformers() {
    let cases = golden();
    assert!(cases.templates.len() >= 8);
    for template in &cases.templates {
        let comparison = compare(template, &cases.tokens);
        assert!(comparison.differences.is_empty(), "{}: {}", template.name, comparison.differences.join("\n"));
        assert!(comparison.spans[1] >= 3 && comparison.tokens[1] >= 3, "{}", template.name);
    }
}

#[test]
fn expressions_are_written_as_jinja2_writes_them_or_refused() {
    let cases = golden();
    let expressions = cases.expressions.expect("expressions");
    let conversation = conversation(&expressions.messages, None);
    let render = |source: &str| -> Result<String, DataError> {
        ChatTemplate::with_special_tokens(source, cases.tokens.clone())?.render_conversation(&conversation)
    };
    let mut differences = Vec::new();
    for Line { source, text } in &expressions.lines {
        match (render(source), text) {
            (Ok(found), Some(expected)) if found == *expected => {}
            (Err(_), None) => {}
            (found, expected) => differences.push(format!("{source}\n  found    {found:?}\n  expected {expected:?}")),
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn published_templates_are_as_in_transformers() {
    let Some(path) = std::env::var_os("SORSA_CHAT_TEMPLATES").map(PathBuf::from) else { return };
    let cases = read(&path);
    let mut table =
        String::from("| template | text | assistant's part | its tokens | refused |\n|---|---|---|---|---|\n");
    let (mut differences, mut refused) = (Vec::new(), Vec::new());
    for template in &cases.templates {
        let comparison = compare(template, &cases.tokens);
        let ([texts, of_texts], [spans, of_spans]) = (comparison.texts, comparison.spans);
        let [tokens, of_tokens] = comparison.tokens;
        table += &format!(
            "| {} | {texts} of {of_texts} | {spans} of {of_spans} | {tokens} of {of_tokens} | {} |\n",
            template.name,
            comparison.refused.len()
        );
        refused.extend(comparison.refused.into_iter().map(|refusal| format!("{}, {refusal}", template.name)));
        differences
            .extend(comparison.differences.into_iter().map(|difference| format!("{}, {difference}", template.name)));
    }
    println!("{table}\nrefused:\n{}", refused.join("\n"));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
