//! `sorsa eval` and `sorsa grade`: what is kept, gone on with, and counted.

mod common;

use common::{Place, Succeed};
use serde_json::{Value, json};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The rows of a file of generations, without its settings.
fn rows(place: &Place, name: &str) -> Vec<Value> {
    std::fs::read_to_string(place.path(name)).unwrap().lines().skip(1).map(json_of).collect()
}

const EVAL: [&str; 8] = ["eval", "--model", "model", "--data", "data.jsonl", "--limit", "9", "--quiet"];

#[test]
fn generations_made_elsewhere_are_graded_side_by_side() {
    let place = Place::new();
    let lines = [
        json!({"gold": "18", "prediction": "The answer is: 18"}),
        json!({"gold": "18", "prediction": "The answer is: 18.4"}),
        json!({"gold": "#### 1,000", "prediction": "#### 1000"}),
        json!({"gold": 5, "prediction": "I do not know."}),
    ];
    place.write("graded.jsonl", lines.map(|line| line.to_string() + "\n").concat());
    let grade = ["grade", "graded.jsonl", "--disagreements", "disputed.jsonl"];
    let result = json_of(&place.command(&grade).args(["--format", "json"]).succeed());
    let counts = ["faithful", "strict", "author"].map(|grader| result["graders"][grader]["correct"].as_u64().unwrap());
    assert_eq!((counts, &result["disagreements"]), ([2, 2, 2], &json!(2)));
    assert_eq!(result["graders"]["faithful"]["unanswered"], 0.25);
    let disputed = std::fs::read_to_string(place.path("disputed.jsonl")).unwrap();
    let disputed: Vec<Value> = disputed.lines().map(|line| json_of(line)["line"].clone()).collect();
    assert_eq!(disputed, [2, 3]);
    let tables =
        ["table", "markdown", "latex"].map(|format| place.command(&grade).args(["--format", format]).succeed());
    insta::assert_snapshot!("graded_in_every_format", tables.join("\n"));
}

#[test]
fn math_is_graded_by_its_own_rules_level_by_level() {
    let place = Place::new();
    let lines = [
        json!({"solution": r"so $\boxed{x/2}$", "generation": "The answer is: 5", "level": "Level 1", "type": "Algebra"}),
        json!({"solution": r"\boxed{(x+1)^2}", "generation": "The answer is: x^2+2x+1", "level": "Level 5", "type": "Algebra"}),
    ];
    place.write("math.jsonl", lines.map(|line| line.to_string() + "\n").concat());
    let result = json_of(&place.command(&["grade", "math.jsonl", "--task", "math", "--format", "json"]).succeed());
    let correct = |group: &Value, grader: &str| group["graders"][grader]["correct"].as_u64().unwrap();
    assert_eq!(
        (correct(&result["by_level"]["Level 1"], "author"), correct(&result["by_level"]["Level 1"], "faithful")),
        (1, 0)
    );
    assert_eq!(correct(&result["by_level"]["Level 5"], "faithful"), 1);
    assert_eq!(result["by_kind"]["Algebra"]["answers"], 2);
}

#[test]
fn lines_that_cannot_be_graded_are_named() {
    let place = Place::new();
    place.write("bad.jsonl", "{\"gold\": \"1\"}\nnonsense\n{\"gold\": \"1\", \"output\": [1]}\n");
    let output = place.command(&["grade", "bad.jsonl"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap());
}

#[test]
fn generations_are_read_like_any_data_and_a_missing_gold_answer_is_named() {
    let place = Place::new();
    place.write("array.json", "\u{FEFF}[{\"gold\": 18, \"output\": \"#### 18\"}, {\"gold\": \"5\", \"output\": null}]");
    let graded = json_of(&place.command(&["grade", "array.json", "--format", "json"]).succeed());
    assert_eq!((&graded["answers"], &graded["graders"]["faithful"]["correct"]), (&2.into(), &1.into()));
    place.write("nulls.jsonl", "{\"gold\": \"1\", \"output\": \"\"}\r\n{\"gold\": null, \"output\": \"#### 1\"}\r\n{\"gold\": \" \", \"output\": \"1\"}");
    let output = place.command(&["grade", "nulls.jsonl"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @"error: nulls.jsonl: 2 lines cannot be graded: line 2: the gold answer is missing; line 3: the gold answer is missing");
    place.write("two.jsonl", "{\"gold\": \"1\", \"prediction\": \"\", \"response\": \"#### 1\"}");
    let output = place.command(&["grade", "two.jsonl"]).output().unwrap();
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @"note: two.jsonl has the fields `prediction` and `response`: `prediction` is graded");
}

#[test]
fn problems_that_do_not_fit_are_left_out_on_demand() {
    let place = Place::new();
    let row = |question: &str| format!("{{\"question\": \"{question}\", \"answer\": \"#### 1\"}}\n");
    place.write("long.jsonl", [row("Tom has 1 apple."), row(&"cat ".repeat(600)), row("Ann has 1 apple.")].concat());
    let options = ["eval", "--quiet", "--data", "long.jsonl", "--max-new-tokens", "2", "--format", "json"];
    let output = place.command(&options).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("row 2 has "));
    let output = place.command(&options).arg("--skip-bad-rows").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("long.jsonl: 1 rows left out: row 2: ") && said.contains("the model's context is 256"),
        "{said}"
    );
    assert_eq!(json_of(&String::from_utf8(output.stdout).unwrap())["problems"], 2);
    let fine = ["--method", "lora", "--rank", "1", "--max-steps", "1", "--data", "long.jsonl", "--skip-bad-rows"];
    let set = ["--set", "eval.problems=0", "--set", "data.max_length=100", "--set", "data.truncation=error"];
    let output = place.command(&["finetune", "--run-dir", "r"]).args(fine).args(set).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("1 rows left out: row 2: "), "{said}");
}

#[test]
fn an_evaluation_that_was_ended_goes_on_where_it_stopped() {
    let place = Place::new();
    let run = |out: &str, batch: &str| {
        let options = ["--max-new-tokens", "12", "--format", "json", "--out", out, "--batch-size", batch];
        json_of(&place.command(&EVAL).args(options).succeed())
    };
    run("whole.jsonl", "1");
    let whole = rows(&place, "whole.jsonl");
    assert_eq!(whole.len(), 9);
    // What a process that was killed leaves: some rows, in any order, and a line cut short.
    let text = std::fs::read_to_string(place.path("whole.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    place.write("cut.jsonl", format!("{}\n{}\n{}\n{}", lines[0], lines[4], lines[2], &lines[3][..40]));
    let result = run("cut.jsonl", "4");
    assert_eq!((&result["resumed"], &result["problems"]), (&json!(2), &json!(9)));
    assert_eq!(rows(&place, "cut.jsonl"), whole, "and whatever is generated together says the same");
    assert_eq!(run("cut.jsonl", "4")["resumed"], 9);

    let others = ["--max-new-tokens", "13", "--out", "cut.jsonl"];
    let output = place.command(&EVAL).args(others).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("max_new_tokens is 12 there and 13 here"), "{error}");
}

#[test]
fn answers_of_what_a_folder_held_before_are_not_gone_on_with() {
    let place = Place::new();
    place.finetune(&["--max-steps", "1", "--run-dir", "run"]).succeed();
    let run = |options: &[&str]| {
        let all = ["--max-new-tokens", "4", "--out", "answers.jsonl"];
        place.command(&EVAL).args(all).args(options).output().unwrap()
    };
    let refused = |options: &[&str], what: &str| {
        let output = run(options);
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(&format!("{what} is \"")) && error.contains("name another file"), "{error}");
        // One fault, not two.
        assert!(!error.contains(", "), "{error}");
    };
    assert!(run(&["--adapter", "run"]).status.success());
    assert!(run(&["--adapter", "run"]).status.success(), "the same again is gone on with");
    // Another adapter in a folder of the same name.
    std::fs::remove_dir_all(place.path("run")).unwrap();
    place.finetune(&["--max-steps", "1", "--run-dir", "run", "--seed", "7"]).succeed();
    refused(&["--adapter", "run"], "adapter_content");
    // Another model in a folder of the same name.
    std::fs::remove_file(place.path("answers.jsonl")).unwrap();
    assert!(run(&[]).status.success());
    std::fs::remove_dir_all(place.path("model")).unwrap();
    place.make_model("model", 1);
    refused(&[], "model_content");
}

#[test]
fn samples_are_drawn_apart_and_alike_in_every_batch() {
    let place = Place::new();
    let run = |out: &str, batch: &str| {
        let options = ["--max-new-tokens", "6", "--samples", "3", "--temperature", "1", "--format", "json"];
        let place = place.command(&EVAL).args(options).args(["--out", out, "--batch-size", batch]).succeed();
        json_of(&place)
    };
    let result = run("one.jsonl", "1");
    let keys: Vec<&str> = result["pass_at"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((keys, &result["answers"]), (vec!["1", "2", "3"], &json!(27)));
    let samples = rows(&place, "one.jsonl");
    assert_eq!(samples.len(), 27);
    assert!(samples[0]["generated"] != samples[1]["generated"] || samples[1]["generated"] != samples[2]["generated"]);
    run("many.jsonl", "8");
    assert_eq!(rows(&place, "many.jsonl"), samples);
    let output = place.command(&EVAL).args(["--samples", "2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "several greedy generations are refused");
}

#[cfg(unix)]
#[test]
fn programs_are_run_only_where_that_is_allowed() {
    let place = Place::new();
    // Whatever one token the model adds stands in a comment.
    let problem = |id: &str, value: u32| {
        let prompt = format!("def one():\n    return {value}\n# ");
        json!({"task_id": id, "prompt": prompt, "entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"})
    };
    place.write("code.jsonl", format!("{}\n{}\n", problem("right", 1), problem("wrong", 2)));
    let eval =
        ["eval", "--model", "model", "--data", "code.jsonl", "--max-new-tokens", "1", "--quiet", "--format", "json"];
    let output = place.command(&eval).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--allow-code-execution"));
    // Where there is no Python there is nothing more to test.
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let options = ["--allow-code-execution", "--out", "tested.jsonl"];
    let result = json_of(&place.command(&eval).args(options).succeed());
    assert_eq!((&result["passed"], &result["pass_at"]["1"]["mean"]), (&json!(1), &json!(0.5)), "{result}");
    let tested = rows(&place, "tested.jsonl");
    assert_eq!(tested[0]["passed"], true, "{}", tested[0]);
    assert_eq!(tested[1]["error"], "AssertionError");
}
