//! Programs that embed Kraken: see the `.rs` files beside this one. What several of them need is here.

use kraken_core::net::{Discovery, DiscoveryError};
use kraken_core::proto::{AnnounceReply, AnnounceRequest, Handout};
use kraken_core::{Digest, MetaInfo, Namespace, PeerInfo};

/// A discovery of a program that knows its peers: it hands out one, and knows what one blob consists of.
#[derive(Debug, Clone)]
pub struct KnownPeer {
    /// Whom to ask; nobody, for the one that has it.
    pub peer: Option<PeerInfo>,
    /// What the blob consists of.
    pub meta: MetaInfo,
}

impl Discovery for KnownPeer {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        let handouts = request.blobs.iter().map(|blob| Handout {
            digest: blob.digest,
            peers: self.peer.iter().cloned().collect(),
        });
        Ok(AnnounceReply {
            interval_ms: 1000,
            handouts: handouts.collect(),
        })
    }

    async fn metainfo(&self, _: &Namespace, digest: Digest) -> Result<MetaInfo, DiscoveryError> {
        let known = (digest == self.meta.digest()).then(|| self.meta.clone());
        known.ok_or(DiscoveryError::NotFound(digest))
    }
}

/// What docs/embedding.md shows.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
pub mod embedding {}
