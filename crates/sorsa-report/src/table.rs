//! Tables of texts in every format. The first row is the head.

/// A table with aligned columns.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..columns(rows))
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| one_line(cell).chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{:width$}", one_line(cell))).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A table in Markdown.
pub fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| markdown_text(cell)).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
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
        text.push_str(&latex_row(&cells));
        if index == 0 {
            text.push_str("\\hline\n");
        }
    }
    text.push_str("\\hline\n\\end{tabular}\n");
    text
}

/// Comma-separated values (RFC 4180). A spreadsheet takes no text for a formula.
pub fn csv(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| quoted(cell)).collect();
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

/// A text for Markdown that is shown as it is, without markup or HTML.
pub fn markdown_text(cell: &str) -> String {
    let mut text = String::new();
    for c in one_line(cell).chars() {
        match c {
            '\\' | '|' | '`' | '*' => text.extend(['\\', c]),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '&' => text.push_str("&amp;"),
            // The address of a link or a picture.
            '(' if text.ends_with(']') => text.push_str("\\("),
            c => text.push(c),
        }
    }
    text
}

/// A text for LaTeX: the characters that LaTeX reads as commands are escaped.
pub fn latex_text(cell: &str) -> String {
    let mut text = String::new();
    for c in one_line(cell).chars() {
        match c {
            '%' | '&' | '_' | '#' | '$' | '{' | '}' => text.extend(['\\', c]),
            '\\' => text.push_str("\\textbackslash{}"),
            '~' => text.push_str("\\textasciitilde{}"),
            '^' => text.push_str("\\^{}"),
            '<' => text.push_str("\\textless{}"),
            '>' => text.push_str("\\textgreater{}"),
            c => text.push(c),
        }
    }
    text
}

/// A row of a `tabular`, by its escaped cells.
pub fn latex_row(cells: &[String]) -> String {
    // After the `\\` of the row before, a bracket or a star would be its argument.
    let guard = if cells.first().is_some_and(|cell| cell.starts_with(['[', '*'])) { "{}" } else { "" };
    format!("{guard}{} \\\\\n", cells.join(" & "))
}

/// A text in one line: line breaks and other control characters become blanks.
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn columns(rows: &[Vec<String>]) -> usize {
    rows.iter().map(Vec::len).max().unwrap_or(0)
}

/// A cell of CSV: quoted if it holds a separator, a quote or a line break. A text that a spreadsheet would take for a formula gets an
/// apostrophe before it; a number does not.
fn quoted(cell: &str) -> String {
    let is_formula =
        cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) && cell != "-" && cell.parse::<f64>().is_err();
    let cell = if is_formula { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
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

    fn table(cell: &str) -> Vec<Vec<String>> {
        vec![vec!["group".to_owned(), "n".to_owned()], vec![cell.to_owned(), "1".to_owned()]]
    }

    #[test]
    fn latex_runs_no_command_of_a_text() {
        let hostile = "\\input /etc/passwd \\immediate\\write18{id} ~^<>%\n\\end{tabular}";
        let escaped = "\\textbackslash{}input /etc/passwd \\textbackslash{}immediate\\textbackslash{}write18\\{id\\} \
                       \\textasciitilde{}\\^{}\\textless{}\\textgreater{}\\% \\textbackslash{}end\\{tabular\\}";
        assert_eq!(latex_text(hostile), escaped);
        assert!(latex(&table(hostile)).contains(&format!("\\hline\n{escaped} & 1 \\\\\n\\hline")));
        assert!(latex(&table("[2cm]")).contains("\\hline\n{}[2cm] & 1"));
    }

    #[test]
    fn markdown_shows_a_text_as_it_is() {
        assert_eq!(markdown_text("a | b\n`c` *d* \\|"), "a \\| b \\`c\\` \\*d\\* \\\\\\|");
        assert_eq!(
            markdown_text("<script>alert(1)</script> & ![x](http://y)"),
            "&lt;script&gt;alert(1)&lt;/script&gt; &amp; ![x]\\(http://y)"
        );
        assert_eq!(markdown_text("88.0 [82.8, 91.8] a_b"), "88.0 [82.8, 91.8] a_b");
        assert_eq!(markdown(&table("a | b")).lines().last(), Some("| a \\| b | 1 |"));
    }

    #[test]
    fn csv_has_no_formulas_and_leaves_numbers_alone() {
        for (cell, written) in [
            ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("+1+1", "'+1+1"),
            ("-1,2", "\"'-1,2\""),
            ("\t=1", "'\t=1"),
            ("\r=1", "\"'\r=1\""),
            ("-0.5", "-0.5"),
            ("+1e-3", "+1e-3"),
            ("-", "-"),
            ("a=b", "a=b"),
        ] {
            assert_eq!(csv(&[vec![cell.to_owned()]]), format!("{written}\n"));
        }
    }

    #[test]
    fn an_aligned_row_stays_one_line() {
        assert_eq!(aligned(&table("a\nb\u{1b}[8m")), "group    n\na b [8m  1\n");
    }
}
