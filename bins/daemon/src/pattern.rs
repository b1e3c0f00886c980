//! Regular expressions in the configuration.

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::units;

/// A regular expression.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(
    with = "String",
    title = "regular expression",
    extend("examples" = ["^library/"])
)]
pub struct Pattern(Regex);

impl Pattern {
    /// It, compiled.
    pub(crate) fn regex(&self) -> Regex {
        self.0.clone()
    }

    /// As it was written.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it matches everything, as far as that is plain.
    pub(crate) fn is_everything(&self) -> bool {
        ["", "^", "$", ".*", "^.*", ".*$", "^.*$"].contains(&self.as_str())
    }
}

impl Default for Pattern {
    /// One that matches everything.
    fn default() -> Self {
        Self(Regex::new("").expect("it is one"))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

units::serialize_as_text!(Pattern, |pattern| pattern.as_str().to_owned());

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Regex::new(&text).map(Self).map_err(|error| {
            // The rest of it draws where that is.
            let told = error.to_string();
            let why = told.lines().last().unwrap_or_default();
            let why = why.trim_start_matches("error: ");
            format!("{text:?} is no regular expression such as `^library/`: {why}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Pattern, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn a_mistake_is_told_in_one_line() {
        for (text, why) in [
            (
                "(",
                r#""(" is no regular expression such as `^library/`: unclosed group"#,
            ),
            ("a{2,1}", "invalid repetition count range"),
            ("*.io", "repetition operator missing expression"),
        ] {
            let error = pattern(text).unwrap_err();
            assert!(error.contains(why) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_matches_everything_is_known() {
        for text in ["", "^", ".*", "^.*$"] {
            assert!(pattern(text).unwrap().is_everything(), "{text}");
        }
        for text in ["^a", "a$", "^$", "a|"] {
            assert!(!pattern(text).unwrap().is_everything(), "{text}");
        }
    }
}
