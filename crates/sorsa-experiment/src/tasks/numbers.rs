//! Word problems whose answer is a number: GSM8K, SVAMP, MetaMathQA, the embedded task, and any prompts with answers.

use sorsa_data::Format;
use sorsa_grading::grade::AnswerKind;

use super::graded::GradedProblems;
use super::{ProblemSource, Problems, Task};
use crate::error::ExperimentError;
use crate::observer::Observer;

/// The task.
pub static NUMBERS: Numbers = Numbers;

/// Problems whose answer is a number.
pub struct Numbers;

impl Task for Numbers {
    fn name(&self) -> &'static str {
        "number"
    }

    fn data_sets(&self) -> &'static [&'static str] {
        &["gsm8k", "svamp", "embedded"]
    }

    fn formats(&self) -> &'static [Format] {
        use Format::*;
        &[Gsm8k, Svamp, MetaMathQa, Alpaca, PromptCompletion, Messages, ShareGpt]
    }

    fn load(
        &self,
        source: &ProblemSource<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Problems>, ExperimentError> {
        Ok(Box::new(GradedProblems::load(self.name(), AnswerKind::Number, source, observer)?))
    }
}
