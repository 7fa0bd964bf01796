//! Errors of experiments.

use std::io;
use std::num::TryFromIntError;
use std::path::PathBuf;

use sorsa_adapter::AdapterError;
use sorsa_checkpoint::gguf::GgufError;
use sorsa_checkpoint::hub::HubError;
use sorsa_checkpoint::weights::WeightsError;
use sorsa_checkpoint::{ConfigError, SourceError};
use sorsa_data::synthetic::SyntheticError;
use sorsa_data::{BadRows, DataError, LongPrompt};
use sorsa_files::FileError;
use sorsa_grading::GradingError;
use sorsa_linalg::LinalgError;
use sorsa_models::{GenerateError, ModelError};
use sorsa_report::ReportError;
use sorsa_train::{CheckpointError, TrainError};

/// Why an experiment ended early. [`is_bad_input`](Self::is_bad_input) tells the caller's faults from failures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// The observer asked to stop; a checkpoint was written.
    #[error("interrupted")]
    Interrupted {
        /// Optimizer steps done.
        step: u64,
    },

    /// The files of a model cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A GGUF file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A recipe cannot be read.
    #[error("{}: {source}", path.display())]
    ReadRecipe {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A recipe is not TOML.
    #[error("{name}, line {line}: {message}")]
    RecipeSyntax {
        /// The file, or `command line`.
        name: String,
        /// The line, counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A recipe has an unknown field, or a field of another type.
    #[error("{name}: {message}")]
    RecipeField {
        /// The file, or `command line`.
        name: String,
        /// What the parser says, with the field.
        message: String,
    },
    /// Values of a recipe make no sense.
    #[error("{name}: {}", faults.join("; "))]
    RecipeValues {
        /// The file, or `command line`.
        name: String,
        /// Every fault.
        faults: Vec<String>,
    },
    /// A dotted field leads through a value that is no table.
    #[error("`{table}` is not a table: `{field}` cannot be set")]
    NotATable {
        /// The value.
        table: String,
        /// The field below it.
        field: String,
    },
    /// A name that stands for nothing.
    #[error("{0}")]
    UnknownName(String),
    /// The recipe asks for another adapter than the one to start from.
    #[error("the adapter to start from is {method} of rank {rank} on {targets}: [adapter] asks for another")]
    OtherAdapter {
        /// Method of the adapter.
        method: String,
        /// Its rank.
        rank: usize,
        /// Its target modules.
        targets: String,
    },

    /// A model's name or its repository.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A model's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A model's files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model's weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// An adapter that does not fit its model, or a file of one.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A difference of weights cannot be made a LoRA or cannot be analysed.
    #[error("{}: {}", path.display(), shown_faults(faults))]
    Difference {
        /// The tuned model or the adapter.
        path: PathBuf,
        /// What was expected and found, a line for each tensor.
        faults: Vec<String>,
    },
    /// A folder without an adapter.
    #[error(
        "{} holds no adapter: adapter.json or {config} should be there, or in adapter/{}",
        folder.display(),
        shown_inside(inside)
    )]
    NoAdapter {
        /// The folder.
        folder: PathBuf,
        /// PEFT's file.
        config: &'static str,
        /// Folders inside that hold one.
        inside: Vec<PathBuf>,
    },
    /// A folder of an adapter where a model's should be.
    #[error(
        "{} holds an adapter and no model: name it with --adapter, and with --model the model that it was made for",
        folder.display()
    )]
    AdapterAsModel {
        /// The folder.
        folder: PathBuf,
    },
    /// An adapter with NaN or infinite numbers.
    #[error("{}: `{name}` holds numbers that are not finite", folder.display())]
    AdapterNotFinite {
        /// Folder of the adapter.
        folder: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A text of which the model computes no likelihood.
    #[error(
        "{}: the loss of row {row} is {loss}. The model's weights or its adapter are damaged, or training diverged",
        path.display()
    )]
    LossNotFinite {
        /// The file of the texts.
        path: PathBuf,
        /// The row.
        row: usize,
        /// NaN or infinite.
        loss: f64,
    },
    /// An adapter that trains a tied embedding.
    #[error(
        "`{name}` is trained whole in a model with tied embeddings, which means another model in PEFT than here: \
         there the head keeps the original"
    )]
    TiedEmbedding {
        /// The tensor.
        name: String,
    },
    /// An adapter outside a run, whose model is not known.
    #[error("{} is not in a run's folder, so its model must be named", adapter.display())]
    UnknownModel {
        /// The adapter.
        adapter: PathBuf,
    },

    /// The model of an adapter's run, which is on a hub and not on this machine.
    #[error(
        "the adapter's run was made with `{model}`, which is not on this machine: name it with --model to have it fetched"
    )]
    NotFetched {
        /// The model.
        model: String,
    },

    /// Data, templates, tokenizers.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Rows of a data file.
    #[error("{}", path.display())]
    DataFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DataError,
    },
    /// Every row of a data file is too long.
    #[error(
        "{}: no row fits in {max_length} tokens, the smaller of data.max_length and the model's context",
        path.display()
    )]
    NoRowFits {
        /// The data file.
        path: PathBuf,
        /// Most tokens of a row.
        max_length: usize,
    },
    /// No row of a data file has a token that the loss counts.
    #[error(
        "{}: no row has a token to learn{}: the template writes nothing of the answers",
        path.display(),
        if *too_long > 0 { format!(", beside {too_long} rows of more than {max_length} tokens") } else { String::new() }
    )]
    NoTargets {
        /// The data file.
        path: PathBuf,
        /// Rows that are too long.
        too_long: usize,
        /// Most tokens of a row.
        max_length: usize,
    },
    /// Prompts that leave no room for an answer.
    #[error("{}: prompts overflow the model's context of {context} tokens: {}", path.display(), shown_rows(rows))]
    PromptsTooLong {
        /// The data file.
        path: PathBuf,
        /// Tokens of the context.
        context: usize,
        /// Each such row.
        rows: Vec<LongPrompt>,
    },
    /// A test file without answers.
    #[error("{}: no row has an answer to compare with", path.display())]
    NoAnswers {
        /// The file.
        path: PathBuf,
    },
    /// A prompt that cannot be continued.
    #[error(transparent)]
    Generate(#[from] GenerateError),

    /// Rows of a file of problems.
    #[error("{}: {} of {rows} rows are no problems of {task}:\n{bad}", path.display(), bad.count)]
    MalformedProblems {
        /// The file.
        path: PathBuf,
        /// The task.
        task: &'static str,
        /// Number of all rows.
        rows: usize,
        /// The rows.
        bad: BadRows,
    },
    /// A file of problems that holds none.
    #[error("{} holds no problems", path.display())]
    NoProblems {
        /// The file.
        path: PathBuf,
    },
    /// The task runs programs that the model writes, and nobody allowed that.
    #[error(
        "HumanEval runs programs that the model writes: allow it by eval.allow_code_execution in a recipe, if that can do no harm"
    )]
    CodeNotAllowed,
    /// Generated programs run on Unix only.
    #[error("generated programs are run on Unix only")]
    NotUnix,
    /// There is no Python.
    #[error("generated programs need `python3` on the path")]
    NoPython,

    /// A file that is no log of answers.
    #[error("{} is no file of an evaluation: its first line holds no settings; name another file", path.display())]
    NoAnswerLog {
        /// The file.
        path: PathBuf,
    },
    /// A log of answers that was begun with other settings.
    #[error("{} was begun with other settings ({}); name another file", path.display(), differences.join(", "))]
    OtherSettings {
        /// The file.
        path: PathBuf,
        /// Each setting that differs.
        differences: Vec<String>,
    },
    /// A damaged line of a log of answers.
    #[error("{} line {line}: {source}", path.display())]
    MalformedAnswer {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },

    /// The folder holds a run already.
    #[error("{} holds a run already; resume it, or name another folder", path.display())]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// Another process trains the run in this folder.
    #[error(
        "{} is in use by another process{}; wait until it ends, or name another folder",
        path.display(),
        match process { Some(number) => format!(" ({number})"), None => String::new() }
    )]
    RunInUse {
        /// The folder.
        path: PathBuf,
        /// The process, if it is known.
        process: Option<u32>,
    },
    /// Another process writes to this file of answers.
    #[error(
        "another process{} writes to {}; wait until it ends, or name another file",
        match process { Some(number) => format!(" ({number})"), None => String::new() },
        path.display()
    )]
    AnswersInUse {
        /// The file.
        path: PathBuf,
        /// The process, if it is known.
        process: Option<u32>,
    },
    /// The model or the data are not those that the run was begun with.
    #[error(
        "{} was begun with another {}; put back what it was, or begin a new run from its adapter. To go on all the same, remove \
         {}",
        run.display(),
        changes.join(", and another "),
        run.join("inputs.json").display()
    )]
    InputsChanged {
        /// The run.
        run: PathBuf,
        /// What changed.
        changes: Vec<String>,
    },
    /// The recipe of the run asks for another adapter than the one that the run was begun with.
    #[error(
        "{}: {}, and the run was begun otherwise; change it back, or begin a new run",
        recipe.display(),
        changes.join(", ")
    )]
    AdapterChanged {
        /// The recipe.
        recipe: PathBuf,
        /// The fields with their values then and now.
        changes: Vec<String>,
    },
    /// The adapter that a run began with cannot be read back.
    #[error("{} is damaged: {reason}. A run cannot be resumed without it; begin a new one", folder.display())]
    DamagedStart {
        /// The folder of the adapter.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The folder holds no run to resume.
    #[error("{} holds no run to go on with: {reason}", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
        /// Why its recipe cannot be read.
        reason: String,
    },
    /// The folder holds no run to analyze.
    #[error("{} holds no run: there is no recipe.toml", path.display())]
    NoRecipe {
        /// The folder.
        path: PathBuf,
    },
    /// A run without checkpoints.
    #[error("{} has no checkpoints", path.display())]
    NoCheckpoints {
        /// The run.
        path: PathBuf,
    },
    /// The patterns name no module of a run.
    #[error("{} trained none of the modules asked for", path.display())]
    NoModules {
        /// The run.
        path: PathBuf,
    },
    /// A weight of a run cannot be measured.
    #[error("cannot analyze {}", path.display())]
    Analyze {
        /// The run.
        path: PathBuf,
        /// What is wrong.
        source: MeasureError,
    },

    /// The embedded model cannot be unpacked.
    #[error("cannot unpack the embedded model: {}", path.display())]
    Unpack {
        /// Where to.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A folder that cannot be created.
    #[error("cannot create the folder {}", path.display())]
    CreateFolder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A result that an earlier run wrote cannot be read back.
    #[error("{} is not what a run writes", path.display())]
    MalformedResult {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A value without a JSON form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A recipe without a TOML form.
    #[error(transparent)]
    Toml(#[from] toml::ser::Error),
    /// Files of the run.
    #[error(transparent)]
    File(#[from] FileError),
    /// An adapter that cannot be written.
    #[error(transparent)]
    SaveAdapter(AdapterError),
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Checkpoints of the run.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The report cannot be drawn.
    #[error("cannot draw the report")]
    Report(#[from] ReportError),
    /// Arms, sweeps, rates or data that make no comparison.
    #[error("{0}")]
    Comparison(String),
    /// A number that a recipe cannot hold.
    #[error(transparent)]
    NumberTooLarge(#[from] TryFromIntError),
    /// Results that cannot be averaged or paired.
    #[error(transparent)]
    Grading(#[from] GradingError),
    /// Generated texts that cannot be written.
    #[error(transparent)]
    Synthetic(#[from] SyntheticError),
    /// A folder that cannot be listed.
    #[error("cannot list {}", path.display())]
    ListFolder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A program cannot be started or watched.
    #[error("cannot run a generated program: {action}")]
    Sandbox {
        /// What failed.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a weight cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// Its decomposition.
    #[error(transparent)]
    Decomposition(#[from] LinalgError),
    /// Its adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl ExperimentError {
    /// Whether a file, a field or a name is not what it should be: the caller can put it right. Otherwise something failed,
    /// or the run was interrupted.
    pub fn is_bad_input(&self) -> bool {
        !matches!(
            self,
            Self::Interrupted { .. }
                | Self::Unpack { .. }
                | Self::CreateFolder { .. }
                | Self::Read { .. }
                | Self::Write { .. }
                | Self::MalformedResult { .. }
                | Self::Json(_)
                | Self::Toml(_)
                | Self::File(_)
                | Self::SaveAdapter(_)
                | Self::Train(_)
                | Self::Checkpoint(_)
                | Self::Report(_)
                | Self::NumberTooLarge(_)
                | Self::Grading(_)
                | Self::Synthetic(_)
                | Self::ListFolder { .. }
                | Self::Sandbox { .. }
        )
    }
}

/// The first five folders that hold an adapter.
fn shown_inside(folders: &[PathBuf]) -> String {
    if folders.is_empty() {
        return String::new();
    }
    let shown: Vec<String> = folders.iter().take(5).map(|folder| folder.display().to_string()).collect();
    match folders.len().saturating_sub(5) {
        0 => format!("; an adapter is in {}: name that folder", shown.join(", ")),
        more => format!("; adapters are in {} and {more} more folders: name one of them", shown.join(", ")),
    }
}

/// The first five rows with their lengths, and how many more there are.
fn shown_rows(rows: &[LongPrompt]) -> String {
    let shown: Vec<String> = rows.iter().take(5).map(LongPrompt::to_string).collect();
    match rows.len().saturating_sub(5) {
        0 => shown.join(", "),
        more => format!("{} and {more} more rows", shown.join(", ")),
    }
}

/// The first five faults, and how many more there are.
fn shown_faults(faults: &[String]) -> String {
    let shown = faults.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("; ");
    match faults.len().saturating_sub(5) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
