//! Arms: names with recipe fields. Rows: arms at the values of sweeps.

use super::fields::{FieldValue, METHOD, parse_value, reason_against, split_at_commas};

/// One thing to compare: a name, and the recipe fields that set it apart from the other arms.
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// Name of the arm in tables, options and reports.
    pub name: String,
    /// The recipe fields that the arm sets.
    pub fields: Vec<FieldValue>,
}

impl Arm {
    /// The arm of a method with the method's defaults and name.
    pub fn of_method(name: &str) -> Self {
        Self { name: name.to_owned(), fields: vec![FieldValue::new(METHOD, name)] }
    }

    /// Reads `NAME=field=value,field=value`.
    ///
    /// # Errors
    ///
    /// The part of the text that is no field with a value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((name, fields)) = text.split_once('=') else {
            return Err(format!("expected NAME=FIELD=VALUE,.., found `{text}`"));
        };
        let mut arm = Self { name: name.to_owned(), fields: Vec::new() };
        for part in split_at_commas(fields) {
            match part.split_once('=') {
                Some((field, value)) if !field.is_empty() => {
                    arm.fields.push(FieldValue { field: field.trim().to_owned(), value: parse_value(value) });
                }
                _ => return Err(format!("expected NAME=FIELD=VALUE,.., found `{part}` in `{text}`")),
            }
        }
        Ok(arm)
    }

    /// Whether the arm sets a field itself.
    pub fn sets(&self, field: &str) -> bool {
        self.fields.iter().any(|own| own.field == field)
    }

    /// The first thing that is wrong with the arm alone.
    pub fn fault(&self) -> Option<String> {
        let name = &self.name;
        // Tables, file names and options hold the name.
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            return Some(format!("`{name}` is no name of an arm: letters, digits, `-`, `_` and `.` are"));
        }
        for (index, FieldValue { field, .. }) in self.fields.iter().enumerate() {
            if let Some(reason) = reason_against(field) {
                return Some(format!("the arm {name} cannot set {field}: {reason}"));
            }
            if self.fields[..index].iter().any(|other| other.field == *field) {
                return Some(format!("the arm {name} sets {field} twice"));
            }
        }
        None
    }
}

/// A row of the comparison: an arm at one value of each sweep in the mode [`SweepMode::SearchEach`](super::SweepMode::SearchEach).
#[derive(Debug, Clone, PartialEq)]
pub struct ComparisonRow {
    /// Name of the row, like `sorsa-r16`.
    pub name: String,
    /// The name without the rank: the rank has a column of its own.
    pub label: String,
    /// The arm's name.
    pub arm: String,
    /// Absent for methods without factors.
    pub rank: Option<usize>,
    /// The arm's fields, then the swept ones.
    pub fields: Vec<FieldValue>,
    /// The swept fields alone.
    pub swept: Vec<FieldValue>,
}

/// Index of the row that row `index` is compared with. It is the reference arm's row at the same swept values. If there is none, it is
/// the reference arm's first row; if there is no reference arm, the first row of all. `None` for that row itself.
pub fn compared_with(rows: &[ComparisonRow], reference: &str, index: usize) -> Option<usize> {
    let is_reference = |row: &ComparisonRow| row.arm == reference;
    let first = rows.iter().position(is_reference).unwrap_or(0);
    let same = rows.iter().position(|row| is_reference(row) && row.swept == rows[index].swept);
    let other = match same {
        // Another row of the reference arm is compared with the first.
        Some(same) if same != index => same,
        _ => first,
    };
    (other != index).then_some(other)
}

#[cfg(test)]
pub mod tests {
    use super::super::fields::RANK;
    use super::*;

    /// A row of the arm `arm` at a rank.
    pub fn row(arm: &str, rank: usize) -> ComparisonRow {
        let swept = vec![FieldValue::new(RANK, rank as i64)];
        let name = format!("{arm}-r{rank}");
        ComparisonRow { name, label: arm.into(), arm: arm.into(), rank: Some(rank), fields: swept.clone(), swept }
    }

    #[test]
    fn an_arm_is_a_name_and_fields() {
        let arm = Arm::parse("wide=adapter.rank=64,adapter.target_modules=[\"q_proj\", \"v_proj\"]").unwrap();
        assert_eq!((arm.name.as_str(), arm.fields.len()), ("wide", 2));
        assert!(arm.sets(RANK) && !arm.sets(METHOD) && arm.fault().is_none());
        assert!(Arm::parse("wide").unwrap_err().contains("NAME=FIELD=VALUE"));
        let fault = |text: &str| Arm::parse(text).unwrap().fault().unwrap();
        assert!(fault("a b=adapter.rank=4").contains("no name of an arm"));
        assert_eq!(fault("x=adapter.rank=4,adapter.rank=8"), "the arm x sets adapter.rank twice");
        assert!(fault("x=data.train=other.jsonl").contains("same data"));
    }

    #[test]
    fn rows_are_compared_with_the_reference_arm_at_their_rank() {
        let mut rows = vec![row("a", 4), row("a", 16), row("b", 4), row("b", 16), row("c", 4), row("c", 16)];
        let whole = ComparisonRow { rank: None, swept: Vec::new(), name: "d".into(), ..row("d", 0) };
        rows.push(whole);
        let others = |reference: &str| {
            let other = |index| match compared_with(&rows, reference, index) {
                Some(other) => rows[other].name.clone(),
                None => "-".to_owned(),
            };
            (0..rows.len()).map(other).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(others("a"), "- a-r4 a-r4 a-r16 a-r4 a-r16 a-r4");
        assert_eq!(others("b"), "b-r4 b-r16 - b-r4 b-r4 b-r16 b-r4");
        // Without it all are compared with the first row.
        assert_eq!(others("z"), "- a-r4 a-r4 a-r4 a-r4 a-r4 a-r4");
    }
}
