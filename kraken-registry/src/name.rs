//! Names of repositories and tags, by the grammar of the OCI distribution specification.

use std::fmt;
use std::str::FromStr;

use kraken_proto::{Digest, DigestError, Namespace};

/// A repository: components of lower-case letters, digits and separators, joined by slashes.
///
/// ```
/// use kraken_registry::RepoName;
///
/// let repo: RepoName = "library/busybox".parse()?;
/// assert_eq!(repo.as_str(), "library/busybox");
/// assert!("Library/busybox".parse::<RepoName>().is_err());
/// # Ok::<(), kraken_registry::name::NameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoName(String);

impl RepoName {
    /// The longest name, in bytes: clients add a host and refuse more than 255 in all.
    pub const MAX_LEN: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace that chooses the backend of this repository's blobs: the name itself.
    pub fn namespace(&self) -> Namespace {
        self.0
            .parse()
            .expect("the grammar of repositories is narrower than that of namespaces")
    }
}

impl FromStr for RepoName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = text.len() <= Self::MAX_LEN && text.split('/').all(is_component);
        if fits {
            Ok(Self(text.to_string()))
        } else {
            Err(NameError::Repository(shorten(text)))
        }
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host of a registry, maybe with a port: `docker.io`, `registry.example.com:5000`. Lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(String);

impl Host {
    /// The host as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a mirror's repositories of this registry begin with: the host, a port set off by an
    /// underscore, which no host holds.
    pub fn prefix(&self) -> String {
        self.0.replace(':', "_")
    }

    /// Whether a repository is one of this registry's, as a mirror keeps it.
    pub(crate) fn keeps(&self, repo: &RepoName) -> bool {
        let rest = repo.as_str().strip_prefix(&self.prefix());
        rest.is_some_and(|rest| rest.starts_with('/'))
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let is_label = |label: &str| {
            let fits =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !label.is_empty()
                && label.bytes().all(fits)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let fits = (1..=200).contains(&host.len())
            && host.split('.').all(is_label)
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err(NameError::Host(shorten(text))),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tag: 1 to 128 letters, digits and `. _ -`, the first a letter, a digit or `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The longest tag, in bytes.
    pub const MAX_LEN: usize = 128;

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let fits = (1..=Self::MAX_LEN).contains(&text.len())
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|byte| word(byte) || b".-".contains(&byte));
        if fits {
            Ok(Self(text.to_string()))
        } else {
            Err(NameError::Tag(shorten(text)))
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names a manifest within a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A name that may move.
    Tag(Tag),
    /// The manifest's own digest.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    /// A colon makes a digest, as no tag holds one.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') {
            Ok(Self::Digest(text.parse()?))
        } else {
            Ok(Self::Tag(text.parse()?))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A tag of a repository, written `repository:tag`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagName {
    repo: RepoName,
    tag: Tag,
}

impl TagName {
    /// The tag of the repository.
    pub const fn new(repo: RepoName, tag: Tag) -> Self {
        Self { repo, tag }
    }

    /// The repository.
    pub const fn repo(&self) -> &RepoName {
        &self.repo
    }

    /// The tag.
    pub const fn tag(&self) -> &Tag {
        &self.tag
    }
}

impl FromStr for TagName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (repo, tag) = split_tag(text)?;
        Ok(Self { repo, tag })
    }
}

impl fmt::Display for TagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repo, self.tag)
    }
}

/// Splits `repository:tag` at its last colon.
///
/// # Errors
/// There is no colon, or a part breaks its grammar.
pub fn split_tag(text: &str) -> Result<(RepoName, Tag), NameError> {
    let (repo, tag) = text
        .rsplit_once(':')
        .ok_or_else(|| NameError::NoTag(shorten(text)))?;
    Ok((repo.parse()?, tag.parse()?))
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a repository.
    #[error(
        "{0:?} is no repository name: use lower-case letters and digits, joined by one of . _ __ - \
         within a component and / between components, 255 bytes at most"
    )]
    Repository(String),
    /// Not a tag.
    #[error(
        "{0:?} is no tag: use 1 to 128 letters, digits and . _ -, beginning with a letter, a digit \
         or _"
    )]
    Tag(String),
    /// Not `repository:tag`.
    #[error("{0:?} names no tag: write repository:tag")]
    NoTag(String),
    /// Not a host.
    #[error(
        "{0:?} is no registry: write its host in lower case, maybe with a port, such as docker.io or \
         registry.example.com:5000"
    )]
    Host(String),
    /// Not something that a repository holds.
    #[error(
        "{0:?} is no link: write manifests/, blobs/ or referrers/<subject>/ and the digest in hex"
    )]
    Link(String),
    /// Not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(word) && bytes.last().is_some_and(word);
    ends && separators(bytes)
        .all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-'))
}

/// The runs of bytes that are neither letters nor digits.
fn separators(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        .filter(|run| !run.is_empty())
}

/// An error message repeats what came from outside only in part.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_follow_the_grammar() {
        let good = [
            "a",
            "library/busybox",
            "a.b/c_d/e__f/g-h/i---j",
            "0/1",
            "blobs/manifests",
        ];
        for name in good {
            let repo: RepoName = name.parse().unwrap();
            assert_eq!(repo.namespace().as_str(), name);
        }
        let bad = [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", ".", "a/../b",
            "a b", "a:b", "é", "a\0", "_catalog",
        ];
        for name in bad {
            assert!(name.parse::<RepoName>().is_err(), "{name:?}");
        }
        assert!("a".repeat(255).parse::<RepoName>().is_ok());
        assert!("a".repeat(256).parse::<RepoName>().is_err());
    }

    #[test]
    fn hosts_are_lower_case_and_have_one_port_at_most() {
        for host in [
            "docker.io",
            "registry.example.com:5000",
            "127.0.0.1:80",
            "a-b",
        ] {
            let host: Host = host.parse().unwrap();
            // What a mirror makes of it is a repository.
            format!("{}/app", host.prefix())
                .parse::<RepoName>()
                .unwrap();
        }
        for wrong in [
            "",
            "Docker.io",
            "https://docker.io",
            "a:b",
            "a:1:2",
            "a:",
            "a:0",
            "a..b",
            "-a",
            "a/b",
            "[::1]:1",
        ] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong:?}");
        }
        let host: Host = "docker.io".parse().unwrap();
        assert!(host.keeps(&"docker.io/library/app".parse().unwrap()));
        assert!(!host.keeps(&"docker.iox/library/app".parse().unwrap()));
    }

    #[test]
    fn tags_follow_the_grammar() {
        for tag in ["latest", "v1.2.3", "_", "A-b_C.d", &"x".repeat(128)] {
            assert_eq!(tag.parse::<Tag>().unwrap().as_str(), tag);
        }
        for tag in ["", ".a", "-a", "a b", "a/b", "a:b", "é", &"x".repeat(129)] {
            assert!(tag.parse::<Tag>().is_err(), "{tag:?}");
        }
    }

    #[test]
    fn a_colon_tells_digests_from_tags() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        assert!(matches!("v1".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(
            "sha256:12".parse::<Reference>(),
            Err(NameError::Digest(_))
        ));
    }

    #[test]
    fn a_tag_is_split_from_its_repository_at_the_last_colon() {
        let (repo, tag) = split_tag("a/b:v1").unwrap();
        assert_eq!((repo.as_str(), tag.as_str()), ("a/b", "v1"));
        assert!(split_tag("a/b").is_err());
        assert!(split_tag("a:b:c").is_err());
    }
}
