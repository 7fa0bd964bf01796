//! Results for people and for programs.

use std::fmt::Display;
use std::io::ErrorKind;

use clap::ValueEnum;
use serde::Serialize;
use sorsa_report::table;

use crate::terminal;

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
        match self {
            Self::Json => None,
            Self::Table => Some(table::aligned(rows)),
            Self::Markdown => Some(table::markdown(rows)),
            Self::Latex => Some(table::latex(rows)),
            Self::Csv => Some(table::csv(rows)),
        }
    }
}

/// Prints a result. If nobody reads it any more, like after `| head`, the command goes on: it may have files to write.
pub fn print(text: impl Display) -> anyhow::Result<()> {
    match terminal::write(&format!("{text}\n")) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
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
