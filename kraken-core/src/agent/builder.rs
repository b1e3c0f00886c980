//! Putting an agent together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kraken_net::{Discovery, Transport};
use kraken_proto::cache::ledger::Lifetimes;
use kraken_proto::{Config, PeerInfo, PeerRole, Zone};
use kraken_storage::PieceStore;

use super::driver::{self, Parts};
use super::mend::mend;
use super::peers::peers_file;
use super::reports::{self, Reporting};
use super::{Agent, Inner, Limits};
use crate::dynamic::{DynDiscovery, DynStore, DynTransport};
use crate::metrics::Metrics;
use crate::sweep;
use crate::tasks::Tasks;

/// The choices of an agent, those that most need first.
#[must_use]
pub struct AgentBuilder {
    store: Arc<dyn DynStore>,
    transport: Arc<dyn DynTransport>,
    discovery: Option<Arc<dyn DynDiscovery>>,
    config: Config,
    limits: Limits,
    advertise: Option<SocketAddr>,
    zone: Option<Zone>,
    name: String,
    peers_file: Option<PathBuf>,
    patience: Duration,
    lookup_patience: Duration,
    lifetimes: Lifetimes,
    seed: u64,
}

impl AgentBuilder {
    pub(super) fn new(store: impl PieceStore, transport: impl Transport) -> Self {
        Self {
            store: Arc::new(store),
            transport: Arc::new(transport),
            discovery: None,
            config: Config::lan(),
            limits: Limits::NONE,
            advertise: None,
            zone: None,
            name: String::new(),
            peers_file: None,
            patience: Duration::from_secs(300),
            lookup_patience: Duration::from_secs(10),
            lifetimes: Lifetimes::default(),
            seed: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8),
        }
    }

    /// Where peers and metainfo come from; required. For trackers, `net::announce`'s client.
    pub fn discovery(mut self, discovery: impl Discovery) -> Self {
        self.discovery = Some(Arc::new(discovery));
        self
    }

    /// How to behave in swarms; [`Config::lan`] by default.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// How much of the network to take; [`Limits::NONE`] by default, and changed later with
    /// [`Agent::set_limits`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The address that peers are told to dial; the transport's own by default. Needed when that
    /// is `0.0.0.0` or `[::]`.
    pub fn advertise(mut self, addr: SocketAddr) -> Self {
        self.advertise = Some(addr);
        self
    }

    /// Where in the network this host stands, such as its rack; nowhere by default. Trackers then
    /// prefer peers with the same zone. Leave it out where all hosts reach each other alike.
    pub fn zone(mut self, zone: Zone) -> Self {
        self.zone = Some(zone);
        self
    }

    /// What people call this host, for those who look on at a tracker's console; nothing by default. Of
    /// more than 64 bytes the beginning counts.
    pub fn name(mut self, name: impl AsRef<str>) -> Self {
        self.name = reports::fitting(name.as_ref());
        self
    }

    /// Where to keep the peers that were met, up to 128, over restarts: they lead into swarms when no
    /// tracker answers. Nowhere by default.
    ///
    /// The file is read at the start, and written by [`Agent::shutdown`] and at most once a minute
    /// before. One that cannot be used is logged and ignored, and no other process may use it.
    pub fn peers_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.peers_file = Some(path.into());
        self
    }

    /// How long a reader waits without one new piece before it fails; 5 minutes by default.
    pub fn read_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long opening keeps asking when nobody who could know a blob answers; 10 s by default.
    pub fn lookup_patience(mut self, patience: Duration) -> Self {
        self.lookup_patience = patience;
        self
    }

    /// How long blobs stay after they came and after they were used last, whatever room there is; for
    /// ever by default. What is read stays, and what is pinned in the store.
    pub fn lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.lifetimes = lifetimes;
        self
    }

    /// Seeds the scheduler's chance, for tests; random by default.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts the agent on the current tokio runtime, of either flavor, with time enabled. A program that
    /// is not async enters one of its own first:
    ///
    /// ```
    /// # use kraken_core::net::{Discovery, MemNetwork};
    /// # use kraken_core::{Agent, PeerId, storage::MemStore};
    /// fn start(discovery: impl Discovery) -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    ///     let _within = runtime.enter(); // transports are bound within it, too
    ///     let transport = MemNetwork::new().transport(PeerId::from_bytes([1; 32]));
    ///     let agent = Agent::builder(MemStore::new(), transport).discovery(discovery).spawn()?;
    ///     runtime.block_on(agent.shutdown());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// A choice is missing or makes no sense, or there is no runtime.
    pub fn spawn(self) -> Result<Agent, SpawnError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(SpawnError::NoRuntime);
        }
        let discovery = self.discovery.ok_or(SpawnError::NoDiscovery)?;
        let addr = self
            .advertise
            .unwrap_or_else(|| self.transport.local_addr());
        if addr.ip().is_unspecified() {
            return Err(SpawnError::NoAddress(addr));
        }
        let local = PeerInfo {
            id: self.transport.local_id(),
            addr,
            role: PeerRole::Agent,
            zone: self.zone,
        };
        let (tasks, metrics) = (Tasks::default(), Arc::new(Metrics::new()));
        self.limits.apply(self.transport.throttle());
        let notes = driver::start(Parts {
            local: local.clone(),
            config: self.config,
            seed: self.seed,
            store: self.store.clone(),
            transport: self.transport.clone(),
            discovery: discovery.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            peers: self.peers_file.map(peers_file),
            patience: self.patience,
        });
        let reporting = Reporting {
            local: local.clone(),
            name: self.name,
            discovery: discovery.clone(),
            metrics: metrics.clone(),
            notes: notes.downgrade(),
        };
        tasks.spawn(reporting.run());
        let inner = Inner {
            local,
            store: self.store,
            transport: self.transport,
            discovery,
            metrics,
            notes,
            tasks,
            room: Default::default(),
            leaving: Default::default(),
            patience: self.patience,
            lookup_patience: self.lookup_patience,
        };
        let inner = Arc::new(inner);
        let mending = mend(inner.store.clone(), Arc::downgrade(&inner));
        inner.tasks.spawn(mending);
        let weak = Arc::downgrade(&inner);
        let agent = move || weak.upgrade().map(|inner| Agent { inner });
        inner.tasks.spawn(sweep::keep(agent, self.lifetimes));
        Ok(Agent { inner })
    }
}

impl std::fmt::Debug for AgentBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Why an agent was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// Its tasks would have nothing to run on.
    #[error("an agent is spawned within a tokio runtime: enter one first")]
    NoRuntime,
    /// It would know nobody.
    #[error("an agent needs a discovery: call .discovery(…) with trackers or your own")]
    NoDiscovery,
    /// Peers cannot dial this address.
    #[error("peers cannot dial {0}: say with .advertise(…) which address is this host's")]
    NoAddress(SocketAddr),
}
