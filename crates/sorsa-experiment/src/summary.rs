//! The results of a run in its files.

use serde::{Deserialize, Serialize};
use sorsa_adapter::Method;
use sorsa_grading::grade::Score;
use sorsa_train::Divergence;

/// The results of a run: `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The method.
    pub method: Method,
    /// Rank of the factors, if the method has any.
    pub rank: Option<usize>,
    /// Numbers that were trained.
    pub trainable_parameters: u64,
    /// Numbers of the model.
    #[serde(default)]
    pub total_parameters: u64,
    /// Validation loss before training, in nats per target token.
    pub loss_before: Option<f64>,
    /// Validation loss of the parameters that are saved.
    pub loss_after: Option<f64>,
    /// Share of right answers before training.
    pub accuracy_before: Option<f64>,
    /// Share of right answers after training.
    pub accuracy_after: Option<f64>,
    /// Its 95 % interval.
    pub accuracy_after_interval: Option<[f64; 2]>,
    /// Problems that both were measured on.
    #[serde(default)]
    pub problems: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// The step whose parameters are saved; absent, the last.
    pub best_step: Option<u64>,
    /// Whether no evaluation was better than the one before training, so that the adapter saved is the one at the start.
    #[serde(default)]
    pub adapter_is_the_start: bool,
    /// Tokens trained on.
    #[serde(default)]
    pub tokens: u64,
    /// Tokens per second of the steps alone.
    pub tokens_per_s: f64,
    /// Seconds of the steps alone.
    pub seconds: f64,
    /// Seconds from the loaded model to the attached adapter.
    pub svd_seconds: f64,
    /// Largest residual of a decomposition, relative to the largest singular value.
    pub svd_largest_residual: Option<f64>,
    /// Peak resident memory of the process.
    pub peak_memory_bytes: Option<u64>,
    /// The device's backend.
    #[serde(default)]
    pub backend: String,
    /// Seed of data order and dropout.
    #[serde(default)]
    pub seed: u64,
    /// Peak learning rate; absent of runs of earlier builds.
    #[serde(default)]
    pub learning_rate: Option<f64>,
    /// Seconds of the search for the learning rate; absent if the recipe named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate_search_seconds: Option<f64>,
    /// What the metrics showed of a model that gets worse.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub divergences: Vec<Divergence>,
    /// How training ended.
    #[serde(default)]
    pub outcome: RunEnd,
    /// Version of the program.
    #[serde(default)]
    pub version: String,
}

/// How training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RunEnd {
    /// All steps were made.
    #[default]
    #[serde(rename = "completed")]
    Completed,
    /// The validation loss stopped falling.
    #[serde(rename = "early stopped")]
    EarlyStopped,
    /// Training made the model worse, and the recipe asked to stop then.
    #[serde(rename = "diverged")]
    Diverged,
}

/// Scores before training, kept for a resumed run: `baseline.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// By each grader, the one that counts first.
    pub scores: Vec<(String, Score)>,
}

/// A run whose loss became NaN or infinite: `diverged.json`. It tells a learning rate that is too high from a machine that
/// failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotFinite {
    /// The step.
    pub step: u64,
}

impl Summary {
    /// Accuracy after training with its interval: `12.5 % [8.6, 17.8]`.
    pub fn accuracy_after_percent(&self) -> Option<String> {
        let (rate, [low, high]) = (self.accuracy_after?, self.accuracy_after_interval?);
        Some(format!("{:.1} % [{:.1}, {:.1}]", 100.0 * rate, 100.0 * low, 100.0 * high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_an_earlier_build_is_read() {
        let json = r#"{"method": "sorsa", "rank": 16, "trainable_parameters": 149952, "total_parameters": 836736,
            "loss_before": 1.5, "loss_after": 0.5, "accuracy_before": 0.0, "accuracy_after": 0.5,
            "accuracy_after_interval": [0.4, 0.6], "problems": 200, "steps": 100, "best_step": null, "tokens": 1000,
            "tokens_per_s": 10.0, "seconds": 100.0, "svd_seconds": 1.0, "svd_largest_residual": 1e-6,
            "peak_memory_bytes": 1000000, "backend": "flex", "seed": 42, "outcome": "early stopped", "version": "0.1.0"}"#;
        let summary: Summary = serde_json::from_str(json).unwrap();
        assert_eq!((summary.outcome, summary.rank), (RunEnd::EarlyStopped, Some(16)));
        assert_eq!(summary.accuracy_after_percent().unwrap(), "50.0 % [40.0, 60.0]");
        assert_eq!(serde_json::from_str::<Summary>(&serde_json::to_string(&summary).unwrap()).unwrap(), summary);
    }

    #[test]
    fn a_baseline_names_its_graders() {
        let json = r#"{"scores": [["faithful", {"correct": {"successes": 1, "total": 2},
            "unanswered": {"successes": 0, "total": 2}}]]}"#;
        let baseline: Baseline = serde_json::from_str(json).unwrap();
        assert_eq!((baseline.scores[0].0.as_str(), baseline.scores[0].1.correct.successes), ("faithful", 1));
    }
}
