//! The shell of the tracker's machine: announces in, handouts out, metainfo from the origins.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_net::announce::TrackerApi;
use kraken_net::http::ApiError;
use kraken_net::origin::{OriginCluster, RingMember};
use kraken_proto::tracker::handout::{Tracker as Machine, TrackerConfig, TrackerStats};
use kraken_proto::tracker::report::{HostReport, ReportReply};
use kraken_proto::{
    AnnounceReply, AnnounceRequest, AnnounceState, Digest, MetaInfo, Namespace, PeerInfo, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::look::{Audience, Look};
use super::metainfo::MetaInfos;
use crate::clock::Clock;
use crate::tasks::Tasks;

/// A tracker. Cheap to clone; [`Tracker::shutdown`] ends it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use kraken_core::Tracker;
/// use kraken_core::net::http::{HttpClient, serve};
/// use kraken_core::net::origin::OriginCluster;
/// use kraken_core::net::{Identity, announce};
/// use kraken_core::origin::RingMember;
/// use tokio_util::sync::CancellationToken;
///
/// let identity = Identity::from_files("tracker.crt", "tracker.key", "ca.crt")?;
/// let members = [RingMember::new("origin-1", "https://origin-1:7605".parse()?)];
/// let origins = OriginCluster::new(members, HttpClient::new(Some(&identity))?, 3);
/// let tracker = Tracker::builder(origins).spawn();
/// let routes = announce::router(Arc::new(tracker.clone()));
/// let server = serve("0.0.0.0:7601".parse()?, routes, Some(&identity), CancellationToken::new())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tracker {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) clock: Clock,
    /// Locked for the length of one announce, which costs microseconds, and never over a wait.
    pub(super) machine: Mutex<Machine>,
    pub(super) origins: OriginCluster,
    /// The origins that answered lately, as peers.
    pub(super) seeders: Mutex<BTreeMap<String, PeerInfo>>,
    /// What hosts report, where people look on.
    pub(super) audience: Option<Audience>,
    /// The origins that are asked now and then.
    watched: Mutex<BTreeSet<String>>,
    pub(super) metainfo: Arc<MetaInfos>,
    /// When the owners of a blob were last asked to hold it.
    woken: Mutex<HashMap<Digest, Timestamp>>,
    tasks: Tasks,
}

/// How often origins are asked whether they are there. An origin that died is handed out for at
/// most this long.
const REFRESH: Duration = Duration::from_secs(2);
/// How often the owners of a blob that is wanted are asked to hold it.
const WAKE: Duration = Duration::from_secs(10);
/// Blobs whose owners were asked lately; beyond it those that are due again are forgotten.
const MAX_WOKEN: usize = 65_536;

/// An origin as a tracker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OriginSeen {
    /// Its name in the ring.
    pub name: String,
    /// Where its HTTP face is.
    pub url: String,
    /// How peers reach it; none when it has not answered the tracker lately.
    pub peer: Option<PeerInfo>,
}

/// The choices of a tracker.
#[derive(Debug)]
#[must_use]
pub struct TrackerBuilder {
    origins: OriginCluster,
    config: TrackerConfig,
    takes_reports: bool,
    seed: u64,
}

impl TrackerBuilder {
    /// How to steer swarms.
    pub fn config(mut self, config: TrackerConfig) -> Self {
        self.config = config;
        self
    }

    /// Whether hosts may report what they move, for [`Tracker::look`]; no by default.
    pub fn takes_reports(mut self, takes_reports: bool) -> Self {
        self.takes_reports = takes_reports;
        self
    }

    /// Starts the tracker on the current tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn(self) -> Tracker {
        let tasks = Tasks::default();
        let inner = Arc::new(Inner {
            clock: Clock::start(),
            machine: Mutex::new(Machine::new(self.config, self.seed)),
            metainfo: MetaInfos::new(self.origins.clone(), tasks.clone()),
            origins: self.origins,
            seeders: Mutex::default(),
            audience: self.takes_reports.then(Audience::default),
            watched: Mutex::default(),
            woken: Mutex::default(),
            tasks,
        });
        let watching = inner.origins.clone();
        inner.tasks.spawn(async move { watching.watch().await });
        inner.watch_all();
        Tracker { inner }
    }
}

impl Tracker {
    /// Starts to put a tracker of these origins together.
    pub fn builder(origins: OriginCluster) -> TrackerBuilder {
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8);
        TrackerBuilder {
            origins,
            config: TrackerConfig::default(),
            takes_reports: false,
            seed,
        }
    }

    /// What it holds and has done.
    pub fn stats(&self) -> TrackerStats {
        lock(&self.inner.machine).stats()
    }

    /// How many origins answered lately.
    pub fn live_origins(&self) -> usize {
        lock(&self.inner.seeders).len()
    }

    /// What people may see who look on; nothing unless it takes reports.
    pub fn look(&self) -> Option<Look> {
        self.inner.audience.as_ref()?;
        Some(Look::new(self.inner.clone()))
    }

    /// All origins, and how those are reached as peers that answered lately.
    pub fn origins(&self) -> Vec<OriginSeen> {
        let seeders = lock(&self.inner.seeders);
        let names = self.inner.origins.names();
        let seen = names.into_iter().filter_map(|name| {
            let url = self.inner.origins.origin(&name)?.url().to_string();
            let peer = seeders.get(&name).cloned();
            Some(OriginSeen { name, url, peer })
        });
        seen.collect()
    }

    /// From now on these are the origins.
    pub fn set_origins(&self, origins: impl IntoIterator<Item = RingMember>) {
        self.inner.origins.set(origins);
        self.inner.watch_all();
    }

    /// Ends it.
    pub async fn shutdown(&self) {
        self.inner.tasks.stop(Duration::from_secs(1)).await;
    }
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl TrackerApi for Tracker {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, ApiError> {
        check(&request)?;
        let inner = &self.inner;
        inner.wake_owners(&request);
        let owners = |digest: &Digest| inner.owners(digest);
        let reply = lock(&inner.machine).announce(inner.clock.now(), &request, &owners);
        reply.map_err(|error| ApiError::BadRequest(error.to_string()))
    }

    async fn overhear(&self, request: AnnounceRequest) -> Result<(), ApiError> {
        check(&request)?;
        let now = self.inner.clock.now();
        let noted = lock(&self.inner.machine).overhear(now, &request);
        noted.map_err(|error| ApiError::BadRequest(error.to_string()))
    }

    async fn report(&self, report: HostReport) -> Result<ReportReply, ApiError> {
        let audience = self.inner.audience.as_ref().ok_or(ApiError::NotFound)?;
        audience.take(self.inner.clock.now(), report)
    }

    async fn metainfo(&self, namespace: Namespace, digest: Digest) -> Result<MetaInfo, ApiError> {
        self.inner.metainfo.whole(namespace, digest).await
    }

    async fn open_metainfo(
        &self,
        namespace: Namespace,
        digest: Digest,
        after: Option<u32>,
    ) -> Result<MetaInfo, ApiError> {
        self.inner.metainfo.open(namespace, digest, after).await
    }
}

impl Inner {
    /// Lets the owners fetch what a host wants and they do not hold (any more): a swarm lives as
    /// long as the blob is anywhere. Each owner is asked once in a while per blob.
    fn wake_owners(self: &Arc<Self>, request: &AnnounceRequest) {
        let now = self.clock.now();
        let wanted = request
            .blobs
            .iter()
            .filter(|blob| blob.state == AnnounceState::Leeching);
        for blob in wanted {
            {
                let mut woken = lock(&self.woken);
                if woken
                    .get(&blob.digest)
                    .is_some_and(|at| now.since(*at) < WAKE)
                {
                    continue;
                }
                if woken.len() >= MAX_WOKEN {
                    woken.retain(|_, at| now.since(*at) < WAKE);
                }
                woken.insert(blob.digest, now);
            }
            for name in self.origins.owners(&blob.digest) {
                let Some(origin) = self.origins.origin(&name) else {
                    continue;
                };
                let (namespace, digest) = (blob.namespace.clone(), blob.digest);
                self.tasks.spawn(async move {
                    if let Err(error) = origin.prefetch(&namespace, digest).await {
                        tracing::debug!(%digest, %error, "an owner cannot fetch a blob");
                    }
                });
            }
        }
    }

    /// The owners of a blob that answered lately; when none did, any origin that did.
    fn owners(&self, digest: &Digest) -> Vec<PeerInfo> {
        let seeders = lock(&self.seeders);
        let owners = self.origins.owners(digest);
        let live: Vec<_> = owners
            .iter()
            .filter_map(|name| seeders.get(name).cloned())
            .collect();
        if live.is_empty() {
            seeders.values().cloned().collect()
        } else {
            live
        }
    }
}

impl Inner {
    /// Asks each origin now and then, from now on, until it is none any more.
    fn watch_all(self: &Arc<Self>) {
        for name in self.origins.names() {
            if lock(&self.watched).insert(name.clone()) {
                self.tasks.spawn(watch_origin(Arc::downgrade(self), name));
            }
        }
    }

    fn watch_no_more(&self, name: &str) {
        lock(&self.seeders).remove(name);
        lock(&self.watched).remove(name);
    }

    /// Takes note of an origin's answer and says when to ask again.
    fn heard_of(&self, name: &str, answer: Result<PeerInfo, ApiError>) -> Duration {
        let mut seeders = lock(&self.seeders);
        match answer {
            Ok(peer) => {
                seeders.insert(name.to_string(), peer);
                REFRESH
            }
            Err(error) => {
                if seeders.remove(name).is_some() {
                    tracing::debug!(origin = name, %error, "an origin is no seeder now");
                }
                // A cluster starts all at once, and an origin comes back soon: ask often.
                REFRESH / 10
            }
        }
    }
}

async fn watch_origin(inner: std::sync::Weak<Inner>, name: String) {
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let Some(client) = strong.origins.origin(&name) else {
            strong.watch_no_more(&name);
            return;
        };
        drop(strong);
        let answer = tokio::time::timeout(REFRESH, client.peer()).await;
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let wait = strong.heard_of(&name, answer.unwrap_or_else(|_| Err(too_slow())));
        drop(strong);
        tokio::time::sleep(wait).await;
    }
}

fn check(request: &AnnounceRequest) -> Result<(), ApiError> {
    let addr = request.peer.addr;
    if addr.port() == 0 || addr.ip().is_unspecified() {
        let what = format!("peers cannot dial {addr}: announce an address of this host");
        return Err(ApiError::BadRequest(what));
    }
    Ok(())
}

fn too_slow() -> ApiError {
    ApiError::Unavailable("no answer in time".into())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
