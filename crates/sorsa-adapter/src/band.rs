//! Which consecutive singular triplets of a weight an adapter starts from.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A band of `r` consecutive singular triplets of a weight, counted from the largest.
///
/// Files and recipes hold `"principal"`, `"middle"`, `"minor"` or the number of triplets before the band.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Band {
    /// The largest, like the papers of PiSSA and SORSA. A truncated SVD finds them.
    #[default]
    Principal,
    /// Those in the middle of the spectrum. Like every band but the principal one, it needs the SVD of the whole weight.
    Middle,
    /// The smallest: PiSSA on them is MiLoRA (arXiv 2406.09044).
    Minor,
    /// Those after this many larger ones.
    After(usize),
}

impl Band {
    /// Whether it is the band that files do not mention.
    pub fn is_principal(&self) -> bool {
        matches!(self, Self::Principal | Self::After(0))
    }

    /// How many larger triplets a weight `[d_in, d_out]` has.
    pub fn first(self, [d_in, d_out]: [usize; 2], rank: usize) -> usize {
        let rest = d_in.min(d_out).saturating_sub(rank);
        match self {
            Self::Principal => 0,
            Self::Middle => rest / 2,
            Self::Minor => rest,
            Self::After(first) => first,
        }
    }

    /// Why a weight `[d_in, d_out]` of the module at `path` has no such band; nothing if it has.
    pub(crate) fn fault(self, path: &str, shape: [usize; 2], rank: usize) -> Option<String> {
        let (first, side) = (self.first(shape, rank), shape[0].min(shape[1]));
        if rank > side || first.saturating_add(rank) <= side {
            return None;
        }
        Some(format!(
            "band {self} of rank {rank} ends beyond {side}, the smaller side of `{path}` {shape:?}: at most {} fits",
            side - rank
        ))
    }
}

impl std::fmt::Display for Band {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Principal => f.write_str("principal"),
            Self::Middle => f.write_str("middle"),
            Self::Minor => f.write_str("minor"),
            Self::After(first) => write!(f, "{first}"),
        }
    }
}

impl std::str::FromStr for Band {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "principal" => Ok(Self::Principal),
            "middle" => Ok(Self::Middle),
            "minor" => Ok(Self::Minor),
            other => other.parse().map(Self::After).map_err(|_| {
                format!("unknown band `{other}`, expected principal, middle, minor or the number of triplets before it")
            }),
        }
    }
}

impl Serialize for Band {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::After(first) => serializer.serialize_u64(*first as u64),
            named => serializer.collect_str(named),
        }
    }
}

impl<'de> Deserialize<'de> for Band {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum NameOrNumber {
            Number(i64),
            Name(String),
            Other(serde_json::Value),
        }
        let text = match NameOrNumber::deserialize(deserializer)? {
            NameOrNumber::Number(number) => number.to_string(),
            NameOrNumber::Name(name) => name,
            NameOrNumber::Other(value) => value.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_is_named_the_same_in_files_and_messages() {
        for (band, json) in [
            (Band::Principal, "\"principal\""),
            (Band::Middle, "\"middle\""),
            (Band::Minor, "\"minor\""),
            (Band::After(3), "3"),
        ] {
            assert_eq!(serde_json::to_string(&band).unwrap(), json);
            assert_eq!(serde_json::from_str::<Band>(json).unwrap(), band);
            assert_eq!(band.to_string().parse(), Ok(band));
        }
        for wrong in ["\"last\"", "-1", "1.5", "[]", "null"] {
            let error = serde_json::from_str::<Band>(wrong).unwrap_err().to_string();
            assert!(error.starts_with("unknown band"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_band_lies_within_the_smaller_side_or_the_module_is_named() {
        assert_eq!(Band::Middle.first([12, 20], 4), 4);
        assert_eq!(Band::Minor.first([20, 9], 4), 5);
        assert_eq!(Band::Minor.first([9, 9], 9), 0);
        assert_eq!(Band::After(8).fault("q", [12, 20], 4), None);
        let expected = "band 9 of rank 4 ends beyond 12, the smaller side of `q` [12, 20]: at most 8 fits";
        assert_eq!(Band::After(9).fault("q", [12, 20], 4).unwrap(), expected);
        assert!(Band::After(usize::MAX).fault("q", [12, 20], 4).is_some());
    }
}
