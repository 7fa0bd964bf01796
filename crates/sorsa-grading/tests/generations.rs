//! The faithful grader on texts as models write them: each line of `generations.jsonl` has the verdict of a careful person.

use std::time::{Duration, Instant};

use serde_json::Value;
use sorsa_grading::grade::{AnswerKind, Grader};

fn lines() -> Vec<Value> {
    include_str!("generations.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn verdict(line: &Value) -> (bool, Option<String>) {
    let kind = if line["kind"] == "number" { AnswerKind::Number } else { AnswerKind::Expression };
    let [gold, text] = ["gold", "text"].map(|field| line[field].as_str().unwrap());
    let verdict = Grader::Faithful.grade_as(kind, gold, text);
    (verdict.correct, verdict.extracted)
}

#[test]
fn every_text_gets_the_verdict_of_a_person() {
    let lines = lines();
    assert!(lines.len() > 250, "only {} lines", lines.len());
    let mut wrong = Vec::new();
    for line in &lines {
        let (correct, extracted) = verdict(line);
        if line["right"] != correct {
            wrong.push(format!("{line} extracted {extracted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), lines.len(), wrong.join("\n"));
}

#[test]
fn another_gold_answer_is_never_right() {
    for line in lines() {
        let other = Value::from_iter([
            ("kind", line["kind"].clone()),
            ("gold", "987654".into()),
            ("text", line["text"].clone()),
        ]);
        assert!(!verdict(&other).0, "{line}");
    }
}

#[test]
fn long_texts_are_graded_in_time_that_grows_with_their_length() {
    let texts = [
        format!("The answer is: \\begin{{a}}\n{}", "x\n".repeat(200_000)),
        "The answer is: 5\n".repeat(50_000),
        "The answer is:\n".repeat(50_000),
        format!("The answer is: {}5", "$".repeat(200_000)),
        "#### 1. Step\n".repeat(50_000),
        "\\boxed{".repeat(50_000),
        "\\boxed{1}, ".repeat(50_000),
        format!("The answer is: {}", "**1** ".repeat(50_000)),
        format!("The answer is: {}", "(1 ".repeat(100_000)),
        format!("The answer is: {}", "\"'".repeat(100_000)),
        format!("The answer is: {}1{}", "**".repeat(100_000), "**".repeat(100_000)),
        format!("#### 5{}", "\nQuestion".repeat(50_000)),
        "<|a|>".repeat(50_000),
    ];
    for text in &texts {
        for kind in [AnswerKind::Number, AnswerKind::Expression] {
            let started = Instant::now();
            let _ = Grader::Faithful.grade_as(kind, "4", text);
            let took = started.elapsed();
            assert!(took < Duration::from_secs(3), "{took:?} for {:?}..", &text[..30]);
        }
    }
}
