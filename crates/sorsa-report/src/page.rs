//! A page of text, tables and figures in one HTML file that opens anywhere: no scripts, no links, pictures inside; light or dark as
//! the reader's system is. `report.html` of a run and of a comparison are such pages.

use std::fmt::Display;

use crate::ReportError;
use crate::plot::Figure;
use crate::report::Escaped;

/// A page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// The heading.
    pub title: String,
    /// Model, data and machine: one line under the heading.
    pub setting: String,
    /// Sections with their headings; one without blocks is left out.
    pub sections: Vec<(String, Vec<Block>)>,
}

/// A part of a section.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// Items of a list.
    List(Vec<String>),
    /// A table whose first row is its head.
    Table(Vec<Vec<String>>),
    /// Figures side by side, with their titles for captions.
    Figures(Vec<Figure>),
}

impl Page {
    /// The page as an HTML document. Every text in it is escaped.
    ///
    /// # Errors
    /// [`ReportError::EmptyFigure`] and [`ReportError::Draw`] of its figures.
    pub fn html(&self) -> Result<String, ReportError> {
        let mut sections = Vec::new();
        for (heading, blocks) in &self.sections {
            let blocks: Vec<String> = blocks.iter().map(Block::html).collect::<Result<_, _>>()?;
            sections.push((heading.as_str(), blocks.concat()));
        }
        Ok(document(&self.title, &self.setting, &sections))
    }
}

impl Block {
    fn html(&self) -> Result<String, ReportError> {
        Ok(match self {
            Self::Text(text) => format!("<p>{}</p>\n", Escaped(text)),
            Self::List(items) => {
                let items: String = items.iter().map(|item| format!("<li>{}</li>\n", Escaped(item))).collect();
                format!("<ul>\n{items}</ul>\n")
            }
            Self::Table(rows) => {
                let row = |cells: &[String], tag: &str| {
                    let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", Escaped(cell))).collect();
                    format!("<tr>{cells}</tr>\n")
                };
                let (head, body) = rows.split_at(rows.len().min(1));
                let head: String = head.iter().map(|cells| row(cells, "th")).collect();
                let body: String = body.iter().map(|cells| row(cells, "td")).collect();
                format!("<div class=\"wide\"><table>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n")
            }
            Self::Figures(figures) => {
                let figures: Vec<String> = figures
                    .iter()
                    .map(|figure| {
                        let caption = Escaped(&figure.title);
                        Ok(format!("<figure><figcaption>{caption}</figcaption>\n{}</figure>\n", figure.svg()?))
                    })
                    .collect::<Result<_, ReportError>>()?;
                format!("<div class=\"figures\">\n{}</div>\n", figures.concat())
            }
        })
    }
}

/// A whole document; sections without content are left out. `title`, `setting` and headings are escaped here.
pub(crate) fn document(title: &str, setting: &str, sections: &[(impl Display, String)]) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{setting}</p>\n",
        title = Escaped(title),
        style = include_str!("report.css"),
        setting = Escaped(setting),
    );
    for (heading, content) in sections.iter().filter(|(_, content)| !content.is_empty()) {
        html += &format!("<h2>{}</h2>\n{content}", Escaped(&heading.to_string()));
    }
    html + "</body>\n</html>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Axis, Marks, Scale, Series};

    #[test]
    fn a_page_holds_everything_and_escapes_every_text() {
        let hostile = "<script>alert(1)</script>".to_owned();
        let figure = Figure {
            title: hostile.clone(),
            x: Axis::new(&hostile, Scale::Linear),
            y: Axis::new("loss", Scale::Linear),
            series: vec![Series::new(&hostile, Marks::Line, [(0.0, 1.0), (1.0, 2.0)])],
        };
        let blocks = vec![
            Block::Text(hostile.clone()),
            Block::List(vec![hostile.clone()]),
            Block::Table(vec![vec![hostile.clone()], vec![hostile.clone()]]),
            Block::Figures(vec![figure]),
        ];
        let sections = vec![(hostile.clone(), blocks), ("empty".to_owned(), Vec::new())];
        let html = Page { title: hostile.clone(), setting: hostile, sections }.html().unwrap();
        assert!(!html.contains("<script") && !html.contains("empty"), "{html}");
        assert!(html.contains("<svg") && html.contains("<li>&lt;script") && html.contains("<td>&lt;script"));
        assert!(!html.replace("http://www.w3.org/2000/svg", "").contains("http"), "a link leaves the file");
    }
}
