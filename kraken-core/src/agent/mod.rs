//! An agent: fetches blobs from its peers and passes them on.

mod builder;
pub(crate) mod driver;
mod follow;
pub(crate) mod hearsay;
mod limits;
mod link;
mod mend;
pub(crate) mod peers;
mod reader;
mod reports;
mod room;
mod rooms;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use kraken_net::trace;
use kraken_proto::history::{Neighbour, Transfer};
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use kraken_proto::{Bitfield, Digest, Extent, Namespace, PeerInfo, SwarmStats};
use kraken_storage::BlobStatus;
use tokio::sync::{Mutex, RwLock, mpsc, oneshot};
use tracing::Span;

pub use self::builder::{AgentBuilder, SpawnError};
pub use self::limits::Limits;
pub use self::reader::BlobReader;
use crate::dynamic::{DynDiscovery, DynStore, DynTransport};
use crate::error::{OpenError, ReadError};
use crate::metrics::Metrics;
use crate::tasks::Tasks;
use driver::Note;
use hearsay::{Sources, Told};

/// A host's part in all swarms. Cheap to clone; the last clone that is dropped ends it, and
/// [`Agent::shutdown`] ends it in good order.
///
/// ```no_run
/// # #[cfg(all(feature = "http", feature = "fs", feature = "quic"))]
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use kraken_core::net::{Identity, Quic, announce::TrackerClient, http::HttpClient};
/// use kraken_core::storage::FsStore;
/// use kraken_core::{Agent, Digest};
///
/// let identity = Identity::from_files("host.crt", "host.key", "ca.crt")?;
/// let http = HttpClient::new(Some(&identity))?;
/// let trackers = TrackerClient::new(["https://tracker.internal:7601"], http)?;
/// let store = FsStore::open("/var/lib/deployd/blobs").await?;
/// let quic = Quic::bind("0.0.0.0:7600".parse()?, &identity)?;
/// let agent = Agent::builder(store, quic).discovery(trackers).spawn()?;
///
/// let weights: Digest = "sha256:…".parse()?;
/// agent.fetch(&"models".parse()?, weights).await?; // whole, verified, and seeded from now on
/// agent.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    local: PeerInfo,
    store: Arc<dyn DynStore>,
    transport: Arc<dyn DynTransport>,
    discovery: Arc<dyn DynDiscovery>,
    metrics: Arc<Metrics>,
    notes: mpsc::Sender<Note>,
    tasks: Tasks,
    /// Whose turn it is to remove blobs from the store.
    room: Mutex<()>,
    /// Held for writing while a blob goes for others, for reading while one is being opened: what is
    /// found in the store stays there until its reader is known.
    leaving: RwLock<()>,
    patience: Duration,
    lookup_patience: Duration,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.transport.close();
        self.tasks.cancel();
    }
}

/// How long a shutdown waits for what is under way.
const DRAIN: Duration = Duration::from_secs(5);
/// How often it is looked whether everything is handed over.
const HAND_OVER_LOOK: Duration = Duration::from_millis(50);

impl Agent {
    /// Starts to put an agent together.
    pub fn builder(
        store: impl kraken_storage::PieceStore,
        transport: impl kraken_net::Transport,
    ) -> AgentBuilder {
        AgentBuilder::new(store, transport)
    }

    /// This host as its peers see it.
    pub fn local(&self) -> &PeerInfo {
        &self.inner.local
    }

    /// What this host counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// How much of the network this host may take.
    pub fn limits(&self) -> Limits {
        Limits::of(self.inner.transport.throttle())
    }

    /// Changes the limits from now on, while transfers run.
    pub fn set_limits(&self, limits: Limits) {
        limits.apply(self.inner.transport.throttle());
    }

    /// Opens a blob of no particular namespace: see [`Agent::open_in`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(&self, digest: Digest) -> Result<BlobReader, OpenError> {
        self.open_in(&Namespace::default(), digest).await
    }

    /// Opens a blob: returns once its length and pieces are known, while the swarm fetches it. The
    /// blob is fetched to its end also when the reader is dropped, and seeded from then on; to fetch one
    /// ahead of its use is to open it. [`Agent::pause`] stops a fetch.
    ///
    /// A store that is full makes room first: blobs go that nobody reads, and of those the ones that
    /// were not read for the longest time.
    ///
    /// # Errors
    /// [`OpenError::NotFound`] when it exists nowhere; nothing is kept then. [`OpenError::Store`]
    /// with [`StoreError::Full`](kraken_storage::StoreError::Full) when no room can be made.
    pub async fn open_in(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<BlobReader, OpenError> {
        self.open_as(namespace, digest, Extent::Whole).await
    }

    /// Opens a blob of which only parts are wanted: what its readers ask for is fetched, and ahead of
    /// those that read forward some more; not the rest, unless the blob is opened by
    /// [`Agent::open_in`] as well. What is here is passed on to peers.
    ///
    /// When no tracker confirms what peers say of the blob, all of it is fetched: its last piece alone
    /// proves it then.
    ///
    /// # Errors
    /// As of [`Agent::open_in`].
    pub async fn open_parts(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<BlobReader, OpenError> {
        self.open_as(namespace, digest, Extent::Parts).await
    }

    async fn open_as(
        &self,
        namespace: &Namespace,
        digest: Digest,
        extent: Extent,
    ) -> Result<BlobReader, OpenError> {
        loop {
            let told = match self.inner.store.status(digest).await? {
                BlobStatus::Sealed { meta } => Told::surely(meta),
                // Who said so in an earlier life is not known any more.
                BlobStatus::Partial { meta, .. } => Told {
                    // Peers tell whole ones only.
                    is_hearsay: meta.is_whole(),
                    meta,
                },
                BlobStatus::Absent => self.metainfo(namespace, digest).await?,
            };
            if told.is_hearsay
                && let BlobStatus::Partial { meta, .. } = self.inner.store.status(digest).await?
                && !told.meta.continues(&meta)
            {
                // Somebody else knew better meanwhile.
                continue;
            }
            self.open_in_store(&told.meta).await?;
            let _stays = self.inner.leaving.read().await;
            let (meta, have) = match self.inner.store.status(digest).await? {
                // It went for another before this.
                BlobStatus::Absent => continue,
                BlobStatus::Sealed { meta } => {
                    let have = Bitfield::full(meta.piece_count());
                    (meta, have)
                }
                BlobStatus::Partial { meta, have } => (meta, have),
            };
            let is_hearsay = told.is_hearsay || !told.meta.continues(&meta);
            let told = Told { meta, is_hearsay };
            return self.join(namespace, told, (have, extent)).await;
        }
    }

    /// Joins the swarm of a blob that the store has room for.
    async fn join(
        &self,
        namespace: &Namespace,
        told: Told,
        (have, extent): (Bitfield, Extent),
    ) -> Result<BlobReader, OpenError> {
        let meta = told.meta.clone();
        if have.is_full() {
            // The last piece was written before a crash, or there is none: nothing will come.
            self.inner.store.seal(meta.digest()).await?;
        }
        let (reply, answer) = oneshot::channel();
        let namespace = namespace.clone();
        let note = Note::Open {
            told,
            namespace,
            have,
            ingest: false,
            extent,
            request: if trace::is_within() {
                Span::current()
            } else {
                Span::none()
            },
            reply,
        };
        self.inner
            .notes
            .send(note)
            .await
            .map_err(|_| OpenError::Stopped)?;
        let progress = answer.await.map_err(|_| OpenError::Stopped)?;
        let (store, notes) = (self.inner.store.clone(), self.inner.notes.clone());
        Ok(BlobReader::new(
            meta,
            store,
            progress,
            notes,
            self.inner.patience,
        ))
    }

    /// The blob's length, without fetching it; `None` when it exists nowhere.
    ///
    /// # Errors
    /// [`OpenError`] when nobody who could know answers.
    pub async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, OpenError> {
        match self.inner.store.status(digest).await? {
            BlobStatus::Sealed { meta } | BlobStatus::Partial { meta, .. } => {
                Ok(Some(meta.length()))
            }
            BlobStatus::Absent => match self.metainfo(namespace, digest).await {
                Ok(told) => Ok(Some(told.meta.length())),
                Err(OpenError::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Fetches a blob to its end.
    ///
    /// # Errors
    /// [`FetchError`]: as of [`Agent::open_in`], or what kept it from completing.
    pub async fn fetch(&self, namespace: &Namespace, digest: Digest) -> Result<(), FetchError> {
        let reader = self.open_in(namespace, digest).await?;
        Ok(reader.complete().await?)
    }

    /// Stops fetching a blob that is not whole: its readers get [`ReadError::Paused`]. The pieces that
    /// came stay in the store, and the next open goes on from there. Nothing happens to a blob that is
    /// whole, or that nobody opened.
    ///
    /// ```no_run
    /// # async fn example(agent: kraken_core::Agent, weights: kraken_core::Digest) -> Result<(), Box<dyn std::error::Error>> {
    /// let models = "models".parse()?;
    /// let minute = std::time::Duration::from_secs(60);
    /// match tokio::time::timeout(minute, agent.fetch(&models, weights)).await {
    ///     Ok(done) => done?,
    ///     // It would go on: only who waits for it is gone.
    ///     Err(_) => agent.pause(weights).await?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`OpenError::Stopped`].
    pub async fn pause(&self, digest: Digest) -> Result<(), OpenError> {
        self.told(|reply| Note::Pause { digest, reply }).await
    }

    /// Leaves the blob's swarm and removes it from the store. Readers of it get [`ReadError::Gone`].
    ///
    /// # Errors
    /// The store refused; the swarm is left all the same.
    pub async fn forget(&self, digest: Digest) -> Result<(), OpenError> {
        self.leave(digest).await?;
        self.inner.store.remove(digest).await?;
        // A peer may have asked for it in between, and found it in the store.
        self.leave(digest).await
    }

    /// Where a blob's bytes came from since this process started; `None` when it is in no swarm.
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

    /// Seeds everything that the store holds whole. Called once after a restart, so that peers
    /// find this host again.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn seed_all(&self) -> Result<usize, OpenError> {
        let mut count = 0;
        for digest in self.inner.store.list().await? {
            match self.open(digest).await {
                Ok(_) => count += 1,
                Err(OpenError::Stopped) => return Err(OpenError::Stopped),
                Err(error) => tracing::error!(%digest, %error, "a blob is not seeded"),
            }
        }
        Ok(count)
    }

    /// Whether the agent runs: false once it has been shut down or its driver has failed.
    pub async fn alive(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        let digest = Digest::from_bytes([0; 32]);
        let asked = self
            .inner
            .notes
            .send(Note::Stats { digest, reply })
            .await
            .is_ok();
        asked && answer.await.is_ok()
    }

    /// Before [`Agent::shutdown`]: hands pieces over that nobody else around has to those that lack
    /// them, and waits until all are, or for `at_most`. Gives how many pieces are left: none in most
    /// cases, and at once, for others have them, or nobody lacks them.
    pub async fn hand_over(&self, at_most: Duration) -> usize {
        let until = tokio::time::Instant::now() + at_most;
        loop {
            let (reply, answer) = oneshot::channel();
            if self.inner.notes.send(Note::Leave { reply }).await.is_err() {
                return 0;
            }
            let left = answer.await.unwrap_or(0);
            if left == 0 || tokio::time::Instant::now() >= until {
                return left;
            }
            tokio::time::sleep(HAND_OVER_LOOK).await;
        }
    }

    /// Ends in good order: says goodbye to the tracker and the peers, then closes.
    pub async fn shutdown(&self) {
        let (reply, answer) = oneshot::channel();
        if self.inner.notes.send(Note::Stop { reply }).await.is_ok() {
            let _ = tokio::time::timeout(DRAIN, answer).await;
        }
        // The farewell to the tracker is a task of its own: give it a moment.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.inner.transport.close();
        self.inner.tasks.stop(DRAIN).await;
        if let Err(error) = self.inner.store.note_uses().await {
            tracing::warn!(%error, "the times of the last uses cannot be noted");
        }
    }

    async fn leave(&self, digest: Digest) -> Result<(), OpenError> {
        self.told(|reply| Note::Forget { digest, reply }).await
    }

    /// Tells the driver, and waits until it has done it.
    async fn told(&self, note: impl FnOnce(oneshot::Sender<()>) -> Note) -> Result<(), OpenError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.inner.notes.send(note(reply)).await;
        sent.map_err(|_| OpenError::Stopped)?;
        answer.await.map_err(|_| OpenError::Stopped)
    }

    /// As much of the metainfo as is known: an origin may still be taking the blob in.
    async fn metainfo(&self, namespace: &Namespace, digest: Digest) -> Result<Told, OpenError> {
        tokio::select! {
            biased;
            // Nothing would come of it.
            () = self.inner.notes.closed() => Err(OpenError::Stopped),
            told = self.look_up(namespace, digest) => told,
        }
    }

    async fn look_up(&self, namespace: &Namespace, digest: Digest) -> Result<Told, OpenError> {
        let sources = Sources {
            discovery: self.inner.discovery.clone(),
            notes: self.inner.notes.downgrade(),
        };
        let mut backoff = Backoff::new(
            Duration::from_millis(200),
            Duration::from_secs(3),
            Jitter::Equal,
        );
        let mut rng = Rng::seeded(u64::from_be_bytes(
            digest.as_bytes()[..8].try_into().expect("8 of 32 bytes"),
        ));
        let deadline = tokio::time::Instant::now() + self.inner.lookup_patience;
        loop {
            let error = match sources.first(namespace, digest).await {
                Ok(told) if told.meta.digest() == digest => return Ok(told),
                Ok(_) => {
                    let reason = "the metainfo that came is of another blob".to_string();
                    return Err(OpenError::Unavailable { digest, reason });
                }
                Err(error) => error,
            };
            let wait = backoff.delay(&mut rng);
            if !error.is_retryable() || tokio::time::Instant::now() + wait > deadline {
                return Err(OpenError::of(digest, error));
            }
            tokio::time::sleep(wait).await;
        }
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("local", &self.inner.local)
            .finish_non_exhaustive()
    }
}

/// Why a blob was not fetched to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It did not complete.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl FetchError {
    /// Whether fetching again may help. What came is not fetched twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open(error) => error.is_retryable(),
            Self::Read(error) => error.is_retryable(),
        }
    }
}
