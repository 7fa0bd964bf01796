//! `report.html` of a comparison.

use sorsa_report::ReportError;
use sorsa_report::page::{Block, Page};
use sorsa_report::plot::Figure;

use super::figures::NamedFigure;
use super::findings::{DEFECT, KAPPA_OF_THE_TRAINED_PART, KAPPA_OF_THE_WEIGHT};
use super::question::Answered;
use super::results::Comparison;
use super::tables::{SECOND_TASK, Table};

/// The figures of what `train.watch_every` measures.
const WATCHED: [&str; 3] = [KAPPA_OF_THE_TRAINED_PART, KAPPA_OF_THE_WEIGHT, DEFECT];

/// The page: findings first, then tables and figures, and how the numbers were made.
///
/// # Errors
///
/// The errors of drawing a figure.
pub fn html(comparison: &Comparison, tables: &[Table], figures: &[NamedFigure]) -> Result<String, ReportError> {
    let setting = format!(
        "model {} · data {} · backend {} · {} · sorsa {}",
        comparison.model, comparison.data, comparison.backend, comparison.machine, comparison.version
    );
    let list = |lines: &[String]| if lines.is_empty() { Vec::new() } else { vec![Block::List(lines.to_vec())] };
    let section = |table_names: &[&str], figure_names: &[&str]| -> Vec<Block> {
        let mut blocks = Vec::new();
        for table in tables.iter().filter(|table| table_names.contains(&table.name.as_str())) {
            blocks.extend([Block::Text(table.caption.clone() + "."), Block::Table(table.rows.clone())]);
        }
        let drawn: Vec<Figure> = figures
            .iter()
            .filter(|named| figure_names.contains(&named.name.as_str()))
            .map(|named| named.figure.clone())
            .collect();
        if !drawn.is_empty() {
            blocks.push(Block::Figures(drawn));
        }
        blocks
    };
    let starting_with = |start: &str| -> Vec<&str> {
        figures.iter().map(|named| named.name.as_str()).filter(|name| name.starts_with(start)).collect()
    };
    let mut sections = vec![("What is shown".to_owned(), list(&comparison.findings))];
    for Answered { question, findings } in &comparison.questions {
        let table_names: Vec<&str> = question.tables.iter().map(String::as_str).collect();
        let figure_names: Vec<&str> = question.figures.iter().map(String::as_str).collect();
        let mut blocks = Vec::new();
        if !question.text.is_empty() {
            blocks.push(Block::Text(question.text.clone()));
        }
        blocks.extend(list(findings));
        blocks.extend(section(&table_names, &figure_names));
        sections.push((question.title.clone(), blocks));
    }
    sections.extend([
        ("Quality".to_owned(), section(&["quality", "differences"], &["accuracy", "loss"])),
        ("Forgetting".to_owned(), section(&[SECOND_TASK], &starting_with("frontier"))),
        ("Condition and orthonormality over training".to_owned(), section(&[], &WATCHED)),
        ("Cost".to_owned(), section(&["cost"], &["speed", "memory"])),
        ("Learning rates".to_owned(), section(&["rates"], &["learning-rates", "learning-curves"])),
    ]);
    for sweep in &comparison.sweeps {
        let figures = starting_with(&format!("{}-", sweep.label));
        sections.push((format!("Sweep of {}", sweep.field), section(&[&sweep.name], &figures)));
    }
    sections.retain(|(_, blocks)| !blocks.is_empty());
    sections.push(("How it was made".to_owned(), list(&comparison.notes)));
    Page { title: comparison.title(), setting, sections }.html()
}
