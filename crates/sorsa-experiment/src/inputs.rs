//! Input of a run besides the model's weights: data, encoded and batched, and the test.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use sorsa_data::{
    BadRows, BatchOptions, Batcher, DataError, EncodeOptions, EncodedPrompts, EncodedSet, Encoder, Example,
    LoadOptions, Loaded, LongPrompt, PromptTemplate, Record, TextTokenizer, TurnEnd,
};
use sorsa_models::{ModelConfig, Sampling};

use crate::continuation::AnswerOptions;
use crate::embedded::EMBEDDED;
use crate::error::ExperimentError;
use crate::host::{Host, Sources};
use crate::model::Stops;
use crate::observer::{Event, Observer};
use crate::recipe::Recipe;
use crate::tasks::{self, ProblemSource, Problems, Task};

/// Input of a run besides the model's weights.
pub struct Inputs {
    /// Batches to train on.
    pub train: Batcher,
    /// Batches to validate on, if there are any.
    pub validation: Option<Batcher>,
    /// What accuracy is measured on, if it is.
    pub test: Option<Test>,
    /// Counts of what the data files hold.
    pub data: DataReport,
}

/// Problems that a model answers before and after training.
pub struct Test {
    /// Their task.
    pub task: &'static dyn Task,
    /// The problems.
    pub problems: Box<dyn Problems>,
    /// How they are answered.
    pub options: AnswerOptions,
}

/// Counts of what the data files hold.
#[derive(Debug, Clone, Serialize)]
pub struct DataReport {
    /// Format of the training data.
    pub format: String,
    /// Examples to train on.
    pub train_examples: usize,
    /// Their tokens.
    pub train_tokens: usize,
    /// Tokens that the loss is taken on.
    pub target_tokens: usize,
    /// Rows that are too long, and left out.
    pub dropped: usize,
    /// Examples that lost tokens.
    pub truncated: usize,
    /// Malformed rows, left out.
    pub skipped: usize,
    /// Examples to validate on.
    pub validation_examples: usize,
    /// Problems of the test.
    pub problems: usize,
}

/// A data file by its name in a recipe; `split` is the part that is meant of the embedded task.
///
/// # Errors
///
/// [`ExperimentError::Unpack`].
pub fn data_file(name: &str, split: &str, sources: &Sources) -> Result<PathBuf, ExperimentError> {
    if name == EMBEDDED { sources.embedded.task(split) } else { Ok(PathBuf::from(name)) }
}

/// Reads a file of records, and tells the observer if rows were left out.
///
/// # Errors
///
/// [`ExperimentError::Data`].
pub fn load_records(
    path: &Path,
    options: &LoadOptions,
    observer: &mut dyn Observer,
) -> Result<Loaded, ExperimentError> {
    let loaded = sorsa_data::load(path, options)?;
    if loaded.skipped.count > 0 {
        observer.on_event(Event::RowsSkipped { path, rows: &loaded.skipped });
    }
    if !loaded.unused_fields.is_empty() {
        let fields = with_counts(&loaded.unused_fields);
        let text = format!("{}: the format {} does not use the fields {fields}", path.display(), loaded.format);
        observer.on_event(Event::Note { text: &text });
    }
    Ok(loaded)
}

/// `tools (3 rows), weight (1 row)`
fn with_counts<T: Display>(fields: &[(T, usize)]) -> String {
    let with_count = |(name, rows): &(T, usize)| format!("{name} ({rows} {})", if *rows == 1 { "row" } else { "rows" });
    fields.iter().map(with_count).collect::<Vec<_>>().join(", ")
}

/// Tells the observer which fields of messages the chat template leaves out.
fn note_unwritten_fields(path: &Path, fields: &[(String, usize)], observer: &mut dyn Observer) {
    if !fields.is_empty() {
        let text = format!("{}: the chat template leaves out {}", path.display(), with_counts(fields));
        observer.on_event(Event::Note { text: &text });
    }
}

/// Encodes the prompts of problems. Leaves rows out that cannot be asked, and tells the observer, if the source says so.
///
/// # Errors
///
/// Such rows otherwise, or if no other is left.
pub(crate) fn encode_problems(
    source: &ProblemSource<'_>,
    records: Vec<Record>,
    observer: &mut dyn Observer,
) -> Result<Vec<(Record, Vec<u32>)>, ExperimentError> {
    let rows = records.len();
    let mut unwritten = source.encoder.unwritten_fields(&records);
    // A prompt has no answer in it: contents are looked for in training data alone.
    unwritten.retain(|(field, _)| !field.starts_with("content"));
    note_unwritten_fields(source.path, &unwritten, observer);
    let EncodedPrompts { usable, too_long, bad } = source.encoder.encode_prompts(records, source.context);
    let unusable = UnusablePrompts { rows, too_long, bad };
    unusable.leave_out(source, observer)?;
    Ok(usable)
}

/// Rows whose prompts cannot be asked.
pub(crate) struct UnusablePrompts {
    /// Number of all rows.
    pub rows: usize,
    /// Prompts that leave no room for an answer.
    pub too_long: Vec<LongPrompt>,
    /// Rows that the template or the tokenizer refuses.
    pub bad: BadRows,
}

impl UnusablePrompts {
    /// Tells the observer that they are left out, if the source says so.
    ///
    /// # Errors
    ///
    /// The rows otherwise, or if no other is left.
    pub fn leave_out(self, source: &ProblemSource<'_>, observer: &mut dyn Observer) -> Result<(), ExperimentError> {
        let Self { rows, too_long, mut bad } = self;
        let (path, context) = (source.path, source.context);
        if !source.load.skip_bad_rows || too_long.len() + bad.count == rows {
            if bad.count > 0 {
                return Err(in_file(path)(DataError::Encode { records: rows, bad }));
            }
            if !too_long.is_empty() {
                return Err(ExperimentError::PromptsTooLong { path: path.to_owned(), context, rows: too_long });
            }
        }
        let mut long = BadRows::new(bad.unit);
        for LongPrompt { row, tokens, partial } in too_long {
            let more = if partial { "more than " } else { "" };
            long.push(row, format!("{more}{tokens} tokens, the model's context is {context}"));
        }
        bad.extend(long);
        if bad.count > 0 {
            observer.on_event(Event::RowsSkipped { path, rows: &bad });
        }
        Ok(())
    }
}

impl Inputs {
    /// Reads and encodes all data of a recipe for a model.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with a data file; [`ExperimentError::CodeNotAllowed`] if the test runs programs and the recipe or the
    /// host does not allow it.
    pub fn read(
        recipe: &Recipe,
        tokenizer: &Arc<TextTokenizer>,
        config: &ModelConfig,
        host: &Host,
        observer: &mut dyn Observer,
    ) -> Result<Self, ExperimentError> {
        let context = config.max_position_embeddings;
        let max_length = recipe.data.max_length.min(context);
        let options = EncodeOptions {
            max_length,
            truncation: recipe.data.truncation,
            train_on_prompt: recipe.data.train_on_prompt,
            append_eos: true,
            prompt_suffix: recipe.eval.prompt_suffix.clone(),
        };
        let template = match &recipe.data.chat_template {
            Some(name) => PromptTemplate::Chat(tokenizer.chat_template_named(name)?.clone()),
            None => PromptTemplate::new(recipe.data.template, tokenizer)?,
        };
        let encoder = Encoder::new(Arc::clone(tokenizer), template, options)?.for_vocabulary(config.vocab_size);

        for text in tokenizer.notes() {
            observer.on_event(Event::Note { text });
        }
        if encoder.template().turn_end(tokenizer) == Some(TurnEnd::Nothing) {
            observer.on_event(Event::Note {
                text: "the chat template writes nothing after an answer, so the model does not learn to end one",
            });
        }

        let path = data_file(&recipe.data.train, "train", &host.sources)?;
        let options = LoadOptions { limit: recipe.data.limit, ..recipe.load_options() };
        let loaded = load_records(&path, &options, observer)?;
        note_unwritten_fields(&path, &encoder.unwritten_fields(&loaded.records), observer);
        let (format, mut skipped) = (loaded.format.to_string(), loaded.skipped.count);
        let file = EncodedFile { path: &path, encoder: &encoder, max_length, skip_bad_rows: recipe.data.skip_bad_rows };
        let (train, validation_set) = match &recipe.data.validation {
            Some(name) => {
                let validation_path = data_file(name, "validation", &host.sources)?;
                let validation = load_records(&validation_path, &recipe.load_options(), observer)?;
                let set = EncodedFile { path: &validation_path, ..file }.encode(&validation.records, observer)?;
                (loaded.records, set.0)
            }
            None => {
                let (train, validation) = hold_out(&path, loaded.records, recipe)?;
                let (set, left_out) = file.encode_any(&validation, observer)?;
                skipped += left_out;
                (train, set)
            }
        };
        let (train_set, left_out) = file.encode(&train, observer)?;
        skipped += left_out;
        let test = match &recipe.data.test {
            Some(name) if recipe.eval.problems > 0 => {
                Some(read_test(recipe, &data_file(name, "test", &host.sources)?, &encoder, config, host, observer)?)
            }
            _ => None,
        };
        let data = DataReport {
            format,
            train_examples: train_set.examples.len(),
            train_tokens: train_set.tokens,
            target_tokens: train_set.target_tokens,
            dropped: train_set.dropped,
            truncated: train_set.truncated,
            skipped,
            validation_examples: validation_set.examples.len(),
            problems: test.as_ref().map_or(0, |test| test.problems.count()),
        };
        let pad_id = tokenizer.pad(config.vocab_size);
        let batcher = |examples: Vec<Example>, shuffle: bool| {
            let options = BatchOptions {
                batch_size: recipe.train.batch_size,
                shuffle,
                seed: recipe.train.seed,
                bucket: recipe.data.bucket,
                packing: recipe.data.packing && shuffle,
                max_length,
                pad_id,
                pad_multiple: 1,
                drop_last: false,
            };
            Batcher::new(Arc::new(examples), options)
        };
        let validation = match validation_set.examples.is_empty() {
            true => None,
            false => Some(batcher(validation_set.examples, false)?),
        };
        Ok(Self { train: batcher(train_set.examples, true)?, validation, test, data })
    }
}

/// Reads the problems of a recipe's test.
fn read_test(
    recipe: &Recipe,
    path: &Path,
    encoder: &Encoder,
    config: &ModelConfig,
    host: &Host,
    observer: &mut dyn Observer,
) -> Result<Test, ExperimentError> {
    let task = match recipe.data.format {
        Some(format) => tasks::recognise_as(path, format),
        None => tasks::recognise(path),
    };
    if !task.has_accuracy() {
        return Err(ExperimentError::NoAnswers { path: path.to_owned() });
    }
    let load = LoadOptions { limit: Some(recipe.eval.problems), ..recipe.load_options() };
    let source = ProblemSource {
        path,
        load: &load,
        encoder,
        config,
        context: config.max_position_embeddings,
        code: host.code.as_ref().filter(|_| recipe.eval.allow_code_execution),
    };
    let options = AnswerOptions {
        batch_size: recipe.eval.batch_size,
        max_new_tokens: recipe.eval.max_new_tokens,
        sampling: Sampling::Greedy,
        samples: 1,
        stop: Stops::of(encoder, config),
    };
    Ok(Test { task, problems: task.load(&source, observer)?, options })
}

/// A file whose records become examples.
#[derive(Clone, Copy)]
struct EncodedFile<'a> {
    path: &'a Path,
    encoder: &'a Encoder,
    max_length: usize,
    skip_bad_rows: bool,
}

impl EncodedFile<'_> {
    /// Encodes records, of which at least one must become an example. Also returns the number of rows that were left out, which
    /// the observer is told of.
    fn encode(self, records: &[Record], observer: &mut dyn Observer) -> Result<(EncodedSet, usize), ExperimentError> {
        let (set, left_out) = self.encode_any(records, observer)?;
        if !set.examples.is_empty() {
            return Ok((set, left_out));
        }
        let (path, max_length, too_long) = (self.path.to_owned(), self.max_length, set.dropped - set.without_target);
        Err(match set.without_target {
            0 => ExperimentError::NoRowFits { path, max_length },
            _ => ExperimentError::NoTargets { path, too_long, max_length },
        })
    }

    /// The same, but all of them may be dropped.
    fn encode_any(
        self,
        records: &[Record],
        observer: &mut dyn Observer,
    ) -> Result<(EncodedSet, usize), ExperimentError> {
        let (set, bad) = self.encoder.encode_usable(records);
        if bad.count == 0 {
            return Ok((set, 0));
        }
        if !self.skip_bad_rows || bad.count == records.len() {
            return Err(in_file(self.path)(DataError::Encode { records: records.len(), bad }));
        }
        observer.on_event(Event::RowsSkipped { path: self.path, rows: &bad });
        Ok((set, bad.count))
    }
}

/// Holds rows of the training data out for validation.
fn hold_out(path: &Path, records: Vec<Record>, recipe: &Recipe) -> Result<(Vec<Record>, Vec<Record>), ExperimentError> {
    // A small file keeps nine tenths for training.
    let rows = recipe.data.validation_rows.min(records.len() / 10);
    if rows == 0 {
        return Ok((records, Vec::new()));
    }
    let split = sorsa_data::split(records, rows, recipe.train.seed).map_err(in_file(path))?;
    Ok((split.train, split.validation))
}

fn in_file(path: &Path) -> impl FnOnce(sorsa_data::DataError) -> ExperimentError {
    move |source| ExperimentError::DataFile { path: path.to_owned(), source }
}
