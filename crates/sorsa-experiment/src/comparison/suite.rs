//! A suite: the arms and sweeps of a comparison in a TOML file.
//!
//! ```toml
//! reference = "small"
//!
//! [arms.small]
//! adapter.rank = 4
//!
//! [arms.large]
//! adapter.rank = 64
//!
//! [[sweeps]]
//! field = "adapter.dropout"
//! values = [0.0, 0.05, 0.1]
//! arms = ["large"]
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Spanned, Table, Value};

use super::arm::Arm;
use super::fields::flattened;
use super::sweep::{Sweep, SweepMode};

/// Arms in the order of the file, sweeps, and the arm to compare with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Suite {
    /// Name of the arm to compare with.
    pub reference: Option<String>,
    /// The arms, in the order of the file.
    pub arms: Vec<Arm>,
    /// The sweeps.
    pub sweeps: Vec<Sweep>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    reference: Option<String>,
    #[serde(default)]
    arms: BTreeMap<Spanned<String>, Table>,
    #[serde(default)]
    sweeps: Vec<SuiteSweep>,
}

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
        let arms =
            arms.into_iter().map(|(name, table)| Arm { name: name.into_inner(), fields: flattened(&table) }).collect();
        let sweeps = file.sweeps.into_iter().map(|given| {
            let sweep = Sweep::new(&given.field, given.values);
            Sweep { arms: given.arms, mode: given.mode.unwrap_or(sweep.mode), ..sweep }
        });
        Ok(Self { reference: file.reference, arms, sweeps: sweeps.collect() })
    }
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
    fn an_error_names_its_line() {
        let error = Suite::parse("[arms.a]\nadapter.rank = 4\n[[sweeps]]\nvalue = [1]\n").unwrap_err();
        assert!(error.starts_with("line 4: unknown field `value`"), "{error}");
    }
}
