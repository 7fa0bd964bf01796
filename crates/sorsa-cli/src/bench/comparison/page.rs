//! `report.html` of a comparison.

use sorsa_eval::EvalError;
use sorsa_eval::page::{Block, Page};
use sorsa_eval::plot::Figure;

use super::results::Comparison;
use super::tables::Table;

/// The page: what is shown first, then tables, pictures, and how it was made.
pub fn html(
    comparison: &Comparison,
    tables: &[Table],
    figures: &[(&'static str, Figure)],
) -> Result<String, EvalError> {
    let setting = format!(
        "model {} · data {} · backend {} · {} · sorsa {}",
        comparison.model, comparison.data, comparison.backend, comparison.machine, comparison.version
    );
    let list = |lines: &[String]| if lines.is_empty() { Vec::new() } else { vec![Block::List(lines.to_vec())] };
    let of = |names: &[&str]| -> Vec<Block> {
        let chosen = tables.iter().filter(|table| names.contains(&table.name));
        chosen.flat_map(|table| [Block::Text(table.caption.clone() + "."), Block::Table(table.rows.clone())]).collect()
    };
    let drawn = |names: &[&str]| -> Vec<Block> {
        let chosen: Vec<Figure> =
            figures.iter().filter(|(name, _)| names.contains(name)).map(|(_, figure)| figure.clone()).collect();
        if chosen.is_empty() { Vec::new() } else { vec![Block::Figures(chosen)] }
    };
    let section = |tables: &[&str], figures: &[&str]| -> Vec<Block> {
        let mut blocks = of(tables);
        blocks.extend(drawn(figures));
        blocks
    };
    let sections = [
        ("What is shown", list(&comparison.findings)),
        ("Quality", section(&["quality", "differences"], &["accuracy", "loss"])),
        ("Cost", section(&["cost"], &["speed", "memory"])),
        ("Learning rates", section(&["rates"], &["learning-rates", "learning-curves"])),
        ("SORSA's regularizer", section(&["gammas"], &["gamma-loss", "gamma-accuracy", "gamma-defect"])),
        ("How it was made", list(&comparison.notes)),
    ];
    let sections = sections.map(|(heading, blocks)| (heading.to_owned(), blocks)).to_vec();
    Page { title: super::write::title(comparison), setting, sections }.html()
}
