//! Problems whose answer is an expression: MATH (Hendrycks et al. 2021).

use sorsa_data::Format;
use sorsa_grading::grade::AnswerKind;

use super::graded::GradedProblems;
use super::{ProblemSource, Problems, Task};
use crate::error::ExperimentError;
use crate::observer::Observer;

/// The task.
pub static EXPRESSIONS: Expressions = Expressions;

/// Problems whose answer is an expression.
pub struct Expressions;

impl Task for Expressions {
    fn name(&self) -> &'static str {
        "math"
    }

    fn data_sets(&self) -> &'static [&'static str] {
        &["math"]
    }

    fn formats(&self) -> &'static [Format] {
        &[Format::Math]
    }

    fn load(
        &self,
        source: &ProblemSource<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Problems>, ExperimentError> {
        Ok(Box::new(GradedProblems::load(self.name(), AnswerKind::Expression, source, observer)?))
    }
}
