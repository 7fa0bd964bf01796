//! `analysis.html`: an analysis in one file that opens anywhere, as a run's report does.

use super::Analysis;
use crate::EvalError;
use crate::report::Escaped;

/// What the columns mean, for whoever has only the page.
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
    /// [`EvalError`] if a figure cannot be drawn.
    pub fn html(&self) -> Result<String, EvalError> {
        let names: Vec<_> =
            self.runs.iter().map(|run| format!("{} ({} on {})", run.name, run.folder, run.model)).collect();
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{style}.wide {{ overflow-x: auto; }}\n</style>\n</head>\n<body>\n\
             <h1>{title}</h1>\n<p>{runs}</p>\n<p>dSigma and dD over {over} singular triplets</p>\n",
            title = "What training did to the weights",
            style = include_str!("../report.css"),
            runs = Escaped(&names.join(" · ")),
            over = if self.triplets == "all" { "all" } else { "the r leading" },
        );
        html += "<h2>Figures</h2>\n<div class=\"figures\">\n";
        for (_, figure) in self.figures() {
            let caption = Escaped(&figure.title);
            html += &format!("<figure><figcaption>{caption}</figcaption>\n{}</figure>\n", figure.svg()?);
        }
        html += "</div>\n<h2>Averages over the weights</h2>\n<div class=\"wide\"><table>\n";
        for (index, row) in self.averages().iter().enumerate() {
            let tag = if index == 0 { "th" } else { "td" };
            let cells: String = row.iter().map(|cell| format!("<{tag}>{}</{tag}>", Escaped(cell))).collect();
            let row = format!("<tr>{cells}</tr>\n");
            html += &if index == 0 { format!("<thead>{row}</thead>\n") } else { row };
        }
        html += "</table></div>\n<h2>The measures</h2>\n<table>\n";
        for (name, meaning) in MEASURES {
            html += &format!("<tr><th>{name}</th><td>{}</td></tr>\n", Escaped(meaning));
        }
        Ok(html + "</table>\n</body>\n</html>\n")
    }
}
