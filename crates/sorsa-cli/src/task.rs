//! Accuracy on problems with answers: prompts are continued, every generation is kept and graded.

use std::path::Path;

use serde::Serialize;
use sorsa_data::{Encoder, Record};
use sorsa_eval::grade::{Grader, Score, Verdict};
use sorsa_models::{CausalLm, Finish, GenerateOptions, Sampling};

use crate::exit::{OrBadInput, bad_input};
use crate::progress::{Progress, Style};

/// Problems, encoded for one tokenizer.
pub struct Problems {
    records: Vec<Record>,
    prompts: Vec<Vec<u32>>,
}

/// One generation and what the graders say of it: a line of `generations.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct Generated {
    pub row: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
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

/// Every generation, and the time it took.
pub struct Answers {
    pub rows: Vec<Generated>,
    pub seconds: f64,
}

impl Problems {
    /// Encodes the prompts of the records that have an answer. `file` is named in errors; `context` is the model's.
    pub fn new(file: &Path, records: Vec<Record>, encoder: &Encoder, context: usize) -> anyhow::Result<Self> {
        let records: Vec<Record> = records.into_iter().filter(|record| record.answer().is_some()).collect();
        let prompts: Vec<Vec<u32>> =
            records.iter().map(|record| encoder.encode_prompt(record)).collect::<Result<_, _>>().or_bad_input()?;
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
        Ok(Self { records, prompts })
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
        let started = std::time::Instant::now();
        let options = GenerateOptions { max_new_tokens, sampling: Sampling::Greedy, stop: stops.to_vec() };
        // Prompts of similar length together: less padding.
        let mut order: Vec<usize> = (0..self.prompts.len()).collect();
        order.sort_by_key(|index| self.prompts[*index].len());
        let progress = Progress::new("answers", self.len() as u64, style);
        let mut rows: Vec<Option<Generated>> = vec![None; self.len()];
        for (number, batch) in order.chunks(batch_size).enumerate() {
            let prompts: Vec<Vec<u32>> = batch.iter().map(|index| self.prompts[*index].clone()).collect();
            let generations = model.generate(&prompts, &options, |_, _| ()).or_bad_input()?;
            for (index, generation) in batch.iter().zip(generations) {
                let record = &self.records[*index];
                let text = encoder.tokenizer().decode(&generation.ids)?;
                // The short answer where the format has one; the whole solution otherwise.
                let expected = record.final_answer.as_deref().or(record.answer()).unwrap_or_default();
                rows[*index] = Some(Generated {
                    row: record.row,
                    level: record.level.clone(),
                    kind: record.kind.clone(),
                    prompt: encoder.tokenizer().decode(&self.prompts[*index])?,
                    expected: expected.to_owned(),
                    tokens: generation.ids.len(),
                    finished: generation.finish == Finish::Stop,
                    strict: Grader::Strict.grade(expected, &text),
                    faithful: Grader::Faithful.grade(expected, &text),
                    author: Grader::Author.grade(expected, &text),
                    generated: text,
                });
            }
            progress.set(((number + 1) * batch_size).min(self.len()) as u64, "");
        }
        progress.finish();
        Ok(Answers { rows: rows.into_iter().flatten().collect(), seconds: started.elapsed().as_secs_f64() })
    }
}

impl Answers {
    /// The score by one grader; the last number is not kept per row.
    pub fn score(&self, grader: Grader) -> Score {
        Score::of(self.rows.iter().map(|row| match grader {
            Grader::Strict => &row.strict,
            Grader::Author => &row.author,
            Grader::Faithful | Grader::LastNumber => &row.faithful,
        }))
    }

    /// Scores by every grader kept.
    pub fn scores(&self) -> Vec<(Grader, Score)> {
        [Grader::Faithful, Grader::Strict, Grader::Author].map(|grader| (grader, self.score(grader))).to_vec()
    }

    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens).sum()
    }
}

/// `12.5 % [8.6, 17.8]`: a share with its 95 % interval.
pub fn percent(score: &Score) -> String {
    let interval = score.correct.interval();
    format!("{:.1} % [{:.1}, {:.1}]", 100.0 * score.correct.rate(), 100.0 * interval.low, 100.0 * interval.high)
}
