//! What is compared: a method, SORSA with or without its regularizer, at a rank.

use std::fmt;
use std::str::FromStr;

use sorsa_adapter::Method;

/// A way to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    pub method: Method,
    /// Whether gamma is what the recipe says; otherwise it is 0.
    pub regularized: bool,
}

/// SORSA with gamma 0, as it is named on the command line and in tables.
const UNREGULARIZED: &str = "sorsa-noreg";

impl Variant {
    /// Those of the comparison that runs without arguments.
    pub const DEFAULT: [Self; 6] = [
        Self::of(Method::Lora),
        Self::of(Method::Pissa),
        Self::of(Method::Sorsa),
        Self { method: Method::Sorsa, regularized: false },
        Self::of(Method::Partial),
        Self::of(Method::Full),
    ];

    /// Those of `--quick`.
    pub const QUICK: [Self; 4] = [Self::DEFAULT[0], Self::DEFAULT[1], Self::DEFAULT[2], Self::DEFAULT[3]];

    pub const fn of(method: Method) -> Self {
        Self { method, regularized: matches!(method, Method::Sorsa) }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.method, self.regularized) {
            (Method::Sorsa, false) => f.write_str(UNREGULARIZED),
            (method, _) => method.fmt(f),
        }
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == UNREGULARIZED {
            return Ok(Self { method: Method::Sorsa, regularized: false });
        }
        text.parse().map(Self::of).map_err(|error: String| format!("{error}; or {UNREGULARIZED}"))
    }
}

/// A variant at a rank: a row of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arm {
    pub variant: Variant,
    /// Absent for methods without factors.
    pub rank: Option<usize>,
}

impl Arm {
    /// Every variant at every rank; those without factors once.
    pub fn all(variants: &[Variant], ranks: &[usize]) -> Vec<Self> {
        let mut arms = Vec::new();
        for &variant in variants {
            match variant.method.is_factored() {
                true => arms.extend(ranks.iter().map(|&rank| Self { variant, rank: Some(rank) })),
                false => arms.push(Self { variant, rank: None }),
            }
        }
        arms
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "{}-r{rank}", self.variant),
            None => self.variant.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for variant in Variant::DEFAULT {
            assert_eq!(variant.to_string().parse(), Ok(variant));
        }
        let error = "adalora".parse::<Variant>().unwrap_err();
        assert!(error.contains("unknown method `adalora`") && error.ends_with("or sorsa-noreg"), "{error}");
    }

    #[test]
    fn only_factors_come_in_ranks() {
        let arms = Arm::all(&Variant::DEFAULT, &[4, 16]).iter().map(Arm::to_string).collect::<Vec<_>>();
        let expected =
            "lora-r4 lora-r16 pissa-r4 pissa-r16 sorsa-r4 sorsa-r16 sorsa-noreg-r4 sorsa-noreg-r16 partial full";
        assert_eq!(arms.join(" "), expected);
    }
}
