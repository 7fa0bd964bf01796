//! Where texts end: `--stop`, the end of a chat template's turn, and parts of a tokenizer's folder that nobody asked for.

mod common;

use common::{Place, Succeed};
use serde_json::Value;

/// A problem, and what the tiny model writes after it: nothing of sense.
const PROBLEM: &str = r#"{"question": "Tom has 3 apples", "answer": "No.\n#### 3"}"#;

/// Greedy choice repeats one token.
const SAMPLED: [&str; 4] = ["--temperature", "1.5", "--seed", "3"];

fn place() -> Place {
    let place = Place::new();
    place.write("problems.jsonl", PROBLEM);
    place
}

/// A text that stands once in the middle of `text`, and what comes before it.
fn middle(text: &str) -> (String, String) {
    let starts = (text.len() / 3..text.len() - 2).filter(|at| text.is_char_boundary(*at));
    for at in starts {
        let end = text.ceil_char_boundary(at + 3);
        let stop = &text[at..end];
        if !stop.trim().is_empty() && text.find(stop) == Some(at) {
            return (stop.to_owned(), text[..at].to_owned());
        }
    }
    panic!("no text that stands once in {text:?}");
}

#[test]
fn a_generation_ends_before_the_text_of_an_option() {
    let place = place();
    let generate = |options: &[&str]| {
        let command = ["generate", "--model", "model", "--max-new-tokens", "24", "Tom has 3 apples"];
        let printed = place.command(&[&command, &SAMPLED[..], options].concat()).succeed();
        printed.strip_suffix('\n').unwrap().to_owned()
    };
    let whole = generate(&[]);
    let (stop, before) = middle(&whole);
    assert_eq!(generate(&["--stop", &stop]), before);
    assert_eq!(generate(&["--stop", "never written", "--stop", &stop]), before);
    assert_eq!(generate(&["--stop", "never written"]), whole);
}

#[test]
fn an_answer_ends_before_the_text_of_an_option() {
    let place = place();
    let answer = |name: &str, options: &[&str]| -> Value {
        let command = [
            "eval",
            "--quiet",
            "--model",
            "model",
            "--data",
            "problems.jsonl",
            "--max-new-tokens",
            "24",
            "--out",
            name,
        ];
        place.command(&[&command, &SAMPLED[..], options].concat()).succeed();
        let lines = std::fs::read_to_string(place.path(name)).unwrap();
        serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap()
    };
    let whole = answer("whole.jsonl", &[]);
    let (stop, before) = middle(whole["generated"].as_str().unwrap());
    let cut = answer("cut.jsonl", &["--stop", &stop]);
    assert_eq!((&cut["generated"], &cut["finished"]), (&before.into(), &true.into()));
    assert!(cut["tokens"].as_u64() <= whole["tokens"].as_u64());
    let settings = std::fs::read_to_string(place.path("cut.jsonl")).unwrap();
    assert!(settings.lines().next().unwrap().contains(r#""stop":["#), "{settings}");
}

#[test]
fn a_chat_template_that_cannot_be_compiled_stops_chats_alone() {
    let place = place();
    place.write("model/chat_template.jinja", "{% for m in messages %}{% nonsense %}{% endfor %}");
    for template in ["raw", "alpaca"] {
        place.finetune(&["--template", template, "--max-steps", "1", "--run-dir", template]).succeed();
        let recipe = std::fs::read_to_string(place.path(template).join("recipe.toml")).unwrap();
        assert!(recipe.contains(&format!("template = \"{template}\"")), "{recipe}");
    }
    place.command(&["generate", "--model", "model", "--max-new-tokens", "2", "Tom"]).succeed();
    let refused = place.finetune(&["--template", "chat", "--max-steps", "1", "--run-dir", "chat"]).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("chat template") && error.contains("nonsense"), "{error}");
}

#[test]
fn a_template_without_an_end_is_said_before_training() {
    let place = place();
    let said = |template: &str, run: &str| {
        place.write("model/chat_template.jinja", template);
        let options = ["finetune", "--model", "model", "--data", "data.jsonl", "--rank", "4", "--template", "chat"];
        let mut command = place.command(&options);
        let output = command.args(["--max-steps", "1", "--run-dir", run]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        text.matches("writes nothing after an answer").count()
    };
    let body = "{% for m in messages %}[{{ m.role }}]{{ m.content }}";
    let end = "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    assert_eq!(said(&format!("{body}{end}"), "open"), 1);
    assert_eq!(said(&format!("{body}{{{{ eos_token }}}}{end}"), "closed"), 0);
}
