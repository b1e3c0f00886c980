//! What agents of one process need to find each other, and how tests wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kraken_core::net::{Discovery, DiscoveryError};
use kraken_core::proto::tracker::handout::{Tracker, TrackerConfig};
use kraken_core::proto::{AnnounceReply, AnnounceRequest, Handout, Timestamp};
use kraken_core::{Digest, MetaInfo, Namespace, PeerInfo};

/// The tracker's machine and a table of metainfo, called directly.
#[derive(Clone)]
pub(crate) struct Local {
    pub(crate) started: Instant,
    pub(crate) tracker: Arc<Mutex<Tracker>>,
    pub(crate) metas: Arc<Mutex<BTreeMap<Digest, MetaInfo>>>,
}

impl Local {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            tracker: Arc::new(Mutex::new(Tracker::new(TrackerConfig::default(), 1))),
            metas: Arc::default(),
        }
    }
}

impl Discovery for Local {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        let now = Timestamp::ZERO + self.started.elapsed();
        let reply = self
            .tracker
            .lock()
            .unwrap()
            .announce(now, &request, &|_| Vec::new());
        reply.map_err(|error| DiscoveryError::Refused(error.to_string()))
    }

    async fn metainfo(&self, _: &Namespace, digest: Digest) -> Result<MetaInfo, DiscoveryError> {
        self.metas
            .lock()
            .unwrap()
            .get(&digest)
            .cloned()
            .ok_or(DiscoveryError::NotFound(digest))
    }
}

/// Knows the seeders, and what the blobs consist of.
#[derive(Clone, Default)]
pub(crate) struct Known {
    pub(crate) seeders: Vec<PeerInfo>,
    pub(crate) metas: Vec<MetaInfo>,
}

impl Discovery for Known {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        let handouts = request.blobs.iter().map(|blob| Handout {
            digest: blob.digest,
            peers: self.seeders.clone(),
        });
        Ok(AnnounceReply {
            interval_ms: 1000,
            handouts: handouts.collect(),
        })
    }

    async fn metainfo(&self, _: &Namespace, digest: Digest) -> Result<MetaInfo, DiscoveryError> {
        let known = self.metas.iter().find(|meta| meta.digest() == digest);
        known.cloned().ok_or(DiscoveryError::NotFound(digest))
    }
}

/// Waits until `check` holds.
pub(crate) async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}
