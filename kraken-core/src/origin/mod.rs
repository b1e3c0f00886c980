//! An origin: takes blobs in, keeps them until they are in the backend and beyond, and seeds them.
//!
//! A commit is acknowledged when the blob is durable at a quorum of its owners and its write-back
//! is in the durable queue. A crash loses at most an upload that was not committed, and not that
//! either when the client goes on with it.

mod api;
mod asked;
mod builder;
mod coming;
mod copying;
mod counts;
mod fetches;
mod garbage;
mod ingest;
mod known;
mod letters;
mod mend;
mod pushed;
mod rebalance;
mod replicate;
mod room;
mod source;
mod writeback;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kraken_net::http::ApiError;
use kraken_net::origin::members::Members;
use kraken_proto::history::{Neighbour, Transfer};
use kraken_proto::{Digest, PeerInfo, SwarmStats};
use kraken_storage::BoxBackend;
use kraken_storage::queue::DurableQueue;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::builder::{OriginBuilder, OriginSpawnError};
pub use self::fetches::{Asker, Fetch, Step};
use crate::agent::Limits;
use crate::agent::driver::{self, Note};
use crate::dynamic::{DynTransport, DynUploadStore};
use crate::metrics::Metrics;
use crate::seldom::Seldom;
use crate::tasks::Tasks;
use coming::Coming;
use copying::Copying;
pub(crate) use counts::Counts;
use fetches::Fetches;
use known::KnownUploads;
pub use kraken_net::origin::RingMember;
use pushed::Pushed;
pub use rebalance::HealConfig;
use rebalance::{LetGo, Lists};

/// A seeder in front of the storage. Cheap to clone; [`Origin::shutdown`] ends it.
///
/// ```no_run
/// # #[cfg(feature = "quic")]
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use kraken_core::Origin;
/// use kraken_core::net::{Identity, Quic, http::serve, origin::router};
/// use kraken_core::storage::{DurableQueue, FsStore, OpendalBackend};
/// use tokio_util::sync::CancellationToken;
///
/// let identity = Identity::from_files("origin.crt", "origin.key", "ca.crt")?;
/// let store = FsStore::open("/var/lib/kraken/blobs").await?;
/// let queue = DurableQueue::open("/var/lib/kraken/queue.redb")?;
/// let storage = OpendalBackend::local_disk("/mnt/storage")?;
/// let quic = Quic::bind("0.0.0.0:7600".parse()?, &identity)?;
/// let origin = Origin::builder("origin-1", store, quic, storage, queue).spawn()?;
///
/// let routes = router(Arc::new(origin.clone()));
/// let server = serve("0.0.0.0:7605".parse()?, routes, Some(&identity), CancellationToken::new())?;
/// println!("pushes go to https://{}", server.local_addr());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Origin {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    local: PeerInfo,
    store: Arc<dyn DynUploadStore>,
    backend: BoxBackend,
    /// The waits of tasks that failed: the first, and the longest.
    retry: (Duration, Duration),
    /// When this origin was started.
    started: Instant,
    /// Since when a backend answers, if it does.
    answers: Mutex<Option<Instant>>,
    /// The blobs that were found damaged and come anew.
    mending: Mutex<HashSet<Digest>>,
    /// How much later than the one before it each owner looks whether a blob is in the backend.
    stagger: Duration,
    /// How long a task is tried before it is a dead letter.
    dead_after: Duration,
    transport: Arc<dyn DynTransport>,
    queue: Arc<DurableQueue>,
    /// Something was queued.
    queued: Notify,
    /// The origin ends: what is due is tried once more, then no task is begun.
    stopping: CancellationToken,
    /// The queue is not worked on any more.
    drained: Notify,
    members: Members,
    let_go: LetGo,
    pushed: Pushed,
    condemned: garbage::Condemned,
    lists: Lists,
    fetching: Mutex<HashMap<Digest, Coming>>,
    fetches: Fetches,
    known: KnownUploads,
    copying: Copying,
    /// When something that came was refused for want of room.
    refused: Mutex<Option<Instant>>,
    /// What was said of tasks that failed.
    seldom: Seldom,
    /// Whose turn it is to remove blobs from the store.
    room: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
    counts: Counts,
    notes: mpsc::Sender<Note>,
    tasks: Tasks,
}

/// Blobs that an origin holds and does not own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOver {
    /// How many there are.
    pub blobs: usize,
    /// How many of the first thousand are still to be written to the storage, or copied to an owner: they stay
    /// until that is done.
    pub unfinished: usize,
}

/// Of so many left over it is looked at what they wait for.
const LOOKED_AT: usize = 1000;

/// How long a shutdown waits for what is under way.
const DRAIN: Duration = Duration::from_secs(5);

impl Origin {
    /// Starts to put an origin together.
    pub fn builder(
        name: impl Into<String>,
        store: impl kraken_storage::UploadStore,
        transport: impl kraken_net::Transport,
        backend: impl kraken_storage::Backend,
        queue: DurableQueue,
    ) -> OriginBuilder {
        OriginBuilder::new(name.into(), store, transport, backend, queue)
    }

    /// This origin as its peers see it.
    pub fn local(&self) -> &PeerInfo {
        &self.inner.local
    }

    /// What this origin counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// How much of the network it may take for peers.
    pub fn limits(&self) -> Limits {
        Limits::of(self.inner.transport.throttle())
    }

    /// Changes the limits from now on, while transfers run.
    pub fn set_limits(&self, limits: Limits) {
        limits.apply(self.inner.transport.throttle());
    }

    /// How many blobs it began to read from its backend.
    pub fn backend_reads(&self) -> u64 {
        self.inner.counts.backend_reads.get()
    }

    /// Tasks that wait: write-backs, and copies for origins that were away.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub fn queued(&self) -> Result<u64, kraken_storage::queue::QueueError> {
        self.inner.queue.len()
    }

    /// What a blob's swarm has sent; `None` when no peer asked for it since the start.
    pub async fn stats(&self, digest: Digest) -> Option<SwarmStats> {
        let (reply, answer) = oneshot::channel();
        self.inner
            .notes
            .send(Note::Stats { digest, reply })
            .await
            .ok()?;
        answer.await.ok().flatten()
    }

    /// What is remembered of how a blob came: the last transfers of this process, the last one last.
    pub async fn transfers(&self, digest: Digest) -> Vec<Transfer> {
        driver::asked(&self.inner.notes, |reply| Note::Transfers { digest, reply }).await
    }

    /// What comes in at this moment, and who is connected.
    pub async fn under_way(&self) -> (Vec<Transfer>, Vec<Neighbour>) {
        driver::asked(&self.inner.notes, |reply| Note::UnderWay { reply }).await
    }

    /// The last times that this origin did not have a blob and fetched it: who asked, and where it turned
    /// to.
    pub fn fetches(&self, digest: Digest) -> Vec<Fetch> {
        self.inner.fetches.of(digest)
    }

    /// From now on these are the members of the ring, this one among them; the copies that others are
    /// to have now are made by them, bit by bit.
    ///
    /// # Errors
    /// [`OriginSpawnError::NotInRing`]; nothing changes then.
    pub fn set_ring(
        &self,
        members: impl IntoIterator<Item = RingMember>,
    ) -> Result<(), OriginSpawnError> {
        let members: Vec<_> = members.into_iter().collect();
        if members.iter().all(|member| member.name != self.inner.name) {
            return Err(OriginSpawnError::NotInRing(self.inner.name.clone()));
        }
        self.inner.members.set(&members);
        Ok(())
    }

    /// The other origins that can take its share, now or when they answer again: all in the ring that do not
    /// leave it themselves. Without any, what it has stays with it.
    pub fn heirs(&self) -> Vec<String> {
        self.inner.members.heirs()
    }

    /// Hands its share over to the others and lets go of what they have, or takes it back. It goes on
    /// to serve what it has. [`Origin::left_to_hand_over`] says when it can be stopped for good.
    pub fn leave_ring(&self, is_leaving: bool) {
        self.inner.members.leave(is_leaving);
    }

    /// Whether it hands its share over.
    pub fn is_leaving(&self) -> bool {
        self.inner.members.is_leaving()
    }

    /// What it holds and does not own, as it leaves or others have come.
    ///
    /// # Errors
    /// The store or the queue cannot be read.
    pub async fn left_to_hand_over(&self) -> Result<LeftOver, ApiError> {
        let mut strays = self.inner.strays().await?;
        let blobs = strays.len();
        strays.truncate(LOOKED_AT);
        let unfinished = self.inner.unfinished(strays).await;
        let unfinished = unfinished.map_err(ingest::store_error)?.len();
        Ok(LeftOver { blobs, unfinished })
    }

    /// The other origins that do not answer at this moment. While there are any, nothing is let go.
    pub fn away(&self) -> Vec<String> {
        self.inner.members.away()
    }

    /// Ends in good order. Tasks that are due or under way get a few seconds; those that wait stay in
    /// the queue for the next start.
    pub async fn shutdown(&self) {
        self.inner.stopping.cancel();
        let drained = self.inner.drained.notified();
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::info!("tasks under way go on after the next start");
        }
        let (reply, answer) = oneshot::channel();
        if self.inner.notes.send(Note::Stop { reply }).await.is_ok() {
            let _ = tokio::time::timeout(DRAIN, answer).await;
        }
        self.inner.transport.close();
        self.inner.tasks.stop(DRAIN).await;
        if let Err(error) = self.inner.store.note_uses().await {
            tracing::warn!(%error, "the times of the last uses cannot be noted");
        }
    }
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin")
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn mending(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.mending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetching(&self) -> MutexGuard<'_, HashMap<Digest, Coming>> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
