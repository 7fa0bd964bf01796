//! The tables of a comparison. Their cells are texts, for every output format.

use sorsa_grading::stats::{Interval, Mean};
use sorsa_report::report::bytes;

use super::difference::{DifferenceTest, Tested};
use super::fields::{named_field, value_text};
use super::findings::{forgetting_label, p_value, with_interval};
use super::results::{Comparison, SweepResult, SweptRow, SweptValue};
use super::row_result::{AccuracyMean, RowResult, Spread, TriedRate};
use crate::estimate::grouped;

/// A table. The first row is its head.
pub struct Table {
    /// Its name in files: `quality`.
    pub name: String,
    pub caption: String,
    pub rows: Vec<Vec<String>>,
}

/// Name of the table of the second task.
pub const SECOND_TASK: &str = "second-task";

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
    if comparison.rows.iter().any(|row| row.difference.is_some()) {
        tables.insert(1, differences(comparison));
    }
    tables.extend(comparison.then.as_ref().map(|data| second_task(comparison, data)));
    tables.extend(comparison.sweeps.iter().map(|sweep| swept(comparison, sweep)));
    tables
}

/// `88.0 [82.8, 91.8]`, in percent.
fn percent(accuracy: &AccuracyMean) -> String {
    let Interval { low, high } = accuracy.interval;
    let [mean, low, high] = [accuracy.mean, low, high].map(|share| 100.0 * share);
    format!("{mean:.1} [{low:.1}, {high:.1}]")
}

fn quality(comparison: &Comparison) -> Table {
    let texts = &comparison.texts;
    let mut first = head(&["method", "rank", "trained", "rate", "validation loss", "accuracy %"]);
    first.extend(texts.iter().map(|text| forgetting_label(text, texts.len())));
    let mut rows = vec![first];
    let base = &comparison.base;
    let mut before = vec![
        "(before)".to_owned(),
        ABSENT.to_owned(),
        "0".to_owned(),
        ABSENT.to_owned(),
        or_absent(base.loss.map(|loss| format!("{loss:.4}"))),
        or_absent(base.accuracy.map(|share| format!("{:.1}", 100.0 * share))),
    ];
    before.extend(texts.iter().map(|text| or_absent(base.text_losses.get(text).map(|_| "0".to_owned()))));
    rows.push(before);
    for row in &comparison.rows {
        let mut cells = vec![
            row.method.clone(),
            or_absent(row.rank.map(|rank| rank.to_string())),
            or_absent(row.trainable_parameters.map(grouped)),
            or_absent(row.learning_rate.map(|rate| format!("{rate:e}"))),
            or_absent(row.loss.as_ref().map(|loss| with_interval(loss, 4))),
            or_absent(row.accuracy.as_ref().map(percent)),
        ];
        cells.extend(texts.iter().map(|text| or_absent(row.forgetting.get(text).map(|loss| with_interval(loss, 3)))));
        rows.push(cells);
    }
    let caption = format!(
        "Quality after {} steps, at each method's best learning rate: means over {} seeds with 95 % intervals",
        comparison.steps,
        comparison.seeds.len()
    );
    Table { name: "quality".to_owned(), caption, rows }
}

fn differences(comparison: &Comparison) -> Table {
    let texts = &comparison.texts;
    let mut first = head(&["method", "rank", "to", "accuracy, points", "p", "validation loss", "p"]);
    for text in texts {
        first.extend([forgetting_label(text, texts.len()), "p".to_owned()]);
    }
    let mut rows = vec![first];
    let mut tests = 0;
    let p = |test: Option<DifferenceTest>| or_absent(test.as_ref().map(p_value));
    for row in &comparison.rows {
        let Some(difference) = &row.difference else { continue };
        tests += difference.test_count();
        let accuracy = difference.accuracy.as_ref();
        let mut cells = vec![
            row.method.clone(),
            or_absent(row.rank.map(|rank| rank.to_string())),
            difference.to.clone(),
            or_absent(accuracy.map(|Tested { mean: rate, .. }| {
                let [mean, low, high] = [rate.mean, rate.interval.low, rate.interval.high].map(|share| 100.0 * share);
                format!("{mean:+.1} [{low:+.1}, {high:+.1}]")
            })),
            p(accuracy.and_then(|tested| tested.test)),
        ];
        let forgetting = texts.iter().map(|text| difference.forgetting.get(text));
        for tested in std::iter::once(difference.loss.as_ref()).chain(forgetting) {
            cells.push(or_absent(tested.map(|tested| signed(&tested.mean))));
            cells.push(p(tested.and_then(|tested| tested.test)));
        }
        rows.push(cells);
    }
    let caption = format!(
        "Differences, paired by seed and problem, with 95 % intervals; p: corrected by Holm's method for the {tests} tests of the table, a \
         difference is shown if it is below 0.05"
    );
    Table { name: "differences".to_owned(), caption, rows }
}

fn second_task(comparison: &Comparison, data: &str) -> Table {
    let has_accuracy = comparison.problems > 0;
    let mut first = head(&[
        "method",
        "rank",
        "loss of the second task",
        "before",
        "loss of the first task",
        "after the second",
        "change",
    ]);
    if has_accuracy {
        first.extend(head(&["accuracy % of the first task", "after the second"]));
    }
    let mut rows = vec![first];
    for row in &comparison.rows {
        let Some(second) = &row.second_task else { continue };
        let loss = |mean: Option<&Mean>| or_absent(mean.map(|mean| with_interval(mean, 4)));
        let mut cells = vec![
            row.method.clone(),
            or_absent(row.rank.map(|rank| rank.to_string())),
            loss(second.loss.as_ref()),
            loss(second.loss_before.as_ref()),
            loss(row.loss.as_ref()),
            loss(second.first_loss.as_ref()),
            or_absent(second.first_loss_change.as_ref().map(signed)),
        ];
        if has_accuracy {
            cells.push(or_absent(row.accuracy.as_ref().map(percent)));
            cells.push(or_absent(second.first_accuracy.as_ref().map(percent)));
        }
        rows.push(cells);
    }
    let caption = format!(
        "Two tasks in sequence: what training on {data} afterwards leaves of the first task; means over seeds with 95 % intervals"
    );
    Table { name: SECOND_TASK.to_owned(), caption, rows }
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
    for row in &comparison.rows {
        let spread = |of: Option<Spread>, decimals: usize| {
            or_absent(of.map(|spread| match spread.count {
                1 => format!("{:.decimals$}", spread.median),
                _ => format!("{:.decimals$} ({:.decimals$}..{:.decimals$})", spread.median, spread.low, spread.high),
            }))
        };
        rows.push(vec![
            row.method.clone(),
            or_absent(row.rank.map(|rank| rank.to_string())),
            spread(row.tokens_per_s, 0),
            spread(row.seconds_to_target, 1),
            spread(row.start_seconds, 2),
            or_absent(row.peak_memory_bytes.map(bytes)),
            or_absent(row.adapter_bytes.map(bytes)),
        ]);
    }
    let caption = format!(
        "Cost on {} ({}): training speed, training time to a validation loss, \
         start of the adapter; medians with the smallest and the largest",
        comparison.machine, comparison.backend
    );
    Table { name: "cost".to_owned(), caption, rows }
}

fn rates(comparison: &Comparison) -> Table {
    let mut rows = vec![head(&["method", "rank", "validation loss by learning rate", "chosen"])];
    for row in &comparison.rows {
        let tried = |tried: &TriedRate| {
            let loss = tried.loss.map_or_else(|| "diverged".to_owned(), |loss| format!("{loss:.4}"));
            format!("{:e}: {loss}", tried.learning_rate)
        };
        rows.push(vec![
            row.method.clone(),
            or_absent(row.rank.map(|rank| rank.to_string())),
            row.tried.iter().map(tried).collect::<Vec<_>>().join(", "),
            chosen(row),
        ]);
    }
    let caption = format!("Learning rates, tried with seed {} and chosen by the validation loss", comparison.seeds[0]);
    Table { name: "rates".to_owned(), caption, rows }
}

fn chosen(row: &RowResult) -> String {
    let Some(rate) = row.learning_rate else { return "none".to_owned() };
    if row.rate_at_end { format!("{rate:e} (end of the grid)") } else { format!("{rate:e}") }
}

fn swept(comparison: &Comparison, sweep: &SweepResult) -> Table {
    let of = |swept: &SweptValue| comparison.run(&swept.run);
    let values = || sweep.rows.iter().flat_map(|row| &row.values);
    let has_defect = values().any(|swept| of(swept).is_some_and(|run| run.defect.is_some()));
    let texts = &comparison.texts;
    let mut first = head(&["method", &sweep.label, "validation loss", "accuracy %"]);
    if has_defect {
        first.push("defect".to_owned());
    }
    first.extend(texts.iter().map(|text| forgetting_label(text, texts.len())));
    let one_row = sweep.rows.len() == 1;
    if one_row {
        first.remove(0);
    }
    let mut rows = vec![first];
    for row in &sweep.rows {
        for swept in &row.values {
            let Some(run) = of(swept) else { continue };
            let mut cells = if one_row { Vec::new() } else { vec![row.method.clone()] };
            cells.extend([
                value_text(&swept.value),
                or_absent(run.loss_after.map(|loss| format!("{loss:.4}"))),
                or_absent(run.accuracy.map(|share| format!("{:.1}", 100.0 * share))),
            ]);
            if has_defect {
                cells.push(or_absent(run.defect.map(|defect| format!("{defect:.2e}"))));
            }
            let forgetting = |text| run.forgetting(text, &comparison.base).map(|nats| format!("{nats:.3}"));
            cells.extend(texts.iter().map(|text| or_absent(forgetting(text))));
            rows.push(cells);
        }
    }
    let meaning = named_field(&sweep.field).map_or(sweep.field.as_str(), |named| named.meaning);
    let methods: Vec<&str> = sweep.rows.iter().map(|row: &SweptRow| row.method.as_str()).collect();
    let mut caption = format!("{} by {meaning}, at its best learning rate, one seed", methods.join(", "));
    if has_defect {
        caption.push_str("; defect: mean of ||U^T U - I|| / sqrt(r)");
    }
    Table { name: sweep.name.clone(), caption, rows }
}
