//! The difference of two rows, and the test whether it is one.

use std::collections::BTreeMap;

use serde::Serialize;
use sorsa_grading::comparison::CrossedMean;
use sorsa_grading::significance::{LEVEL, holm};
use sorsa_grading::stats::Mean;

use super::row_result::{AccuracyMean, answers};
use super::run_result::RunResult;
use crate::ExperimentError;

/// A row minus another row, seed by seed.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Name of the other row.
    pub to: String,
    /// Of the validation loss, over seeds.
    pub loss: Option<Tested<Mean>>,
    /// Of the share of right answers, over seeds and problems.
    pub accuracy: Option<Tested<AccuracyMean>>,
    /// Of the loss of each forgetting text, over seeds, by the name of the text.
    pub forgetting: BTreeMap<String, Tested<Mean>>,
}

/// A mean difference with its test, if there is more than one seed or problem.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Tested<T> {
    /// The mean.
    #[serde(flatten)]
    pub mean: T,
    /// Its test.
    pub test: Option<DifferenceTest>,
}

/// The test of a difference, one among all tests of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DifferenceTest {
    /// The two-sided p-value of this test alone.
    pub p: f64,
    /// The p-value, corrected by Holm's method for all tests of the comparison.
    pub corrected_p: f64,
    /// The smallest difference that the test finds in four of five comparisons, at the strictest level of the correction.
    pub detectable: f64,
}

impl DifferenceTest {
    /// Whether the difference is shown: its corrected p-value is below 0.05.
    pub fn is_shown(&self) -> bool {
        self.corrected_p < LEVEL
    }
}

impl<T> Tested<T> {
    /// `p` is not corrected yet.
    fn new(mean: T, p: Option<f64>) -> Self {
        Self { mean, test: p.map(|p| DifferenceTest { p, corrected_p: p, detectable: f64::NAN }) }
    }
}

impl Difference {
    /// `after` minus `before`, whose row is named `to`. The tests are those of a comparison with this difference alone, until all of them are
    /// corrected together.
    ///
    /// # Errors
    ///
    /// [`ExperimentError::Grading`] if the rows have different numbers of seeds or problems.
    pub fn new(to: String, before: &[RunResult], after: &[RunResult]) -> Result<Self, ExperimentError> {
        let of_seeds = |value: &dyn Fn(&RunResult) -> Option<f64>| -> Result<Option<Tested<Mean>>, ExperimentError> {
            let values = |runs: &[RunResult]| runs.iter().map(value).collect::<Option<Vec<_>>>();
            Ok(match (values(before), values(after)) {
                (Some(before), Some(after)) => {
                    Mean::of_differences(&before, &after)?.map(|mean| Tested::new(mean, mean.p_value()))
                }
                _ => None,
            })
        };
        let (left, right) = (answers(before), answers(after));
        let accuracy = match left.is_empty() || right.is_empty() {
            true => None,
            false => AccuracyMean::of(CrossedMean::of_differences(&left, &right)?, CrossedMean::difference_interval),
        };
        let mut forgetting = BTreeMap::new();
        for text in before.iter().flat_map(|run| run.text_losses.keys()) {
            let tested = of_seeds(&|run| run.text_losses.get(text).copied())?;
            forgetting.extend(tested.map(|tested| (text.clone(), tested)));
        }
        let mut difference = Self {
            to,
            loss: of_seeds(&|run| run.loss_after)?,
            accuracy: accuracy.map(|mean| Tested::new(mean, mean.crossed.p_value())),
            forgetting,
        };
        correct([&mut difference]);
        Ok(difference)
    }

    fn tests(&mut self) -> impl Iterator<Item = &mut DifferenceTest> {
        let loss = self.loss.as_mut().and_then(|tested| tested.test.as_mut());
        let accuracy = self.accuracy.as_mut().and_then(|tested| tested.test.as_mut());
        let forgetting = self.forgetting.values_mut().filter_map(|tested| tested.test.as_mut());
        [loss, accuracy].into_iter().flatten().chain(forgetting)
    }

    /// How many tests there are.
    pub fn test_count(&self) -> usize {
        let Self { loss, accuracy, forgetting, .. } = self;
        let of_accuracy = accuracy.is_some_and(|tested| tested.test.is_some());
        let of_losses = loss.iter().chain(forgetting.values()).filter(|tested| tested.test.is_some());
        of_losses.count() + usize::from(of_accuracy)
    }
}

/// Corrects the p-values of all tests of a comparison by Holm's method, and finds what each test can detect.
pub fn correct<'a>(differences: impl IntoIterator<Item = &'a mut Difference>) {
    let mut differences: Vec<&mut Difference> = differences.into_iter().collect();
    let mut tests: Vec<&mut DifferenceTest> =
        differences.iter_mut().flat_map(|difference| difference.tests()).collect();
    let count = tests.len();
    let corrected = holm(&tests.iter().map(|test| test.p).collect::<Vec<_>>());
    for (test, corrected) in tests.iter_mut().zip(corrected) {
        test.corrected_p = corrected;
    }
    let level = LEVEL / count.max(1) as f64;
    for difference in differences {
        let Difference { loss, accuracy, forgetting, .. } = difference;
        for Tested { mean, test } in loss.iter_mut().chain(forgetting.values_mut()) {
            if let (Some(test), Some(detectable)) = (test, mean.detectable(level)) {
                test.detectable = detectable;
            }
        }
        if let Some(Tested { mean, test: Some(test) }) = accuracy
            && let Some(detectable) = mean.crossed.detectable(level)
        {
            test.detectable = detectable;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::run_result::tests::with_curve;
    use super::*;

    fn run(loss: f64, verdicts: &[u8]) -> RunResult {
        RunResult {
            loss_after: Some(loss),
            verdicts: Some(verdicts.iter().enumerate().map(|(row, right)| (row, *right == 1)).collect()),
            ..with_curve(&[])
        }
    }

    #[test]
    fn differences_are_taken_seed_by_seed_and_problem_by_problem() {
        let before = [run(0.30, &[0, 1, 1, 0]), run(0.40, &[0, 1, 1, 1])];
        let after = [run(0.25, &[1, 1, 1, 0]), run(0.351, &[1, 1, 1, 1])];
        let difference = Difference::new("before".into(), &before, &after).unwrap();
        let loss = difference.loss.unwrap();
        // The seeds differ by 0.1, the difference by 0.001.
        assert!((loss.mean.mean + 0.0495).abs() < 1e-12 && loss.mean.interval.unwrap().excludes_zero(), "{loss:?}");
        let test = loss.test.unwrap();
        // t = 99 with one degree of freedom.
        assert!((test.p - 0.00643).abs() < 1e-5 && test.corrected_p == 2.0 * test.p, "{test:?}");
        let accuracy = difference.accuracy.unwrap();
        assert!((accuracy.mean.mean - 0.25).abs() < 1e-12 && accuracy.mean.seeds == 2 && accuracy.mean.problems == 4);
        assert!(!accuracy.test.unwrap().is_shown(), "one problem of four shows nothing");
    }

    #[test]
    fn tests_are_corrected_for_all_of_their_comparison() {
        let before = [run(0.30, &[]), run(0.31, &[]), run(0.29, &[])];
        let row = |shift: f64| {
            let after = [run(0.30 - shift, &[]), run(0.3101 - shift, &[]), run(0.2902 - shift, &[])];
            Difference::new("before".into(), &before, &after).unwrap()
        };
        let mut rows = [row(0.002), row(0.0001), row(0.05)];
        let alone: Vec<DifferenceTest> = rows.iter().map(|row| row.loss.unwrap().test.unwrap()).collect();
        correct(&mut rows);
        let test = |index: usize| rows[index].loss.unwrap().test.unwrap();
        assert_eq!(test(2).corrected_p, 3.0 * alone[2].p);
        assert_eq!(test(0).corrected_p, 2.0 * alone[0].p);
        assert!(test(0).is_shown() && test(2).is_shown() && !test(1).is_shown());
        assert!(test(0).detectable > alone[0].detectable, "a stricter level finds less");
    }
}
