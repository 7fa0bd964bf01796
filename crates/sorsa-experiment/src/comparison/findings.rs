//! A comparison in sentences. A difference counts as shown if its 95 % interval does not contain 0.

use sorsa_grading::stats::{Interval, Mean};

use super::fields::value_text;
use super::results::{Comparison, SweepResult, SweptRow};
use super::row_result::RowResult;

/// Sentences: one for each row's difference, one for each doubtful rate or run, one for each sweep.
pub fn findings(comparison: &Comparison) -> Vec<String> {
    let mut text: Vec<String> = comparison.rows.iter().filter_map(difference).collect();
    for row in &comparison.rows {
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
    }
    for sweep in &comparison.sweeps {
        for row in &sweep.rows {
            text.extend(swept(comparison, sweep, row));
        }
    }
    text
}

fn difference(row: &RowResult) -> Option<String> {
    let difference = row.difference.as_ref()?;
    let mut parts = Vec::new();
    if let Some(accuracy) = &difference.accuracy {
        let Interval { low, high } = accuracy.interval;
        parts.push(format!(
            "{:+.1} points of accuracy [{:+.1}, {:+.1}], {}",
            100.0 * accuracy.mean,
            100.0 * low,
            100.0 * high,
            verdict(&accuracy.interval)
        ));
    }
    if let Some(loss) = &difference.loss {
        parts.push(match loss.interval {
            Some(interval) => format!(
                "{:+.4} nats of validation loss [{:+.4}, {:+.4}], {}",
                loss.mean,
                interval.low,
                interval.high,
                verdict(&interval)
            ),
            None => format!("{:+.4} nats of validation loss (one seed, no interval)", loss.mean),
        });
    }
    if parts.is_empty() {
        return None;
    }
    Some(format!("{} minus {}: {}.", row.name, difference.to, parts.join("; ")))
}

fn verdict(interval: &Interval) -> &'static str {
    match interval.excludes_zero() {
        true => "larger than its interval",
        false => "not larger than its interval: no difference is shown",
    }
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
    use super::super::row_result::{AccuracyMean, Difference};
    use super::super::run_result::BaseResult;
    use super::*;

    fn sentence([mean, low, high]: [f64; 3], losses: &[f64]) -> String {
        let accuracy = AccuracyMean { mean, interval: Interval { low, high }, problems: 400, seeds: 3 };
        let mut result = RowResult::new(&row("new", 16), &[], &[], &BaseResult::default()).unwrap();
        result.difference = Some(Difference { to: "old-r16".into(), loss: Mean::of(losses), accuracy: Some(accuracy) });
        difference(&result).unwrap()
    }

    #[test]
    fn a_difference_is_shown_only_if_its_interval_does_not_contain_0() {
        let text = sentence([0.021, -0.004, 0.046], &[-0.02, -0.021, -0.019]);
        let expected = "new-r16 minus old-r16: +2.1 points of accuracy [-0.4, +4.6], not larger than its interval: no difference \
                        is shown; -0.0200 nats of validation loss [-0.0225, -0.0175], larger than its interval.";
        assert_eq!(text, expected);
        let single = sentence([0.03, 0.01, 0.05], &[-0.02]);
        assert!(
            single.contains("[+1.0, +5.0], larger than its interval; -0.0200 nats of validation loss (one seed"),
            "{single}"
        );
    }
}
