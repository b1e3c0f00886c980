//! Tags: names that point to digests, and the build-index that keeps them.

pub mod backend;
pub(crate) mod check;
pub mod client;
mod encoding;
pub(crate) mod error;
mod links;
mod lists;
pub mod members;
mod owner;
mod page;
pub(crate) mod pending;
pub(crate) mod policy;
mod quiet;
mod readiness;
mod rejoin;
pub mod remembered;
pub mod ring;
mod rounds;
pub mod server;
mod standing;
pub mod store;
pub mod upstream;
pub(crate) mod watch;
mod writer;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use encoding::fuzz as fuzz_register;

use std::sync::Arc;

use kraken_proto::Digest;
use kraken_proto::tags::record::Refusal;

use crate::link::{Link, LinkKind, Linked};
use crate::name::{RepoName, Tag};

/// Maps tags to digests: a build-index, its client, a map in memory.
///
/// "There is no such tag" is an answer of somebody who knows; whoever could not ask returns
/// [`TagError::Unavailable`].
pub trait TagService: Send + Sync + 'static {
    /// The digest that the tag points to.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn get(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> impl Future<Output = Result<Option<Digest>, TagError>> + Send;

    /// The same, and whether a fresher answer could not be had.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn find(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> impl Future<Output = Result<Option<Found>, TagError>> + Send {
        let found = self.get(repo, tag);
        async move {
            let found = found.await?;
            Ok(found.map(|digest| Found {
                digest,
                is_stale: false,
            }))
        }
    }

    /// Lets the tag point to `digest`, durably when this returns.
    ///
    /// # Errors
    /// The service refused (the image is incomplete), or could not be asked; then the tag points
    /// to either digest.
    fn put(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> impl Future<Output = Result<(), TagError>> + Send;

    /// Up to `n` tags of a repository in the order of their bytes, behind `last` if given. No tags
    /// for an unknown repository.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn list(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> impl Future<Output = Result<Vec<String>, TagError>> + Send;

    /// Up to `n` repositories that have tags, in the order of their bytes, behind `last` if given.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn repositories(
        &self,
        n: usize,
        last: Option<&str>,
    ) -> impl Future<Output = Result<Vec<String>, TagError>> + Send;

    /// Removes a tag as long as it points to `digest`; whether it did.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn delete_at(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> impl Future<Output = Result<bool, TagError>> + Send;

    /// Removes a tag; whether there was one.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn delete(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> impl Future<Output = Result<bool, TagError>> + Send;
}

/// What a repository holds beside its tags: a build-index, its client, a map in memory.
///
/// Errors are those of [`TagService`].
pub trait LinkService: Send + Sync + 'static {
    /// What is known of a link.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn link(
        &self,
        repo: &RepoName,
        link: Link,
    ) -> impl Future<Output = Result<Linked, TagError>> + Send;

    /// Lets the repository hold something, or no longer, durably when this returns.
    ///
    /// # Errors
    /// Nobody could be asked; then either may be so.
    fn set_link(
        &self,
        repo: &RepoName,
        link: Link,
        is_held: bool,
    ) -> impl Future<Output = Result<(), TagError>> + Send;

    /// Up to `n` digests that the repository holds links of a kind to, in their order, behind `after`.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn links(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        n: usize,
        after: Option<Digest>,
    ) -> impl Future<Output = Result<Vec<Digest>, TagError>> + Send;

    /// The tags of a repository that point to `digest`.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn tags_of(
        &self,
        repo: &RepoName,
        digest: Digest,
    ) -> impl Future<Output = Result<Vec<Tag>, TagError>> + Send;

    /// Whether a repository holds anything, or ever did.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn is_known(&self, repo: &RepoName) -> impl Future<Output = Result<bool, TagError>> + Send;
}

/// What a tag points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The manifest.
    pub digest: Digest,
    /// The registry that the tag comes from could not be asked: it may point to something else there.
    pub is_stale: bool,
}

/// Why a tag could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TagError {
    /// The service did not answer, or could not.
    #[error("tags cannot be asked now, try again: {0}")]
    Unavailable(String),
    /// The service does not take this tag.
    #[error("the tag was refused: {0}")]
    Refused(String),
    /// The tag is not as it must be for this change.
    #[error(transparent)]
    Conflict(Refusal),
}

impl From<Refusal> for TagError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            // It may have been made.
            Refusal::Overtaken => Self::Unavailable(refusal.to_string()),
            refusal => Self::Conflict(refusal),
        }
    }
}

/// A number by chance, which nobody else draws.
pub(crate) fn chance() -> u64 {
    let state = std::hash::RandomState::new();
    std::hash::BuildHasher::hash_one(&state, 0_u8)
}

impl<T: TagService> TagService for Arc<T> {
    fn get(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> impl Future<Output = Result<Option<Digest>, TagError>> + Send {
        T::get(self, repo, tag)
    }

    fn find(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> impl Future<Output = Result<Option<Found>, TagError>> + Send {
        T::find(self, repo, tag)
    }

    fn put(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> impl Future<Output = Result<(), TagError>> + Send {
        T::put(self, repo, tag, digest)
    }

    fn list(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> impl Future<Output = Result<Vec<String>, TagError>> + Send {
        T::list(self, repo, n, last)
    }

    fn repositories(
        &self,
        n: usize,
        last: Option<&str>,
    ) -> impl Future<Output = Result<Vec<String>, TagError>> + Send {
        T::repositories(self, n, last)
    }

    fn delete_at(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> impl Future<Output = Result<bool, TagError>> + Send {
        T::delete_at(self, repo, tag, digest)
    }

    fn delete(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> impl Future<Output = Result<bool, TagError>> + Send {
        T::delete(self, repo, tag)
    }
}

impl<T: LinkService> LinkService for Arc<T> {
    fn link(
        &self,
        repo: &RepoName,
        link: Link,
    ) -> impl Future<Output = Result<Linked, TagError>> + Send {
        T::link(self, repo, link)
    }

    fn set_link(
        &self,
        repo: &RepoName,
        link: Link,
        is_held: bool,
    ) -> impl Future<Output = Result<(), TagError>> + Send {
        T::set_link(self, repo, link, is_held)
    }

    fn links(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        n: usize,
        after: Option<Digest>,
    ) -> impl Future<Output = Result<Vec<Digest>, TagError>> + Send {
        T::links(self, repo, kind, n, after)
    }

    fn tags_of(
        &self,
        repo: &RepoName,
        digest: Digest,
    ) -> impl Future<Output = Result<Vec<Tag>, TagError>> + Send {
        T::tags_of(self, repo, digest)
    }

    fn is_known(&self, repo: &RepoName) -> impl Future<Output = Result<bool, TagError>> + Send {
        T::is_known(self, repo)
    }
}
