//! The results of `bench --speed --scale` for people: a table, and figures of time and memory over each quantity.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use sorsa_files::write_atomic;
use sorsa_report::plot::{Axis, Figure, Marks, Scale, Series};

/// One measured configuration.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    /// Method and varied quantity. Rows with the same group are one line of a figure.
    group: (String, String),
    value: f64,
    seconds: f64,
    cpu_seconds: Option<f64>,
    /// Peak memory, in MB (10^6 bytes).
    peak: Option<f64>,
}

impl Row {
    /// Reads a line that `--scale` printed. `None` if it measured no steps.
    fn read(line: &Value) -> Option<Self> {
        let number = |name: &str| line[name].as_f64();
        let varied = line["varied"].as_str()?;
        Some(Self {
            group: (line["method"].as_str()?.to_owned(), varied.to_owned()),
            value: number(varied)?,
            seconds: number("step_s_median")?,
            cpu_seconds: number("cpu_s_per_step_median"),
            // The fields count in units of 2^20 bytes, like those of the PyTorch program.
            peak: number("peak_rss_mb_steps").or_else(|| number("peak_rss_mb")).map(|peak| peak * 1.048_576),
        })
    }
}

/// Collects rows by group, in the order of measurement. Of several rounds it keeps the fastest.
fn groups(lines: &[Value]) -> Vec<Vec<Row>> {
    let mut groups: Vec<Vec<Row>> = Vec::new();
    for row in lines.iter().filter_map(Row::read) {
        let Some(group) = groups.iter_mut().find(|group| group[0].group == row.group) else {
            groups.push(vec![row]);
            continue;
        };
        match group.iter_mut().find(|known| known.value == row.value) {
            Some(known) if row.seconds < known.seconds => *known = row,
            Some(_) => (),
            None => group.push(row),
        }
    }
    groups
}

/// Writes `FILE-table.md`, `FILE-time` and `FILE-memory` (SVG and PNG) beside the lines in `FILE.jsonl`.
///
/// # Errors
///
/// A file that cannot be written.
pub fn write(path: &Path, lines: &[Value]) -> anyhow::Result<()> {
    let groups = groups(lines);
    let stem = path.with_extension("");
    let name = |suffix: &str| {
        let mut name = stem.clone().into_os_string();
        name.push(suffix);
        name
    };
    let time = figure(&groups, "Time of a step", "seconds per step", |row| Some(row.seconds));
    let memory = figure(&groups, "Peak memory of the steps", "peak memory, MB", |row| row.peak);
    let mut files = vec![(name("-table.md"), table(&groups).into_bytes())];
    for (kind, figure) in [("time", time), ("memory", memory)] {
        files.push((name(&format!("-{kind}.svg")), figure.svg_file()?.into_bytes()));
        files.push((name(&format!("-{kind}.png")), figure.png()?));
    }
    for (name, content) in files {
        write_atomic(&name, content).with_context(|| format!("cannot write {}", Path::new(&name).display()))?;
    }
    Ok(())
}

/// Draws a line for each varied quantity. The x axis is its multiple of the smallest value, so that linear growth is a
/// straight line.
fn figure(groups: &[Vec<Row>], title: &str, label: &str, quantity: impl Fn(&Row) -> Option<f64>) -> Figure {
    let one_method = groups.iter().all(|group| group[0].group.0 == groups[0][0].group.0);
    let series = groups.iter().map(|group| {
        let ((method, varied), first) = (&group[0].group, group[0].value);
        let range = format!("{varied} {first} to {}", group[group.len() - 1].value);
        let name = if one_method { range } else { format!("{method}, {range}") };
        Series::new(name, Marks::Line, group.iter().filter_map(|row| Some((row.value / first, quantity(row)?))))
    });
    Figure {
        title: title.to_owned(),
        x: Axis::new("multiple of the smallest value", Scale::FromZero),
        y: Axis::new(label, Scale::FromZero),
        series: series.collect(),
    }
}

/// A Markdown table: a row for each value, and the time and memory that one more unit costs, compared with the value
/// before.
fn table(groups: &[Vec<Row>]) -> String {
    let mut table =
        "| method | varied | value | s a step | CPU s a step | peak, MB | s for each more | MB for each more |\n\
                     |---|---|---|---|---|---|---|---|\n"
            .to_owned();
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    for group in groups {
        for (index, row) in group.iter().enumerate() {
            let before = index.checked_sub(1).map(|index| &group[index]);
            let each = |quantity: &dyn Fn(&Row) -> Option<f64>| {
                let before = before?;
                Some((quantity(row)? - quantity(before)?) / (row.value - before.value))
            };
            let (method, varied) = &row.group;
            let _ = writeln!(
                table,
                "| {method} | {varied} | {} | {:.3} | {} | {} | {} | {} |",
                row.value,
                row.seconds,
                row.cpu_seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.3}")),
                row.peak.map_or("-".to_owned(), |peak| format!("{peak:.0}")),
                shown(each(&|row| Some(row.seconds))),
                shown(each(&|row| row.peak)),
            );
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(varied: &str, value: usize, seconds: f64) -> Value {
        json!({"method": "lora", "varied": varied, varied: value, "step_s_median": seconds, "cpu_s_per_step_median": null,
            "peak_rss_mb_steps": 100.0 * seconds})
    }

    #[test]
    fn quantities_are_apart_and_one_more_unit_costs_the_difference() {
        let lines =
            [line("batch", 1, 1.0), line("batch", 3, 2.0), line("batch", 3, 1.5), line("rank", 4, 1.0), json!({})];
        let groups = groups(&lines);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        let table = table(&groups);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows[0], "| lora | batch | 1 | 1.000 | - | 105 | - | - |");
        assert_eq!(rows[1], "| lora | batch | 3 | 1.500 | - | 157 | 0.2500 | 26.2144 |");
        assert_eq!(rows[2], "| lora | rank | 4 | 1.000 | - | 105 | - | - |");
    }

    #[test]
    fn files_stand_beside_the_lines() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("scale.jsonl"), &[line("batch", 1, 1.0), line("batch", 2, 2.0)]).unwrap();
        let mut names: Vec<String> =
            folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(
            names,
            ["scale-memory.png", "scale-memory.svg", "scale-table.md", "scale-time.png", "scale-time.svg"]
        );
    }
}
