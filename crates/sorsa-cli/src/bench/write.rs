//! The files of a comparison, and what is printed of it.

use std::path::Path;

use anyhow::Context;
use sorsa_files::write_atomic;

use super::results::Comparison;
use super::tables::{Table, csv, tables};
use crate::args::BenchFormat;
use crate::format::{TableFormat, escaped, print};
use crate::session::create_folder;

/// Writes every form of the comparison into `folder` and prints the one asked for.
pub fn write(comparison: &Comparison, folder: &Path, format: BenchFormat) -> anyhow::Result<()> {
    let tables = tables(comparison);
    let json = serde_json::to_string_pretty(comparison)?;
    let csv = csv(&comparison.runs);
    let (markdown, latex) = (markdown(comparison, &tables), latex(comparison, &tables));
    let figures = super::figures::figures(comparison);
    let report = super::page::html(comparison, &tables, &figures).context("cannot draw the report")?;
    create_folder(&folder.join("figures"))?;
    for (name, figure) in &figures {
        let path = folder.join("figures").join(name);
        write_atomic(path.with_extension("svg"), figure.svg_file()?)?;
        write_atomic(path.with_extension("png"), figure.png()?)?;
    }
    for (name, content) in [
        ("results.json", &json),
        ("results.csv", &csv),
        ("comparison.md", &markdown),
        ("comparison.tex", &latex),
        ("report.html", &report),
    ] {
        let path = folder.join(name);
        write_atomic(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match format {
        BenchFormat::Table => print(plain(comparison, &tables, folder)),
        BenchFormat::Json => print(json),
        BenchFormat::Markdown => print(markdown.trim_end()),
        BenchFormat::Csv => print(csv.trim_end()),
        BenchFormat::Latex => print(latex.trim_end()),
    }
}

/// Tables with aligned columns, then the findings.
fn plain(comparison: &Comparison, tables: &[Table], folder: &Path) -> String {
    let mut text = String::new();
    for table in tables {
        let rows = TableFormat::Table.table(&table.rows).unwrap_or_default();
        text.push_str(&format!("{}\n\n{rows}\n", table.caption));
    }
    for finding in &comparison.findings {
        text.push_str(&format!("{finding}\n"));
    }
    text.push_str(&format!(
        "\nresults: {} (report.html, results.json, results.csv, comparison.md, comparison.tex, figures/)",
        folder.display()
    ));
    text
}

pub fn title(comparison: &Comparison) -> String {
    format!("Fine-tuning {} on {}", comparison.model, comparison.data)
}

fn markdown(comparison: &Comparison, tables: &[Table]) -> String {
    let mut text = format!("# {}\n\n", title(comparison));
    for table in tables {
        let rows = TableFormat::Markdown.table(&table.rows).unwrap_or_default();
        text.push_str(&format!("{}.\n\n{rows}\n", table.caption));
    }
    for (heading, lines) in [("What is shown", &comparison.findings), ("How it was made", &comparison.notes)] {
        if !lines.is_empty() {
            let items: String = lines.iter().map(|line| format!("- {line}\n")).collect();
            text.push_str(&format!("## {heading}\n\n{items}\n"));
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// A `table` for each, to be pasted into a paper that loads booktabs. What was found stands before them, as comments.
fn latex(comparison: &Comparison, tables: &[Table]) -> String {
    let mut text = format!("% {}\n", title(comparison));
    for line in comparison.findings.iter().chain(&comparison.notes) {
        text.push_str(&format!("% {line}\n"));
    }
    for table in tables {
        let columns = table.rows.first().map_or(0, Vec::len);
        text.push_str(&format!(
            "\n\\begin{{table}}\n\\centering\n\\caption{{{}.}}\n\\label{{tab:{}}}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n",
            math(&table.caption),
            table.name,
            "r".repeat(columns.saturating_sub(1))
        ));
        for (index, row) in table.rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().map(|cell| math(cell)).collect();
            text.push_str(&format!("{} \\\\\n", cells.join(" & ")));
            if index == 0 {
                text.push_str("\\midrule\n");
            }
        }
        text.push_str("\\bottomrule\n\\end{tabular}\n\\end{table}\n");
    }
    text
}

/// A cell with its special characters escaped and the minus signs of its numbers set as such.
fn math(cell: &str) -> String {
    let mut text = escaped(cell).replace('^', "\\^{}");
    for (before, after) in [(" -", " $-$"), ("[-", "[$-$")] {
        text = text.replace(before, after);
    }
    match text.strip_prefix('-').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        Some(rest) => format!("$-${rest}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_latex_have_no_special_characters_left() {
        assert_eq!(math("5 % of a_b"), "5 \\% of a\\_b");
        assert_eq!(math("-0.1 [-0.2, -0.0]"), "$-$0.1 [$-$0.2, $-$0.0]");
        assert_eq!(math("-"), "-");
        assert_eq!(math("sorsa-noreg"), "sorsa-noreg");
        assert_eq!(math("||U^T U - I||"), "||U\\^{}T U $-$ I||");
    }
}
