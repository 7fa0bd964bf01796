//! Tables of texts in every format. The first row is the head.

/// A table with aligned columns.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..columns(rows))
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A table in Markdown.
pub fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
        if index == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(columns(rows))));
        }
    }
    text
}

/// A `tabular` of LaTeX.
pub fn latex(rows: &[Vec<String>]) -> String {
    let numbers = "r".repeat(columns(rows).saturating_sub(1));
    let mut text = format!("\\begin{{tabular}}{{l{numbers}}}\n\\hline\n");
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| latex_text(cell)).collect();
        text.push_str(&format!("{} \\\\\n", cells.join(" & ")));
        if index == 0 {
            text.push_str("\\hline\n");
        }
    }
    text.push_str("\\hline\n\\end{tabular}\n");
    text
}

/// Comma-separated values (RFC 4180).
pub fn csv(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| quoted(cell)).collect();
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

/// A text for LaTeX: the characters that LaTeX reads as commands are escaped.
pub fn latex_text(cell: &str) -> String {
    let mut text = String::new();
    for c in cell.chars() {
        if matches!(c, '%' | '&' | '_' | '#' | '$' | '{' | '}') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

fn columns(rows: &[Vec<String>]) -> usize {
    rows.iter().map(Vec::len).max().unwrap_or(0)
}

/// A cell of CSV: quoted if it holds a separator, a quote or a line break.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_written_in_every_form() {
        let rows = [vec!["group".to_owned(), "a_b".to_owned()], vec!["all".to_owned(), "5 %".to_owned()]];
        assert_eq!(aligned(&rows), "group  a_b\nall    5 %\n");
        assert_eq!(markdown(&rows), "| group | a_b |\n|---|---|\n| all | 5 % |\n");
        let latex = latex(&rows);
        assert!(latex.contains("group & a\\_b \\\\\n\\hline\nall & 5 \\% \\\\\n"), "{latex}");
        let hard = [vec!["SORSA, gamma 0".to_owned(), "a \"b\"".to_owned()]];
        assert_eq!(csv(&hard), "\"SORSA, gamma 0\",\"a \"\"b\"\"\"\n");
    }
}
