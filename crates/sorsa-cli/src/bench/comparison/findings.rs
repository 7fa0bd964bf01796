//! A comparison in words. A difference counts as shown where its 95 % interval does not hold 0.

use sorsa_eval::stats::{Interval, Mean};

use super::plan::Plan;
use super::results::{ArmResult, Comparison};

/// Sentences about the differences, one for each arm, and about rates and runs that need a warning.
pub fn findings(comparison: &Comparison) -> Vec<String> {
    let mut text: Vec<String> = comparison.arms.iter().filter_map(difference).collect();
    for arm in &comparison.arms {
        match arm.learning_rate {
            None => text.push(format!("{}: every learning rate diverged.", arm.name)),
            Some(rate) if arm.rate_at_end => text.push(format!(
                "{}: its best learning rate, {rate:e}, is at an end of the grid, so a better one may lie beyond it.",
                arm.name
            )),
            Some(_) => {}
        }
        if arm.learning_rate.is_some() && arm.loss.is_none() {
            text.push(format!("{}: a seed diverged at the chosen learning rate, so there is no mean.", arm.name));
        }
    }
    if let Some(sentence) = gammas(comparison) {
        text.push(sentence);
    }
    text
}

fn difference(arm: &ArmResult) -> Option<String> {
    let difference = arm.difference.as_ref()?;
    let mut parts = Vec::new();
    if let Some(accuracy) = &difference.accuracy {
        let points = |share: f64| 100.0 * share;
        let shown = accuracy.interval.excludes_zero();
        parts.push(format!(
            "{} points of accuracy [{:+.1}, {:+.1}], {}",
            signed(points(accuracy.mean), 1),
            points(accuracy.interval.low),
            points(accuracy.interval.high),
            verdict(shown)
        ));
    }
    if let Some(loss) = &difference.loss {
        parts.push(match loss.interval {
            Some(interval) => format!(
                "{} nats of validation loss [{:+.4}, {:+.4}], {}",
                signed(loss.mean, 4),
                interval.low,
                interval.high,
                verdict(interval.excludes_zero())
            ),
            None => format!("{} nats of validation loss (one seed, no interval)", signed(loss.mean, 4)),
        });
    }
    (!parts.is_empty()).then(|| format!("{} minus {}: {}.", arm.name, difference.to, parts.join("; ")))
}

fn verdict(shown: bool) -> &'static str {
    if shown { "larger than its interval" } else { "not larger than its interval: no difference is shown" }
}

fn signed(value: f64, decimals: usize) -> String {
    format!("{value:+.decimals$}")
}

/// The gamma with the lowest loss, if another is not as good within what seeds differ by.
fn gammas(comparison: &Comparison) -> Option<String> {
    let known: Vec<(f64, f64)> =
        comparison.gammas.iter().filter_map(|run| Some((run.gamma?, run.loss_after?))).collect();
    let (gamma, lowest) = *known.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let highest = known.iter().map(|(_, loss)| *loss).reduce(f64::max)?;
    let scatter = comparison.arms.iter().find(|arm| arm.method == "sorsa")?.loss.and_then(|loss| loss.deviation);
    let beside = match scatter {
        Some(deviation) => format!(
            "; seeds of SORSA scatter by {deviation:.4} (standard deviation), and a spread of {:.4} between gammas {}",
            highest - lowest,
            if highest - lowest > 2.0 * deviation { "is more than twice that" } else { "is within twice that" }
        ),
        None => String::new(),
    };
    Some(format!(
        "Of the gammas {} has the lowest validation loss, {lowest:.4} (one seed each{beside}).",
        number(gamma)
    ))
}

/// How the numbers were made and what to mind when reading them.
pub fn notes(comparison: &Comparison, plan: &Plan) -> Vec<String> {
    let mut notes = vec![
        format!(
            "Every run: {} optimizer steps of {:.0} tokens on average, the same order of the data for the same seed, an \
             evaluation every {} steps, tested at its lowest validation loss.",
            comparison.steps, comparison.tokens_per_step, plan.common.train.eval_every,
        ),
        format!(
            "Learning rates were chosen for each method by the validation loss of seed {}; test problems were not looked at. \
             That seed is among those of the means, which favours every method a little.",
            comparison.seeds[0]
        ),
    ];
    if comparison.problems > 0 {
        notes.push(format!(
            "Accuracy: {} test problems, the same for every seed, grader `faithful`. Its intervals are for other problems and other \
             seeds; those of differences are paired by both.",
            comparison.problems
        ));
    } else {
        notes.push("There are no test problems: the comparison is one of losses.".to_owned());
    }
    notes.push(match comparison.seeds.len() {
        1 => "One seed: intervals of accuracy do not cover what another seed would change, and losses have none.".to_owned(),
        count => format!(
            "Losses: Student's intervals over {count} seeds (data order, random start), paired by seed for differences. So few seeds \
             say little of their own scatter; {}.",
            match plan.common.data.validation {
                Some(_) => "the validation data are the same for all, and no interval covers another choice of them",
                None => "each seed holds out validation rows of its own, the same for every method",
            }
        ),
    });
    let compared = comparison.arms.iter().filter(|arm| arm.difference.is_some()).count();
    if compared > 1 {
        notes.push(format!(
            "{compared} comparisons at 95 % each: one in twenty is expected to look like a difference by chance."
        ));
    }
    if let Some(target) = comparison.target_loss {
        notes.push(format!(
            "Time to loss: training seconds, without evaluations, until the validation loss is {target:.4}, between evaluations on a \
             straight line."
        ));
    }
    notes.push(
        "Tokens/s and start: of every run of the method, whatever its learning rate. Peak memory is that of the training process, \
         which holds one run only. Saved: the files of adapter/, with what SORSA and \
         PiSSA need of their start; for partial and full the trained weights."
            .to_owned(),
    );
    if comparison.base.text_loss.is_some() {
        let which = if plan.is_embedded() { "pretraining texts that the model never saw" } else { "the texts given" };
        notes.push(format!("Forgetting: loss of {which}, after less before, in nats a token."));
    }
    let concurrent = comparison.runs.iter().filter(|run| run.concurrent > 1).count();
    if concurrent > 0 {
        notes.push(format!(
            "{concurrent} of {} runs shared the machine with others: their tokens/s and times cannot be compared. Where an arm has runs \
             that were alone, its tokens/s are theirs.",
            comparison.runs.len()
        ));
    }
    let resumed = comparison.runs.iter().filter(|run| run.resumed).count();
    if resumed > 0 {
        notes.push(format!(
            "Runs that were interrupted and gone on with: {resumed}. The time of their start is left out."
        ));
    }
    if plan.common.train.early_stopping > 0 {
        notes.push(
            "Runs may stop early (train.early_stopping): they need not have made the same number of steps.".to_owned(),
        );
    }
    if plan.common.svd.cache {
        notes.push(
            "Decompositions were kept between runs (svd.cache): start-up times are not those of a first run."
                .to_owned(),
        );
    }
    notes
}

/// `4e-4`, and `0` for 0.
pub fn number(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:e}") }
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
    use super::super::results::{Difference, Rate};
    use super::*;

    fn arm(accuracy: [f64; 3], losses: &[f64]) -> ArmResult {
        let [mean, low, high] = accuracy;
        let rate = Rate { mean, interval: Interval { low, high }, problems: 400, seeds: 3 };
        ArmResult {
            name: "sorsa-r16".into(),
            method: "sorsa".into(),
            rank: Some(16),
            tried: Vec::new(),
            learning_rate: Some(2e-3),
            rate_at_end: false,
            runs: Vec::new(),
            trainable_parameters: None,
            loss: None,
            accuracy: None,
            tokens_per_s: None,
            seconds_to_target: None,
            start_seconds: None,
            peak_memory_bytes: None,
            adapter_bytes: None,
            forgetting: None,
            difference: Some(Difference { to: "lora-r16".into(), loss: Mean::of(losses), accuracy: Some(rate) }),
        }
    }

    #[test]
    fn a_difference_is_said_to_be_shown_only_where_its_interval_does_not_hold_0() {
        let text = difference(&arm([0.021, -0.004, 0.046], &[-0.02, -0.021, -0.019])).unwrap();
        let expected = "sorsa-r16 minus lora-r16: +2.1 points of accuracy [-0.4, +4.6], not larger than its interval: no difference \
                        is shown; -0.0200 nats of validation loss [-0.0225, -0.0175], larger than its interval.";
        assert_eq!(text, expected);
        let single = difference(&arm([0.03, 0.01, 0.05], &[-0.02])).unwrap();
        assert!(
            single.contains("[+1.0, +5.0], larger than its interval; -0.0200 nats of validation loss (one seed"),
            "{single}"
        );
    }
}
