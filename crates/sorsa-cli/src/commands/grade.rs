//! `sorsa grade`: grades generations that were made elsewhere.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};
use sorsa_experiment::answer::Verdicts;
use sorsa_experiment::json_lines;
use sorsa_experiment::scoreboard::{GradedRow, Scoreboard};
use sorsa_files::write_atomic;
use sorsa_grading::grade::AnswerKind;

use crate::args::{GradeArgs, GradeTask};
use crate::exit::{OrBadInput, bad_input};
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
    let read = sorsa_data::read_rows(&args.file, usize::MAX).or_bad_input()?;
    let mut ambiguous = BTreeSet::new();
    let (rows, faults) = read.convert(|line, row| graded(args, kind, line, row, &mut ambiguous));
    if faults.count > 0 {
        let shown: Vec<String> =
            faults.first.iter().take(5).map(|bad| format!("{} {}: {}", faults.unit, bad.row, bad.reason)).collect();
        let more = faults.count - shown.len();
        let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
        let shown = shown.join("\n");
        return Err(bad_input(format!("{name}: {} {}s cannot be graded:\n{shown}{more}", faults.count, faults.unit)));
    }
    for (taken, other) in &ambiguous {
        eprintln!("note: {name} has the fields `{taken}` and `{other}`: `{taken}` is graded");
    }
    let rows: Vec<Graded> = rows.into_iter().flatten().collect();
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

/// Grades one row; nothing for the settings that `sorsa eval` writes first. `ambiguous` gets the names of fields that could be
/// meant as well as those that are taken.
fn graded(
    args: &GradeArgs,
    kind: AnswerKind,
    line: usize,
    row: Value,
    ambiguous: &mut BTreeSet<(&'static str, &'static str)>,
) -> Result<Option<Graded>, String> {
    let fields = row.as_object().ok_or("expected an object with named fields")?;
    if line == 1 && fields.len() == 1 && fields.contains_key("settings") {
        return Ok(None);
    }
    // A generation may be empty.
    let generated = field(fields, args.prediction_field.as_deref(), &PREDICTIONS)?.unwrap_or_default();
    let expected = match field(fields, args.gold_field.as_deref(), &GOLDS)? {
        Some(expected) if !expected.trim().is_empty() => expected,
        _ => return Err("the gold answer is missing".to_owned()),
    };
    for (asked, usual) in [(&args.prediction_field, &PREDICTIONS[..]), (&args.gold_field, &GOLDS)] {
        let mut there = usual.iter().copied().filter(|name| fields.contains_key(*name));
        if asked.is_none()
            && let (Some(taken), Some(other)) = (there.next(), there.next())
        {
            ambiguous.insert((taken, other));
        }
    }
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

/// The text of the field asked for, or of the first usual one there is; `None` if it is null. A number is its decimal form.
fn field(fields: &Map<String, Value>, asked: Option<&str>, usual: &[&str]) -> Result<Option<String>, String> {
    let found = || {
        let names: Vec<&str> = fields.keys().take(5).map(String::as_str).collect();
        let more = if fields.len() > 5 { format!(" and {} more", fields.len() - 5) } else { String::new() };
        format!("{}{more}", names.join(", "))
    };
    let name = match asked {
        Some(name) => name,
        None => usual
            .iter()
            .copied()
            .find(|name| fields.contains_key(*name))
            .ok_or_else(|| format!("none of the fields {} (found: {})", usual.join(", "), found()))?,
    };
    match fields.get(name) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::Null) => Ok(None),
        Some(_) => Err(format!("`{name}` should be text")),
        None => Err(format!("no field `{name}` (found: {})", found())),
    }
}
