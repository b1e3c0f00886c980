//! Where blobs are read from.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use kraken_core::net::http::FileBody;
use kraken_proto::{Digest, Namespace};

/// Reads blobs: an agent's swarm, a proxy's origins, a map in memory.
///
/// "Not there" and "could not be asked" are different answers: the first lets a client go
/// elsewhere for good, the second asks it to come back.
pub trait BlobSource: Send + Sync + 'static {
    /// The blob's length in bytes, or none when it does not exist. Never transfers the blob.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`]: nobody knows whether it exists.
    fn stat(
        &self,
        ns: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<Option<u64>, SourceError>> + Send;

    /// The same of a blob that is there as a whole, and cannot break off while it comes.
    ///
    /// # Errors
    /// As [`BlobSource::stat`].
    fn stat_whole(
        &self,
        ns: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<Option<u64>, SourceError>> + Send {
        self.stat(ns, digest)
    }

    /// The digest that a tag points to in the registry that the namespace's blobs come from; `None` when
    /// there is no such tag.
    ///
    /// # Errors
    /// [`ResolveError::Away`]: the registry could not be asked; [`ResolveError::Refused`]: it does not tell,
    /// or they come from none.
    fn resolve(
        &self,
        ns: &Namespace,
        tag: &str,
    ) -> impl Future<Output = Result<Option<Digest>, ResolveError>> + Send {
        let _ = (ns, tag);
        let what = "its blobs come from no registry";
        std::future::ready(Err(ResolveError::Refused(what.into())))
    }

    /// The bytes of `range`, whose end is trimmed to the blob's: `0..u64::MAX` is all of it. A source that
    /// fetches blobs may fetch no more than such a part, unless the end is `u64::MAX`: whoever asks so
    /// wants the rest as well, also when it does not begin at the beginning.
    ///
    /// Returns as soon as the length is known; the bytes may come much later. They are already
    /// proven to be the blob's. An empty stream is right for a range behind the end.
    ///
    /// # Errors
    /// The blob does not exist, or nobody could be asked. An error within the stream means that
    /// the rest will not come; the registry answers with a status only while no bytes have come.
    fn open(
        &self,
        ns: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> impl Future<Output = Result<BlobBody, SourceError>> + Send;
}

/// A blob that is being read.
pub struct BlobBody {
    /// The whole blob's length in bytes, whatever range was asked for.
    pub total: u64,
    /// The bytes of the range, in order.
    pub stream: BoxStream<'static, Result<Bytes, SourceError>>,
    /// The file that the range is in, where the blob is in one: some servers send a file better than
    /// bytes.
    pub file: Option<FileBody>,
}

impl BlobBody {
    /// Bytes of a blob of `total` bytes, from wherever they come.
    pub fn new(total: u64, stream: BoxStream<'static, Result<Bytes, SourceError>>) -> Self {
        Self {
            total,
            stream,
            file: None,
        }
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody")
            .field("total", &self.total)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Why a blob cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Everybody who could have it was asked, and nobody has.
    #[error("the blob does not exist")]
    NotFound,
    /// Somebody who could have it did not answer, or stopped answering.
    #[error("the blob cannot be read now, try again: {0}")]
    Unavailable(String),
}

/// Why another registry does not tell what a tag points to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The registry does not answer, or wants to be left alone: so it is with all its tags.
    #[error("{reason}")]
    Away {
        /// What went wrong.
        reason: String,
        /// For how long it wants no request, if it says so.
        wait: Option<Duration>,
    },
    /// It was not asked about this tag, or does not tell.
    #[error("{0}")]
    Refused(String),
}

impl<T: BlobSource> BlobSource for Arc<T> {
    fn resolve(
        &self,
        ns: &Namespace,
        tag: &str,
    ) -> impl Future<Output = Result<Option<Digest>, ResolveError>> + Send {
        T::resolve(self, ns, tag)
    }
    fn stat(
        &self,
        ns: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<Option<u64>, SourceError>> + Send {
        T::stat(self, ns, digest)
    }

    fn stat_whole(
        &self,
        ns: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<Option<u64>, SourceError>> + Send {
        T::stat_whole(self, ns, digest)
    }

    fn open(
        &self,
        ns: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> impl Future<Output = Result<BlobBody, SourceError>> + Send {
        T::open(self, ns, digest, range)
    }
}
