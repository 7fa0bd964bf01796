//! Accuracy on problems with answers: prompts are continued, every generation is kept and graded.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sorsa_data::{Encoder, Format, Record};
use sorsa_grading::grade::{AnswerKind, Grader, Score, Verdict};
use sorsa_models::{CausalLm, Sampling};

use crate::exit::{OrBadInput, bad_input};
use crate::progress::Style;
use crate::sampling::Continuing;
use crate::scoreboard::{Judged, judge};

/// Problems, encoded for one tokenizer.
pub struct Problems {
    records: Vec<Record>,
    prompts: Vec<Vec<u32>>,
    kind: AnswerKind,
}

/// How answers of a format are graded where nothing else is asked for.
pub fn answer_kind(format: Format) -> AnswerKind {
    if format == Format::Math { AnswerKind::Expression } else { AnswerKind::Number }
}

/// One generation and what the graders say of it: a line of `generations.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Generated {
    pub row: usize,
    /// Number of the generation among the row's.
    #[serde(default)]
    pub sample: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    pub prompt: String,
    pub expected: String,
    pub generated: String,
    pub tokens: usize,
    /// Whether the model ended the answer itself.
    pub finished: bool,
    pub strict: Verdict,
    pub faithful: Verdict,
    pub author: Verdict,
}

/// Every generation.
pub struct Answers {
    pub rows: Vec<Generated>,
}

impl Problems {
    /// Encodes the prompts of the records that have an answer. `file` is named in errors; `context` is the model's.
    pub fn new(
        file: &Path,
        records: Vec<Record>,
        kind: AnswerKind,
        encoder: &Encoder,
        context: usize,
    ) -> anyhow::Result<Self> {
        let records: Vec<Record> = records.into_iter().filter(|record| record.answer().is_some()).collect();
        let prompts = encoder.encode_prompts(&records).or_bad_input_in(file)?;
        let too_long: Vec<String> = records
            .iter()
            .zip(&prompts)
            .filter(|(_, prompt)| prompt.len() >= context)
            .map(|(record, prompt)| format!("row {} has {} tokens", record.row, prompt.len()))
            .collect();
        if !too_long.is_empty() {
            let (shown, more) = (too_long[..too_long.len().min(5)].join(", "), too_long.len().saturating_sub(5));
            let more = if more > 0 { format!(" and {more} more rows") } else { String::new() };
            return Err(bad_input(format!(
                "{}: prompts overflow the model's context of {context} tokens: {shown}{more}",
                file.display()
            )));
        }
        if records.is_empty() {
            return Err(bad_input(format!("{}: no row has an answer to compare with", file.display())));
        }
        Ok(Self { records, prompts, kind })
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Continues every prompt greedily, `batch_size` at a time, and grades the answers.
    pub fn answer(
        &self,
        model: &CausalLm,
        encoder: &Encoder,
        batch_size: usize,
        max_new_tokens: usize,
        stops: &[u32],
        style: Style,
    ) -> anyhow::Result<Answers> {
        let continuing = Continuing {
            slots: batch_size,
            max_new_tokens,
            sampling: Sampling::Greedy,
            samples: 1,
            stops: stops.to_vec(),
        };
        let mut rows = Vec::new();
        self.continue_all((model, encoder), &continuing, &[], style, |row| {
            rows.push(row);
            Ok(())
        })?;
        rows.sort_by_key(|row| row.row);
        Ok(Answers { rows })
    }

    /// Continues every prompt as `continuing` says, except those in `done`, and grades each answer as it is made.
    pub fn continue_all(
        &self,
        (model, encoder): (&CausalLm, &Encoder),
        continuing: &Continuing,
        done: &[Generated],
        style: Style,
        mut on_row: impl FnMut(Generated) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let done: HashSet<(usize, usize)> = done
            .iter()
            .filter_map(|row| Some((self.records.iter().position(|record| record.row == row.row)?, row.sample)))
            .collect();
        continuing.run((model, encoder), &self.prompts, &done, style, |sampled| {
            let record = &self.records[sampled.index];
            let expected = expected(record);
            let [faithful, strict, author] = judge(self.kind, expected, &sampled.text);
            on_row(Generated {
                row: record.row,
                sample: sampled.sample,
                level: record.level.clone(),
                kind: record.kind.clone(),
                prompt: encoder.tokenizer().decode(&self.prompts[sampled.index])?,
                expected: expected.to_owned(),
                tokens: sampled.tokens,
                finished: sampled.finished,
                strict,
                faithful,
                author,
                generated: sampled.text,
            })
        })
    }

    /// A number that differs where prompts or expected answers do.
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        for (record, prompt) in self.records.iter().zip(&self.prompts) {
            text.push_str(&format!("{} {prompt:?} {}\n", record.row, expected(record)));
        }
        format!("{:016x}", crate::answers::fingerprint(&text))
    }
}

/// The short answer where the format has one; the whole solution otherwise.
fn expected(record: &Record) -> &str {
    record.final_answer.as_deref().or(record.answer()).unwrap_or_default()
}

impl Generated {
    /// The answer as the scores count it.
    pub fn judged(&self) -> Judged<'_> {
        Judged {
            problem: self.row,
            level: self.level.as_deref(),
            kind: self.kind.as_deref(),
            verdicts: [&self.faithful, &self.strict, &self.author],
        }
    }
}

impl Answers {
    /// The score that counts: the faithful grader's.
    pub fn score(&self) -> Score {
        Score::of(self.rows.iter().map(|row| &row.faithful))
    }

    /// Scores by every grader, that one first.
    pub fn scores(&self) -> Vec<(Grader, Score)> {
        let by = |verdict: fn(&Generated) -> &Verdict| Score::of(self.rows.iter().map(verdict));
        vec![
            (Grader::Faithful, self.score()),
            (Grader::Strict, by(|row| &row.strict)),
            (Grader::Author, by(|row| &row.author)),
        ]
    }
}

/// `12.5 % [8.6, 17.8]`: a share with its 95 % interval.
pub fn percent(score: &Score) -> String {
    let interval = score.correct.interval();
    format!("{:.1} % [{:.1}, {:.1}]", 100.0 * score.correct.rate(), 100.0 * interval.low, 100.0 * interval.high)
}
