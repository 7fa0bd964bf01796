//! A suite: the arms and sweeps of a comparison in a TOML file.
//!
//! ```toml
//! reference = "small"
//! learning_rates = [1e-3, 2e-3]                       # of arms that name none
//!
//! [settings]                                          # of all runs, unless a recipe or an option sets them
//! train.batch_size = 4
//!
//! [arms.small]
//! adapter.rank = 4
//!
//! [arms.large]
//! adapter.rank = 64
//! train.optimizer.learning_rate = [5e-4, 1e-3]        # a list is a grid to search, a number is the rate
//!
//! [[sweeps]]
//! field = "adapter.dropout"
//! values = [0.0, 0.05, 0.1]
//! arms = ["large"]
//!
//! [[questions]]                                       # a heading of the report
//! title = "Is a large rank better?"
//! text = "Both ranks have learning rates of their own."
//! arms = ["large"]
//! tables = ["differences"]
//! figures = ["learning-curves"]
//! ```
//!
//! `watch = true` measures condition numbers and defects as often as the validation loss.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Spanned, Table, Value};

use super::arm::Arm;
use super::fields::{FieldValue, LEARNING_RATE, flattened};
use super::question::Question;
use super::sweep::{Sweep, SweepMode};

/// Arms in the order of the file, sweeps, and the arm to compare with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Suite {
    /// Name of the arm to compare with.
    pub reference: Option<String>,
    /// Fields of all runs, unless a recipe or an option sets them.
    pub settings: Vec<FieldValue>,
    /// The arms, in the order of the file.
    pub arms: Vec<Arm>,
    /// The sweeps.
    pub sweeps: Vec<Sweep>,
    /// The questions that the report answers.
    pub questions: Vec<Question>,
    /// Whether condition numbers and defects are measured as often as the validation loss.
    pub watches: bool,
    /// Learning rates of single arms, by name.
    pub rates_by_arm: Vec<(String, f64)>,
    /// Learning rates of all other arms. If there are none, the comparison chooses them.
    pub rates_for_all: Vec<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    reference: Option<String>,
    #[serde(default)]
    settings: Table,
    #[serde(default)]
    learning_rates: Vec<f64>,
    #[serde(default)]
    arms: BTreeMap<Spanned<String>, Table>,
    #[serde(default)]
    sweeps: Vec<SuiteSweep>,
    #[serde(default)]
    questions: Vec<Question>,
    #[serde(default)]
    watch: bool,
}

/// The suites of this program: their names, and the texts of their files.
const BUILT_IN: [(&str, &str); 5] = [
    ("ablation", include_str!("../../../../docs/suites/ablation.toml")),
    ("peft", include_str!("../../../../docs/suites/peft.toml")),
    ("regularizer", include_str!("../../../../docs/suites/regularizer.toml")),
    ("reviewers", include_str!("../../../../docs/suites/reviewers.toml")),
    ("settings", include_str!("../../../../docs/suites/settings.toml")),
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteSweep {
    field: String,
    values: Vec<Value>,
    #[serde(default)]
    arms: Vec<String>,
    mode: Option<SweepMode>,
}

impl Suite {
    /// Reads the text of a suite file.
    ///
    /// # Errors
    ///
    /// The line, and what is wrong in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: SuiteFile = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            format!("line {line}: {}", error.message().trim().replace('\n', " "))
        })?;
        let mut arms: Vec<_> = file.arms.into_iter().collect();
        arms.sort_by_key(|(name, _)| name.span().start);
        let mut arms: Vec<Arm> =
            arms.into_iter().map(|(name, table)| Arm { name: name.into_inner(), fields: flattened(&table) }).collect();
        let mut rates_by_arm = Vec::new();
        for arm in &mut arms {
            for rate in take_grid(arm)? {
                rates_by_arm.push((arm.name.clone(), rate));
            }
        }
        if let Some(rate) = file.learning_rates.iter().find(|rate| !is_rate(**rate)) {
            return Err(format!("learning_rates: expected positive numbers, found {rate}"));
        }
        let sweeps = file.sweeps.into_iter().map(|given| {
            let sweep = Sweep::new(&given.field, given.values);
            Sweep { arms: given.arms, mode: given.mode.unwrap_or(sweep.mode), ..sweep }
        });
        Ok(Self {
            reference: file.reference,
            settings: flattened(&file.settings),
            arms,
            sweeps: sweeps.collect(),
            questions: file.questions,
            watches: file.watch,
            rates_by_arm,
            rates_for_all: file.learning_rates,
        })
    }

    /// The names of the built-in suites.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The text of a built-in suite.
    pub fn built_in(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(built_in, _)| *built_in == name).map(|(_, text)| *text)
    }

    /// The suite with only the arms of these names, and with the sweeps and rates that are left for them.
    pub fn restricted_to(mut self, names: &[String]) -> Self {
        let kept = |name: &String| names.contains(name);
        self.arms.retain(|arm| kept(&arm.name));
        self.rates_by_arm.retain(|(name, _)| kept(name));
        let (left, removed): (Vec<Sweep>, Vec<Sweep>) =
            self.sweeps.into_iter().partition(|sweep| sweep.arms.is_empty() || sweep.arms.iter().any(kept));
        self.sweeps = left;
        for sweep in &mut self.sweeps {
            sweep.arms.retain(kept);
        }
        for question in &mut self.questions {
            question.arms.retain(kept);
            for sweep in &removed {
                question.sweeps.retain(|field| *field != sweep.field);
                question.tables.retain(|table| *table != sweep.plural());
                question.figures.retain(|figure| !figure.starts_with(&format!("{}-", sweep.label())));
            }
        }
        self.questions
            .retain(|question| !(question.arms.is_empty() && question.sweeps.is_empty() && question.tables.is_empty()));
        self
    }
}

/// Takes a list of learning rates out of the fields of an arm. A single rate stays.
fn take_grid(arm: &mut Arm) -> Result<Vec<f64>, String> {
    let Some(index) = arm.fields.iter().position(|field| field.field == LEARNING_RATE && field.value.is_array()) else {
        return Ok(Vec::new());
    };
    let Value::Array(values) = arm.fields.remove(index).value else { return Ok(Vec::new()) };
    let mut rates = Vec::new();
    for value in &values {
        match value.as_float().or(value.as_integer().map(|rate| rate as f64)) {
            Some(rate) if is_rate(rate) => rates.push(rate),
            _ => return Err(format!("arm {}: {LEARNING_RATE}: expected positive numbers, found {value}", arm.name)),
        }
    }
    if rates.is_empty() {
        return Err(format!("arm {}: {LEARNING_RATE} is an empty list", arm.name));
    }
    Ok(rates)
}

fn is_rate(rate: f64) -> bool {
    rate > 0.0 && rate.is_finite()
}

#[cfg(test)]
mod tests {
    use super::super::fields::{FieldValue, GAMMA, RANK};
    use super::*;

    #[test]
    fn arms_keep_the_order_of_the_file() {
        let text = "reference = \"b\"\n[arms.b]\nadapter.rank = 4\n[arms.a]\n\"adapter.rank\" = 8\n\
                    [[sweeps]]\nfield = \"train.regularizer.gamma\"\nvalues = [0, 4e-5]\narms = [\"a\"]\nmode = \"search-each\"\n";
        let suite = Suite::parse(text).unwrap();
        assert_eq!(suite.reference.as_deref(), Some("b"));
        let names: Vec<_> = suite.arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(suite.arms[1].fields, [FieldValue::new(RANK, 8)]);
        let sweep = &suite.sweeps[0];
        assert_eq!((sweep.field.as_str(), sweep.mode), (GAMMA, SweepMode::SearchEach));
        assert_eq!(sweep.arms, ["a"]);
    }

    #[test]
    fn a_list_of_learning_rates_is_a_grid_and_a_number_is_a_field() {
        let text = "learning_rates = [1e-3, 2e-3]\n[arms.a]\ntrain.optimizer.learning_rate = [4e-3, 1]\n\
                    [arms.b]\ntrain.optimizer.learning_rate = 5e-4\n[[sweeps]]\nfield = \"adapter.rank\"\nvalues = [4]\narms = [\"a\"]\n";
        let suite = Suite::parse(text).unwrap();
        assert_eq!(suite.rates_for_all, [1e-3, 2e-3]);
        assert_eq!(suite.rates_by_arm, [("a".to_owned(), 4e-3), ("a".to_owned(), 1.0)]);
        assert!(suite.arms[0].fields.is_empty() && suite.arms[1].fields == [FieldValue::new(LEARNING_RATE, 5e-4)]);
        let without = suite.clone().restricted_to(&["b".to_owned()]);
        assert_eq!((without.arms.len(), without.sweeps.len(), without.rates_by_arm.len()), (1, 0, 0));
        assert_eq!(suite.clone().restricted_to(&["a".to_owned(), "b".to_owned()]), suite);
        for (rates, fault) in [("[]", "is an empty list"), ("[-1.0]", "found -1.0"), ("[\"auto\"]", "found \"auto\"")] {
            let error = Suite::parse(&format!("[arms.a]\ntrain.optimizer.learning_rate = {rates}\n")).unwrap_err();
            assert!(error.starts_with("arm a: train.optimizer.learning_rate") && error.ends_with(fault), "{error}");
        }
        assert!(Suite::parse("learning_rates = [0.0]\n").unwrap_err().contains("positive numbers"));
    }

    #[test]
    fn an_error_names_its_line() {
        let error = Suite::parse("[arms.a]\nadapter.rank = 4\n[[sweeps]]\nvalue = [1]\n").unwrap_err();
        assert!(error.starts_with("line 4: unknown field `value`"), "{error}");
    }
}
