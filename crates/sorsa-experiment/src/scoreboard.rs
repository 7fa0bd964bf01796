//! What the graders say of many answers: side by side, in all and by level and subject, with 95 % intervals.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sorsa_grading::grade::Score;
use sorsa_grading::stats::{Interval, pass_at_k, score_interval};

use crate::answer::Verdicts;

/// Answers and their verdicts, to be counted.
pub struct Scoreboard<'a> {
    rows: Vec<GradedRow<'a>>,
    samples: u64,
}

/// One answer and its verdicts.
pub struct GradedRow<'a> {
    /// Number of the problem that it answers.
    pub problem: usize,
    /// Difficulty of the problem.
    pub level: Option<&'a str>,
    /// Subject of the problem.
    pub kind: Option<&'a str>,
    /// What each grader says.
    pub verdicts: &'a Verdicts,
}

impl<'a> Scoreboard<'a> {
    /// Of answers, `samples` to each problem.
    pub fn new(rows: Vec<GradedRow<'a>>, samples: usize) -> Self {
        Self { rows, samples: samples as u64 }
    }

    /// The score by each grader, the one that counts first.
    pub fn scores(&self) -> Vec<(String, Score)> {
        let all = self.all();
        let names = Verdicts::GRADERS.into_iter().enumerate();
        names.map(|(index, grader)| (grader.name().to_owned(), all.score(index))).collect()
    }

    /// How many answers the graders disagree on.
    pub fn disputed(&self) -> usize {
        self.rows.iter().filter(|row| row.verdicts.disputed()).count()
    }

    /// The scores as JSON, after the fields of `document`.
    pub fn json(&self, mut document: Map<String, Value>) -> Map<String, Value> {
        let all = self.all();
        document.extend(all.json());
        document.insert("disagreements".into(), self.disputed().into());
        for (name, groups) in [("by_level", self.by_level()), ("by_kind", self.by_kind())] {
            if !groups.is_empty() {
                let groups = groups.iter().map(|group| (group.name.clone(), group.json().into()));
                document.insert(name.to_owned(), Value::Object(groups.collect()));
            }
        }
        if self.samples > 1 {
            let pass_at = |k: u64| {
                let graders = Verdicts::GRADERS
                    .into_iter()
                    .enumerate()
                    .filter_map(|(index, grader)| Some((grader.name().to_owned(), all.pass_at(index, k)?.json())));
                (k.to_string(), Value::Object(graders.collect()))
            };
            document.insert("pass_at".into(), Value::Object(reported(self.samples).into_iter().map(pass_at).collect()));
        }
        document
    }

    /// The scores as a table: a head, a row for all, a row for each level and subject, and pass@k.
    pub fn table(&self) -> Vec<Vec<String>> {
        let all = self.all();
        let mut head = vec!["answers".to_owned(), "n".to_owned()];
        head.extend(Verdicts::GRADERS.map(|grader| grader.name().to_owned()));
        head.push("no answer".to_owned());
        let mut table = vec![head];
        let mut groups = vec![&all];
        let (levels, kinds) = (self.by_level(), self.by_kind());
        for several in [&levels, &kinds].into_iter().filter(|groups| groups.len() > 1) {
            groups.extend(several);
        }
        for group in groups {
            let mut cells = vec![group.name.clone(), group.rows.len().to_string()];
            cells.extend((0..3).map(|grader| percent(&group.score(grader))));
            cells.push(format!("{:.1} %", 100.0 * group.score(0).unanswered.rate()));
            table.push(cells);
        }
        if self.samples > 1 {
            let problems: BTreeSet<usize> = self.rows.iter().map(|row| row.problem).collect();
            for k in reported(self.samples) {
                let mut cells = vec![format!("pass@{k}"), problems.len().to_string()];
                cells.extend((0..3).map(|grader| match all.pass_at(grader, k) {
                    Some(rate) => rate.percent(),
                    None => String::new(),
                }));
                cells.push(String::new());
                table.push(cells);
            }
        }
        table
    }

    fn all(&self) -> Group<'_> {
        Group { name: "all".to_owned(), rows: self.rows.iter().collect() }
    }

    fn by_level(&self) -> Vec<Group<'_>> {
        self.by(|row| row.level)
    }

    fn by_kind(&self) -> Vec<Group<'_>> {
        self.by(|row| row.kind)
    }

    fn by(&self, field: fn(&GradedRow<'a>) -> Option<&'a str>) -> Vec<Group<'_>> {
        let mut groups: BTreeMap<&str, Vec<&GradedRow<'_>>> = BTreeMap::new();
        for row in &self.rows {
            if let Some(name) = field(row) {
                groups.entry(name).or_default().push(row);
            }
        }
        groups.into_iter().map(|(name, rows)| Group { name: name.to_owned(), rows }).collect()
    }
}

/// The answers of one group.
struct Group<'a> {
    name: String,
    rows: Vec<&'a GradedRow<'a>>,
}

impl Group<'_> {
    fn score(&self, grader: usize) -> Score {
        Score::of(self.rows.iter().map(|row| row.verdicts.in_order()[grader]))
    }

    /// The chance of a right answer among `k`, over the problems.
    fn pass_at(&self, grader: usize, k: u64) -> Option<PassRate> {
        let mut problems: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for row in &self.rows {
            let (total, right) = problems.entry(row.problem).or_default();
            *total += 1;
            *right += u64::from(row.verdicts.in_order()[grader].correct);
        }
        PassRate::of(problems.into_values(), k)
    }

    fn json(&self) -> Map<String, Value> {
        let graders: Map<String, Value> = Verdicts::GRADERS
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
        Map::from_iter([("answers".to_owned(), self.rows.len().into()), ("graders".to_owned(), graders.into())])
    }
}

/// The mean of pass@k over problems.
pub struct PassRate {
    mean: f64,
    problems: u64,
}

impl PassRate {
    /// From the answers and the right ones of each problem; `None` if a problem has fewer than `k`, or there is none.
    pub fn of(problems: impl Iterator<Item = (u64, u64)>, k: u64) -> Option<Self> {
        let chances: Option<Vec<f64>> = problems.map(|(total, right)| pass_at_k(total, right, k)).collect();
        let chances = chances.filter(|chances| !chances.is_empty())?;
        Some(Self { mean: chances.iter().sum::<f64>() / chances.len() as f64, problems: chances.len() as u64 })
    }

    /// The mean and its interval.
    pub fn json(&self) -> Value {
        let interval = score_interval(self.mean, self.problems);
        json!({ "mean": self.mean, "interval": [interval.low, interval.high], "problems": self.problems })
    }

    /// `12.5 % [8.6, 17.8]`.
    pub fn percent(&self) -> String {
        shown(self.mean, score_interval(self.mean, self.problems))
    }
}

/// The `k` of pass@k that are reported for so many samples.
pub fn reported(samples: u64) -> Vec<u64> {
    [1, 2, 5, 10, 20, 50, 100].into_iter().filter(|k| *k < samples).chain([samples]).collect()
}

/// The share of right answers with its 95 % interval: `12.5 % [8.6, 17.8]`.
pub fn percent(score: &Score) -> String {
    shown(score.correct.rate(), score.correct.interval())
}

fn shown(rate: f64, interval: Interval) -> String {
    format!("{:.1} % [{:.1}, {:.1}]", 100.0 * rate, 100.0 * interval.low, 100.0 * interval.high)
}
