//! What the graders say of many answers: side by side, in all and by level and subject, with 95 % intervals.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sorsa_grading::grade::{AnswerKind, Grader, Score, Verdict};
use sorsa_grading::stats::{pass_at_k, score_interval};

use crate::format::{TableFormat, print, print_json};

/// The graders that every answer is judged by.
pub const GRADERS: [Grader; 3] = [Grader::Faithful, Grader::Strict, Grader::Author];

/// One answer and its verdicts, in the order of [`GRADERS`].
pub struct Judged<'a> {
    /// Which problem it answers.
    pub problem: usize,
    pub level: Option<&'a str>,
    pub kind: Option<&'a str>,
    pub verdicts: [&'a Verdict; 3],
}

impl Judged<'_> {
    /// Whether the graders differ.
    pub fn disputed(&self) -> bool {
        self.verdicts.iter().any(|verdict| verdict.correct != self.verdicts[0].correct)
    }
}

/// The verdicts on one text, in the order of [`GRADERS`].
pub fn judge(kind: AnswerKind, expected: &str, text: &str) -> [Verdict; 3] {
    GRADERS.map(|grader| grader.grade_as(kind, expected, text))
}

/// The answers of one group.
struct Group<'a> {
    name: String,
    rows: Vec<&'a Judged<'a>>,
}

impl Group<'_> {
    fn score(&self, grader: usize) -> Score {
        Score::of(self.rows.iter().map(|row| row.verdicts[grader]))
    }

    /// The chance of a right answer among `k`, over the problems.
    fn pass_at(&self, grader: usize, k: u64) -> Option<PassRate> {
        let mut problems: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for row in &self.rows {
            let (total, right) = problems.entry(row.problem).or_default();
            *total += 1;
            *right += u64::from(row.verdicts[grader].correct);
        }
        PassRate::of(problems.into_values(), k)
    }

    fn json(&self) -> Value {
        let graders: Map<String, Value> = GRADERS
            .into_iter()
            .enumerate()
            .map(|(index, grader)| {
                let score = self.score(index);
                let interval = score.correct.interval();
                let value = json!({
                    "accuracy": score.correct.rate(),
                    "correct": score.correct.successes,
                    "interval": [interval.low, interval.high],
                    "unanswered": score.unanswered.rate(),
                });
                (grader.name().to_owned(), value)
            })
            .collect();
        json!({ "answers": self.rows.len(), "graders": graders })
    }
}

/// The mean of pass@k over problems.
pub struct PassRate {
    mean: f64,
    problems: u64,
}

impl PassRate {
    /// From the generations and the right ones of each problem; `None` where one has fewer than `k`, or none is.
    pub fn of(problems: impl Iterator<Item = (u64, u64)>, k: u64) -> Option<Self> {
        let chances: Option<Vec<f64>> = problems.map(|(total, right)| pass_at_k(total, right, k)).collect();
        let chances = chances.filter(|chances| !chances.is_empty())?;
        Some(Self { mean: chances.iter().sum::<f64>() / chances.len() as f64, problems: chances.len() as u64 })
    }

    pub fn json(&self) -> Value {
        let interval = score_interval(self.mean, self.problems);
        json!({ "mean": self.mean, "interval": [interval.low, interval.high], "problems": self.problems })
    }

    /// `12.5 % [8.6, 17.8]`.
    pub fn percent(&self) -> String {
        let interval = score_interval(self.mean, self.problems);
        format!("{:.1} % [{:.1}, {:.1}]", 100.0 * self.mean, 100.0 * interval.low, 100.0 * interval.high)
    }
}

/// The `k` that are reported for so many samples.
pub fn reported(samples: u64) -> Vec<u64> {
    [1, 2, 5, 10, 20, 50, 100].into_iter().filter(|k| *k < samples).chain([samples]).collect()
}

/// Prints the scores; `extra` goes into the JSON document beside them, `notes` after the table.
pub fn print_scores(
    rows: &[Judged<'_>],
    samples: u64,
    format: TableFormat,
    extra: Map<String, Value>,
    notes: &str,
) -> anyhow::Result<()> {
    let all = Group { name: "all".to_owned(), rows: rows.iter().collect() };
    let by = |field: fn(&Judged<'_>) -> Option<String>| -> Vec<Group<'_>> {
        let mut groups: BTreeMap<String, Vec<&Judged<'_>>> = BTreeMap::new();
        for row in rows {
            if let Some(name) = field(row) {
                groups.entry(name).or_default().push(row);
            }
        }
        groups.into_iter().map(|(name, rows)| Group { name, rows }).collect()
    };
    let levels = by(|row| row.level.map(str::to_owned));
    let kinds = by(|row| row.kind.map(str::to_owned));
    let disputed = rows.iter().filter(|row| row.disputed()).count();
    if format == TableFormat::Json {
        let mut document = extra;
        if let Value::Object(fields) = all.json() {
            document.extend(fields);
        }
        document.insert("disagreements".into(), disputed.into());
        for (name, groups) in [("by_level", &levels), ("by_kind", &kinds)] {
            if !groups.is_empty() {
                let groups: Map<String, Value> =
                    groups.iter().map(|group| (group.name.clone(), group.json())).collect();
                document.insert(name.to_owned(), groups.into());
            }
        }
        if samples > 1 {
            let pass = |k: u64| {
                let graders = GRADERS
                    .into_iter()
                    .enumerate()
                    .filter_map(|(index, grader)| Some((grader.name().to_owned(), all.pass_at(index, k)?.json())));
                (k.to_string(), Value::Object(graders.collect()))
            };
            document.insert("pass_at".into(), Value::Object(reported(samples).into_iter().map(pass).collect()));
        }
        return print_json(&document);
    }
    let mut table = vec![vec!["answers".to_owned(), "n".to_owned()]];
    table[0].extend(GRADERS.map(|grader| grader.name().to_owned()));
    table[0].push("no answer".to_owned());
    let shown = |groups: &[Group<'_>]| if groups.len() > 1 { groups.len() } else { 0 };
    let (levels, kinds) = (&levels[..shown(&levels)], &kinds[..shown(&kinds)]);
    for group in std::iter::once(&all).chain(levels).chain(kinds) {
        let mut cells = vec![group.name.clone(), group.rows.len().to_string()];
        cells.extend((0..3).map(|grader| crate::task::percent(&group.score(grader))));
        cells.push(format!("{:.1} %", 100.0 * group.score(0).unanswered.rate()));
        table.push(cells);
    }
    if samples > 1 {
        for k in reported(samples) {
            let problems: BTreeSet<usize> = rows.iter().map(|row| row.problem).collect();
            let mut cells = vec![format!("pass@{k}"), problems.len().to_string()];
            cells.extend((0..3).map(|grader| all.pass_at(grader, k).map_or_else(String::new, |rate| rate.percent())));
            cells.push(String::new());
            table.push(cells);
        }
    }
    print(format.table(&table).unwrap_or_default().trim_end())?;
    if format == TableFormat::Table {
        print(format_args!("{notes}{disputed} answers that the graders disagree on"))?;
    }
    Ok(())
}
