//! A job: a command of this binary whose result is a file.

use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use sorsa_files::write_atomic;

use sorsa_experiment::RunDir;
use sorsa_experiment::comparison::{Evaluation, Measurement, RateSearchSpec, RunSpec, Subject};

/// A training run, or a measurement of a model.
#[derive(Debug, Clone)]
pub struct Job {
    /// Unique in the comparison; also the name of its lock.
    pub name: String,
    /// Folder of its files.
    pub folder: PathBuf,
    pub kind: JobKind,
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "dozens in a comparison: a box would save nothing")]
pub enum JobKind {
    /// A fine-tune into the folder, by this recipe (TOML).
    FineTune { recipe: String },
    /// A search for the learning rate of this recipe (TOML), whose standard output becomes the file `result` in the folder.
    FindLearningRate { recipe: String, result: String },
    /// An evaluation whose standard output becomes the file `result` in the folder.
    Evaluate { evaluation: Evaluation, result: String },
}

impl Job {
    /// The job that trains a run.
    pub fn fine_tune(run: &RunSpec) -> anyhow::Result<Self> {
        let kind = JobKind::FineTune { recipe: run.recipe.to_toml()? };
        Ok(Self { name: run.name.clone(), folder: run.folder.clone(), kind })
    }

    /// The job that finds a learning rate.
    pub fn find_learning_rate(search: &RateSearchSpec) -> anyhow::Result<Self> {
        let kind =
            JobKind::FindLearningRate { recipe: search.recipe.to_toml()?, result: RateSearchSpec::RESULT.to_owned() };
        Ok(Self { name: search.name.clone(), folder: search.folder.clone(), kind })
    }

    /// The job that makes a measurement.
    pub fn evaluate(measurement: Measurement) -> Self {
        let Measurement { name, folder, result, evaluation } = measurement;
        Self { name, folder, kind: JobKind::Evaluate { evaluation, result } }
    }

    /// Whether the result is there and whole. A file that a power failure left empty or full of zeros is none: the job is done again.
    pub fn is_done(&self) -> bool {
        match &self.kind {
            JobKind::FineTune { .. } => {
                [RunDir::SUMMARY, RunDir::DIVERGED].iter().any(|name| is_json(&self.folder.join(name)))
            }
            JobKind::Evaluate { result, .. } | JobKind::FindLearningRate { result, .. } => {
                is_json(&self.folder.join(result))
            }
        }
    }

    /// Whether a fine-tune has begun, so that its command resumes it.
    pub fn has_begun(&self) -> bool {
        self.folder.join(RunDir::RECIPE).exists()
    }

    /// The arguments of the command that does the job, or resumes it. Writes the recipe that they name.
    pub fn arguments(&self) -> anyhow::Result<Vec<String>> {
        let recipe = match &self.kind {
            JobKind::FineTune { recipe } | JobKind::FindLearningRate { recipe, .. } => recipe,
            JobKind::Evaluate { evaluation, .. } => return Ok(eval_arguments(evaluation)),
        };
        let folder = self.folder.display().to_string();
        if self.has_begun() {
            return Ok(["finetune", "--quiet", "--resume", &folder].map(str::to_owned).to_vec());
        }
        let asked = self.folder.join("asked.toml");
        write_atomic(&asked, recipe)?;
        let asked = asked.display().to_string();
        if let JobKind::FindLearningRate { .. } = self.kind {
            return Ok(["lr-find", "--quiet", "--json", "--beside", "0", "--recipe", &asked]
                .map(str::to_owned)
                .to_vec());
        }
        Ok(["finetune", "--quiet", "--recipe", &asked, "--run-dir", &folder].map(str::to_owned).to_vec())
    }
}

fn is_json(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| serde_json::from_slice::<IgnoredAny>(&bytes).is_ok())
}

/// Texts evaluated together.
const TEXT_BATCH: usize = 32;

/// The arguments of `sorsa eval`.
fn eval_arguments(evaluation: &Evaluation) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let mut arguments = vec!["eval".to_owned(), "--quiet".to_owned(), "--format=json".to_owned()];
    let mut option = |name: &str, value: &dyn std::fmt::Display| arguments.push(format!("--{name}={value}"));
    option("model", &evaluation.model);
    // In f32 whatever the runs are trained in, like the base model: the results of a comparison are of one kind. But a validation loss is
    // compared with that of a run.
    if !matches!(evaluation.subject, Subject::ValidationOf { .. }) {
        option("dtype", &"f32");
    }
    if let Some(format) = &evaluation.quantize {
        option("quantize", format);
    }
    if let Some(adapter) = &evaluation.adapter {
        option("adapter", &path(adapter));
    }
    match &evaluation.subject {
        Subject::Problems {
            data,
            limit,
            max_new_tokens,
            batch_size,
            template,
            chat_template,
            prompt_suffix,
            allow_code_execution,
            answers,
        } => {
            option("limit", limit);
            option("max-new-tokens", max_new_tokens);
            option("batch-size", batch_size);
            option("template", template);
            option("prompt-suffix", prompt_suffix);
            option("out", &path(answers));
            if let Some(name) = chat_template {
                option("chat-template", name);
            }
            if let Some(data) = data {
                option("data", data);
            }
            if *allow_code_execution {
                arguments.push("--allow-code-execution".to_owned());
            }
        }
        Subject::Text { path: text } => {
            option("text", &path(text));
            option("batch-size", &TEXT_BATCH);
        }
        Subject::ValidationOf { run } => option("validation-of", &path(run)),
    }
    if evaluation.skip_bad_rows {
        arguments.push("--skip-bad-rows".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_is_a_command_line() {
        let text = Subject::Text { path: "text.jsonl".into() };
        let evaluation = Evaluation {
            model: "model".into(),
            quantize: None,
            adapter: Some("run".into()),
            skip_bad_rows: true,
            subject: text,
        };
        let expected = "eval --quiet --format=json --model=model --dtype=f32 --adapter=run --text=text.jsonl --batch-size=32 --skip-bad-rows";
        assert_eq!(eval_arguments(&evaluation).join(" "), expected);
    }
}
