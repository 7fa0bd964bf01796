//! The tables of a comparison: their cells as text, for every form of output.

use sorsa_eval::report::bytes;
use sorsa_eval::stats::Mean;

use super::collect::Run;
use super::findings::{number, with_interval};
use super::results::{ArmResult, Comparison, Rate, Spread};
use crate::estimate::grouped;

/// A table; the first row is its head.
pub struct Table {
    /// What it shows, as a name in files.
    pub name: &'static str,
    pub caption: String,
    pub rows: Vec<Vec<String>>,
}

const ABSENT: &str = "-";

fn or_absent(text: Option<String>) -> String {
    text.unwrap_or_else(|| ABSENT.to_owned())
}

fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// All tables that have something to show.
pub fn tables(comparison: &Comparison) -> Vec<Table> {
    let mut tables = vec![quality(comparison), cost(comparison), rates(comparison)];
    if comparison.arms.iter().any(|arm| arm.difference.is_some()) {
        tables.insert(1, differences(comparison));
    }
    if !comparison.gammas.is_empty() {
        tables.push(gammas(comparison));
    }
    tables
}

/// `88.0 [82.8, 91.8]`, in percent.
fn percent(rate: &Rate) -> String {
    let [mean, low, high] = [rate.mean, rate.interval.low, rate.interval.high].map(|share| 100.0 * share);
    format!("{mean:.1} [{low:.1}, {high:.1}]")
}

fn quality(comparison: &Comparison) -> Table {
    let mut rows = vec![head(&["method", "rank", "trained", "rate", "validation loss", "accuracy %", "forgetting"])];
    let base = &comparison.base;
    rows.push(vec![
        "(before)".to_owned(),
        ABSENT.to_owned(),
        "0".to_owned(),
        ABSENT.to_owned(),
        or_absent(base.loss.map(|loss| format!("{loss:.4}"))),
        or_absent(base.accuracy.map(|share| format!("{:.1}", 100.0 * share))),
        or_absent(base.text_loss.map(|_| "0".to_owned())),
    ]);
    for arm in &comparison.arms {
        rows.push(vec![
            arm.method.clone(),
            or_absent(arm.rank.map(|rank| rank.to_string())),
            or_absent(arm.trainable_parameters.map(grouped)),
            or_absent(arm.learning_rate.map(|rate| format!("{rate:e}"))),
            or_absent(arm.loss.as_ref().map(|loss| with_interval(loss, 4))),
            or_absent(arm.accuracy.as_ref().map(percent)),
            or_absent(arm.forgetting.as_ref().map(|loss| with_interval(loss, 3))),
        ]);
    }
    let caption = format!(
        "Quality after {} steps, at each method's best learning rate: means over {} seeds with 95 % intervals",
        comparison.steps,
        comparison.seeds.len()
    );
    Table { name: "quality", caption, rows }
}

fn differences(comparison: &Comparison) -> Table {
    let mut rows = vec![head(&["method", "rank", "to", "accuracy, points", "shown", "validation loss", "shown"])];
    for arm in &comparison.arms {
        let Some(difference) = &arm.difference else { continue };
        let (accuracy, loss) = (difference.accuracy.as_ref(), difference.loss.as_ref());
        let shown = |excludes: bool| if excludes { "yes" } else { "no" }.to_owned();
        rows.push(vec![
            arm.method.clone(),
            or_absent(arm.rank.map(|rank| rank.to_string())),
            difference.to.clone(),
            or_absent(accuracy.map(|rate| {
                let [mean, low, high] = [rate.mean, rate.interval.low, rate.interval.high].map(|share| 100.0 * share);
                format!("{mean:+.1} [{low:+.1}, {high:+.1}]")
            })),
            or_absent(accuracy.map(|rate| shown(rate.interval.excludes_zero()))),
            or_absent(loss.map(signed)),
            or_absent(loss.and_then(|loss| loss.interval).map(|interval| shown(interval.excludes_zero()))),
        ]);
    }
    let caption =
        "Differences, paired by seed and problem, with 95 % intervals; shown: the interval does not hold 0".to_owned();
    Table { name: "differences", caption, rows }
}

fn signed(mean: &Mean) -> String {
    match mean.interval {
        Some(interval) => format!("{:+.4} [{:+.4}, {:+.4}]", mean.mean, interval.low, interval.high),
        None => format!("{:+.4}", mean.mean),
    }
}

fn cost(comparison: &Comparison) -> Table {
    let target = or_absent(comparison.target_loss.map(|loss| format!("s to {loss:.3}")));
    let mut rows = vec![head(&["method", "rank", "tokens/s", &target, "start s", "peak memory", "saved"])];
    for arm in &comparison.arms {
        let spread = |of: Option<Spread>, decimals: usize| {
            or_absent(of.map(|spread| match spread.count {
                1 => format!("{:.decimals$}", spread.median),
                _ => format!("{:.decimals$} ({:.decimals$}..{:.decimals$})", spread.median, spread.low, spread.high),
            }))
        };
        rows.push(vec![
            arm.method.clone(),
            or_absent(arm.rank.map(|rank| rank.to_string())),
            spread(arm.tokens_per_s, 0),
            spread(arm.seconds_to_target, 1),
            spread(arm.start_seconds, 2),
            or_absent(arm.peak_memory_bytes.map(bytes)),
            or_absent(arm.adapter_bytes.map(bytes)),
        ]);
    }
    let caption = format!(
        "Cost on {} ({}): training speed, training time to a validation loss, \
         start of the adapter; medians with the smallest and the largest",
        comparison.machine, comparison.backend
    );
    Table { name: "cost", caption, rows }
}

fn rates(comparison: &Comparison) -> Table {
    let mut rows = vec![head(&["method", "rank", "validation loss by learning rate", "chosen"])];
    for arm in &comparison.arms {
        let tried = |tried: &super::results::Tried| {
            let loss = tried.loss.map_or_else(|| "diverged".to_owned(), |loss| format!("{loss:.4}"));
            format!("{:e}: {loss}", tried.learning_rate)
        };
        rows.push(vec![
            arm.method.clone(),
            or_absent(arm.rank.map(|rank| rank.to_string())),
            arm.tried.iter().map(tried).collect::<Vec<_>>().join(", "),
            chosen(arm),
        ]);
    }
    let caption = format!("Learning rates, tried with seed {} and chosen by the validation loss", comparison.seeds[0]);
    Table { name: "rates", caption, rows }
}

fn chosen(arm: &ArmResult) -> String {
    let Some(rate) = arm.learning_rate else { return "none".to_owned() };
    if arm.rate_at_end { format!("{rate:e} (end of the grid)") } else { format!("{rate:e}") }
}

fn gammas(comparison: &Comparison) -> Table {
    let mut rows = vec![head(&["gamma", "validation loss", "accuracy %", "defect", "forgetting"])];
    for run in &comparison.gammas {
        let before = comparison.base.text_loss;
        rows.push(vec![
            or_absent(run.gamma.map(number)),
            or_absent(run.loss_after.map(|loss| format!("{loss:.4}"))),
            or_absent(run.accuracy.map(|share| format!("{:.1}", 100.0 * share))),
            or_absent(run.defect.map(|defect| format!("{defect:.2e}"))),
            or_absent(run.text_loss.zip(before).map(|(after, before)| format!("{:.3}", after - before))),
        ]);
    }
    let caption = "SORSA by the weight of its regularizer, at its best learning rate, one seed; defect: mean of ||U^T U - I|| / sqrt(r)";
    Table { name: "gammas", caption: caption.to_owned(), rows }
}

/// `results.csv`: a row for each run, empty where nothing was measured.
pub fn csv(runs: &[Run]) -> String {
    let mut text =
        "run,method,rank,learning_rate,gamma,seed,diverged,steps,best_step,loss_before,loss_after,accuracy,problems,\
                    text_loss,defect,trainable_parameters,tokens_per_s,seconds,seconds_to_target,start_seconds,\
                    peak_memory_bytes,adapter_bytes,concurrent,resumed\n"
            .to_owned();
    fn cell<T: ToString>(value: Option<T>) -> String {
        value.map(|value| value.to_string()).unwrap_or_default()
    }
    for run in runs {
        let cells = [
            run.name.clone(),
            run.method.clone(),
            cell(run.rank),
            run.learning_rate.to_string(),
            cell(run.gamma),
            run.seed.to_string(),
            run.diverged.to_string(),
            run.steps.to_string(),
            cell(run.best_step),
            cell(run.loss_before),
            cell(run.loss_after),
            cell(run.accuracy),
            cell(run.problems),
            cell(run.text_loss),
            cell(run.defect),
            cell(run.trainable_parameters),
            cell(run.tokens_per_s),
            cell(run.seconds),
            cell(run.seconds_to_target),
            cell(run.start_seconds),
            cell(run.peak_memory_bytes),
            cell(run.adapter_bytes),
            run.concurrent.to_string(),
            run.resumed.to_string(),
        ];
        text.push_str(&(cells.join(",") + "\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::collect::tests::with_curve;
    use super::*;

    #[test]
    fn a_row_of_the_file_has_a_cell_for_every_column() {
        let text = csv(&[with_curve(&[(0.0, 1.0)])]);
        let columns: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, [24, 24]);
        assert!(text.ends_with("\nrun,lora,4,0.001,,42,false,10,,,,,,,,,,,,,,,1,false\n"), "{text}");
    }
}
