//! Problems whose answers are graded as text, by several graders side by side.

use std::collections::HashSet;

use serde_json::{Map, json};
use sorsa_data::{Encoder, Record};
use sorsa_grading::grade::AnswerKind;
use sorsa_models::CausalLm;

use super::{Effort, ProblemSource, Problems, Scores};
use crate::answer::{Answer, Judgment, Verdicts};
use crate::answer_log::fingerprint;
use crate::continuation::{AnswerOptions, Continuation, Prompts};
use crate::error::ExperimentError;
use crate::inputs::{encode_problems, load_records};
use crate::observer::Observer;
use crate::scoreboard::{GradedRow, Scoreboard};

/// Problems with expected answers.
pub(super) struct GradedProblems {
    task: &'static str,
    kind: AnswerKind,
    encoder: Encoder,
    records: Vec<Record>,
    prompts: Vec<Vec<u32>>,
}

impl GradedProblems {
    /// Reads the rows that have an answer, and encodes their prompts.
    pub(super) fn load(
        task: &'static str,
        kind: AnswerKind,
        source: &ProblemSource<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Self, ExperimentError> {
        let loaded = load_records(source.path, source.load, observer)?;
        let records: Vec<Record> = loaded.records.into_iter().filter(|record| record.answer().is_some()).collect();
        if records.is_empty() {
            return Err(ExperimentError::NoAnswers { path: source.path.to_owned() });
        }
        let (records, prompts) = encode_problems(source, records, observer)?.into_iter().unzip();
        Ok(Self { task, kind, encoder: source.encoder.clone(), records, prompts })
    }

    fn judge(&self, continuation: Continuation) -> Result<Answer, ExperimentError> {
        let record = &self.records[continuation.index];
        let expected = expected(record);
        let verdicts = Verdicts::of(self.kind, expected, &continuation.text);
        Ok(Answer {
            row: record.row,
            sample: continuation.sample,
            task_id: None,
            level: record.level.clone(),
            kind: record.kind.clone(),
            prompt: self.encoder.prompt_text(&self.records[continuation.index])?,
            expected: Some(expected.to_owned()),
            generated: continuation.text,
            tokens: continuation.tokens,
            finished: continuation.finished,
            judgment: Judgment::Graded(verdicts),
        })
    }
}

impl Problems for GradedProblems {
    fn count(&self) -> usize {
        self.records.len()
    }

    fn fingerprint(&self) -> String {
        let mut text = String::new();
        for (record, prompt) in self.records.iter().zip(&self.prompts) {
            text.push_str(&format!("{} {prompt:?} {}\n", record.row, expected(record)));
        }
        format!("{:016x}", fingerprint(&text))
    }

    fn answer(
        &self,
        model: &CausalLm,
        options: &AnswerOptions,
        done: &[Answer],
        observer: &mut dyn Observer,
        keep: &mut dyn FnMut(Answer) -> Result<(), ExperimentError>,
    ) -> Result<(), ExperimentError> {
        let mut known = HashSet::new();
        for answer in done {
            if let Some(index) = self.records.iter().position(|record| record.row == answer.row) {
                known.insert((index, answer.sample));
            }
        }
        let prompts = Prompts { tokens: &self.prompts, done: known, tokenizer: self.encoder.tokenizer() };
        prompts.continue_all(model, options, observer, &mut |continuation| keep(self.judge(continuation)?))
    }

    fn score(&self, answers: &[Answer], effort: &Effort) -> Scores {
        let mut rows = Vec::new();
        for answer in answers {
            if let Judgment::Graded(verdicts) = &answer.judgment {
                let (level, kind) = (answer.level.as_deref(), answer.kind.as_deref());
                rows.push(GradedRow { problem: answer.row, level, kind, verdicts });
            }
        }
        let board = Scoreboard::new(rows, effort.samples);
        let (problems, new, speed) = (self.count(), effort.new_tokens, effort.tokens_per_s());
        let document = Map::from_iter(
            [
                ("task", json!(self.task)),
                ("problems", json!(problems)),
                ("samples", json!(effort.samples)),
                ("resumed", json!(effort.resumed)),
                ("tokens", json!(answers.iter().map(|answer| answer.tokens).sum::<usize>())),
                ("seconds", json!(effort.seconds)),
                ("tokens_per_s", json!(speed)),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        Scores {
            graders: board.scores(),
            document: board.json(document),
            table: board.table(),
            notes: format!(
                "{problems} problems, {new} tokens in {:.1} s ({speed:.0} tokens/s), {} answers that the graders disagree on",
                effort.seconds,
                board.disputed()
            ),
        }
    }
}

/// The short answer if the format has one; otherwise the whole solution.
fn expected(record: &Record) -> &str {
    record.final_answer.as_deref().or(record.answer()).unwrap_or_default()
}
