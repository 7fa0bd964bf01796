//! Questions that a comparison answers, each under a heading of its own in the report.

use serde::{Deserialize, Serialize};

use super::findings;
use super::results::Comparison;
use super::tables::SECOND_TASK;

/// A question, and what answers it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The heading.
    pub title: String,
    /// What is asked and measured, in sentences.
    #[serde(default)]
    pub text: String,
    /// Arms whose differences to the reference answer it.
    #[serde(default)]
    pub arms: Vec<String>,
    /// Fields whose sweeps answer it.
    #[serde(default)]
    pub sweeps: Vec<String>,
    /// Names of the tables to show.
    #[serde(default)]
    pub tables: Vec<String>,
    /// Names of the figures to show.
    #[serde(default)]
    pub figures: Vec<String>,
}

/// A question with the sentences that answer it.
#[derive(Debug, Serialize)]
pub struct Answered {
    /// The question.
    #[serde(flatten)]
    pub question: Question,
    /// What the numbers show, and what they do not show.
    pub findings: Vec<String>,
}

/// Tables of every comparison.
const TABLES: [&str; 5] = ["quality", "differences", "cost", "rates", SECOND_TASK];
/// Figures of every comparison that has their values. A sweep adds figures that begin with its label.
const FIGURES: [&str; 10] = [
    "accuracy",
    "loss",
    "learning-rates",
    "learning-curves",
    findings::KAPPA_OF_THE_TRAINED_PART,
    findings::KAPPA_OF_THE_WEIGHT,
    findings::DEFECT,
    "speed",
    "memory",
    "frontier",
];

impl Question {
    /// The first name in the question that a comparison with these arms and sweeps (field, label, name of the table) does not have.
    pub fn fault(&self, arms: &[&str], sweeps: &[(&str, &str, String)]) -> Option<String> {
        let title = &self.title;
        if let Some(arm) = self.arms.iter().find(|arm| !arms.contains(&arm.as_str())) {
            return Some(format!("the question `{title}` names {arm}, which is not among the arms"));
        }
        if let Some(field) = self.sweeps.iter().find(|field| sweeps.iter().all(|(swept, ..)| swept != field)) {
            return Some(format!("the question `{title}` names a sweep of {field}, which is not among the sweeps"));
        }
        let is_table =
            |name: &String| TABLES.contains(&name.as_str()) || sweeps.iter().any(|(_, _, table)| table == name);
        if let Some(table) = self.tables.iter().find(|name| !is_table(name)) {
            return Some(format!(
                "the question `{title}` names {table}, which is not among the tables: {}",
                TABLES.join(", ")
            ));
        }
        let of_sweep = |name: &str| sweeps.iter().any(|(_, label, _)| name.starts_with(&format!("{label}-")));
        let is_figure =
            |name: &String| FIGURES.contains(&name.as_str()) || name.starts_with("frontier-") || of_sweep(name);
        let stranger = self.figures.iter().find(|name| !is_figure(name))?;
        Some(format!("the question `{title}` names {stranger}, which is not among the figures: {}", FIGURES.join(", ")))
    }

    /// The question with what a comparison shows.
    pub fn answered(&self, comparison: &Comparison) -> Answered {
        let mut sentences = Vec::new();
        for row in comparison.rows.iter().filter(|row| self.arms.contains(&row.arm)) {
            for figure in &self.figures {
                sentences.extend(findings::watched(comparison, row, figure));
            }
            sentences.extend(findings::of_row(row));
        }
        for sweep in comparison.sweeps.iter().filter(|sweep| self.sweeps.contains(&sweep.field)) {
            sentences.extend(findings::of_sweep(comparison, sweep));
        }
        if sentences.is_empty() {
            sentences.push("No number of this comparison answers this.".to_owned());
        }
        Answered { question: self.clone(), findings: sentences }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_names_what_the_comparison_has() {
        let arms = ["lora", "sorsa"];
        let sweeps = [("train.regularizer.gamma", "gamma", "gammas".to_owned())];
        let mut question = Question {
            title: "What does gamma do?".into(),
            arms: vec!["sorsa".into()],
            sweeps: vec!["train.regularizer.gamma".into()],
            tables: vec!["gammas".into(), "quality".into()],
            figures: vec!["gamma-forgetting".into(), "defect".into()],
            ..Question::default()
        };
        assert_eq!(question.fault(&arms, &sweeps), None);
        question.figures.push("heat".into());
        assert!(
            question.fault(&arms, &sweeps).unwrap().contains("names heat, which is not among the figures: accuracy,")
        );
        question.tables.push("alphas".into());
        assert!(question.fault(&arms, &sweeps).unwrap().contains("names alphas, which is not among the tables"));
        question.sweeps.push("adapter.alpha".into());
        assert!(question.fault(&arms, &sweeps).unwrap().contains("a sweep of adapter.alpha"));
        question.arms.push("dora".into());
        assert!(question.fault(&arms, &sweeps).unwrap().contains("names dora, which is not among the arms"));
    }
}
