//! Results for people and for programs.

use std::fmt::Display;
use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// How a command prints a table of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TableFormat {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// A table in Markdown.
    Markdown,
    /// A `tabular` of LaTeX.
    Latex,
    /// Comma-separated values.
    Csv,
}

impl TableFormat {
    /// A table whose first row is its head. `None` for JSON, which is no table.
    pub fn table(self, rows: &[Vec<String>]) -> Option<String> {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let line = |cells: &[String], between: &str| cells.join(between);
        let mut text = String::new();
        match self {
            Self::Json => return None,
            Self::Table => {
                let widths: Vec<usize> = (0..columns)
                    .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
                    .map(Option::unwrap_or_default)
                    .collect();
                for row in rows {
                    let cells: Vec<String> =
                        row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
                    text.push_str(line(&cells, "  ").trim_end());
                    text.push('\n');
                }
            }
            Self::Markdown => {
                for (index, row) in rows.iter().enumerate() {
                    text.push_str(&format!("| {} |\n", line(row, " | ")));
                    if index == 0 {
                        text.push_str(&format!("|{}\n", "---|".repeat(columns)));
                    }
                }
            }
            Self::Latex => {
                text.push_str(&format!("\\begin{{tabular}}{{l{}}}\n\\hline\n", "r".repeat(columns.saturating_sub(1))));
                for (index, row) in rows.iter().enumerate() {
                    let cells: Vec<String> = row.iter().map(|cell| escaped(cell)).collect();
                    text.push_str(&format!("{} \\\\\n", line(&cells, " & ")));
                    if index == 0 {
                        text.push_str("\\hline\n");
                    }
                }
                text.push_str("\\hline\n\\end{tabular}\n");
            }
            Self::Csv => {
                for row in rows {
                    let cells: Vec<String> = row.iter().map(|cell| quoted(cell)).collect();
                    text.push_str(&line(&cells, ","));
                    text.push('\n');
                }
            }
        }
        Some(text)
    }
}

/// The characters that LaTeX reads as commands, escaped.
pub fn escaped(cell: &str) -> String {
    let mut text = String::new();
    for c in cell.chars() {
        if matches!(c, '%' | '&' | '_' | '#' | '$' | '{' | '}') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// A cell of CSV (RFC 4180): quoted if it holds a separator, a quote or a line break.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

/// Prints a result. Unlike `println!`, a closed pipe is an error and no panic.
pub fn print(text: impl Display) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Prints a result as JSON.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(serde_json::to_string_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_written_in_every_form() {
        let rows = [vec!["group".to_owned(), "a_b".to_owned()], vec!["all".to_owned(), "5 %".to_owned()]];
        assert_eq!(TableFormat::Table.table(&rows).unwrap(), "group  a_b\nall    5 %\n");
        assert_eq!(TableFormat::Markdown.table(&rows).unwrap(), "| group | a_b |\n|---|---|\n| all | 5 % |\n");
        let latex = TableFormat::Latex.table(&rows).unwrap();
        assert!(latex.contains("group & a\\_b \\\\\n\\hline\nall & 5 \\% \\\\\n"), "{latex}");
        assert_eq!(TableFormat::Json.table(&rows), None);
        let hard = [vec!["SORSA, gamma 0".to_owned(), "a \"b\"".to_owned()]];
        assert_eq!(TableFormat::Csv.table(&hard).unwrap(), "\"SORSA, gamma 0\",\"a \"\"b\"\"\"\n");
    }
}
