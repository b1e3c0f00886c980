//! Where in the network a host stands.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// The label of a part of the network whose hosts reach each other more cheaply than the rest: a
/// rack, or an availability zone, such as `rack-17` or `eu-west-1a`.
///
/// Labels are compared and never taken apart: hosts with the same label are near each other, all
/// others are equally far. Cloning shares the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Zone(Arc<str>);

impl Zone {
    /// The longest label, in bytes; that of a DNS label and of a Kubernetes label value.
    pub const MAX_LEN: usize = 63;

    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(text: &str) -> Result<Self, ZoneError> {
        if text.is_empty() {
            return Err(ZoneError::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(ZoneError::TooLong(text.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if let Some(c) = text.chars().find(|c| !allowed(*c)) {
            return Err(ZoneError::Character(c));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Zone {
    type Error = ZoneError;

    fn try_from(text: String) -> Result<Self, ZoneError> {
        text.parse()
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Why a text is not a zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZoneError {
    /// Nothing was given; a host without a zone leaves it out.
    #[error("a zone is not empty: leave it out for a host that has none")]
    Empty,
    /// Longer than [`Zone::MAX_LEN`].
    #[error("a zone has at most 63 bytes, this one has {0}")]
    TooLong(usize),
    /// A character that has no place in a zone.
    #[error("a zone holds letters, digits and . _ - only, not {0:?}")]
    Character(char),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_of_racks_and_availability_zones_are_accepted() {
        for good in ["rack-17", "eu-west-1a", "R_3.left", "0", &"z".repeat(63)] {
            let zone: Zone = good.parse().unwrap();
            assert_eq!(zone.as_str(), good);
            assert_eq!(zone.to_string(), good);
        }
    }

    #[test]
    fn whatever_else_is_refused_and_the_error_says_why() {
        assert_eq!("".parse::<Zone>(), Err(ZoneError::Empty));
        assert_eq!("z".repeat(64).parse::<Zone>(), Err(ZoneError::TooLong(64)));
        for (text, c) in [("rack 1", ' '), ("a/b", '/'), ("zürich", 'ü')] {
            assert_eq!(text.parse::<Zone>(), Err(ZoneError::Character(c)));
        }
        let error = serde_json::from_str::<Zone>(r#""rack 1""#).unwrap_err();
        assert!(error.to_string().contains("letters, digits"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_a_zone_survives_json(text in "\\PC{0,70}") {
            if let Ok(zone) = text.parse::<Zone>() {
                let json = serde_json::to_string(&zone).unwrap();
                prop_assert_eq!(&json, &format!("{text:?}"));
                prop_assert_eq!(serde_json::from_str::<Zone>(&json).unwrap(), zone);
            }
        }

        #[test]
        fn labels_in_bounds_are_zones(text in "[A-Za-z0-9._-]{1,63}") {
            prop_assert!(text.parse::<Zone>().is_ok());
        }
    }
}
