//! Images that go to other clusters, by rules, and none is lost on the way.
//!
//! What another cluster lacks is noted by each owner of a tag together with the change itself
//! ([`crate::tags`]), so that it outlives the one that took the change. The first owner sends it: the blobs
//! that are not there, each by one build-index for all of them, then the registers of the image's manifests
//! and referrers, the tag last. There each register becomes the later of the two, so that clusters which
//! send to each other come to the same, and nothing goes round for ever. The other owners look later and
//! strike it out.
//!
//! | file | |
//! |---|---|
//! | `remote` | another cluster: its registers, its origins |
//! | `send` | what one register needs to be there |
//! | `blobs` | the way of one blob |
//! | `registry` | another registry: its manifests, tags and lists of referrers |
//! | `push` | what one register needs to be there |
//! | `stock` | where a blob is taken from |
//! | `upload` | the way of one blob there |
//! | `gate` | when and how fast something goes to one place or comes from there |
//! | `traffic` | its bytes |
//! | `rules` | which images go where |
//! | `status` | what operators are told |
//! | `offer` | what waits here for a cluster that fetches it |
//! | `source` | where images come from, and what waits there |
//! | `fetch` | what one register needs to be here |
//! | `mirror` | a registry that images come from |
//! | `way` | where registers go: another cluster, another registry, or the backend of the tags |
//! | [`server`] | what build-indexes say to each other and to operators |

mod blobs;
mod fetch;
mod gate;
mod mirror;
mod offer;
mod push;
mod registry;
mod remote;
mod rules;
mod send;
pub mod server;
mod source;
mod status;
mod stock;
#[cfg(test)]
mod tests;
mod traffic;
mod upload;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use kraken_core::net::http::HttpClient;
use kraken_core::net::origin::OriginCluster;
use kraken_proto::tags::hours::Plan;
use kraken_proto::tags::outbox::{Outbox, Sent};
use kraken_proto::tags::record::Version;
use kraken_proto::{Digest, Timestamp};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use self::blobs::Blobs;
use self::gate::Gate;
pub use self::rules::{MirrorRule, RemoteKind, RemoteRule, Rules, SourceKind, SourceRule};
use self::source::{List, Supply};
pub use self::status::{Direction, RefusedRegister, RemoteStatus, TagStatus};
use self::way::Way;
use crate::link::RegisterName;
use crate::tags::policy::TagPolicy;
use crate::tags::ring::TagRing;
use crate::tags::watch::Wanted;
use crate::tags::{TagError, chance};

/// Registers that are sent to one cluster at once.
const PARALLEL: usize = 8;
/// Names that are held in memory for one cluster; all others wait on the disk.
const ROOM: usize = 10_000;
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_millis(250);
/// How often the whole list on the disk is read again although nothing says that it has changed.
const READ: Duration = Duration::from_secs(30);
/// How long what was noted may take until it can be read.
const SETTLES: Duration = Duration::from_secs(2);

/// Sends what other clusters lack, and fetches what this one lacks. Cheap to clone.
#[derive(Clone)]
pub struct Replicator {
    /// Another one when the clusters change.
    inner: Arc<RwLock<Arc<Inner>>>,
    replaced: Arc<Notify>,
    /// One changes what is paused, or reads it, at a time.
    pausing: Arc<tokio::sync::Mutex<()>>,
}

struct Inner {
    ring: TagRing,
    origins: OriginCluster,
    replicas: usize,
    policy: TagPolicy,
    wanted: Vec<Wanted>,
    remotes: BTreeMap<String, Arc<Line>>,
    sources: BTreeMap<String, Supply>,
    blobs: Blobs,
    changed: Arc<Notify>,
    /// The number of the rules, once all is noted by them.
    turn: AtomicU64,
    began: Instant,
    /// The same moment, by the clock on the wall.
    since: SystemTime,
}

/// What goes to one other cluster, or to the backend.
struct Line {
    way: Way,
    gate: Gate,
    outbox: Mutex<Outbox>,
    /// The list on the disk is to be read from its beginning.
    is_stale: AtomicBool,
}

/// The cluster that images are sent from, and fetched to.
#[derive(Debug, Clone)]
pub struct OwnCluster {
    /// Its tags.
    pub ring: TagRing,
    /// Its origins, which have the blobs.
    pub origins: OriginCluster,
    /// How many origins keep each blob.
    pub replicas: usize,
    /// What is asked of tags that come from elsewhere.
    pub policy: TagPolicy,
}

impl Replicator {
    /// Sends what this cluster has by these rules, and fetches. To be made before anything is changed in the
    /// ring.
    pub fn new(own: OwnCluster, rules: Rules, http: &HttpClient) -> Self {
        let inner = Arc::new(Inner::new(own, rules, http));
        Self {
            inner: Arc::new(RwLock::new(inner)),
            replaced: Arc::default(),
            pausing: Arc::default(),
        }
    }

    /// Goes by these rules from now on, and by no other. What is under way begins anew; what counts since the
    /// start counts from here.
    pub fn replace(&self, rules: Rules, http: &HttpClient) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.stop();
        *inner = Arc::new(Inner::new(inner.own(), rules, http));
        drop(inner);
        self.replaced.notify_one();
    }

    fn inner(&self) -> Arc<Inner> {
        let inner = self.inner.read();
        inner.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends, for ever.
    pub async fn run(&self) {
        loop {
            tokio::select! {
                never = self.inner().run(&self.pausing) => match never {},
                () = self.replaced.notified() => {}
            }
        }
    }

    /// Stops sending to a cluster, or goes on, also after a restart. Whether there is such a cluster.
    ///
    /// # Errors
    /// It cannot be written down.
    pub async fn set_paused(&self, remote: &str, is_paused: bool) -> Result<bool, TagError> {
        let _turn = self.pausing.lock().await;
        let inner = self.inner();
        if !inner.remotes.contains_key(remote) && !inner.sources.contains_key(remote) {
            return Ok(false);
        }
        let store = inner.ring.here();
        let mut paused = store.paused().await?;
        if is_paused {
            paused.insert(remote.to_owned());
        } else {
            paused.remove(remote);
        }
        store.set_paused(&paused).await?;
        // They may have been replaced meanwhile.
        let inner = self.inner();
        inner.pause(&paused);
        inner.changed.notify_waiters();
        Ok(true)
    }

    /// Tries all that waits for a cluster at once. Whether there is such a cluster.
    pub fn hurry(&self, remote: &str) -> bool {
        let inner = self.inner();
        if let Some(source) = inner.sources.get(remote) {
            source.hurry(inner.now());
            return true;
        }
        let line = inner.remotes.get(remote);
        line.is_some_and(|line| {
            line.outbox().hurry(inner.now());
            inner.changed.notify_waiters();
            true
        })
    }

    /// Whether images come from there.
    pub(crate) fn is_source(&self, name: &str) -> bool {
        self.inner().sources.contains_key(name)
    }

    /// Sends all that a cluster is to have, though it may have it: one that was made anew under its name lacks
    /// what was sent before. Whether there is such a cluster.
    ///
    /// # Errors
    /// It cannot be written down.
    pub async fn send_again(&self, remote: &str) -> Result<bool, TagError> {
        let inner = self.inner();
        let wanted = inner.wanted.iter().find(|it| it.remote == remote);
        let (Some(wanted), Some(line)) = (wanted, inner.remotes.get(remote)) else {
            return Ok(false);
        };
        inner.ring.here().note_all(wanted).await?;
        line.is_stale.store(true, Ordering::Relaxed);
        inner.changed.notify_waiters();
        Ok(true)
    }

    /// Sends a tag to all clusters that want it, though they may have it.
    ///
    /// # Errors
    /// It cannot be written down.
    pub async fn send_now(&self, name: &RegisterName) -> Result<usize, TagError> {
        let inner = self.inner();
        let wanted = inner.wanted.iter().filter(|it| it.wants(name));
        let remotes: BTreeSet<_> = wanted.map(|it| it.remote.clone()).collect();
        for remote in &remotes {
            let name = name.to_string();
            let noted = inner.ring.here().note_pending(remote, vec![name.clone()]);
            noted.await?;
            let line = inner.remotes.get(remote);
            if let Some(line) = line.filter(|it| !matches!(it.way, Way::Fetched(_))) {
                let now = inner.now();
                line.outbox().add(now, &name, 0);
                line.outbox().hurry_one(now, &name);
            }
        }
        inner.changed.notify_waiters();
        Ok(remotes.len())
    }
}

impl std::fmt::Debug for Replicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replicator")
            .field("wanted", &self.inner().wanted)
            .finish_non_exhaustive()
    }
}

impl Line {
    fn new(way: Way, plan: Plan) -> Self {
        Self {
            gate: Gate::new(way.traffic().cloned(), plan),
            way,
            outbox: Mutex::new(Outbox::new(ROOM, chance())),
            is_stale: AtomicBool::new(true),
        }
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go there what may go now. Whether that is anything.
    fn regulate(&self, now: Timestamp) -> bool {
        let (is_any, is_new) = self.gate.regulate(false);
        if is_new {
            self.outbox().hurry(now);
        }
        is_any
    }
}

impl Inner {
    fn new(own: OwnCluster, rules: Rules, http: &HttpClient) -> Self {
        let OwnCluster {
            ring,
            origins,
            replicas,
            policy,
        } = own;
        let backend = ring.backend().cloned();
        let wanted = rules.wanted(backend.as_ref());
        let changed = ring.here().watch(wanted.clone());
        let lines = rules.remotes.into_iter().map(|rule| {
            let plan = rule.plan.clone();
            Line::new(Way::new(rule, ring.cluster(), http), plan)
        });
        let backend = backend.map(|it| Line::new(Way::Backend(it), Plan::default()));
        let remotes = lines.chain(backend);
        let remotes = remotes.map(|line| (line.way.name().to_owned(), Arc::new(line)));
        let remotes: BTreeMap<_, _> = remotes.collect();
        let sources = rules.sources.into_iter().map(|rule| {
            let source = Supply::new(rule, ring.cluster(), http);
            (source.name().to_owned(), source)
        });
        let sources: BTreeMap<_, _> = sources.collect();
        let ways = remotes.values().map(|line| line.way.clone());
        let from = sources.values().map(Supply::way);
        let ways = ways.chain(from);
        let blobs = Blobs::new(ring.clone(), origins.clone(), ways);
        Self {
            ring,
            origins,
            replicas,
            policy,
            wanted,
            remotes,
            sources,
            blobs,
            changed,
            turn: AtomicU64::new(0),
            began: Instant::now(),
            since: SystemTime::now(),
        }
    }

    /// The cluster that it was made for.
    fn own(&self) -> OwnCluster {
        OwnCluster {
            ring: self.ring.clone(),
            origins: self.origins.clone(),
            replicas: self.replicas,
            policy: self.policy.clone(),
        }
    }

    /// Sends and fetches, for ever.
    async fn run(self: Arc<Self>, pausing: &tokio::sync::Mutex<()>) -> Infallible {
        let inner = &self;
        // Before that nothing goes: blobs are also sent for others.
        while let Err(error) = inner.begin(pausing).await {
            tracing::error!(%error, "it cannot be read what is paused");
            tokio::time::sleep(READ).await;
        }
        loop {
            match inner.ring.here().note_new_rules().await {
                Ok(turn) => break inner.turn.store(turn, Ordering::Relaxed),
                Err(error) => {
                    tracing::error!(%error, "what other clusters lack cannot be written down");
                }
            }
            tokio::time::sleep(READ).await;
        }
        let sent = |line: &&Arc<Line>| !matches!(line.way, Way::Fetched(_));
        let lines = inner.remotes.values().filter(sent).cloned();
        let sending = lines.map(|line| inner.clone().keep_sending(line));
        let fetching = inner.sources.values().flat_map(|from| match from {
            Supply::Cluster(source) => {
                let lists = source.lists.iter();
                let fetch = |list: &List| inner.clone().keep_fetching(source.clone(), list.at);
                lists.map(|list| fetch(list).boxed()).collect()
            }
            Supply::Registry(mirror) => vec![inner.clone().keep_mirroring(mirror.clone()).boxed()],
        });
        let sending = futures::future::join_all(sending);
        futures::future::join(sending, futures::future::join_all(fetching)).await;
        // Most clusters neither send nor fetch; to begin anew would write to the disk all the time.
        std::future::pending().await
    }

    /// Lets go what is not paused.
    async fn begin(&self, pausing: &tokio::sync::Mutex<()>) -> Result<(), TagError> {
        let _turn = pausing.lock().await;
        self.pause(&self.ring.here().paused().await?);
        Ok(())
    }

    /// Sends and fetches nothing any more.
    fn stop(&self) {
        self.gates().for_each(|(_, gate)| gate.close());
        self.blobs.stop();
    }

    fn now(&self) -> Timestamp {
        let nanos = u64::try_from(self.began.elapsed().as_nanos());
        Timestamp::from_nanos(nanos.unwrap_or(u64::MAX))
    }

    fn pause(&self, paused: &BTreeSet<String>) {
        for (name, gate) in self.gates() {
            gate.pause(paused.contains(name));
        }
        let now = self.now();
        for line in self.remotes.values() {
            line.regulate(now);
        }
        for source in self.sources.values() {
            source.regulate(now);
        }
    }

    /// All that something passes, by name.
    fn gates(&self) -> impl Iterator<Item = (&String, &Gate)> {
        let sent = self.remotes.iter().map(|(name, line)| (name, &line.gate));
        let fetched = self.sources.iter();
        sent.chain(fetched.map(|(name, source)| (name, source.gate())))
    }

    /// Sends to one cluster what is due, for ever.
    async fn keep_sending(self: Arc<Self>, line: Arc<Line>) {
        let mut under_way = JoinSet::new();
        let mut place = Place {
            after: None,
            read: Instant::now(),
        };
        loop {
            let changed = self.changed.notified();
            if let Err(error) = self.fill(&line, &mut place).await {
                tracing::error!(%error, "what another cluster lacks cannot be read");
            }
            while line.regulate(self.now()) && under_way.len() < PARALLEL {
                let Some(name) = line.outbox().next(self.now()) else {
                    break;
                };
                under_way.spawn(self.clone().send_one(line.clone(), name));
            }
            tokio::select! {
                _ = timeout(LOOK, changed) => {}
                Some(_) = under_way.join_next() => {}
            }
        }
    }

    /// Reads on in the list on the disk, as far as there is room.
    async fn fill(&self, line: &Line, place: &mut Place) -> Result<(), TagError> {
        let is_first = place.after.is_none();
        let is_stale = is_first && line.is_stale.swap(false, Ordering::Relaxed);
        if is_first && !is_stale && place.read.elapsed() < READ && !self.is_changed(place) {
            return Ok(());
        }
        loop {
            let room = line.outbox().room();
            if room == 0 {
                return Ok(());
            }
            let (store, remote) = (self.ring.here(), line.way.name());
            let page = store.pending(remote, room.min(1000), place.after.as_deref());
            let page = page.await?;
            let Some(last) = page.last().map(|it| it.name.clone()) else {
                place.after = None;
                place.read = Instant::now();
                return Ok(());
            };
            for pending in page {
                let rank = pending.name.parse::<RegisterName>();
                let rank = rank.map_or(0, |name| self.ring.rank(name.repo().as_str()));
                line.outbox().add(self.now(), &pending.name, rank);
            }
            place.after = Some(last);
        }
    }

    /// Whether the list on the disk has grown since it was read.
    fn is_changed(&self, place: &Place) -> bool {
        let noted = self.ring.here().noted_at();
        noted.is_some_and(|at| at + SETTLES >= place.read)
    }

    /// What was sent need not go any more. Whether it is still that here.
    async fn strike(&self, remote: &str, name: &str, known: Known) -> Result<bool, TagError> {
        let turn = self.turn.load(Ordering::Relaxed);
        let sent = self.ring.here().sent((remote, turn), name, known);
        Ok(sent.await?)
    }

    async fn send_one(self: Arc<Self>, line: Arc<Line>, name: String) {
        let result = match &line.way {
            Way::Cluster(remote) => self.send(remote, &name).await,
            Way::Registry(registry) => self.push(registry, &name).await,
            Way::Backend(backend) => self.write(backend, &name).await,
            Way::Fetched(_) | Way::Source(_) | Way::Mirror(_) => Err(SendError::Held),
        };
        line.gate.told().tell(&name, result.as_ref().err());
        let remote = line.way.name();
        let mut is_same = true;
        let sent = match result {
            Ok(known) => match self.strike(remote, &name, known).await {
                Ok(same) => {
                    is_same = same;
                    Sent::Done
                }
                Err(_) => Sent::Failed,
            },
            Err(error) => error.ended(remote, &name),
        };
        line.outbox().ended(self.now(), &name, sent);
        if !is_same {
            line.is_stale.store(true, Ordering::Relaxed);
        }
    }
}

/// What another cluster was found to have of a register, or need not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) version: Version,
    /// Names all states; nothing of a register that is not set here.
    pub(crate) state: Option<Digest>,
}

/// How far the list on the disk is read.
struct Place {
    after: Option<String>,
    /// When it was read to its end.
    read: Instant,
}

/// Why another cluster does not have something yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// It is paused, or nothing goes there at this hour.
    #[error("nothing is sent there for now")]
    Held,
    /// The other cluster does not answer.
    #[error("it does not answer: {0}")]
    Away(String),
    /// It does not take it.
    #[error("it was refused: {0}")]
    Refused(String),
    /// Something failed, here or there.
    #[error("{0}")]
    Failed(String),
}

impl SendError {
    /// What it means for all that waits; it is logged.
    fn ended(&self, remote: &str, name: &str) -> Sent {
        match self {
            Self::Held => Sent::Away,
            Self::Away(reason) => {
                tracing::debug!(
                    remote,
                    reason,
                    "another cluster or registry does not answer"
                );
                Sent::Away
            }
            error => {
                tracing::warn!(remote, name, %error, "not there yet");
                Sent::Failed
            }
        }
    }
}

/// Waits until one of these ends, and not longer than until it is to be looked again.
async fn one_ends(under_way: &mut JoinSet<()>) {
    if under_way.is_empty() {
        tokio::time::sleep(LOOK).await;
    } else {
        let _ = timeout(LOOK, under_way.join_next()).await;
    }
}

impl From<TagError> for SendError {
    fn from(error: TagError) -> Self {
        Self::Failed(error.to_string())
    }
}
