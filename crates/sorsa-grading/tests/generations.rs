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

/// The rows of a file of the folder that `SORSA_DATA` names, if there is one.
fn data(file: &str) -> Vec<Value> {
    let Some(folder) = std::env::var_os("SORSA_DATA") else { return Vec::new() };
    let text = std::fs::read_to_string(std::path::Path::new(&folder).join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn all_gold_answers_of_math_are_right_in_every_wrapping() {
    let mut wrong = Vec::new();
    for row in ["math/test.jsonl", "math/train.jsonl"].iter().flat_map(|file| data(file)) {
        let [solution, answer] = ["solution", "answer"].map(|field| row[field].as_str().unwrap());
        let right = |text: &str| Grader::Faithful.grade_as(AnswerKind::Expression, answer, text).correct;
        for wrapped in [
            solution.to_owned(),
            format!("The answer is: ${answer}$."),
            format!("**The answer is:** ${answer}$"),
            format!("Thus\n\\[\n\\boxed{{{answer}}}\n\\]<|im_end|>\n<|im_start|>user\n\\boxed{{0}}"),
            format!("\\boxed{{}} So \\boxed{{{answer}}}.\n\nProblem: What is 7 + 8?\n\\boxed{{15}}"),
            format!("The answer is:\n\\[\n{answer}\n\\]"),
        ] {
            // Two rows have an empty box.
            if !right(&wrapped) && (!answer.is_empty() || wrapped == solution) {
                wrong.push(format!("{answer} in {wrapped}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn all_gold_answers_of_gsm8k_are_right_in_every_wrapping_and_no_others() {
    for row in ["gsm8k/test.jsonl", "gsm8k/train.jsonl"].iter().flat_map(|file| data(file)) {
        let solution = row["answer"].as_str().unwrap();
        let answer = solution.rsplit("#### ").next().unwrap();
        let right = |text: &str| Grader::Faithful.grade(solution, text).correct;
        for (before, after) in [
            ("#### ", ""),
            ("#### **", "**"),
            ("The answer is: $", ".00."),
            ("The answer is: ", " apples in total. Let me check: 1 + 1 = 2."),
            ("The answer is: **", "** (see above)"),
            ("The answer is: \\[ \\boxed{", "} \\]"),
            ("The answer is: x = ", ", as shown"),
            ("The answer is: ", "\n\nQuestion: 1 + 1?\n#### 77777"),
        ] {
            if !(answer.contains('.') && after.starts_with(".00")) {
                assert!(right(&format!("{before}{answer}{after}")), "{before}{answer}{after}");
            }
            assert!(!right(&format!("{before}{answer}1{after}")), "{before}{answer}1{after}");
        }
    }
}
