//! Why a handle could not do what was asked.

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

/// Why a body ended before its end. What was read is right; what is missing stays wanted until the
/// reader is dropped.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Not one piece came for this long.
    #[error("no peer delivered a piece of blob {digest} for {seconds} s")]
    Stalled {
        /// The blob.
        digest: Digest,
        /// How long.
        seconds: u64,
    },
    /// The store failed, or the blob was removed.
    #[error("{0}")]
    Store(String),
    /// The handle has been shut down.
    #[error("shut down")]
    Stopped,
}

impl ReadError {
    /// Whether reading again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Stalled { .. })
    }
}
