//! The formats of weights that are packed while a model is read, in a recipe: their names.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sorsa_checkpoint::PackingFormats;

pub fn serialize<S: Serializer>(format: &Option<PackingFormats>, serializer: S) -> Result<S::Ok, S::Error> {
    format.map(|format| format.to_string()).serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PackingFormats>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    name.map(|name| name.parse().map_err(serde::de::Error::custom)).transpose()
}
