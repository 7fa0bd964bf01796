//! One answer of a model and its verdicts.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sorsa_grading::grade::{AnswerKind, Grader, Verdict};

use crate::error::ExperimentError;

/// One answer: a line of `generations.jsonl` and of what `eval --out` writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the problem in its file.
    pub row: usize,
    /// Number of the answer among the problem's.
    #[serde(default)]
    pub sample: usize,
    /// Name of the problem, if its file has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// Difficulty, if the file has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Subject, if the file has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What the model read.
    #[serde(default)]
    pub prompt: String,
    /// The right answer, if it is a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What the model wrote, or chose.
    #[serde(default)]
    pub generated: String,
    /// Its tokens.
    pub tokens: usize,
    /// Whether the model ended the answer itself.
    #[serde(default)]
    pub finished: bool,
    /// Its verdicts.
    #[serde(flatten)]
    pub judgment: Judgment,
}

/// The verdicts on an answer; the fields in a file tell which of these it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Judgment {
    /// By every grader of texts.
    Graded(Verdicts),
    /// By running it.
    Tested {
        /// Whether it ran to its end.
        passed: bool,
        /// Why it did not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// By the likelihood of given choices.
    Chosen(ChoiceVerdicts),
    /// By the one rule of its task.
    Decided(Verdict),
    /// No right or wrong: how likely a text is.
    Loss {
        /// Sum of the negative log-likelihoods of its tokens, in nats.
        loss: f64,
    },
}

/// Verdict of each grader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Equal strings.
    pub strict: Verdict,
    /// Equal meanings: the one that counts.
    pub faithful: Verdict,
    /// The rule of SORSA's author.
    pub author: Verdict,
}

/// Verdicts on a choice: the model's choice depends on how the likelihoods of the choices are compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceVerdicts {
    /// By the mean over the tokens: the one that counts.
    #[serde(flatten)]
    pub mean: Verdict,
    /// Whether the choice by the sum over the tokens is right: `acc` of lm-evaluation-harness.
    pub acc: bool,
    /// Whether the choice by the sum per character is right: `acc_norm` of lm-evaluation-harness.
    pub acc_norm: bool,
}

impl Verdicts {
    /// The graders, the one that counts first.
    pub const GRADERS: [Grader; 3] = [Grader::Faithful, Grader::Strict, Grader::Author];

    /// Grades a text.
    pub fn of(kind: AnswerKind, expected: &str, text: &str) -> Self {
        let by = |grader: Grader| grader.grade_as(kind, expected, text);
        Self { strict: by(Grader::Strict), faithful: by(Grader::Faithful), author: by(Grader::Author) }
    }

    /// In the order of [`GRADERS`](Self::GRADERS).
    pub fn in_order(&self) -> [&Verdict; 3] {
        [&self.faithful, &self.strict, &self.author]
    }

    /// Whether the graders differ.
    pub fn disputed(&self) -> bool {
        self.in_order().iter().any(|verdict| verdict.correct != self.faithful.correct)
    }
}

impl Answer {
    /// Whether it is right, by the grader that counts.
    pub fn is_correct(&self) -> bool {
        self.verdict().correct
    }

    /// The verdict that counts.
    pub fn verdict(&self) -> Verdict {
        match &self.judgment {
            Judgment::Graded(verdicts) => verdicts.faithful.clone(),
            Judgment::Tested { passed, .. } => Verdict { extracted: None, correct: *passed },
            Judgment::Chosen(verdicts) => verdicts.mean.clone(),
            Judgment::Decided(verdict) => verdict.clone(),
            Judgment::Loss { .. } => Verdict { extracted: None, correct: false },
        }
    }

    /// Whether graders differ.
    pub fn disputed(&self) -> bool {
        matches!(&self.judgment, Judgment::Graded(verdicts) if verdicts.disputed())
    }

    /// Reads the answers of a file, with or without the settings that an evaluation writes first.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Read`], [`ExperimentError::MalformedAnswer`].
    pub fn read_all(path: &Path) -> Result<Vec<Self>, ExperimentError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ExperimentError::Read { path: path.to_owned(), source })?;
        let mut answers = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if index == 0 && line.starts_with(r#"{"settings":"#) {
                continue;
            }
            let answer = serde_json::from_str(line).map_err(|source| ExperimentError::MalformedAnswer {
                path: path.to_owned(),
                line: index + 1,
                source,
            })?;
            answers.push(answer);
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_earlier_builds_are_read_by_their_fields() {
        let graded = r#"{"row":3,"prompt":"p","expected":"5","generated":"The answer is: 5","tokens":6,"finished":true,
            "strict":{"extracted":"5","correct":true},"faithful":{"extracted":"5","correct":true},
            "author":{"extracted":"4","correct":false}}"#;
        let graded: Answer = serde_json::from_str(graded).unwrap();
        assert!(graded.is_correct() && graded.disputed() && graded.sample == 0);
        let tested = r#"{"row":0,"sample":1,"task_id":"HumanEval/0","prompt":"p","generated":"g","tokens":1,
            "finished":false,"passed":false,"error":"timed out"}"#;
        let tested: Answer = serde_json::from_str(tested).unwrap();
        assert_eq!(tested.judgment, Judgment::Tested { passed: false, error: Some("timed out".into()) });
        assert!(!tested.is_correct() && !tested.disputed());
        for answer in [graded, tested] {
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
        }
    }
}
