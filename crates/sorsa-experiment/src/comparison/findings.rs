//! A comparison in sentences. A difference counts as shown if its p-value, corrected for all tests of the comparison, is below 0.05.

use sorsa_grading::stats::{Interval, Mean};

use super::difference::{Difference, DifferenceTest, Tested};
use super::fields::value_text;
use super::results::{Comparison, SweepResult, SweptRow};
use super::row_result::RowResult;
use super::run_result::WatchPoint;

/// Sentences: one for each row's difference, one for each doubtful rate or run, one for each sweep.
pub fn findings(comparison: &Comparison) -> Vec<String> {
    let mut text: Vec<String> = comparison.rows.iter().filter_map(difference).collect();
    text.extend(power(comparison));
    text.extend(comparison.rows.iter().filter_map(kept));
    text.extend(comparison.rows.iter().flat_map(doubts));
    text.extend(comparison.sweeps.iter().flat_map(|sweep| of_sweep(comparison, sweep)));
    text
}

/// The difference of a row, what a second task leaves of the first, and what is doubtful.
pub fn of_row(row: &RowResult) -> Vec<String> {
    difference(row).into_iter().chain(kept(row)).chain(doubts(row)).collect()
}

/// What a second task leaves of the first.
fn kept(row: &RowResult) -> Option<String> {
    let second = row.second_task.as_ref()?;
    let (before, after, change) = (row.loss?, second.first_loss?, second.first_loss_change?);
    let interval = match change.interval {
        Some(Interval { low, high }) => format!(" [{low:+.4}, {high:+.4}]"),
        None => String::new(),
    };
    Some(format!(
        "{}: after the second task the validation loss of the first is {:.4} instead of {:.4} ({:+.4}{interval}).",
        row.name, after.mean, before.mean, change.mean
    ))
}

/// A sentence for each row of a sweep.
pub fn of_sweep(comparison: &Comparison, sweep: &SweepResult) -> Vec<String> {
    sweep.rows.iter().filter_map(|row| swept(comparison, sweep, row)).collect()
}

/// What is doubtful in a row's rate or runs.
fn doubts(row: &RowResult) -> Vec<String> {
    let mut text = Vec::new();
    match row.learning_rate {
        None => text.push(format!("{}: every learning rate diverged.", row.name)),
        Some(rate) if row.rate_at_end => text.push(format!(
            "{}: its best learning rate, {rate:e}, is at an end of the grid, so a better one may lie beyond it.",
            row.name
        )),
        Some(_) => {}
    }
    if row.learning_rate.is_some() && row.loss.is_none() {
        text.push(format!("{}: a seed diverged at the chosen learning rate, so there is no mean.", row.name));
    }
    text
}

/// The figure of the condition number of the trained part.
pub const KAPPA_OF_THE_TRAINED_PART: &str = "kappa-of-the-trained-part";
/// The figure of the condition number of the whole weight.
pub const KAPPA_OF_THE_WEIGHT: &str = "kappa-of-the-weight";
/// The figure of the defect over training.
pub const DEFECT: &str = "defect";

/// The values of a watched figure at the first and the last step of a row's runs: means over the seeds.
pub fn watched(comparison: &Comparison, row: &RowResult, figure: &str) -> Option<String> {
    let (what, value): (_, fn(&WatchPoint) -> Option<f64>) = match figure {
        KAPPA_OF_THE_TRAINED_PART => ("kappa of the trained part", |point| point.kappa_part),
        KAPPA_OF_THE_WEIGHT => ("kappa of the weight", |point| point.kappa),
        DEFECT => ("defect", |point| point.defect),
        _ => return None,
    };
    let runs: Vec<_> = row.runs.iter().filter_map(|name| comparison.run(name)).collect();
    let mean = |of: &dyn Fn(&[WatchPoint]) -> Option<f64>| {
        let values: Option<Vec<f64>> =
            runs.iter().map(|run| of(&run.watched).filter(|value| value.is_finite())).collect();
        Mean::of(&values?)
    };
    let last = mean(&|points| value(points.last()?))?;
    let number = |value: f64| if value.abs() < 0.01 { format!("{value:.1e}") } else { format!("{value:.3}") };
    let before = match mean(&|points| value(points.first()?)) {
        Some(first) => number(first.mean),
        // The trained part of LoRA has no rank yet.
        None => "none".to_owned(),
    };
    Some(format!("{}: {what} {before} before training, {} after.", row.name, number(last.mean)))
}

fn difference(row: &RowResult) -> Option<String> {
    let difference = row.difference.as_ref()?;
    let mut parts = Vec::new();
    if let Some(Tested { mean, test }) = &difference.accuracy {
        let Interval { low, high } = mean.interval;
        parts.push(format!(
            "{:+.1} points of accuracy [{:+.1}, {:+.1}], {}",
            100.0 * mean.mean,
            100.0 * low,
            100.0 * high,
            verdict(test.as_ref())
        ));
    }
    let loss = difference.loss.iter().map(|tested| (tested, "validation loss".to_owned()));
    let texts = difference.forgetting.iter();
    let forgetting = texts.map(|(text, tested)| (tested, forgetting_label(text, difference.forgetting.len())));
    for (Tested { mean, test }, what) in loss.chain(forgetting) {
        parts.push(match mean.interval {
            Some(Interval { low, high }) => {
                format!("{:+.4} nats of {what} [{low:+.4}, {high:+.4}], {}", mean.mean, verdict(test.as_ref()))
            }
            None => format!("{:+.4} nats of {what} (one seed, no interval)", mean.mean),
        });
    }
    if parts.is_empty() {
        return None;
    }
    Some(format!("{} minus {}: {}.", row.name, difference.to, parts.join("; ")))
}

fn verdict(test: Option<&DifferenceTest>) -> String {
    match test {
        Some(test) if test.is_shown() => format!("a difference (p {})", p_value(test)),
        Some(test) => format!("no difference is shown (p {})", p_value(test)),
        None => "no test".to_owned(),
    }
}

/// `0.031`, or `< 0.001`. The corrected p-value.
pub fn p_value(test: &DifferenceTest) -> String {
    if test.corrected_p < 0.001 { "< 0.001".to_owned() } else { format!("{:.3}", test.corrected_p) }
}

/// Says which differences the tests would probably have missed: the medians over the rows.
fn power(comparison: &Comparison) -> Option<String> {
    let differences = || comparison.rows.iter().filter_map(|row| row.difference.as_ref());
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let of_seeds = |of: &dyn Fn(&Difference) -> Option<Tested<Mean>>| {
        median(differences().filter_map(|difference| Some(of(difference)?.test?.detectable)).collect())
    };
    let mut parts = Vec::new();
    let accuracy = differences().filter_map(|difference| Some(difference.accuracy?.test?.detectable)).collect();
    parts.extend(median(accuracy).map(|share| format!("{:.1} points of accuracy", 100.0 * share)));
    parts.extend(of_seeds(&|difference| difference.loss).map(|nats| format!("{nats:.4} nats of validation loss")));
    for text in &comparison.texts {
        let nats = of_seeds(&|difference| difference.forgetting.get(text).copied());
        let label = forgetting_label(text, comparison.texts.len());
        parts.extend(nats.map(|nats| format!("{nats:.4} nats of {label}")));
    }
    if parts.is_empty() {
        return None;
    }
    let seeds = match comparison.seeds.len() {
        1 => "one seed".to_owned(),
        count => format!("these {count} seeds"),
    };
    Some(format!(
        "With {seeds} a difference below {} would probably not have been seen: one of this size is found in four of five comparisons \
         (the median over the rows).",
        parts.join(", ")
    ))
}

/// Names the value with the lowest loss, and compares the spread between values with the spread between seeds.
fn swept(comparison: &Comparison, sweep: &SweepResult, row: &SweptRow) -> Option<String> {
    let mut losses = Vec::new();
    for swept in &row.values {
        losses.extend(comparison.run(&swept.run).and_then(|run| run.loss_after).map(|loss| (loss, &swept.value)));
    }
    let (lowest, value) = losses.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let spread = losses.iter().map(|(loss, _)| *loss).fold(lowest, f64::max) - lowest;
    let at_best_rate = comparison.rows.iter().find(|other| other.name == row.row)?;
    let seeds = match at_best_rate.loss.and_then(|loss| loss.deviation) {
        Some(deviation) => format!(
            "; seeds of {} scatter by {deviation:.4} (standard deviation), and a spread of {spread:.4} between {} {}",
            row.row,
            sweep.name,
            if spread > 2.0 * deviation { "is more than twice that" } else { "is within twice that" }
        ),
        None => String::new(),
    };
    Some(format!(
        "Of the {} of {}, {} has the lowest validation loss, {lowest:.4} (one seed each{seeds}).",
        sweep.name,
        row.row,
        value_text(value)
    ))
}

/// `forgetting`, or `forgetting of NAME` if there are several texts.
pub fn forgetting_label(text: &str, texts: usize) -> String {
    if texts == 1 { "forgetting".to_owned() } else { format!("forgetting of {text}") }
}

/// `0.2512 [0.2440, 0.2584]`.
pub fn with_interval(mean: &Mean, decimals: usize) -> String {
    match mean.interval {
        Some(Interval { low, high }) => format!("{:.decimals$} [{low:.decimals$}, {high:.decimals$}]", mean.mean),
        None => format!("{:.decimals$}", mean.mean),
    }
}

#[cfg(test)]
mod tests {
    use super::super::arm::tests::row;
    use super::super::row_result::AccuracyMean;
    use super::super::run_result::BaseResult;
    use super::*;
    use std::collections::BTreeMap;

    use sorsa_grading::comparison::CrossedMean;

    fn sentence([mean, low, high]: [f64; 3], losses: &[f64], [p, corrected_p]: [f64; 2]) -> String {
        let crossed = CrossedMean::of(&[vec![mean]]).unwrap().unwrap();
        let accuracy = AccuracyMean { mean, interval: Interval { low, high }, problems: 400, seeds: 3, crossed };
        let test = DifferenceTest { p, corrected_p, detectable: 0.05 };
        let loss = Mean::of(losses).unwrap();
        let mut result = RowResult::new(&row("new", 16), &[], &[], &BaseResult::default()).unwrap();
        result.difference = Some(Difference {
            to: "old-r16".into(),
            loss: Some(Tested {
                mean: loss,
                test: loss.interval.map(|_| DifferenceTest { corrected_p: 4e-4, ..test }),
            }),
            accuracy: Some(Tested { mean: accuracy, test: Some(test) }),
            forgetting: BTreeMap::new(),
        });
        difference(&result).unwrap()
    }

    #[test]
    fn a_difference_is_shown_only_if_its_corrected_p_value_is_below_the_level() {
        let text = sentence([0.041, 0.002, 0.080], &[-0.02, -0.021, -0.019], [0.04, 0.16]);
        let expected = "new-r16 minus old-r16: +4.1 points of accuracy [+0.2, +8.0], no difference is shown (p 0.160); -0.0200 nats of \
                        validation loss [-0.0225, -0.0175], a difference (p < 0.001).";
        assert_eq!(text, expected);
        let single = sentence([0.03, 0.01, 0.05], &[-0.02], [0.01, 0.02]);
        assert!(
            single.contains("[+1.0, +5.0], a difference (p 0.020); -0.0200 nats of validation loss (one seed"),
            "{single}"
        );
    }
}
