//! The files of a comparison's results.

use std::path::Path;

use sorsa_files::write_atomic;

use super::csv::csv;
use super::figures::figures;
use super::page::html;
use super::results::Comparison;
use super::tables::tables;
use super::texts::{latex, markdown, plain};
use crate::{ExperimentError, create_folder};

/// The results in every output format.
pub struct Report {
    /// Aligned tables and the findings, for a terminal.
    pub plain: String,
    /// `results.json`.
    pub json: String,
    /// `results.csv`.
    pub csv: String,
    /// `comparison.md`.
    pub markdown: String,
    /// `comparison.tex`.
    pub latex: String,
}

impl Report {
    /// Writes the results in every format, the figures and the page into `folder`.
    ///
    /// # Errors
    ///
    /// The errors of drawing the figures and of writing the files.
    pub fn write(comparison: &Comparison, folder: &Path) -> Result<Self, ExperimentError> {
        let tables = tables(comparison);
        let report = Self {
            plain: plain(comparison, &tables, folder),
            json: serde_json::to_string_pretty(comparison)?,
            csv: csv(&comparison.runs, &comparison.texts, &comparison.compared_fields),
            markdown: markdown(comparison, &tables),
            latex: latex(comparison, &tables),
        };
        let figures = figures(comparison);
        let page = html(comparison, &tables, &figures)?;
        create_folder(&folder.join("figures"))?;
        for named in &figures {
            let path = folder.join("figures").join(&named.name);
            write_atomic(path.with_extension("svg"), named.figure.svg_file()?)?;
            write_atomic(path.with_extension("png"), named.figure.png()?)?;
        }
        for (name, content) in [
            ("results.json", &report.json),
            ("results.csv", &report.csv),
            ("comparison.md", &report.markdown),
            ("comparison.tex", &report.latex),
            ("report.html", &page),
        ] {
            let path = folder.join(name);
            write_atomic(&path, content)?;
        }
        Ok(report)
    }
}
