//! The format of packed weights in a recipe: its name.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sorsa_adapter::PackedFormat;

pub fn serialize<S: Serializer>(format: &Option<PackedFormat>, serializer: S) -> Result<S::Ok, S::Error> {
    format.map(PackedFormat::name).serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PackedFormat>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    name.map(|name| name.parse().map_err(serde::de::Error::custom)).transpose()
}
