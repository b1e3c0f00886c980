//! What a repository holds beside its tags, as the build-indexes keep it.
//!
//! Blobs live in one space that all repositories share. A link says that one of them belongs to a
//! repository, or that it was removed from there: what has neither is served by its digest alone, as what
//! comes from a storage that others fill.

use std::fmt;
use std::str::FromStr;

use kraken_proto::Digest;

use crate::name::{NameError, RepoName, TagName};

/// What a repository holds beside tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// A manifest.
    Manifest(Digest),
    /// A blob that is none.
    Blob(Digest),
    /// A manifest that is about another one.
    Referrer {
        /// The other one, which need not exist.
        subject: Digest,
        /// What is about it.
        manifest: Digest,
    },
    /// An index that came from another cluster, of which some manifests were left out. It keeps nothing by
    /// itself.
    Sparse(Digest),
}

impl Link {
    /// What it names.
    pub const fn digest(&self) -> Digest {
        match self {
            Self::Manifest(digest) | Self::Blob(digest) | Self::Sparse(digest) => *digest,
            Self::Referrer { manifest, .. } => *manifest,
        }
    }

    /// With which others it is listed.
    pub const fn kind(&self) -> LinkKind {
        match self {
            Self::Manifest(_) => LinkKind::Manifests,
            Self::Blob(_) => LinkKind::Blobs,
            Self::Sparse(_) => LinkKind::Sparse,
            Self::Referrer { subject, .. } => LinkKind::ReferrersOf(*subject),
        }
    }
}

/// `manifests/<hex>`, `blobs/<hex>`, `referrers/<hex of the subject>/<hex>` or `sparse/<hex>`.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind(), self.digest().hex())
    }
}

impl FromStr for Link {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (kind, digest) = text.rsplit_once('/').unwrap_or(("", text));
        let digest = Digest::from_hex(digest)?;
        Ok(match kind.parse()? {
            LinkKind::Manifests => Self::Manifest(digest),
            LinkKind::Blobs => Self::Blob(digest),
            LinkKind::Sparse => Self::Sparse(digest),
            LinkKind::ReferrersOf(subject) => Self::Referrer {
                subject,
                manifest: digest,
            },
        })
    }
}

/// Links that are listed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// All manifests.
    Manifests,
    /// Blobs that are kept for their own sake, or came again after they were removed.
    Blobs,
    /// The manifests that are about this one.
    ReferrersOf(Digest),
    /// Indexes of which some manifests were left out.
    Sparse,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests => f.write_str("manifests"),
            Self::Blobs => f.write_str("blobs"),
            Self::Sparse => f.write_str("sparse"),
            Self::ReferrersOf(subject) => write!(f, "referrers/{}", subject.hex()),
        }
    }
}

impl FromStr for LinkKind {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match (text, text.strip_prefix("referrers/")) {
            ("manifests", _) => Ok(Self::Manifests),
            ("blobs", _) => Ok(Self::Blobs),
            ("sparse", _) => Ok(Self::Sparse),
            (_, Some(subject)) => Ok(Self::ReferrersOf(Digest::from_hex(subject)?)),
            _ => Err(NameError::Link(text.chars().take(64).collect())),
        }
    }
}

/// What is known of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    /// Nobody has set it yet.
    Never,
    /// The repository holds it.
    Held,
    /// It was removed from the repository.
    Removed,
}

/// What a register of the build-indexes is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegisterName {
    /// A tag: `repository:tag`.
    Tag(TagName),
    /// A link: `~repository@link`, in the order of bytes behind all tags.
    Link(RepoName, Link),
}

/// What the names of links begin with.
pub(crate) const LINKS: char = '~';

impl RegisterName {
    /// The repository.
    pub const fn repo(&self) -> &RepoName {
        match self {
            Self::Tag(name) => name.repo(),
            Self::Link(repo, _) => repo,
        }
    }

    /// What the names of a repository's links begin with.
    pub(crate) fn links(repo: &RepoName) -> String {
        format!("{LINKS}{repo}@")
    }

    /// The repository that all names with this beginning are of, if it is long enough to tell.
    pub(crate) fn repo_of(prefix: &str) -> Option<&str> {
        let split = match prefix.strip_prefix(LINKS) {
            Some(link) => link.split_once('@'),
            None => prefix.split_once(':'),
        };
        split.map(|(repo, _)| repo)
    }
}

impl From<TagName> for RegisterName {
    fn from(name: TagName) -> Self {
        Self::Tag(name)
    }
}

impl fmt::Display for RegisterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(name) => name.fmt(f),
            Self::Link(repo, link) => write!(f, "{LINKS}{repo}@{link}"),
        }
    }
}

impl FromStr for RegisterName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some(link) = text.strip_prefix(LINKS) else {
            return text.parse().map(Self::Tag);
        };
        let split = link.split_once('@');
        let (repo, link) = split.ok_or_else(|| NameError::Link(text.chars().take(64).collect()))?;
        Ok(Self::Link(repo.parse()?, link.parse()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_again_and_tells_its_repository() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let repo: RepoName = "a/b".parse().unwrap();
        let tag: TagName = "a/b:v1".parse().unwrap();
        for name in [
            RegisterName::Tag(tag),
            RegisterName::Link(repo.clone(), Link::Manifest(one)),
            RegisterName::Link(repo.clone(), Link::Blob(one)),
            RegisterName::Link(repo.clone(), Link::Sparse(one)),
            RegisterName::Link(
                repo.clone(),
                Link::Referrer {
                    subject: one,
                    manifest: two,
                },
            ),
        ] {
            let text = name.to_string();
            assert_eq!(text.parse(), Ok(name.clone()), "{text}");
            assert_eq!(RegisterName::repo_of(&text), Some("a/b"));
        }
        for wrong in [
            "~a/b".to_owned(),
            "~a/b@".to_owned(),
            format!("~a/b@tags/{}", one.hex()),
            format!("~A@blobs/{}", one.hex()),
            format!("~a@referrers/{}", one.hex()),
            format!("~a@blobs/{}/{}", one.hex(), one.hex()),
        ] {
            assert!(wrong.parse::<RegisterName>().is_err(), "{wrong}");
        }
        assert_eq!(RegisterName::repo_of("~a/b"), None);
        assert_eq!(RegisterName::repo_of("a"), None);
    }
}
