//! Tasks. A task recognises its files, reads problems, has a model answer them, and scores the answers.
//!
//! [`TASKS`] is the list of all; a new task is a file here and a line in it.

mod expressions;
mod graded;
mod humaneval;
mod multiple_choice;
mod numbers;
mod perplexity;

use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value};
use sorsa_data::{Encoder, Format, LoadOptions, TemplateName};
use sorsa_grading::grade::Score;
use sorsa_models::{CausalLm, ModelConfig};

use crate::answer::Answer;
use crate::answer_log::AnswerLog;
use crate::continuation::AnswerOptions;
use crate::error::ExperimentError;
use crate::observer::{Event, Observer};
use crate::sandbox::CodeExecution;

pub use expressions::EXPRESSIONS;
pub use humaneval::HUMANEVAL;
pub use numbers::NUMBERS;
pub use perplexity::PERPLEXITY;

/// Every task, in the order in which they look at a file.
pub static TASKS: &[&dyn Task] = &[&HUMANEVAL, &multiple_choice::MULTIPLE_CHOICE, &EXPRESSIONS, &NUMBERS, &PERPLEXITY];

/// Rows of a file that tasks look at: the first ones may be damaged.
const ROWS_TO_RECOGNISE: usize = 20;

/// A kind of problems.
pub trait Task: Sync {
    /// Its name in results.
    fn name(&self) -> &'static str;

    /// The names that a person may call it by: those of its data sets.
    fn data_sets(&self) -> &'static [&'static str];

    /// The formats of `sorsa-data` whose rows are its problems.
    fn formats(&self) -> &'static [Format] {
        &[]
    }

    /// Whether a row of a file is one of its problems.
    fn recognises(&self, row: &Value) -> bool {
        Format::recognise(row).is_some_and(|format| self.formats().contains(&format))
    }

    /// The template of prompts, unless another one is asked for.
    fn template(&self) -> TemplateName {
        TemplateName::Alpaca
    }

    /// Whether answers are right or wrong, so that there is an accuracy.
    fn has_accuracy(&self) -> bool {
        true
    }

    /// Checks that this machine has what the task needs, before anything large is read.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::CodeNotAllowed`] and its like.
    fn check(&self, _code: Option<&CodeExecution>) -> Result<(), ExperimentError> {
        Ok(())
    }

    /// Reads problems and encodes their prompts.
    ///
    /// # Errors
    ///
    /// Files that cannot be read, rows that cannot be used, prompts that do not fit.
    fn load(
        &self,
        source: &ProblemSource<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Problems>, ExperimentError>;
}

/// A file of problems, and who is asked.
pub struct ProblemSource<'a> {
    /// The file.
    pub path: &'a Path,
    /// How its rows are read.
    pub load: &'a LoadOptions,
    /// Makes prompts.
    pub encoder: &'a Encoder,
    /// The model's configuration.
    pub config: &'a ModelConfig,
    /// Tokens that a prompt and its answer may have together.
    pub context: usize,
    /// Limits of programs that the model writes. If absent, no program may run.
    pub code: Option<&'a CodeExecution>,
}

/// Problems of a task, encoded for one model.
pub trait Problems {
    /// How many there are.
    fn count(&self) -> usize;

    /// Differs if prompts or expected answers do.
    fn fingerprint(&self) -> String;

    /// Asks a model all problems except those in `done`, and hands each answer to `keep` as soon as it is there.
    ///
    /// # Errors
    ///
    /// Prompts that cannot be continued, programs that cannot be run, and errors of `keep`.
    fn answer(
        &self,
        model: &CausalLm,
        options: &AnswerOptions,
        done: &[Answer],
        observer: &mut dyn Observer,
        keep: &mut dyn FnMut(Answer) -> Result<(), ExperimentError>,
    ) -> Result<(), ExperimentError>;

    /// Counts answers.
    fn score(&self, answers: &[Answer], effort: &Effort) -> Scores;
}

/// What answers took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Answers to each problem.
    pub samples: usize,
    /// Answers that an earlier evaluation left.
    pub resumed: usize,
    /// Tokens of the others.
    pub new_tokens: usize,
    /// Seconds that the others took.
    pub seconds: f64,
}

impl Effort {
    /// Tokens of the new answers each second.
    pub fn tokens_per_s(&self) -> f64 {
        self.new_tokens as f64 / self.seconds
    }
}

/// What a model scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// By each grader, the one that counts first; empty if nothing is right or wrong.
    pub graders: Vec<(String, Score)>,
    /// All of it for programs.
    pub document: Map<String, Value>,
    /// All of it for people: a head, and rows. Empty if [`notes`](Self::notes) say it all.
    pub table: Vec<Vec<String>>,
    /// A line that belongs below the table.
    pub notes: String,
}

/// Answers and what they score.
pub struct Evaluation {
    /// In the order of the problems.
    pub answers: Vec<Answer>,
    /// What they score.
    pub scores: Scores,
}

impl Evaluation {
    /// The score that counts; `None` if nothing is right or wrong.
    pub fn score(&self) -> Option<&Score> {
        self.scores.graders.first().map(|(_, score)| score)
    }
}

/// The names of all data sets that a task is called by.
pub fn data_sets() -> Vec<&'static str> {
    TASKS.iter().flat_map(|task| task.data_sets()).copied().collect()
}

/// The task that is called by the name of a data set.
pub fn of_data_set(name: &str) -> Option<&'static dyn Task> {
    TASKS.iter().copied().find(|task| task.data_sets().contains(&name))
}

/// The task whose problems a file holds, by its first rows.
pub fn recognise(path: &Path) -> &'static dyn Task {
    // A file that cannot be read is a fault that loading it reports.
    let Ok(read) = sorsa_data::read_rows(path, ROWS_TO_RECOGNISE) else { return &NUMBERS };
    let mut rows = read.rows.iter().filter_map(|(_, row)| row.as_ref().ok());
    rows.find_map(|row| TASKS.iter().copied().find(|task| task.recognises(row))).unwrap_or(&NUMBERS)
}

/// The same for a file of a named format, which decides among the tasks that read records.
pub fn recognise_as(path: &Path, format: Format) -> &'static dyn Task {
    let found = recognise(path);
    if found.formats().is_empty() {
        return found;
    }
    TASKS.iter().copied().find(|task| task.formats().contains(&format)).unwrap_or(found)
}

/// Asks a model all problems that `log` has no answers to, and scores all.
///
/// # Errors
///
/// See [`Problems::answer`]; a log that cannot be written.
pub fn evaluate(
    problems: &dyn Problems,
    model: &CausalLm,
    options: &AnswerOptions,
    mut log: AnswerLog<Answer>,
    observer: &mut dyn Observer,
) -> Result<Evaluation, ExperimentError> {
    let (started, done) = (Instant::now(), log.rows().to_vec());
    let mut new_tokens = 0;
    problems.answer(model, options, &done, observer, &mut |answer| {
        new_tokens += answer.tokens;
        log.push(answer)
    })?;
    let effort =
        Effort { samples: options.samples, resumed: done.len(), new_tokens, seconds: started.elapsed().as_secs_f64() };
    let answers = log.conclude(|answer| (answer.row, answer.sample))?;
    let scores = problems.score(&answers, &effort);
    Ok(Evaluation { answers, scores })
}

/// Reads the rows of problems that are no records. Leaves rows out that `convert` refuses, and tells the observer, if the source
/// says so.
fn read_problems<T>(
    task: &'static str,
    source: &ProblemSource<'_>,
    observer: &mut dyn Observer,
    convert: impl FnMut(usize, Value) -> Result<T, String>,
) -> Result<Vec<T>, ExperimentError> {
    let path = source.path;
    let read = sorsa_data::read_rows(path, source.load.limit.unwrap_or(usize::MAX))?;
    let rows = read.rows.len();
    let (problems, bad) = read.convert(convert);
    if bad.count > 0 {
        if !source.load.skip_bad_rows || problems.is_empty() {
            return Err(ExperimentError::MalformedProblems { path: path.to_owned(), task, rows, bad });
        }
        observer.on_event(Event::RowsSkipped { path, rows: &bad });
    }
    if problems.is_empty() { Err(ExperimentError::NoProblems { path: path.to_owned() }) } else { Ok(problems) }
}

#[cfg(test)]
mod tests;
