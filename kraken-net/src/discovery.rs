//! How a host finds peers and learns what a blob consists of.

use std::future::Future;

use kraken_proto::{AnnounceReply, AnnounceRequest, Digest, MetaInfo, Namespace};

/// Where peers and metainfo come from. The default asks trackers; a program that knows its peers
/// already brings its own and needs no tracker.
pub trait Discovery: Send + Sync + 'static {
    /// Says how far this host is, and asks for peers.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn announce(
        &self,
        request: AnnounceRequest,
    ) -> impl Future<Output = Result<AnnounceReply, DiscoveryError>> + Send;

    /// The metainfo of a blob.
    ///
    /// # Errors
    /// [`DiscoveryError::NotFound`] when everybody who could have it was asked.
    fn metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<MetaInfo, DiscoveryError>> + Send;
}

/// Why nothing was learnt.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// Looked everywhere, and the blob is not there.
    #[error("blob {0} does not exist")]
    NotFound(Digest),
    /// Nobody who could know answered.
    #[error("{0}")]
    Unavailable(String),
    /// An answer that makes no sense, or a refusal.
    #[error("{0}")]
    Refused(String),
}

impl DiscoveryError {
    /// Whether asking again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
