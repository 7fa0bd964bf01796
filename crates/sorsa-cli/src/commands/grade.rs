//! `sorsa grade`: grades generations that were made elsewhere.

use serde::Serialize;
use serde_json::{Map, Value};
use sorsa_experiment::answer::Verdicts;
use sorsa_experiment::json_lines;
use sorsa_experiment::scoreboard::{GradedRow, Scoreboard};
use sorsa_files::write_atomic;
use sorsa_grading::grade::AnswerKind;

use crate::args::{GradeArgs, GradeTask};
use crate::exit::bad_input;
use crate::format::{TableFormat, print, print_json};

/// The usual names of the generated text and of the gold answer, in the order in which they are tried.
const PREDICTIONS: [&str; 6] = ["prediction", "generation", "generated", "output", "completion", "response"];
const GOLDS: [&str; 5] = ["gold", "answer", "expected", "solution", "target"];

/// One line of the file and its verdicts.
#[derive(Debug, Serialize)]
struct Graded {
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    expected: String,
    generated: String,
    #[serde(flatten)]
    verdicts: Verdicts,
}

pub fn run(args: &GradeArgs) -> anyhow::Result<()> {
    let kind = match args.task {
        GradeTask::Math => AnswerKind::Expression,
        GradeTask::Gsm8k | GradeTask::Svamp | GradeTask::Embedded => AnswerKind::Number,
        GradeTask::Humaneval => {
            return Err(bad_input("programs are graded by running them: sorsa eval --allow-code-execution"));
        }
    };
    let name = args.file.display();
    let text =
        std::fs::read_to_string(&args.file).map_err(|error| bad_input(format!("cannot read {name}: {error}")))?;
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match graded(args, kind, index + 1, line) {
            Ok(row) => rows.extend(row),
            Err(reason) => faults.push(format!("line {}: {reason}", index + 1)),
        }
    }
    if !faults.is_empty() {
        let (shown, more) = (faults[..faults.len().min(5)].join("\n"), faults.len().saturating_sub(5));
        let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
        return Err(bad_input(format!("{name}: {} lines cannot be graded:\n{shown}{more}", faults.len())));
    }
    if rows.is_empty() {
        return Err(bad_input(format!("{name} holds no generations")));
    }
    if let Some(out) = &args.out {
        write_atomic(out, json_lines(&rows)?)?;
    }
    if let Some(out) = &args.disagreements {
        let disputed: Vec<&Graded> = rows.iter().filter(|row| row.verdicts.disputed()).collect();
        write_atomic(out, json_lines(&disputed)?)?;
    }
    let graded = rows.iter().map(|graded| GradedRow {
        problem: graded.line,
        level: graded.level.as_deref(),
        kind: graded.kind.as_deref(),
        verdicts: &graded.verdicts,
    });
    let board = Scoreboard::new(graded.collect(), 1);
    if args.format == TableFormat::Json {
        return print_json(&board.json(Map::from_iter([("problems".to_owned(), rows.len().into())])));
    }
    print(args.format.table(&board.table()).unwrap_or_default().trim_end())?;
    if args.format == TableFormat::Table {
        print(format_args!("{} answers that the graders disagree on", board.disputed()))?;
    }
    Ok(())
}

/// Grades one line; nothing for the settings that `sorsa eval` writes first.
fn graded(args: &GradeArgs, kind: AnswerKind, line: usize, text: &str) -> Result<Option<Graded>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let fields = value.as_object().ok_or("expected an object with named fields")?;
    if line == 1 && fields.len() == 1 && fields.contains_key("settings") {
        return Ok(None);
    }
    let generated = field(fields, args.prediction_field.as_deref(), &PREDICTIONS)?;
    let expected = field(fields, args.gold_field.as_deref(), &GOLDS)?;
    let verdicts = Verdicts::of(kind, &expected, &generated);
    let label = |names: [&str; 2]| names.into_iter().find_map(|name| fields.get(name)?.as_str().map(str::to_owned));
    Ok(Some(Graded {
        line,
        level: label(["level", "Level"]),
        kind: label(["kind", "type"]),
        expected,
        generated,
        verdicts,
    }))
}

/// The text of the field asked for, or of the first usual one there is. A number is its decimal form.
fn field(fields: &Map<String, Value>, asked: Option<&str>, usual: &[&str]) -> Result<String, String> {
    let found = || fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let name = match asked {
        Some(name) => name,
        None => usual
            .iter()
            .copied()
            .find(|name| fields.contains_key(*name))
            .ok_or_else(|| format!("none of the fields {} (found: {})", usual.join(", "), found()))?,
    };
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        // A generation may be empty.
        Some(Value::Null) => Ok(String::new()),
        Some(_) => Err(format!("`{name}` should be text")),
        None => Err(format!("no field `{name}` (found: {})", found())),
    }
}
