//! The measurements of a comparison's models, and the files of their results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sorsa_checkpoint::PackingFormats;
use sorsa_data::synthetic;

use super::identity::Fingerprints;
use super::plan::ComparisonPlan;
use super::run_spec::RunSpec;
use crate::embedded::EMBEDDED;
use crate::{ExperimentError, Recipe};

/// One evaluation of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Folder, GGUF file, hub id, or `embedded`.
    pub model: String,
    /// Format that the base model is packed in while it is read.
    pub quantize: Option<PackingFormats>,
    /// Folder of the run whose adapter is tested. Absent: the base model.
    pub adapter: Option<PathBuf>,
    /// Whether rows that cannot be read are skipped.
    pub skip_bad_rows: bool,
    /// What the model is evaluated on.
    pub subject: Subject,
}

/// What a model is evaluated on.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// Accuracy on the test problems.
    Problems {
        /// Absent: the embedded problems.
        data: Option<String>,
        /// Problems at most.
        limit: usize,
        /// Tokens of an answer at most.
        max_new_tokens: usize,
        /// Problems answered together.
        batch_size: usize,
        /// Template of the prompts.
        template: String,
        /// Name of the chat template, if it is not the default one.
        chat_template: Option<String>,
        /// Text at the end of each prompt.
        prompt_suffix: String,
        /// Run the programs that the model writes.
        allow_code_execution: bool,
        /// File of the answers.
        answers: PathBuf,
    },
    /// Loss of a text.
    Text {
        /// File of the texts.
        path: PathBuf,
    },
    /// Loss of the validation data of a run.
    ValidationOf {
        /// Folder of the run.
        run: PathBuf,
    },
}

/// An evaluation, and the file of its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Name of the measurement, unique in the comparison.
    pub name: String,
    /// Folder of the result.
    pub folder: PathBuf,
    /// Name of the result in the folder.
    pub result: String,
    /// How the result is made.
    pub evaluation: Evaluation,
}

/// The model that is measured.
#[derive(Debug, Clone, Copy)]
pub enum MeasuredModel<'a> {
    /// The model before training.
    Base,
    /// The model that a run trained.
    Trained(&'a RunSpec),
}

/// Files of a model's results. A file is absent if the comparison does not measure it.
#[derive(Debug, Clone, Default)]
pub struct ResultFiles {
    /// The scores of the test problems, and every answer.
    pub test: Option<[PathBuf; 2]>,
    /// The loss of each of the forgetting texts, by the name of the text.
    pub forgetting: BTreeMap<String, PathBuf>,
}

/// The measurements of a comparison.
#[derive(Debug)]
pub struct Measurements {
    recipe: Recipe,
    model_key: String,
    base_folder: PathBuf,
    test_key: Option<String>,
    forgetting: Vec<ForgettingText>,
}

/// A text whose loss shows what a model forgets.
#[derive(Debug)]
struct ForgettingText {
    /// The name of its file, without the ending.
    name: String,
    path: PathBuf,
    /// The start of its fingerprint.
    key: String,
}

/// The loss of the first task after the second one, in the folder of the second run.
const FIRST_TASK: &str = "first-task.json";

/// The field `loss` of a result; absent if there is no file.
pub(super) fn loss_in(path: &Path) -> Result<Option<f64>, ExperimentError> {
    if !path.exists() {
        return Ok(None);
    }
    let json = std::fs::read(path).map_err(|source| ExperimentError::Read { path: path.to_owned(), source })?;
    let result: serde_json::Value = serde_json::from_slice(&json)
        .map_err(|source| ExperimentError::MalformedResult { path: path.to_owned(), source })?;
    Ok(result["loss"].as_f64())
}

/// Characters of a fingerprint in the name of a result.
const KEY_LENGTH: usize = 10;

impl Measurements {
    /// The measurements of a plan. Forgetting is measured on the user's texts. Without one, and for the embedded model only, it is measured on
    /// held-out pretraining texts, which this call writes into the plan's folder.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Comparison`] for two texts of one name, and the errors of writing the pretraining texts and of reading the texts.
    pub fn new(plan: &ComparisonPlan, forgetting_texts: &[PathBuf]) -> Result<Self, ExperimentError> {
        let mut paths = forgetting_texts.to_vec();
        if paths.is_empty() && plan.is_embedded() {
            let path = plan.folder.join("pretraining-text.jsonl");
            if !path.exists() {
                synthetic::write_corpus(&path, synthetic::VALIDATION_SEED_OFFSET, synthetic::VALIDATION_DOCUMENTS)?;
            }
            paths.push(path);
        }
        let mut forgetting: Vec<ForgettingText> = Vec::new();
        for path in paths {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(other) = forgetting.iter().find(|text| text.name == name) {
                return Err(ExperimentError::Comparison(format!(
                    "the forgetting texts {} and {} have one name, which the columns of the report would share",
                    other.path.display(),
                    path.display()
                )));
            }
            let key = Fingerprints::default().of(&path)?[..KEY_LENGTH].to_owned();
            forgetting.push(ForgettingText { name, path, key });
        }
        Ok(Self {
            recipe: plan.common.clone(),
            model_key: match plan.common.model.quantize {
                Some(format) => format!("{}-{format}", plan.model_key()),
                None => plan.model_key().to_owned(),
            },
            base_folder: plan.folder.join("base"),
            test_key: plan.test_key(),
            forgetting,
        })
    }

    /// The names of the forgetting texts.
    pub fn text_names(&self) -> Vec<String> {
        self.forgetting.iter().map(|text| text.name.clone()).collect()
    }

    /// The measurements of one model.
    pub fn of(&self, model: MeasuredModel<'_>) -> Vec<Measurement> {
        let mut measurements = Vec::new();
        if let Some(key) = &self.test_key {
            measurements.push(self.measurement(model, "test", key, self.problems(model, key)));
        }
        for ForgettingText { path, key, .. } in &self.forgetting {
            measurements.push(self.measurement(model, "forgetting", key, Subject::Text { path: path.clone() }));
        }
        measurements
    }

    /// The measurement of what a model that `then` trained on a second task has left of the first, whose run is `first`.
    pub fn of_first_task(&self, first: &RunSpec, then: &RunSpec) -> Measurement {
        let subject = Subject::ValidationOf { run: first.folder.clone() };
        let model = MeasuredModel::Trained(then);
        Measurement { result: FIRST_TASK.to_owned(), ..self.measurement(model, "first-task", "loss", subject) }
    }

    /// The loss that [`Self::of_first_task`] measured; absent if it has not been measured.
    ///
    /// # Errors
    ///
    /// The errors of reading the result.
    pub fn first_task_loss(then: &RunSpec) -> Result<Option<f64>, ExperimentError> {
        loss_in(&then.folder.join(FIRST_TASK))
    }

    /// The files of one model's results.
    pub fn files(&self, model: MeasuredModel<'_>) -> ResultFiles {
        let path = |name: String| self.folder(model).join(name);
        ResultFiles {
            test: self
                .test_key
                .as_ref()
                .map(|key| [self.result(model, "test", key), self.answers(model, key)].map(path)),
            forgetting: self
                .forgetting
                .iter()
                .map(|text| (text.name.clone(), path(self.result(model, "forgetting", &text.key))))
                .collect(),
        }
    }

    fn measurement(&self, model: MeasuredModel<'_>, kind: &str, key: &str, subject: Subject) -> Measurement {
        let (owner, adapter) = match model {
            MeasuredModel::Base => (format!("base-{}", self.model_key), None),
            MeasuredModel::Trained(run) => (run.name.clone(), Some(run.folder.clone())),
        };
        Measurement {
            name: format!("{kind}-{key}-{owner}"),
            folder: self.folder(model),
            result: self.result(model, kind, key),
            evaluation: Evaluation {
                model: self.recipe.model.path.clone(),
                quantize: self.recipe.model.quantize,
                adapter,
                skip_bad_rows: self.recipe.data.skip_bad_rows,
                subject,
            },
        }
    }

    fn problems(&self, model: MeasuredModel<'_>, key: &str) -> Subject {
        let Recipe { data, eval, .. } = &self.recipe;
        Subject::Problems {
            data: data.test.clone().filter(|name| name != EMBEDDED),
            limit: eval.problems,
            max_new_tokens: eval.max_new_tokens,
            batch_size: eval.batch_size,
            template: data.template.to_string(),
            chat_template: data.chat_template.clone(),
            prompt_suffix: eval.prompt_suffix.clone(),
            allow_code_execution: eval.allow_code_execution,
            answers: self.folder(model).join(self.answers(model, key)),
        }
    }

    fn folder(&self, model: MeasuredModel<'_>) -> PathBuf {
        match model {
            MeasuredModel::Base => self.base_folder.clone(),
            MeasuredModel::Trained(run) => run.folder.clone(),
        }
    }

    fn result(&self, model: MeasuredModel<'_>, kind: &str, key: &str) -> String {
        format!("{}{kind}-{key}.json", self.prefix(model))
    }

    fn answers(&self, model: MeasuredModel<'_>, key: &str) -> String {
        format!("{}answers-{key}.jsonl", self.prefix(model))
    }

    /// Prefix of the files' names: a folder may hold the results of several base models.
    fn prefix(&self, model: MeasuredModel<'_>) -> String {
        match model {
            MeasuredModel::Base => format!("{}-", self.model_key),
            MeasuredModel::Trained(_) => String::new(),
        }
    }
}
