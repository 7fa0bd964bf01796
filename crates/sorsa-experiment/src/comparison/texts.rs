//! The results of a comparison as text: aligned tables, Markdown and LaTeX.

use std::path::Path;

use super::question::Answered;
use super::results::Comparison;
use super::tables::Table;
use sorsa_report::table::{aligned, latex_row, latex_text, markdown as markdown_table, markdown_text, one_line};

/// Tables with aligned columns, then the findings, and the folder of the files.
pub fn plain(comparison: &Comparison, tables: &[Table], folder: &Path) -> String {
    let mut text = String::new();
    for table in tables {
        let rows = aligned(&table.rows);
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

/// Tables in Markdown, then the findings and notes.
pub fn markdown(comparison: &Comparison, tables: &[Table]) -> String {
    let mut text = format!("# {}\n\n", markdown_text(&comparison.title()));
    for table in tables {
        let rows = markdown_table(&table.rows);
        text.push_str(&format!("{}.\n\n{rows}\n", markdown_text(&table.caption)));
    }
    for Answered { question, findings } in &comparison.questions {
        let items: String = findings.iter().map(|line| format!("- {}\n", markdown_text(line))).collect();
        text.push_str(&format!(
            "## {}\n\n{}\n\n{items}\n",
            markdown_text(&question.title),
            markdown_text(&question.text)
        ));
    }
    for (heading, lines) in [("What is shown", &comparison.findings), ("How it was made", &comparison.notes)] {
        if !lines.is_empty() {
            let items: String = lines.iter().map(|line| format!("- {}\n", markdown_text(line))).collect();
            text.push_str(&format!("## {heading}\n\n{items}\n"));
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// A `table` environment for each table, for a paper that loads booktabs. The findings and notes come first, in comments.
pub fn latex(comparison: &Comparison, tables: &[Table]) -> String {
    let mut text = format!("% {}\n", one_line(&comparison.title()));
    for line in comparison.findings.iter().chain(&comparison.notes) {
        text.push_str(&format!("% {}\n", one_line(line)));
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
            text.push_str(&latex_row(&cells));
            if index == 0 {
                text.push_str("\\midrule\n");
            }
        }
        text.push_str("\\bottomrule\n\\end{tabular}\n\\end{table}\n");
    }
    text
}

/// A cell with its special characters escaped and the minus signs of its numbers in math mode.
fn math(cell: &str) -> String {
    let mut text = latex_text(cell);
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
    fn cells_of_latex_have_no_special_characters() {
        assert_eq!(math("5 % of a_b"), "5 \\% of a\\_b");
        assert_eq!(math("-0.1 [-0.2, -0.0]"), "$-$0.1 [$-$0.2, $-$0.0]");
        assert_eq!(math("-"), "-");
        assert_eq!(math("sorsa-noreg"), "sorsa-noreg");
        assert_eq!(math("||U^T U - I||"), "||U\\^{}T U $-$ I||");
    }
}
