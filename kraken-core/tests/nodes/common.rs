//! What agents of one process need to find each other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kraken_core::net::{Discovery, DiscoveryError};
use kraken_core::proto::tracker::handout::{Tracker, TrackerConfig};
use kraken_core::proto::{AnnounceReply, AnnounceRequest, Timestamp};
use kraken_core::{Digest, MetaInfo, Namespace};

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
