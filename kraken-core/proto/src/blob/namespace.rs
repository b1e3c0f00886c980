//! The name under which a blob was asked for; it chooses the storage backend.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a blob belongs to, for images the repository. It chooses the backend and nothing else:
/// blobs live in one content-addressed space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Namespace(String);

impl Namespace {
    /// The longest namespace, in bytes.
    pub const MAX_LEN: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    /// `default`: for blobs that belong to no repository.
    fn default() -> Self {
        Self("default".to_string())
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;

    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        if text.is_empty() {
            return Err(NamespaceError::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(NamespaceError::TooLong(text.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
        if let Some(c) = text.chars().find(|c| !allowed(*c)) {
            return Err(NamespaceError::Character(c));
        }
        let walks = text
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..");
        if walks {
            return Err(NamespaceError::Component);
        }
        Ok(Self(text.to_string()))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> Self {
        namespace.0
    }
}

impl TryFrom<String> for Namespace {
    type Error = NamespaceError;

    fn try_from(text: String) -> Result<Self, NamespaceError> {
        text.parse()
    }
}

/// Why a text is not a namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// Nothing was given.
    #[error("a namespace is not empty")]
    Empty,
    /// Longer than [`Namespace::MAX_LEN`].
    #[error("a namespace has at most 255 bytes, this one has {0}")]
    TooLong(usize),
    /// A character that has no place in a namespace.
    #[error("a namespace holds letters, digits and . _ - / : only, not {0:?}")]
    Character(char),
    /// An empty part, `.` or `..`.
    #[error("a namespace has no empty part, \".\" or \"..\" between its slashes")]
    Component,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_repositories_and_refuses_paths_that_walk() {
        for good in ["library/busybox", "a", "team-x/model_1.0", "repo:tag"] {
            assert_eq!(good.parse::<Namespace>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<Namespace>(), Err(NamespaceError::Empty));
        assert_eq!(
            "a/../b".parse::<Namespace>(),
            Err(NamespaceError::Component)
        );
        assert_eq!("/a".parse::<Namespace>(), Err(NamespaceError::Component));
        assert_eq!(
            "a b".parse::<Namespace>(),
            Err(NamespaceError::Character(' '))
        );
        assert_eq!(
            "a".repeat(256).parse::<Namespace>(),
            Err(NamespaceError::TooLong(256))
        );
    }
}
