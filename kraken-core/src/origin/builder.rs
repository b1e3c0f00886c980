//! Putting an origin together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kraken_net::http::HttpClient;
use kraken_net::origin::RingMember;
use kraken_net::origin::members::Members;
use kraken_net::{Discovery, DiscoveryError, Transport};
use kraken_proto::cache::ledger::Lifetimes;
use kraken_proto::ring::health::HealthConfig;
use kraken_proto::{
    AnnounceReply, AnnounceRequest, Config, Digest, MetaInfo, Namespace, PeerInfo, PeerRole, Zone,
};
use kraken_storage::queue::DurableQueue;
use kraken_storage::{Backend, BoxBackend, UploadStore};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use super::garbage::Condemned;
use super::letters::DEAD_AFTER;
use super::mend::mend;
use super::rebalance::HealConfig;
use super::replicate::STAGGER;
use super::writeback::RETRY;
use super::{Inner, Origin};
use crate::agent::Limits;
use crate::agent::driver::{self, Parts};
use crate::dynamic::{DynStore, DynTransport, DynUploadStore};
use crate::metrics::Metrics;
use crate::sweep;
use crate::tasks::Tasks;

/// The choices of an origin.
#[must_use]
pub struct OriginBuilder {
    name: String,
    store: Arc<dyn DynUploadStore>,
    dyn_store: Arc<dyn DynStore>,
    transport: Arc<dyn DynTransport>,
    backend: BoxBackend,
    retry: (Duration, Duration),
    dead_after: Duration,
    stagger: Duration,
    lifetimes: Lifetimes,
    queue: DurableQueue,
    ring: Vec<RingMember>,
    http: Option<HttpClient>,
    replicas: usize,
    health: HealthConfig,
    heal: HealConfig,
    config: Config,
    limits: Limits,
    advertise: Option<SocketAddr>,
    zone: Option<Zone>,
    asked_file: Option<PathBuf>,
}

impl OriginBuilder {
    pub(super) fn new(
        name: String,
        store: impl UploadStore,
        transport: impl Transport,
        backend: impl Backend,
        queue: DurableQueue,
    ) -> Self {
        let store = Arc::new(store);
        Self {
            name,
            dyn_store: store.clone(),
            store,
            transport: Arc::new(transport),
            backend: BoxBackend::new(backend),
            retry: RETRY,
            dead_after: DEAD_AFTER,
            stagger: STAGGER,
            lifetimes: Lifetimes::default(),
            queue,
            ring: Vec::new(),
            http: None,
            replicas: 3,
            health: HealthConfig::default(),
            heal: HealConfig::default(),
            config: Config::origin(),
            limits: Limits::NONE,
            advertise: None,
            zone: None,
            asked_file: None,
        }
    }

    /// All members of the ring, this one among them, and the client that reaches them. Without it
    /// the origin stands alone.
    pub fn ring(mut self, members: impl IntoIterator<Item = RingMember>, http: HttpClient) -> Self {
        self.ring = members.into_iter().collect();
        self.http = Some(http);
        self
    }

    /// Where to keep over a restart which blobs this origin was asked about, so that garbage can be
    /// collected right after; nowhere by default.
    pub fn asked_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.asked_file = Some(path.into());
        self
    }

    /// How many origins own each blob; 3 by default.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas.max(1);
        self
    }

    /// When the others count as down, and when their shares go to those behind them;
    /// [`HealthConfig::default`] by default.
    pub fn health(mut self, health: HealthConfig) -> Self {
        self.health = health;
        self
    }

    /// How lost copies are made again; [`HealConfig::default`] by default.
    pub fn heal(mut self, heal: HealConfig) -> Self {
        self.heal = heal;
        self
    }

    /// How to behave in swarms; [`Config::origin`] by default.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// How much of the network to take for peers; [`Limits::NONE`] by default, and changed later
    /// with [`Origin::set_limits`]. Pushes, replicas and the backend are not limited.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The address that peers are told to dial; the transport's own by default.
    pub fn advertise(mut self, addr: SocketAddr) -> Self {
        self.advertise = Some(addr);
        self
    }

    /// Where in the network this origin stands, such as its rack; nowhere by default. Trackers
    /// tell it to agents, and hand out the owners of a blob alike wherever they are.
    pub fn zone(mut self, zone: Zone) -> Self {
        self.zone = Some(zone);
        self
    }

    /// How long a write-back or a copy waits after its first failure, and at most: 1 s and 5 minutes
    /// by default.
    pub fn retry(mut self, first: Duration, longest: Duration) -> Self {
        self.retry = (first, longest);
        self
    }

    /// How much later than the owner before it each owner of a blob looks whether it is in the backend:
    /// a minute by default. The first one writes at once, and the others seldom have to.
    pub fn stagger(mut self, wait: Duration) -> Self {
        self.stagger = wait;
        self
    }

    /// How long a write-back or a copy is tried before it is put aside as a dead letter, for a person
    /// to look at: a week by default.
    pub fn dead_after(mut self, age: Duration) -> Self {
        self.dead_after = age;
        self
    }

    /// How long blobs stay after they came and after they were used last, whatever room there is; for
    /// ever by default. What is not in the backend yet stays, and what is pinned in the store.
    pub fn lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.lifetimes = lifetimes;
        self
    }

    /// Starts the origin on the current tokio runtime.
    ///
    /// # Errors
    /// A choice makes no sense, or there is no runtime.
    pub fn spawn(self) -> Result<Origin, OriginSpawnError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(OriginSpawnError::NoRuntime);
        }
        let alone = self.ring.is_empty();
        if !alone && self.ring.iter().all(|member| member.name != self.name) {
            return Err(OriginSpawnError::NotInRing(self.name));
        }
        let addr = self
            .advertise
            .unwrap_or_else(|| self.transport.local_addr());
        if addr.ip().is_unspecified() {
            return Err(OriginSpawnError::NoAddress(addr));
        }
        let http = self.http.clone();
        let members = Members::new(
            Some(&self.name),
            &self.ring,
            http,
            (self.replicas, self.health),
        );
        let local = PeerInfo {
            id: self.transport.local_id(),
            addr,
            role: PeerRole::Origin,
            zone: self.zone,
        };
        let (tasks, counts) = (Tasks::default(), Counts::new());
        let metrics = Arc::new(Metrics::new().with_origin(counts.clone()));
        self.limits.apply(self.transport.throttle());
        let notes = driver::start(Parts {
            local: local.clone(),
            config: self.config,
            seed: 0,
            store: self.dyn_store,
            transport: self.transport.clone(),
            discovery: Arc::new(Silent),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            peers: None,
            // Origins follow nobody.
            patience: Duration::ZERO,
        });
        let inner = Arc::new(Inner {
            local,
            store: self.store,
            backend: self.backend,
            transport: self.transport,
            queue: Arc::new(self.queue),
            queued: Notify::new(),
            stopping: CancellationToken::new(),
            drained: Notify::new(),
            members,
            let_go: Default::default(),
            pushed: Default::default(),
            condemned: Condemned::new(self.asked_file),
            lists: Default::default(),
            name: self.name,
            retry: self.retry,
            dead_after: self.dead_after,
            stagger: self.stagger,
            started: Instant::now(),
            answers: Mutex::default(),
            mending: Mutex::default(),
            fetching: Default::default(),
            fetches: Default::default(),
            known: Default::default(),
            copying: Default::default(),
            refused: Default::default(),
            seldom: Default::default(),
            room: Default::default(),
            metrics,
            counts,
            notes,
            tasks: tasks.clone(),
        });
        // Those of an earlier process count as well. A queue that cannot be read says so when it is worked.
        inner
            .counts
            .dead(inner.queue.dead_len().unwrap_or_default());
        tasks.spawn(inner.clone().work());
        if !alone {
            let probing = inner.clone();
            tasks.spawn(async move { probing.members.probe().await });
            tasks.spawn(inner.clone().rebalance(self.heal));
        }
        tasks.spawn(mend(inner.store.clone(), Arc::downgrade(&inner)));
        let weak = Arc::downgrade(&inner);
        tasks.spawn(sweep::keep(move || weak.upgrade(), self.lifetimes));
        Ok(Origin { inner })
    }
}

impl std::fmt::Debug for OriginBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OriginBuilder")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why an origin was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OriginSpawnError {
    /// Its tasks would have nothing to run on.
    #[error("an origin is spawned within a tokio runtime: enter one first")]
    NoRuntime,
    /// It could not tell its own share.
    #[error("origin {0} is not among the members of the ring")]
    NotInRing(String),
    /// Peers cannot dial this address.
    #[error("peers cannot dial {0}: say with .advertise(…) which address is this host's")]
    NoAddress(SocketAddr),
}

/// Origins do not announce: trackers know them from the ring.
struct Silent;

impl Discovery for Silent {
    async fn announce(&self, _: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        Err(DiscoveryError::Refused("origins do not announce".into()))
    }

    async fn metainfo(&self, _: &Namespace, digest: Digest) -> Result<MetaInfo, DiscoveryError> {
        Err(DiscoveryError::NotFound(digest))
    }
}
