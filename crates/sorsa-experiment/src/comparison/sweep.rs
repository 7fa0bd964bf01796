//! A sweep: one recipe field at several values.

use serde::Deserialize;
use toml::Value;

use super::fields::{
    LEARNING_RATE, METHOD, label, named_field, parse_value, reason_against, split_at_commas, value_text,
};

/// How the values of a sweep are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SweepMode {
    /// Each value is a row of the comparison, with a learning rate and all seeds of its own.
    SearchEach,
    /// Each value is one run, with the first seed, at the learning rate that is best for the arm.
    AtBestRate,
}

/// One field at several values.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// The field.
    pub field: String,
    /// Its values.
    pub values: Vec<Value>,
    /// How the values are run.
    pub mode: SweepMode,
    /// Names of the arms to sweep. If empty, every arm on which the field has an effect, unless the arm sets the field itself.
    pub arms: Vec<String>,
    /// Whether a sweep without an arm is left out. Otherwise it is an error.
    pub optional: bool,
}

impl Sweep {
    /// A sweep of all arms, in the mode that suits the field.
    pub fn new(field: &str, values: Vec<Value>) -> Self {
        let mode = match named_field(field) {
            Some(named) => named.mode,
            None => SweepMode::AtBestRate,
        };
        Self { field: field.to_owned(), values, mode, arms: Vec::new(), optional: false }
    }

    /// Reads `field=value,value,..`.
    ///
    /// # Errors
    ///
    /// What was expected, and the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((field, values)) if !field.is_empty() && !values.is_empty() => {
                Ok(Self::new(field, split_at_commas(values).into_iter().map(parse_value).collect()))
            }
            _ => Err(format!("expected FIELD=VALUE,.., found `{text}`")),
        }
    }

    /// Heading of the field's column: `gamma`.
    pub fn label(&self) -> &str {
        label(&self.field)
    }

    /// Name of the sweep's table: `gammas`.
    pub fn plural(&self) -> String {
        format!("{}s", self.label())
    }

    /// The first thing that is wrong with the sweep alone.
    pub fn fault(&self) -> Option<String> {
        let field = &self.field;
        if let Some(reason) = reason_against(field) {
            return Some(format!("a sweep of {field} makes no comparison: {reason}"));
        }
        if field == LEARNING_RATE {
            return Some(format!("a comparison searches {field} itself: name the learning rates to try instead"));
        }
        if field == METHOD {
            return Some(format!("each method is an arm: name the methods to compare instead of a sweep of {field}"));
        }
        if self.values.is_empty() {
            return Some(format!("the sweep of {field} has no values"));
        }
        let twice = self.values.iter().enumerate().find(|(index, value)| self.values[..*index].contains(value));
        twice.map(|(_, value)| format!("the sweep of {field} has {} twice", value_text(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::{GAMMA, RANK};
    use super::*;

    #[test]
    fn a_sweep_is_read_with_the_mode_of_its_field() {
        let ranks = Sweep::parse("adapter.rank=4,16").unwrap();
        assert_eq!((ranks.values.len(), ranks.mode), (2, SweepMode::SearchEach));
        assert_eq!(ranks, Sweep::new(RANK, vec![Value::Integer(4), Value::Integer(16)]));
        let gammas = Sweep::parse("train.regularizer.gamma=0,4e-5").unwrap();
        assert_eq!(gammas, Sweep::new(GAMMA, vec![Value::Integer(0), Value::Float(4e-5)]));
        assert_eq!(gammas.mode, SweepMode::AtBestRate);
        assert!(Sweep::parse("adapter.rank").unwrap_err().contains("FIELD=VALUE"));
    }

    #[test]
    fn sweeps_that_compare_nothing_are_refused() {
        let fault = |text: &str| Sweep::parse(text).unwrap().fault();
        assert_eq!(fault("adapter.alpha=8,16"), None);
        assert_eq!(fault("adapter.alpha=8,8").unwrap(), "the sweep of adapter.alpha has 8 twice");
        assert!(fault("train.seed=1,2").unwrap().contains("seeds of its own"));
        assert!(fault("train.optimizer.learning_rate=1e-3").unwrap().contains("learning rates to try"));
    }
}
