//! What keeps access from being configured.

use std::path::PathBuf;

/// Why access cannot be decided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The file of users.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of it.
    #[error(
        "{}, line {line}: write name:hash, with the hash of bcrypt, as htpasswd -B does",
        file.display()
    )]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1 on.
        line: usize,
    },
    /// A file of keys.
    #[error("the keys in {}: {why}", file.display())]
    Keys {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No key.
    #[error("keys: name at least one file")]
    NoKeys,
    /// A text that must go into an answer, or a URL.
    #[error("{0}")]
    Text(String),
}
