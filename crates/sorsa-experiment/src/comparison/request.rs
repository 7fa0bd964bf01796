//! The request for a comparison, before it is checked against a model and data.

use std::path::PathBuf;

use super::arm::Arm;
use super::base_recipe::BaseRecipe;
use super::question::Question;
use super::sweep::Sweep;

/// The request for a comparison.
#[derive(Debug)]
pub struct ComparisonRequest {
    /// Folder of the runs and results.
    pub folder: PathBuf,
    /// The arms to compare.
    pub arms: Vec<Arm>,
    /// Name of the reference arm: reports give each row's difference to it. If no arm has this name, the first arm is the reference.
    pub reference: String,
    /// The sweeps: fields that run at several values.
    pub sweeps: Vec<Sweep>,
    /// The questions that the report answers under headings of their own.
    pub questions: Vec<Question>,
    /// The learning rates to begin with.
    pub rates: RequestedRates,
    /// The seeds; the first one searches the learning rates.
    pub seeds: Vec<u64>,
    /// How often a grid of rates may be extended.
    pub extend: usize,
    /// How often a grid around a found rate may be extended.
    pub extend_found: usize,
    /// Data to train every chosen run on afterwards.
    pub then: Option<String>,
    /// The settings of all runs.
    pub base: BaseRecipe,
    /// Whether the request sets `train.eval_every`. If not, the plan chooses it.
    pub sets_eval_every: bool,
    /// Whether condition numbers and defects are measured as often as the validation loss.
    pub watches: bool,
}

/// The learning rates to begin with.
#[derive(Debug)]
pub struct RequestedRates {
    /// Rates of single arms, by name.
    pub by_arm: Vec<(String, f64)>,
    /// Rates of all other arms. If there are none, each arm has multiples of its default, or of the rate that is found for it.
    pub for_all: Vec<f64>,
    /// The multiples.
    pub factors: Vec<f64>,
}

impl ComparisonRequest {
    /// The first thing that is wrong with an arm or a sweep, or with two of them together.
    pub fn fault(&self) -> Option<String> {
        for (index, arm) in self.arms.iter().enumerate() {
            if let Some(fault) = arm.fault() {
                return Some(fault);
            }
            if self.arms[..index].iter().any(|other| other.name == arm.name) {
                return Some(format!("two arms are named {}", arm.name));
            }
        }
        for (index, sweep) in self.sweeps.iter().enumerate() {
            if let Some(fault) = sweep.fault() {
                return Some(fault);
            }
            let field = &sweep.field;
            // Tables and figures are named by the label.
            if let Some(other) = self.sweeps[..index].iter().find(|other| other.label() == sweep.label()) {
                return Some(format!("the sweeps of {} and {field} have one name: {}", other.field, sweep.label()));
            }
            if let Some(name) = sweep.arms.iter().find(|name| self.arms.iter().all(|arm| arm.name != **name)) {
                return Some(format!("the sweep of {field} names {name}, which is not among the arms"));
            }
        }
        let arms: Vec<&str> = self.arms.iter().map(|arm| arm.name.as_str()).collect();
        let sweeps: Vec<_> =
            self.sweeps.iter().map(|sweep| (sweep.field.as_str(), sweep.label(), sweep.plural())).collect();
        if let Some(fault) = self.questions.iter().find_map(|question| question.fault(&arms, &sweeps)) {
            return Some(fault);
        }
        let is_arm = |name: &str| self.arms.iter().any(|arm| arm.name == name);
        let stranger = self.rates.by_arm.iter().find(|(name, _)| !is_arm(name));
        stranger.map(|(name, _)| format!("learning rates are given for {name}, which is not among the methods"))
    }
}
