//! The storage behind the origins.

#[cfg(feature = "fs")]
mod opendal;

use std::future::Future;

use bytes::Bytes;
use futures::stream::BoxStream;
use kraken_proto::{Digest, Namespace};

#[cfg(feature = "fs")]
pub use self::opendal::OpendalBackend;

/// A stream of a blob's bytes, in order.
pub type ByteStream = BoxStream<'static, Result<Bytes, BackendError>>;

/// Long-term storage: origins write every blob to it and read from it what they no longer hold.
pub trait Backend: Send + Sync + 'static {
    /// The blob's length in bytes, or `None` when it is not there.
    ///
    /// # Errors
    /// The backend could not be asked. That is never the same as "not there".
    fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<Option<u64>, BackendError>> + Send;

    /// Reads the blob from the byte `from` on.
    ///
    /// # Errors
    /// [`BackendError::NotFound`], or the backend could not be asked.
    fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        from: u64,
    ) -> impl Future<Output = Result<ByteStream, BackendError>> + Send;

    /// Writes the blob of `length` bytes. It appears whole or not at all.
    ///
    /// # Errors
    /// The backend refused, or the stream ended with an error or at another length.
    fn write(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Removes the blob. Not an error when it is not there.
    ///
    /// # Errors
    /// The backend refused.
    fn delete(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
}

/// Why a backend failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The blob is not there.
    #[error("blob {0} is not in the backend")]
    NotFound(Digest),
    /// The backend cannot be reached, is overloaded or timed out: try again later.
    #[error("the backend is not available: {0}")]
    Unavailable(String),
    /// The backend refuses: credentials, permissions, configuration.
    #[error("the backend refuses: {0}")]
    Denied(String),
    /// The bytes ended early or late.
    #[error("blob {digest} has {found} bytes, not {expected}")]
    Length {
        /// The blob.
        digest: Digest,
        /// What was promised.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Anything else.
    #[error("the backend failed: {0}")]
    Other(String),
}

impl BackendError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::NotFound(_) | Self::Denied(_))
    }
}
