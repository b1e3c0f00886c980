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
//! | `upload` | the way of one blob there |
//! | `traffic` | how fast bytes go to one remote |
//! | `way` | where registers go: another cluster, another registry, or the backend of the tags |
//! | [`server`] | what build-indexes say to each other and to operators |

mod blobs;
mod push;
mod registry;
mod remote;
mod send;
pub mod server;
mod traffic;
mod upload;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use kraken_core::net::http::HttpClient;
use kraken_core::net::origin::OriginCluster;
use kraken_core::storage::backend::web::RegistryWriter;
use kraken_proto::tags::hours::{Allowed, Plan};
use kraken_proto::tags::outbox::{Outbox, Sent};
use kraken_proto::tags::record::Version;
use kraken_proto::{Digest, Timestamp};
use regex::Regex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use self::blobs::Blobs;
use self::registry::Registry;
use self::remote::Remote;
use self::way::Way;
use crate::link::RegisterName;
use crate::platform::Platform;
use crate::tags::backend::BACKEND;
use crate::tags::pending::{Wanted, What};
use crate::tags::ring::TagRing;
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
/// Registers that another cluster refused and that are told of.
const TOLD: usize = 100;

/// Where images go.
#[derive(Debug, Clone)]
pub enum RemoteKind {
    /// Another cluster, by the base URLs of its build-indexes.
    Cluster(Vec<String>),
    /// Another registry.
    Registry(RegistryWriter),
}

/// A cluster or registry that images go to.
#[derive(Debug, Clone)]
pub struct RemoteRule {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: RemoteKind,
    /// It gets the tags of which one of these matches somewhere in `repository:tag`.
    pub tags: Vec<Regex>,
    /// Of indexes it gets the manifests of these platforms; all when there are none.
    pub platforms: Vec<Platform>,
    /// When something goes there, and how many bytes a second from each build-index.
    pub plan: Plan,
}

/// Sends what other clusters lack. Cheap to clone.
#[derive(Clone)]
pub struct Replicator {
    /// Another one when the clusters change.
    inner: Arc<RwLock<Arc<Inner>>>,
    replaced: Arc<Notify>,
}

struct Inner {
    ring: TagRing,
    origins: OriginCluster,
    replicas: usize,
    wanted: Vec<Wanted>,
    remotes: BTreeMap<String, Arc<Line>>,
    blobs: Blobs,
    changed: Arc<Notify>,
    /// One changes what is paused at a time.
    pausing: tokio::sync::Mutex<()>,
    began: Instant,
}

/// What goes to one other cluster, or to the backend.
struct Line {
    way: Way,
    /// When something goes there.
    plan: Plan,
    outbox: Mutex<Outbox>,
    is_paused: AtomicBool,
    /// The list on the disk is to be read from its beginning.
    is_stale: AtomicBool,
    told: Mutex<Told>,
}

/// What operators are told.
#[derive(Default)]
struct Told {
    refused: BTreeMap<String, String>,
    last_error: Option<String>,
}

/// How far the way to another cluster is, as one build-index knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStatus {
    /// The other cluster's name.
    pub name: String,
    /// Registers that it may lack. Each owner of a tag counts it.
    pub waiting: u64,
    /// Those that are being sent by this build-index.
    pub under_way: usize,
    /// How long the first of them has waited.
    pub oldest_seconds: u64,
    /// Nothing is sent until somebody says so.
    pub is_paused: bool,
    /// Nothing is sent at this hour.
    #[serde(default)]
    pub is_closed: bool,
    /// What it did not take, and why; at most a hundred.
    pub refused: Vec<RefusedRegister>,
    /// Blobs and bytes that this build-index has sent since its start.
    pub sent_blobs: u64,
    /// See `sent_blobs`.
    pub sent_bytes: u64,
    /// Why something was not sent, lately.
    pub last_error: Option<String>,
}

/// What another cluster did not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRegister {
    /// The tag or link.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Whether another cluster has a tag as it is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagStatus {
    /// The other cluster's name.
    pub remote: String,
    /// Whether a rule sends the tag there.
    pub is_wanted: bool,
    /// The version here, and there; 0 of a tag that was never set.
    pub here: String,
    /// See `here`, or what the tag points to at another registry; absent when nobody answers there, or a
    /// registry has no such tag.
    pub there: Option<String>,
    /// Whether it has what is here, or something later.
    pub is_there: bool,
}

impl Replicator {
    /// Sends the tags of `ring`, whose blobs are at `origins`, to these clusters. To be made before anything
    /// is changed in the ring.
    pub fn new(
        ring: TagRing,
        at: (OriginCluster, usize),
        rules: Vec<RemoteRule>,
        http: &HttpClient,
    ) -> Self {
        let inner = Arc::new(Inner::new(ring, at, rules, http));
        Self {
            inner: Arc::new(RwLock::new(inner)),
            replaced: Arc::default(),
        }
    }

    /// Sends to these clusters from now on, and to no other. What is under way begins anew; what counts since
    /// the start counts from here.
    pub fn replace(&self, rules: Vec<RemoteRule>, http: &HttpClient) {
        let before = self.inner();
        let at = (before.origins.clone(), before.replicas);
        let inner = Arc::new(Inner::new(before.ring.clone(), at, rules, http));
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = inner;
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
                () = self.inner().run() => {}
                () = self.replaced.notified() => {}
            }
        }
    }

    /// How far the way to each other cluster is.
    ///
    /// # Errors
    /// The list on the disk cannot be read.
    pub async fn status(&self) -> Result<Vec<RemoteStatus>, TagError> {
        let inner = self.inner();
        let mut all = Vec::new();
        for (name, line) in &inner.remotes {
            let (waiting, since) = inner.ring.here().count_pending(name).await?;
            let now = crate::tags::pending::unix_ms();
            let under_way = line.outbox().under_way();
            let told = line.told();
            let refused = told.refused.iter().map(|(name, reason)| RefusedRegister {
                name: name.clone(),
                reason: reason.clone(),
            });
            all.push(RemoteStatus {
                name: name.clone(),
                waiting,
                under_way,
                oldest_seconds: since.map_or(0, |since| now.saturating_sub(since) / 1000),
                is_paused: line.is_paused.load(Ordering::Relaxed),
                is_closed: line.plan.at(now) == Allowed::Nothing,
                refused: refused.collect(),
                sent_blobs: line.way.sent().0,
                sent_bytes: line.way.sent().1,
                last_error: told.last_error.clone(),
            });
        }
        Ok(all)
    }

    /// Stops sending to a cluster, or goes on, also after a restart. Whether there is such a cluster.
    ///
    /// # Errors
    /// It cannot be written down.
    pub async fn set_paused(&self, remote: &str, is_paused: bool) -> Result<bool, TagError> {
        let inner = self.inner();
        if !inner.remotes.contains_key(remote) {
            return Ok(false);
        }
        let store = inner.ring.here();
        let _turn = inner.pausing.lock().await;
        let mut paused = store.paused().await?;
        if is_paused {
            paused.insert(remote.to_owned());
        } else {
            paused.remove(remote);
        }
        store.set_paused(&paused).await?;
        inner.pause(&paused);
        inner.changed.notify_waiters();
        Ok(true)
    }

    /// Tries all that waits for a cluster at once. Whether there is such a cluster.
    pub fn hurry(&self, remote: &str) -> bool {
        let inner = self.inner();
        let line = inner.remotes.get(remote);
        line.is_some_and(|line| {
            line.outbox().hurry(inner.now());
            inner.changed.notify_waiters();
            true
        })
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
            if let Some(line) = inner.remotes.get(remote) {
                let now = inner.now();
                line.outbox().add(now, &name, 0);
                line.outbox().hurry_one(now, &name);
            }
        }
        inner.changed.notify_waiters();
        Ok(remotes.len())
    }

    /// Whether other clusters have a tag as it is here.
    ///
    /// # Errors
    /// Nobody knows what it is here.
    pub async fn tag_status(&self, name: &RegisterName) -> Result<Vec<TagStatus>, TagError> {
        let inner = self.inner();
        let state = inner.ring.register(name).await?;
        let digest = state.as_ref().and_then(|state| state.now.digest);
        let here = state.map_or(Version::ZERO, |state| state.now.version);
        let mut all = Vec::new();
        for wanted in &inner.wanted {
            let Some(line) = inner.remotes.get(&wanted.remote) else {
                continue;
            };
            let is_wanted = wanted.wants(name);
            // What no rule sends there is not named there.
            let (there, is_there) = match (&line.way, name) {
                (Way::Backend(_), _) => continue,
                (Way::Cluster(remote), _) if is_wanted => {
                    let looked = remote.look(vec![name.to_string()]).await.ok();
                    let there = looked.and_then(|looked| Some(looked.first()?.version));
                    let is_there = there.is_some_and(|there| there >= here);
                    (there.map(|there| there.get().to_string()), is_there)
                }
                (Way::Registry(registry), RegisterName::Tag(tag)) if is_wanted => {
                    let there = registry.tag(tag).await.ok();
                    let is_there = there == Some(digest);
                    (there.flatten().map(|it| it.to_string()), is_there)
                }
                _ => (None, false),
            };
            all.push(TagStatus {
                remote: wanted.remote.clone(),
                is_wanted,
                here: here.get().to_string(),
                there,
                is_there,
            });
        }
        Ok(all)
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
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go there what may go now. Whether that is anything.
    fn regulate(&self, now: Timestamp) -> bool {
        let allowed = match self.is_paused.load(Ordering::Relaxed) {
            true => Allowed::Nothing,
            false => self.plan.at(crate::tags::pending::unix_ms()),
        };
        let is_new = self.way.traffic().is_some_and(|it| it.allow(allowed));
        if is_new {
            self.outbox().hurry(now);
        }
        allowed != Allowed::Nothing
    }

    /// Notes how an attempt ended.
    fn tell(&self, name: &str, result: &Result<Known, SendError>) {
        let mut told = self.told();
        match result {
            Ok(_) => drop(told.refused.remove(name)),
            Err(SendError::Refused(reason)) => {
                if told.refused.len() < TOLD {
                    told.refused.insert(name.to_owned(), reason.clone());
                }
            }
            Err(SendError::Held) => {}
            Err(error) => told.last_error = Some(format!("{name}: {error}")),
        }
    }
}

impl Inner {
    fn new(
        ring: TagRing,
        (origins, replicas): (OriginCluster, usize),
        rules: Vec<RemoteRule>,
        http: &HttpClient,
    ) -> Self {
        let wanted = rules.iter().map(|rule| Wanted {
            remote: rule.name.clone(),
            platforms: rule.platforms.clone(),
            what: What::Tags(rule.tags.clone()),
        });
        let mut wanted: Vec<_> = wanted.collect();
        let backend = ring.backend().cloned();
        wanted.extend(backend.iter().map(|backend| Wanted {
            remote: BACKEND.to_owned(),
            platforms: Vec::new(),
            what: What::All(backend.place()),
        }));
        let changed = ring.here().watch(wanted.clone());
        let clusters = rules.into_iter();
        let ways = clusters.map(|rule| {
            let way = match rule.kind {
                RemoteKind::Cluster(build_indexes) => {
                    let remote = Remote::new((rule.name, build_indexes), ring.cluster(), http);
                    Way::Cluster(Arc::new(remote))
                }
                RemoteKind::Registry(writer) => {
                    let registry = Registry::new((rule.name, writer));
                    Way::Registry(Arc::new(registry))
                }
            };
            (way, rule.plan)
        });
        let line = |(way, plan): (Way, Plan)| {
            let name = way.name().to_owned();
            let line = Line {
                way,
                plan,
                outbox: Mutex::new(Outbox::new(ROOM, chance())),
                is_paused: AtomicBool::new(false),
                is_stale: AtomicBool::new(true),
                told: Mutex::default(),
            };
            (name, Arc::new(line))
        };
        let ways = ways.chain(backend.map(|it| (Way::Backend(it), Plan::default())));
        let remotes: BTreeMap<_, _> = ways.map(line).collect();
        let ways = remotes.values().map(|line| line.way.clone());
        let blobs = Blobs::new(ring.clone(), origins.clone(), ways);
        Self {
            ring,
            origins,
            replicas,
            wanted,
            remotes,
            blobs,
            changed,
            pausing: tokio::sync::Mutex::default(),
            began: Instant::now(),
        }
    }

    /// Sends, for ever.
    async fn run(self: Arc<Self>) {
        let inner = &self;
        let store = inner.ring.here();
        while let Err(error) = store.note_new_rules(&inner.wanted).await {
            tracing::error!(%error, "what other clusters lack cannot be written down");
            tokio::time::sleep(READ).await;
        }
        loop {
            match store.paused().await {
                Ok(paused) => break inner.pause(&paused),
                Err(error) => tracing::error!(%error, "it cannot be read what is paused"),
            }
            tokio::time::sleep(READ).await;
        }
        let lines = inner.remotes.values().cloned();
        let lines = lines.map(|line| inner.clone().keep_sending(line));
        futures::future::join_all(lines).await;
    }

    fn now(&self) -> Timestamp {
        let nanos = u64::try_from(self.began.elapsed().as_nanos());
        Timestamp::from_nanos(nanos.unwrap_or(u64::MAX))
    }

    fn pause(&self, paused: &BTreeSet<String>) {
        for (name, line) in &self.remotes {
            let is_paused = paused.contains(name);
            line.is_paused.store(is_paused, Ordering::Relaxed);
            line.regulate(self.now());
        }
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

    async fn send_one(self: Arc<Self>, line: Arc<Line>, name: String) {
        let result = match &line.way {
            Way::Cluster(remote) => self.send(remote, &name).await,
            Way::Registry(registry) => self.push(registry, &name).await,
            Way::Backend(backend) => self.write(backend, &name).await,
        };
        line.tell(&name, &result);
        let remote = line.way.name();
        let mut is_same = true;
        let sent = match result {
            Ok(known) => match self.ring.here().sent(remote, &name, known).await {
                Ok(same) => {
                    is_same = same;
                    Sent::Done
                }
                Err(_) => Sent::Failed,
            },
            Err(SendError::Held) => Sent::Away,
            Err(SendError::Away(reason)) => {
                tracing::debug!(remote, reason, "another cluster does not answer");
                Sent::Away
            }
            Err(error) => {
                tracing::warn!(remote, name, %error, "not sent to another cluster yet");
                Sent::Failed
            }
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

impl From<TagError> for SendError {
    fn from(error: TagError) -> Self {
        Self::Failed(error.to_string())
    }
}
