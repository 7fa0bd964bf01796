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

#[test]
fn a_chat_template_is_chosen_by_its_name_and_kept_by_a_merge() {
    let place = place();
    let body = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}";
    let end = "{% if add_generation_prompt %}[assistant]{% endif %}";
    place.write("model/chat_template.jinja", format!("D{body}{end}"));
    std::fs::create_dir(place.path("model/additional_chat_templates")).unwrap();
    place.write("model/additional_chat_templates/short.jinja", format!("S{body}{end}"));
    let train = |run: &str, options: &[&str]| {
        place.finetune(&["--max-steps", "1", "--run-dir", run]).args(options).succeed();
        std::fs::read_to_string(place.path(run).join("recipe.toml")).unwrap()
    };
    let recipe = train("run", &["--chat-template", "short"]);
    assert!(recipe.contains("template = \"chat\"\nchat_template = \"short\""), "{recipe}");
    assert!(!train("default", &["--template", "chat"]).contains("chat_template"));
    let prompt = |out: &str, options: &[&str]| -> String {
        let mut command =
            place.command(&["eval", "--quiet", "--data", "problems.jsonl", "--max-new-tokens", "2", "--out", out]);
        command.args(options).succeed();
        let lines = std::fs::read_to_string(place.path(out)).unwrap();
        let answer: Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
        answer["prompt"].as_str().unwrap().chars().take(1).collect()
    };
    // The run's own, unless an option names another.
    assert_eq!(prompt("run.jsonl", &["--adapter", "run"]), "S");
    assert_eq!(prompt("other.jsonl", &["--adapter", "run", "--chat-template", "default"]), "D");
    assert_eq!(prompt("base.jsonl", &["--model", "model", "--chat-template", "short"]), "S");
    let generate = |options: &[&str]| {
        let output = place.command(&["generate", "--max-new-tokens", "2", "Tom"]).args(options).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(generate(&["--adapter", "run"]).0, Some(0));
    let (code, error) = generate(&["--model", "model", "--chat-template", "long"]);
    assert!(code == Some(2) && error.contains("no chat template named `long`; it has default, short"), "{error}");
    let (code, error) = generate(&["--model", "model", "--chat-template", "short", "--template", "raw"]);
    assert!(code == Some(2) && error.contains("needs the template chat, and the template is raw"), "{error}");
    let refused = place.finetune(&["--set", "data.chat_template=short", "--max-steps", "1"]).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("data.chat_template = \"short\" needs data.template = \"chat\", found alpaca"), "{error}");

    for _ in 0..2 {
        place.command(&["merge", "--adapter", "run", "--out", "merged"]).succeed();
        let kept = place.path("merged/additional_chat_templates/short.jinja");
        assert_eq!(std::fs::read_to_string(kept).unwrap(), format!("S{body}{end}"));
    }
}

#[test]
fn data_in_csv_are_trained_on_and_answered() {
    let place = place();
    place.write(
        "rows.csv",
        "question,answer\n\"Tom has 3 apples, and \"\"4\"\"?\",\"7\n#### 7\"\n".to_owned()
            + &"What is 1?,\"1\n#### 1\"\n".repeat(9),
    );
    place
        .command(&["finetune", "--quiet", "--model", "model", "--data", "rows.csv", "--rank", "2", "--batch-size", "2"])
        .args(["--max-steps", "1", "--run-dir", "run", "--set", "data.validation_rows=2"])
        .succeed();
    let answered = place
        .command(&["eval", "--quiet", "--model", "model", "--data", "rows.csv", "--max-new-tokens", "2"])
        .succeed();
    assert!(answered.contains("10 "), "{answered}");
}
