//! `analysis.html`: an analysis in one file that opens anywhere, like a run's report.

use super::Analysis;
use crate::ReportError;
use crate::page::{Block, Page};

/// Meaning of the columns, for readers of the page alone.
const MEASURES: [(&str, &str); 8] = [
    ("d_sigma", "ΔΣ: mean change of a singular value of the merged weight since the start, in units of the weight"),
    ("d_d", "ΔD: 1 − ½ mean(|⟨uᵢ, uᵢ₀⟩| + |⟨vᵢ, vᵢ₀⟩|) over singular vectors of the same index, from 0 to 1"),
    ("d_d_matched", "ΔD under the best one-to-one matching: neighbours that changed places do not count"),
    ("kappa, kappa_part", "condition number of the merged weight and of the trained part; averages are geometric"),
    ("effective_rank", "exp of the entropy of the singular values, of the merged weight and of the trained part"),
    ("defect_u, defect_v", "‖UᵀU − I‖ / √r of the trained factors, for methods that keep them orthonormal"),
    (
        "angle_u, angle_v",
        "principal angles of the r leading singular subspaces against the start, degrees, mean and largest",
    ),
    ("trained_angle_u, trained_angle_v", "mean principal angle of the trained factors against their start, degrees"),
];

impl Analysis {
    /// The analysis as an HTML document without scripts or links.
    ///
    /// # Errors
    /// [`ReportError`] if a figure cannot be drawn.
    pub fn html(&self) -> Result<String, ReportError> {
        let names: Vec<_> =
            self.runs.iter().map(|run| format!("{} ({} on {})", run.name, run.folder, run.model)).collect();
        let over = if self.triplets == "all" { "all" } else { "the r leading" };
        let measures = [("measure", "what it is")].into_iter().chain(MEASURES);
        let measures = measures.map(|(name, meaning)| vec![name.to_owned(), meaning.to_owned()]).collect();
        let figures = self.figures().into_iter().map(|(_, figure)| figure).collect();
        let sections = [
            ("Figures", Block::Figures(figures)),
            ("Averages over the weights", Block::Table(self.averages())),
            ("The measures", Block::Table(measures)),
        ];
        Page {
            title: "What training did to the weights".to_owned(),
            setting: format!("{}; dSigma and dD over {over} singular triplets", names.join(" · ")),
            sections: sections.map(|(heading, block)| (heading.to_owned(), vec![block])).into(),
        }
        .html()
    }
}
