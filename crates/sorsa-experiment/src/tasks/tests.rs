use super::*;

fn recognised(text: &str, format: Option<Format>) -> &'static str {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    match format {
        Some(format) => recognise_as(&path, format).name(),
        None => recognise(&path).name(),
    }
}

#[test]
fn a_file_is_recognised_by_its_first_usable_row() {
    for (row, task) in [
        ("{\"question\": \"1 + 1?\", \"answer\": \"#### 2\"}", "number"),
        (r#"{"Body": "b", "Question": "q", "Answer": 2}"#, "number"),
        (r#"{"query": "q", "response": "The answer is: 2"}"#, "number"),
        (r#"{"problem": "p", "solution": "\\boxed{2}"}"#, "math"),
        (
            r#"{"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"}"#,
            "humaneval",
        ),
        (r#"{"text": "Once."}"#, "perplexity"),
        (r#"{"nothing": "known"}"#, "number"),
    ] {
        assert_eq!(recognised(&format!("\n{row}\n"), None), task, "{row}");
        assert_eq!(recognised(&format!("{{\"other\": 1}}\n{row}\n"), None), task, "{row}");
    }
    assert_eq!(recognise(Path::new("nowhere.jsonl")).name(), "number");
}

#[test]
fn a_format_that_is_named_decides_among_tasks_that_read_records() {
    let math = r#"{"problem": "p", "solution": "\\boxed{2}"}"#;
    assert_eq!(recognised(math, Some(Format::PromptCompletion)), "number");
    let program = r#"{"task_id": "T/0", "prompt": "p", "entry_point": "f", "test": "t"}"#;
    assert_eq!(
        recognised(program, Some(Format::Alpaca)),
        "humaneval",
        "a recipe names the format of its training data"
    );
}

#[test]
fn every_data_set_and_every_format_has_one_task() {
    let names = data_sets();
    assert!(names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1), "{names:?}");
    assert_eq!(of_data_set("svamp").unwrap().name(), "number");
    assert!(of_data_set("riddles").is_none());
    for format in Format::ALL {
        let tasks = TASKS.iter().filter(|task| task.formats().contains(&format)).count();
        assert_eq!(tasks, 1, "{format}");
    }
}
