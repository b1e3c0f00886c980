//! Tags: names that point to digests, and the build-index that keeps them.

mod check;
pub mod client;
mod encoding;
mod lists;
mod owner;
mod rejoin;
pub mod ring;
pub mod server;
pub mod store;
mod writer;

use std::sync::Arc;

use kraken_proto::Digest;
use kraken_proto::tags::record::Refusal;

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
    Conflict(#[from] Refusal),
}

/// A number by chance, which nobody else draws.
fn chance() -> u64 {
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

    fn delete(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> impl Future<Output = Result<bool, TagError>> + Send {
        T::delete(self, repo, tag)
    }
}
