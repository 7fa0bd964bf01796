//! How likely texts are: the mean loss of their tokens, each text from its own beginning.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, json};
use sorsa_data::{
    BatchOptions, Batcher, EncodeOptions, Encoder, Example, Format, LoadOptions, PromptTemplate, TemplateName,
};
use sorsa_models::{CausalLm, ModelInput};

use super::{Effort, ProblemSource, Problems, Scores, Task};
use crate::answer::{Answer, Judgment};
use crate::answer_log::fingerprint;
use crate::continuation::AnswerOptions;
use crate::error::ExperimentError;
use crate::inputs::{UnusablePrompts, load_records};
use crate::observer::Observer;

/// The task.
pub static PERPLEXITY: Perplexity = Perplexity;

/// Texts without a question.
pub struct Perplexity;

impl Task for Perplexity {
    fn name(&self) -> &'static str {
        "perplexity"
    }

    fn data_sets(&self) -> &'static [&'static str] {
        &[]
    }

    fn formats(&self) -> &'static [Format] {
        &[Format::Text]
    }

    fn template(&self) -> TemplateName {
        TemplateName::Raw
    }

    fn has_accuracy(&self) -> bool {
        false
    }

    fn load(
        &self,
        source: &ProblemSource<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Problems>, ExperimentError> {
        let (path, tokenizer) = (source.path, source.encoder.tokenizer());
        // Answers as the file has them: nothing is graded.
        let load = LoadOptions {
            skip_bad_rows: source.load.skip_bad_rows,
            limit: source.load.limit,
            ..LoadOptions::default()
        };
        let loaded = load_records(path, &load, observer)?;
        let max_length = source.config.max_position_embeddings;
        let encode = EncodeOptions { max_length, append_eos: false, ..EncodeOptions::default() };
        let encoder =
            Encoder::new(Arc::clone(tokenizer), PromptTemplate::Raw, encode)?.for_vocabulary(source.config.vocab_size);
        let (set, bad) = encoder.encode_usable(&loaded.records);
        let rows = loaded.records.len();
        UnusablePrompts { rows, too_long: Vec::new(), bad }.leave_out(source, observer)?;
        Ok(Box::new(Texts {
            path: path.to_owned(),
            examples: Arc::new(set.examples),
            target_tokens: set.target_tokens,
            max_length,
            pad: tokenizer.pad(source.config.vocab_size),
        }))
    }
}

/// Texts in tokens.
struct Texts {
    path: PathBuf,
    examples: Arc<Vec<Example>>,
    target_tokens: usize,
    max_length: usize,
    pad: u32,
}

impl Problems for Texts {
    fn count(&self) -> usize {
        self.examples.len()
    }

    fn fingerprint(&self) -> String {
        format!("{:016x}", fingerprint(&format!("{} {:?}", self.path.display(), self.examples)))
    }

    /// An answer is the loss of one batch, its row that of the batch's first text.
    fn answer(
        &self,
        model: &CausalLm,
        options: &AnswerOptions,
        done: &[Answer],
        _observer: &mut dyn Observer,
        keep: &mut dyn FnMut(Answer) -> Result<(), ExperimentError>,
    ) -> Result<(), ExperimentError> {
        let batches = BatchOptions {
            batch_size: options.batch_size,
            shuffle: false,
            // Texts of similar length together: less padding.
            bucket: usize::MAX / options.batch_size.max(1),
            max_length: self.max_length,
            pad_id: self.pad,
            ..BatchOptions::default()
        };
        let batcher = Batcher::new(Arc::clone(&self.examples), batches)?;
        for index in done.len()..batcher.batches_per_epoch(0) {
            let batch = batcher.batch(0, index);
            let input = ModelInput {
                rows: batch.rows,
                len: batch.len,
                input_ids: &batch.input_ids,
                positions: &batch.positions,
                segments: &batch.segments,
            };
            let Some(loss) = model.loss_sum(&input, &batch.targets) else { continue };
            let loss = f64::from(loss.into_scalar::<f32>());
            if !loss.is_finite() {
                let row = batch.examples.first().map_or(0, |example| self.examples[*example].row);
                return Err(ExperimentError::LossNotFinite { path: self.path.clone(), row, loss });
            }
            keep(Answer {
                row: index,
                sample: 0,
                task_id: None,
                level: None,
                kind: None,
                prompt: String::new(),
                expected: None,
                generated: String::new(),
                tokens: batch.target_tokens(),
                finished: true,
                judgment: Judgment::Loss { loss },
            })?;
        }
        Ok(())
    }

    fn score(&self, answers: &[Answer], _effort: &Effort) -> Scores {
        let (mut sum, mut tokens) = (0.0, 0);
        for answer in answers {
            if let Judgment::Loss { loss } = answer.judgment {
                sum += loss;
                tokens += answer.tokens;
            }
        }
        let loss: f64 = sum / tokens.max(1) as f64;
        let (perplexity, targets) = (loss.exp(), self.target_tokens);
        Scores {
            graders: Vec::new(),
            document: Map::from_iter([
                ("loss".to_owned(), json!(loss)),
                ("perplexity".to_owned(), json!(perplexity)),
                ("tokens".to_owned(), json!(targets)),
            ]),
            table: Vec::new(),
            notes: format!("perplexity {perplexity:.4} (loss {loss:.5} over {targets} tokens)"),
        }
    }
}
