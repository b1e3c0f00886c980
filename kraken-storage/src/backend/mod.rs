//! The storage behind the origins.
//!
//! | what | kept or read where |
//! |---|---|
//! | [`OpendalBackend`] | a directory, memory, S3, Google Cloud Storage, Azure Blob Storage |
//! | [`web::HttpBackend`] | any HTTP server, by a template of URLs; read-only |
//! | [`web::RegistryBackend`] | another registry's blobs; read-only |
//! | [`web::WebHdfsBackend`] | HDFS over WebHDFS |
//! | [`ShadowBackend`] | two backends at once, of which the first is read |
//! | [`NoopBackend`] | nowhere |
//! | [`RoutedBackend`] | one of several, chosen by the namespace |
//! | [`LimitedBackend`] | another one, in bounded requests and bytes per second |
//! | [`WaryBackend`] | another one, which is left alone while it does not answer |

mod boxed;
#[cfg(feature = "fs")]
mod layout;
#[cfg(feature = "fs")]
mod limited;
mod noop;
#[cfg(feature = "fs")]
mod opendal;
#[cfg(feature = "web")]
mod pause;
#[cfg(feature = "fs")]
mod routed;
mod secret;
mod shadow;
#[cfg(feature = "fs")]
mod wary;
#[cfg(feature = "web")]
pub mod web;

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use kraken_proto::{Digest, Namespace};

pub use self::boxed::BoxBackend;
#[cfg(feature = "fs")]
pub use self::layout::Layout;
#[cfg(feature = "fs")]
pub use self::limited::{BackendLimits, LimitedBackend};
pub use self::noop::NoopBackend;
#[cfg(feature = "fs")]
pub use self::opendal::OpendalBackend;
#[cfg(feature = "azure")]
pub use self::opendal::services::AzureOptions;
#[cfg(feature = "gcs")]
pub use self::opendal::services::GcsOptions;
#[cfg(feature = "s3")]
pub use self::opendal::services::S3Options;
#[cfg(feature = "fs")]
pub use self::routed::{Route, RoutedBackend};
pub use self::secret::Secret;
pub use self::shadow::ShadowBackend;
#[cfg(feature = "fs")]
pub use self::wary::WaryBackend;

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

    /// Reads the bytes `range` of the blob, cut off at its end: `0..u64::MAX` is all of it.
    ///
    /// # Errors
    /// [`BackendError::NotFound`], or the backend could not be asked. An error in the stream means
    /// that the rest does not come.
    fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> impl Future<Output = Result<ByteStream, BackendError>> + Send;

    /// Writes the blob of `length` bytes. It appears whole or not at all.
    ///
    /// # Errors
    /// [`BackendError::ReadOnly`], the backend refused, or the stream ended with an error or at another length.
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
    /// [`BackendError::ReadOnly`], or the backend refused.
    fn delete(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// The blobs behind `after` in the order of their digests: up to `most`, and fewer only when
    /// there are no more. A layout that does not keep namespaces apart lists the blobs of all.
    ///
    /// # Errors
    /// [`BackendError::Unlisted`] from one that cannot tell, or the backend could not be asked.
    fn list(
        &self,
        namespace: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Digest>, BackendError>> + Send {
        let _ = (namespace, after, most);
        std::future::ready(Err(BackendError::Unlisted))
    }

    /// The digest that a tag of the namespace's repository points to, or `None` when there is no such
    /// tag: of a storage that is a registry itself.
    ///
    /// # Errors
    /// [`BackendError::Untagged`] from any other, or the backend could not be asked.
    fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> impl Future<Output = Result<Option<Digest>, BackendError>> + Send {
        let _ = (namespace, tag);
        std::future::ready(Err(BackendError::Untagged))
    }

    /// Of several storages, a number of the one that keeps the namespace's blobs; namespaces with the
    /// same number share one.
    ///
    /// # Errors
    /// [`BackendError::Unrouted`].
    fn place(&self, namespace: &Namespace) -> Result<usize, BackendError> {
        let _ = namespace;
        Ok(0)
    }

    /// Whether blobs of the namespace can be written, as far as is known without asking.
    ///
    /// # Errors
    /// [`BackendError::ReadOnly`] or [`BackendError::Unrouted`]: they cannot.
    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        let _ = namespace;
        Ok(())
    }

    /// Whether what is written can be read back. Otherwise the origins' disks are all there is, and nothing
    /// may leave them for want of room.
    fn keeps(&self) -> bool {
        true
    }

    /// Whether the backend can be reached, if it is one that a host is of no use without.
    ///
    /// # Errors
    /// It cannot.
    fn ready(&self) -> impl Future<Output = Result<(), BackendError>> + Send {
        std::future::ready(Ok(()))
    }
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
    /// The backend wants no request for a while.
    #[error("the backend wants no request for {} s", .0.as_secs())]
    Paused(Duration),
    /// Blobs of the namespace are only read from here.
    #[error("namespace {0} is read-only: its backend takes no blobs")]
    ReadOnly(Namespace),
    /// The backend cannot say what it holds.
    #[error("the backend cannot list blobs")]
    Unlisted,
    /// The backend is no registry.
    #[error("the backend keeps no tags")]
    Untagged,
    /// No backend is configured for the namespace.
    #[error("no backend is configured for namespace {0}: add one whose pattern it matches")]
    Unrouted(Namespace),
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
        match self {
            Self::Unavailable(_) | Self::Paused(_) | Self::Length { .. } | Self::Other(_) => true,
            Self::NotFound(_)
            | Self::ReadOnly(_)
            | Self::Unlisted
            | Self::Untagged
            | Self::Unrouted(_)
            | Self::Denied(_) => false,
        }
    }
}
