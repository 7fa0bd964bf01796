//! `results.csv`: a row for each run. A cell is empty if nothing was measured.

use super::fields::{NAMED_FIELDS, RANK, value_text};
use super::run_result::RunResult;
use sorsa_report::table;

/// The runs as CSV. After all other columns, the forgetting `texts` but the first and the `compared_fields` have a column each.
pub fn csv(runs: &[RunResult], texts: &[String], compared_fields: &[String]) -> String {
    let named: Vec<&str> = NAMED_FIELDS.iter().filter(|named| named.field != RANK).map(|named| named.label).collect();
    let mut head = vec!["run", "method", "rank", "learning_rate"];
    head.extend(&named);
    head.extend(MEASURED);
    // The column of the first text has had its name since there was one text.
    let other_texts = texts.get(1..).unwrap_or_default();
    let other_heads: Vec<String> = other_texts.iter().map(|text| format!("text_loss.{text}")).collect();
    head.extend(other_heads.iter().map(String::as_str));
    head.extend(compared_fields.iter().map(String::as_str));
    let mut text = line(head.into_iter().map(str::to_owned).collect());
    for run in runs {
        let mut cells = vec![run.name.clone(), run.method.clone(), cell(run.rank), run.learning_rate.to_string()];
        cells.extend(named.iter().map(|label| cell(run.named.get(label).copied().flatten())));
        cells.extend(measured(run, texts.first()));
        cells.extend(other_texts.iter().map(|text| cell(run.text_losses.get(text))));
        cells.extend(compared_fields.iter().map(|field| cell(run.fields.get(field).map(value_text))));
        text.push_str(&line(cells));
    }
    text
}

const MEASURED: [&str; 19] = [
    "seed",
    "diverged",
    "steps",
    "best_step",
    "loss_before",
    "loss_after",
    "accuracy",
    "problems",
    "text_loss",
    "defect",
    "trainable_parameters",
    "tokens_per_s",
    "seconds",
    "seconds_to_target",
    "start_seconds",
    "peak_memory_bytes",
    "adapter_bytes",
    "concurrent",
    "resumed",
];

/// The cells below [`MEASURED`].
fn measured(run: &RunResult, text: Option<&String>) -> [String; MEASURED.len()] {
    [
        run.seed.to_string(),
        run.diverged.to_string(),
        run.steps.to_string(),
        cell(run.best_step),
        cell(run.loss_before),
        cell(run.loss_after),
        cell(run.accuracy),
        cell(run.problems),
        cell(text.and_then(|text| run.text_losses.get(text))),
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
    ]
}

fn cell<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// A line of CSV. A value such as `["q_proj", "v_proj"]` needs quotes.
fn line(cells: Vec<String>) -> String {
    table::csv(&[cells])
}

#[cfg(test)]
mod tests {
    use super::super::run_result::tests::with_curve;
    use super::*;

    #[test]
    fn a_row_of_the_file_has_a_cell_for_every_column() {
        let text = csv(&[with_curve(&[(0.0, 1.0)])], &[], &[]);
        let columns: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, [24, 24]);
        assert!(text.ends_with("\nrun,lora,4,0.001,,42,false,10,,,,,,,,,,,,,,,1,false\n"), "{text}");
    }

    #[test]
    fn compared_fields_have_a_column_each() {
        let mut run = with_curve(&[]);
        run.fields.insert("adapter.alpha".into(), 8.0.into());
        run.fields.insert("adapter.target_modules".into(), toml::Value::Array(vec!["q".into(), "v".into()]));
        let text = csv(&[run], &[], &["adapter.alpha".into(), "adapter.target_modules".into()]);
        assert!(text.lines().next().unwrap().ends_with(",resumed,adapter.alpha,adapter.target_modules"), "{text}");
        assert!(text.ends_with(",false,8,\"[\"\"q\"\", \"\"v\"\"]\"\n"), "{text}");
    }

    #[test]
    fn every_forgetting_text_has_a_column() {
        let mut run = with_curve(&[]);
        run.text_losses = [("stories".into(), 1.5), ("wiki".into(), 2.5)].into();
        let text = csv(&[run], &["stories".into(), "wiki".into()], &[]);
        assert!(text.lines().next().unwrap().ends_with(",resumed,text_loss.wiki"), "{text}");
        assert!(text.contains(",text_loss,") && text.contains(",1.5,") && text.ends_with(",false,2.5\n"), "{text}");
    }
}
