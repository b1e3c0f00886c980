//! How a host finds peers and learns what a blob consists of.

use std::future::Future;
use std::time::Duration;

use kraken_proto::tracker::report::HostReport;
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

    /// As much of the metainfo as is known while an origin takes the blob in: open, and later whole.
    ///
    /// With `known`, the answer waits for a while until there is more than that; without, it comes at
    /// once. A discovery that knows whole metainfo only leaves this as it is.
    ///
    /// # Errors
    /// As [`Discovery::metainfo`]; [`DiscoveryError::Damaged`] when the bytes turned out wrong.
    fn open_metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
        known: Option<MetaInfo>,
    ) -> impl Future<Output = Result<MetaInfo, DiscoveryError>> + Send {
        let _ = known;
        self.metainfo(namespace, digest)
    }

    /// Tells people who look on what this host moved. The answer is when to report again; `None` when
    /// nobody wants to know now, as here.
    ///
    /// # Errors
    /// Nobody could be told.
    fn report(
        &self,
        report: HostReport,
    ) -> impl Future<Output = Result<Option<Duration>, DiscoveryError>> + Send {
        let _ = report;
        async { Ok(None) }
    }
}

/// Why nothing was learnt.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// Looked everywhere, and the blob is not there.
    #[error("blob {0} does not exist")]
    NotFound(Digest),
    /// It exists, and its bytes do not have its digest: what was taken of it is to be dropped.
    #[error("blob {digest} is damaged: {reason}")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// Who says so, and why.
        reason: String,
    },
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
