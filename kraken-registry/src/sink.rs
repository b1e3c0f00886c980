//! Where blobs are pushed to.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use kraken_proto::{Digest, Namespace};

/// Takes uploads: start, any number of appends, then commit or abort.
///
/// An upload's id is opaque to the registry and travels in URLs. An implementation over several
/// hosts puts the host that holds the upload into it. Uploads that nobody touches are the
/// implementation's to drop.
pub trait BlobSink: Send + Sync + 'static {
    /// Begins an upload into a namespace and returns its id.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] or [`SinkError::Full`]; there is no upload.
    fn upload_start(
        &self,
        ns: &Namespace,
    ) -> impl Future<Output = Result<String, SinkError>> + Send;

    /// Begins an upload of a blob whose digest and length, in bytes, are known, and returns its id.
    /// An implementation may let others have the blob while it comes.
    ///
    /// # Errors
    /// As [`BlobSink::upload_start`].
    fn upload_start_known(
        &self,
        ns: &Namespace,
        digest: Digest,
        length: u64,
    ) -> impl Future<Output = Result<String, SinkError>> + Send {
        let _ = (digest, length);
        self.upload_start(ns)
    }

    /// How many bytes the upload holds.
    ///
    /// # Errors
    /// [`SinkError::Unknown`] or [`SinkError::Unavailable`].
    fn upload_len(&self, id: &str) -> impl Future<Output = Result<u64, SinkError>> + Send;

    /// Adds bytes behind the first `offset`, as they come, and returns the new length.
    ///
    /// # Errors
    /// [`SinkError::OffsetWrong`] when the upload does not hold `offset` bytes; nothing was read.
    /// With [`SinkError::Body`] the bytes before the break stay: [`BlobSink::upload_len`] tells
    /// how many.
    fn upload_append(
        &self,
        id: &str,
        offset: u64,
        body: BoxStream<'static, Result<Bytes, BodyError>>,
    ) -> impl Future<Output = Result<u64, SinkError>> + Send;

    /// Ends the upload: the bytes are the blob `digest`, and durable when this returns. It is no
    /// error that the blob exists already.
    ///
    /// # Errors
    /// [`SinkError::DigestMismatch`]: nothing is kept, the upload is gone. After any other error
    /// the commit can be repeated.
    fn upload_commit(
        &self,
        id: &str,
        ns: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Forgets the upload.
    ///
    /// # Errors
    /// [`SinkError::Unknown`] or [`SinkError::Unavailable`].
    fn upload_abort(&self, id: &str) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// Why an upload cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// No such upload: it never was, has ended, or timed out.
    #[error("no such upload: start a new one")]
    Unknown,
    /// The bytes do not follow those that are there.
    #[error("the upload holds {len} bytes: go on from there")]
    OffsetWrong {
        /// How many bytes the upload holds.
        len: u64,
    },
    /// The bytes have another digest than the commit says.
    #[error("the uploaded bytes do not have the digest that was given: push the blob again")]
    DigestMismatch,
    /// The sender's bytes broke off.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The store could not be reached, or failed.
    #[error("the blob cannot be stored now, try again: {0}")]
    Unavailable(String),
    /// Blobs of the namespace are only read.
    #[error("{0}")]
    Denied(String),
    /// There is no room.
    #[error("no space left for the blob: free some, or add an origin")]
    Full,
}

/// Why the bytes of a request ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The connection broke.
    #[error("the request's body broke off: {0}")]
    Broken(String),
    /// More or fewer bytes than the request announced.
    #[error("the body holds {seen} bytes or more, its Content-Range announces {want}")]
    Length {
        /// What was announced.
        want: u64,
        /// What came.
        seen: u64,
    },
}

impl<T: BlobSink> BlobSink for Arc<T> {
    fn upload_start(
        &self,
        ns: &Namespace,
    ) -> impl Future<Output = Result<String, SinkError>> + Send {
        T::upload_start(self, ns)
    }

    fn upload_start_known(
        &self,
        ns: &Namespace,
        digest: Digest,
        length: u64,
    ) -> impl Future<Output = Result<String, SinkError>> + Send {
        T::upload_start_known(self, ns, digest, length)
    }

    fn upload_len(&self, id: &str) -> impl Future<Output = Result<u64, SinkError>> + Send {
        T::upload_len(self, id)
    }

    fn upload_append(
        &self,
        id: &str,
        offset: u64,
        body: BoxStream<'static, Result<Bytes, BodyError>>,
    ) -> impl Future<Output = Result<u64, SinkError>> + Send {
        T::upload_append(self, id, offset, body)
    }

    fn upload_commit(
        &self,
        id: &str,
        ns: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<(), SinkError>> + Send {
        T::upload_commit(self, id, ns, digest)
    }

    fn upload_abort(&self, id: &str) -> impl Future<Output = Result<(), SinkError>> + Send {
        T::upload_abort(self, id)
    }
}
