//! Why a handle could not do what was asked.

use std::io;
use std::sync::Arc;

use kraken_net::DiscoveryError;
use kraken_proto::Digest;
use kraken_storage::StoreError;

/// Why a blob could not be opened. Nothing has changed but the partial blob in the store, if the
/// store was reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Everybody who could have it was asked.
    #[error("blob {0} does not exist")]
    NotFound(Digest),
    /// Nobody who could know answered.
    #[error("blob {digest} cannot be looked up: {reason}")]
    Unavailable {
        /// The blob.
        digest: Digest,
        /// What failed last.
        reason: String,
    },
    /// The bytes that the storage gives for it do not have its digest.
    #[error("blob {digest} is damaged: {reason}")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// Who says so, and why.
        reason: String,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The handle has been shut down.
    #[error("shut down")]
    Stopped,
}

impl OpenError {
    /// Whether asking again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Store(error) => error.is_retryable(),
            Self::NotFound(_) | Self::Damaged { .. } | Self::Stopped => false,
        }
    }

    pub(crate) fn of(digest: Digest, error: DiscoveryError) -> Self {
        match error {
            DiscoveryError::NotFound(digest) => Self::NotFound(digest),
            DiscoveryError::Damaged { digest, reason } => Self::Damaged { digest, reason },
            other => Self::Unavailable {
                digest,
                reason: other.to_string(),
            },
        }
    }
}

/// Why a body ended before its end. What was read is right.
///
/// [`BlobReader`](crate::BlobReader) is an [`AsyncRead`](tokio::io::AsyncRead) as well: its
/// [`io::Error`] has one of these in it.
///
/// ```
/// use kraken_core::{Digest, ReadError};
///
/// let error = std::io::Error::from(ReadError::Paused(Digest::of(b"weights")));
/// let found = error.get_ref().and_then(|it| it.downcast_ref::<ReadError>());
/// assert!(matches!(found, Some(ReadError::Paused(_))));
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Not one piece came for this long. The blob stays wanted until the reader is dropped.
    #[error("no peer delivered a piece of blob {digest} for {seconds} s")]
    Stalled {
        /// The blob.
        digest: Digest,
        /// How long.
        seconds: u64,
    },
    /// The store failed, or has no room; what it took of the blob stays in it.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The blob went while it was read: it was removed or evicted, or another metainfo came. It is there
    /// to be opened again.
    #[error("blob {digest} is gone: {reason}")]
    Gone {
        /// The blob.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// [`Agent::pause`](crate::Agent::pause) was called for it; what came stays in the store.
    #[error("the fetch of blob {0} is paused")]
    Paused(Digest),
    /// The bytes that came to be this blob do not have its digest: all of them are dropped.
    #[error("blob {digest} is damaged: {reason}")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// Who says so, and why.
        reason: String,
    },
    /// Nobody says what the rest of the blob consists of; what came stays in the store.
    #[error("the rest of blob {digest} cannot be looked up: {reason}")]
    Unavailable {
        /// The blob.
        digest: Digest,
        /// What failed last.
        reason: String,
    },
    /// The handle has been shut down.
    #[error("shut down")]
    Stopped,
}

impl ReadError {
    /// Whether asking again may help: with the same reader after [`ReadError::Stalled`], by opening the
    /// blob again after the others.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Stalled { .. } | Self::Gone { .. } | Self::Unavailable { .. } => true,
            Self::Store(error) => error.is_retryable(),
            Self::Paused(_) | Self::Damaged { .. } | Self::Stopped => false,
        }
    }

    pub(crate) fn gone(digest: Digest, reason: &str) -> Self {
        let reason = reason.to_string();
        Self::Gone { digest, reason }
    }
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::Stalled { .. } => io::ErrorKind::TimedOut,
            ReadError::Store(error) => match &**error {
                StoreError::Full => io::ErrorKind::StorageFull,
                StoreError::Io { source, .. } => source.kind(),
                _ => io::ErrorKind::Other,
            },
            ReadError::Gone { .. } => io::ErrorKind::NotFound,
            ReadError::Damaged { .. } => io::ErrorKind::InvalidData,
            ReadError::Unavailable { .. } => io::ErrorKind::HostUnreachable,
            // Not `Interrupted`, on which many read again at once.
            ReadError::Paused(_) | ReadError::Stopped => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_readers_error_keeps_its_kind_and_its_source() {
        let digest = Digest::of(b"x");
        let full = io::Error::from(ReadError::from(StoreError::Full));
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let found = full.get_ref().unwrap().downcast_ref::<ReadError>();
        assert!(
            matches!(found, Some(ReadError::Store(error)) if matches!(**error, StoreError::Full))
        );

        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let doing = "write".to_string();
        let failed = ReadError::from(StoreError::Io { doing, source });
        assert!(failed.source().is_some_and(|it| it.is::<io::Error>()));
        assert!(failed.is_retryable());
        assert_eq!(
            io::Error::from(failed).kind(),
            io::ErrorKind::PermissionDenied
        );

        let gone = ReadError::gone(digest, "it was removed");
        assert!(gone.is_retryable() && !ReadError::Paused(digest).is_retryable());
        for error in [gone, ReadError::Paused(digest), ReadError::Stopped] {
            // What reads would go on at once.
            assert_ne!(io::Error::from(error).kind(), io::ErrorKind::Interrupted);
        }
    }
}
