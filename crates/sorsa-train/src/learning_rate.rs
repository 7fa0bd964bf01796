//! The peak learning rate of a recipe: a number, or the request to find one.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The peak learning rate, as a recipe spells it: a number or `"auto"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LearningRate {
    /// The run finds it before its first step; see [`Trainer::find_learning_rate`](crate::Trainer::find_learning_rate).
    Auto,
    /// This rate.
    Rate(f64),
}

/// The spelling of [`LearningRate::Auto`].
const AUTO: &str = "auto";

impl LearningRate {
    /// The number, if there is one.
    pub fn number(self) -> Option<f64> {
        match self {
            Self::Auto => None,
            Self::Rate(rate) => Some(rate),
        }
    }
}

impl From<f64> for LearningRate {
    fn from(rate: f64) -> Self {
        Self::Rate(rate)
    }
}

impl PartialEq<f64> for LearningRate {
    fn eq(&self, rate: &f64) -> bool {
        self.number() == Some(*rate)
    }
}

impl fmt::Display for LearningRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
            Self::Rate(rate) => write!(f, "{rate:e}"),
        }
    }
}

impl FromStr for LearningRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            (AUTO, _) => Ok(Self::Auto),
            (_, Ok(rate)) => Ok(Self::Rate(rate)),
            _ => Err(format!("expected a number or auto, found `{text}`")),
        }
    }
}

impl Serialize for LearningRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Rate(rate) => serializer.serialize_f64(*rate),
        }
    }
}

impl<'de> Deserialize<'de> for LearningRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrAuto;
        impl Visitor<'_> for NumberOrAuto {
            type Value = LearningRate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or \"auto\"")
            }

            fn visit_f64<E: de::Error>(self, rate: f64) -> Result<LearningRate, E> {
                Ok(LearningRate::Rate(rate))
            }

            fn visit_i64<E: de::Error>(self, rate: i64) -> Result<LearningRate, E> {
                Ok(LearningRate::Rate(rate as f64))
            }

            fn visit_u64<E: de::Error>(self, rate: u64) -> Result<LearningRate, E> {
                Ok(LearningRate::Rate(rate as f64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LearningRate, E> {
                match text {
                    AUTO => Ok(LearningRate::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(NumberOrAuto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Fields {
        rate: LearningRate,
    }

    #[test]
    fn a_rate_is_a_number_or_auto_in_every_spelling() {
        let read = |text: &str| toml::from_str::<Fields>(text).map(|fields| fields.rate);
        assert_eq!(read("rate = \"auto\"").unwrap(), LearningRate::Auto);
        assert_eq!(read("rate = 3e-4").unwrap(), 3e-4);
        assert_eq!(read("rate = 1").unwrap(), 1.0);
        let error = read("rate = \"fast\"").unwrap_err().to_string();
        assert!(error.contains("invalid value: string \"fast\", expected a number or \"auto\""), "{error}");
        for rate in [LearningRate::Auto, LearningRate::Rate(3.1e-4)] {
            let fields = Fields { rate };
            assert_eq!(toml::from_str::<Fields>(&toml::to_string(&fields).unwrap()).unwrap(), fields);
            assert_eq!(serde_json::from_value::<Fields>(serde_json::to_value(&fields).unwrap()).unwrap(), fields);
            assert_eq!(rate.to_string().parse(), Ok(rate));
        }
        assert_eq!("fast".parse::<LearningRate>(), Err("expected a number or auto, found `fast`".to_owned()));
    }
}
