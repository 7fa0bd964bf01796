//! Input of a run besides the model's weights: data, encoded and batched, and the test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use sorsa_data::{
    BatchOptions, Batcher, EncodeOptions, EncodedSet, Encoder, Example, LoadOptions, Loaded, PromptTemplate, Record,
    TextTokenizer, TurnEnd,
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
        observer.on_event(Event::RowsSkipped { path, count: loaded.skipped.count });
    }
    Ok(loaded)
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
        let encoder =
            Encoder::new(Arc::clone(tokenizer), PromptTemplate::new(recipe.data.template, tokenizer)?, options)?
                .for_vocabulary(config.vocab_size);

        for text in tokenizer.notes() {
            observer.on_event(Event::Notice { text });
        }
        if encoder.template().turn_end(tokenizer) == Some(TurnEnd::Nothing) {
            observer.on_event(Event::Notice {
                text: "the chat template writes nothing after an answer, so the model does not learn to end one",
            });
        }

        let path = data_file(&recipe.data.train, "train", &host.sources)?;
        let options = LoadOptions { limit: recipe.data.limit, ..recipe.load_options() };
        let loaded = load_records(&path, &options, observer)?;
        let (format, skipped) = (loaded.format.to_string(), loaded.skipped.count);
        let (train, validation_set) = match &recipe.data.validation {
            Some(name) => {
                let path = data_file(name, "validation", &host.sources)?;
                let validation = load_records(&path, &recipe.load_options(), observer)?;
                (loaded.records, encode(&path, &encoder, &validation.records, max_length)?)
            }
            None => {
                let (train, validation) = hold_out(&path, loaded.records, recipe)?;
                let set = encoder.encode_all(&validation).map_err(in_file(&path))?;
                (train, set)
            }
        };
        let train_set = encode(&path, &encoder, &train, max_length)?;
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

/// Encodes the records of a file. At least one must fit.
fn encode(
    path: &Path,
    encoder: &Encoder,
    records: &[Record],
    max_length: usize,
) -> Result<EncodedSet, ExperimentError> {
    let set = encoder.encode_all(records).map_err(in_file(path))?;
    if set.examples.is_empty() {
        return Err(ExperimentError::NoRowFits { path: path.to_owned(), max_length });
    }
    Ok(set)
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
