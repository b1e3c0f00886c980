//! Blobs that come in from the backend or another origin, piece by piece.
//!
//! However many ask at once, a blob is taken in once, and to its end also when nobody waits any more.
//! Each piece is served as soon as it is written: to peers, to other origins and to whoever reads.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use kraken_net::http::{ApiError, ByteStream};
use kraken_net::trace_span;
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use kraken_proto::{Bitfield, Digest, Extent, MetaInfo, Namespace};
use kraken_storage::{BlobStatus, Need, StoreError};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::sleep;
use tracing::{Instrument as _, Span};

use super::Inner;
use super::coming::{Coming, Said};
use super::fetches::Asker;
use crate::agent::driver::{Note, Progress};
use crate::agent::hearsay::Told;
use crate::dynamic::DynUploadStore;

/// How often a source is looked for in vain before those who wait are told.
const ATTEMPTS: u32 = 5;
/// The waits between them.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// How long it is remembered that a blob is damaged: whoever follows it shall hear of it, and not
/// have it read again.
const REMEMBERED: Duration = Duration::from_secs(10);

impl Inner {
    /// The metainfo of a blob that is whole here.
    pub(super) async fn sealed(&self, digest: Digest) -> Result<Option<MetaInfo>, ApiError> {
        match self.store.status(digest).await {
            Ok(BlobStatus::Sealed { meta }) => Ok(Some(meta)),
            Ok(_) => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    /// A blob that is not whole here, on its way in from now on.
    pub(super) fn take_in(
        self: &Arc<Self>,
        namespace: &Namespace,
        digest: Digest,
        asked_by: Asker,
    ) -> Coming {
        let mut fetching = self.fetching();
        let coming = fetching.entry(digest).or_insert_with(|| {
            let (said, coming) = Coming::begin();
            self.fetches.begin(namespace, digest, asked_by);
            let (inner, namespace) = (self.clone(), namespace.clone());
            let span =
                trace_span!("take in", kraken.digest = %digest, kraken.namespace = %namespace);
            self.tasks.spawn(async move {
                let ingest = inner.ingest(&namespace, digest, &said);
                let end = ingest.instrument(span).await;
                let failed = end.as_ref().err().map(ToString::to_string);
                inner.fetches.end(digest, failed);
                inner.ended(digest, end, &said).await;
            });
            coming
        });
        coming.clone()
    }

    pub(super) async fn ended(
        &self,
        digest: Digest,
        end: Result<(), ApiError>,
        said: &watch::Sender<Said>,
    ) {
        if end.is_err() {
            self.leave(digest).await;
        }
        let damaged = matches!(end, Err(ApiError::Damaged(_)));
        // Somebody may have pushed it meanwhile: a sealed one stays.
        if damaged && let Err(error) = self.store.discard(digest).await {
            tracing::error!(%digest, %error, "a damaged blob stays in the store");
        }
        match &end {
            Ok(()) => {}
            // Whoever asked is told, and may have asked for anything.
            Err(ApiError::NotFound) => tracing::debug!(%digest, "a blob is nowhere"),
            Err(error) => tracing::warn!(%digest, %error, "a blob did not come in"),
        }
        said.send_modify(|said| said.end = Some(end));
        if damaged {
            sleep(REMEMBERED).await;
        }
        self.fetching().remove(&digest);
    }

    /// Leaves the blob's swarm.
    pub(super) async fn leave(&self, digest: Digest) {
        let (reply, left) = oneshot::channel();
        if self
            .notes
            .send(Note::Forget { digest, reply })
            .await
            .is_ok()
        {
            let _ = left.await;
        }
    }

    async fn ingest(
        &self,
        namespace: &Namespace,
        digest: Digest,
        said: &watch::Sender<Said>,
    ) -> Result<(), ApiError> {
        let kept = match self.store.status(digest).await.map_err(store_error)? {
            BlobStatus::Sealed { meta } => {
                said.send_modify(|said| said.pieces = meta.piece_count());
                said.send_modify(|said| said.meta = Some(meta));
                return Ok(());
            }
            BlobStatus::Partial { meta, have } => Some((meta, have)),
            BlobStatus::Absent => None,
        };
        let mut backoff = Backoff::new(RETRY, RETRY_MAX, Jitter::Equal);
        let mut rng = Rng::seeded(u64::from(digest.as_bytes()[0]));
        let mut ingest = None;
        loop {
            let rest = ingest.as_ref().map(Ingest::rest);
            let rest = rest.or_else(|| kept.as_ref().map(|(meta, have)| rest_of(meta, have)));
            let before = rest.clone();
            let from = rest.as_ref().map_or(0, |rest| rest.start);
            let came = async {
                let source = self.source(namespace, digest, rest).await?;
                if ingest.is_none() {
                    let length = source.length;
                    ingest = Some(Ingest::begin(self, namespace, digest, length, said).await?);
                }
                let ingest = ingest.as_mut().expect("it has begun");
                if ingest.rest().start != from {
                    // What was kept is of another length: these bytes belong elsewhere.
                    let what = "what was kept of the blob does not fit its length";
                    return Err(ApiError::Unavailable(what.into()));
                }
                ingest.run(source.body).await
            };
            let error = match came.await {
                Ok(()) => break,
                Err(error) => error,
            };
            // Nobody has a byte yet, and whoever asked can ask again: the storage has had its time.
            if ingest.is_none() && matches!(error, ApiError::Behind { .. }) {
                return Err(error);
            }
            if ingest.as_ref().map(Ingest::rest) != before {
                backoff.reset();
            }
            let wait = backoff.delay(&mut rng);
            if !error.is_retryable() || backoff.failures() >= ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(%digest, %error, "a blob stopped coming in, trying again");
            let again = format!("it stopped coming, and is tried again: {error}");
            self.fetches.step(digest, again);
            sleep(wait).await;
        }
        ingest.expect("it has ended").sealed().await
    }
}

/// What is still to come of a blob, in bytes.
pub(super) fn rest_of(meta: &MetaInfo, have: &Bitfield) -> std::ops::Range<u64> {
    let next = have.missing().next().unwrap_or(have.len());
    meta.piece_range(next).start..meta.length()
}

/// One blob on its way in. One piece is proved and written while the next one comes.
pub(super) struct Ingest<'a> {
    inner: &'a Inner,
    said: &'a watch::Sender<Said>,
    progress: watch::Receiver<Progress>,
    /// What is known of the blob with the pieces that are in the store.
    meta: MetaInfo,
    /// So many pieces are in the store, from the first on.
    stored: u32,
    /// The piece after them.
    storing: Option<JoinHandle<Result<Stored, ApiError>>>,
    /// What has come of the piece behind those.
    begun: BytesMut,
    /// Memory of a piece that was written, to be used again.
    spare: BytesMut,
}

/// A piece that is in the store: the metainfo with its proof, and the memory that it was in.
struct Stored {
    meta: MetaInfo,
    memory: Option<BytesMut>,
}

impl<'a> Ingest<'a> {
    /// Makes room for the blob, or finds what came of it before, and tells the swarm.
    pub(super) async fn begin(
        inner: &'a Inner,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        said: &'a watch::Sender<Said>,
    ) -> Result<Self, ApiError> {
        let open = MetaInfo::open(digest, length);
        let open = open.map_err(|error| ApiError::Damaged(error.to_string()))?;
        let store = &inner.store;
        let have = inner
            .with_room(Need::blob(length), || store.open(open.clone()))
            .await;
        let have = have.map_err(store_error)?;
        let meta = match inner.store.status(digest).await.map_err(store_error)? {
            // The store may know more than its length.
            BlobStatus::Partial { meta, .. } => meta,
            _ => open,
        };
        let stored = have.missing().next().unwrap_or(have.len());
        if have.is_full() && meta.is_whole() {
            // Nothing will come that could tell the driver to do it.
            inner.store.seal(digest).await.map_err(store_error)?;
        }
        // A swarm of it can only be one that outlived its files.
        inner.leave(digest).await;
        let (reply, answer) = oneshot::channel();
        let note = Note::Open {
            told: Told::surely(meta.clone()),
            namespace: namespace.clone(),
            have,
            ingest: true,
            extent: Extent::Whole,
            // Its way in is told by whatever takes it in.
            request: Span::none(),
            reply,
        };
        let stopped = || ApiError::Unavailable("the origin stops".into());
        inner.notes.send(note).await.map_err(|_| stopped())?;
        let progress = answer.await.map_err(|_| stopped())?;
        let ingest = Self {
            inner,
            said,
            progress,
            meta,
            stored,
            storing: None,
            begun: BytesMut::new(),
            spare: BytesMut::new(),
        };
        ingest.say();
        Ok(ingest)
    }

    /// The piece that comes.
    fn piece(&self) -> u32 {
        self.stored + u32::from(self.storing.is_some())
    }

    /// The bytes that have not come.
    pub(super) fn rest(&self) -> std::ops::Range<u64> {
        let start = self.meta.piece_range(self.piece()).start + self.begun.len() as u64;
        start..self.meta.length()
    }

    /// Tells how far it is. A whole metainfo says that the blob is right, which shows with the last
    /// piece.
    fn say(&self) {
        self.said.send_modify(|said| {
            said.meta = self.meta.unfinished();
            said.pieces = self.stored;
        });
    }

    /// Takes what comes from the byte on that is missing.
    pub(super) async fn run(&mut self, mut body: ByteStream) -> Result<(), ApiError> {
        let came = self.take(&mut body).await;
        // Also behind a break: what has come whole is kept.
        self.settle().await?;
        came?;
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(());
        }
        let what = format!("it ended at byte {} of {}", rest.start, rest.end);
        Err(ApiError::Unavailable(what))
    }

    async fn take(&mut self, body: &mut ByteStream) -> Result<(), ApiError> {
        while let Some(mut chunk) = self.next_chunk(body).await? {
            while !chunk.is_empty() {
                let size = self.meta.piece_size(self.piece()) as usize;
                if size == 0 {
                    let length = self.meta.length();
                    let what = format!("more than the {length} bytes came that were announced");
                    return Err(ApiError::Damaged(what));
                }
                self.begun.reserve(size - self.begun.len());
                let part = chunk.split_to(chunk.len().min(size - self.begun.len()));
                self.begun.extend_from_slice(&part);
                if self.begun.len() == size {
                    self.piece_came().await?;
                }
            }
        }
        Ok(())
    }

    /// The next bytes; a piece that is written meanwhile is announced at once.
    async fn next_chunk(&mut self, body: &mut ByteStream) -> Result<Option<Bytes>, ApiError> {
        let chunk = loop {
            let Some(storing) = &mut self.storing else {
                break body.next().await;
            };
            tokio::select! {
                joined = storing => {
                    self.storing = None;
                    self.settled(joined).await?;
                }
                chunk = body.next() => break chunk,
            }
        };
        let failed = |error: std::io::Error| ApiError::Unavailable(error.to_string());
        chunk.transpose().map_err(failed)
    }

    /// Begins to prove and keep the piece that has come, as soon as the one before it is there: its
    /// proof begins where that one's ends.
    async fn piece_came(&mut self) -> Result<(), ApiError> {
        let piece = self.piece();
        let data = std::mem::take(&mut self.begun).freeze();
        self.settle().await?;
        self.begun = std::mem::take(&mut self.spare);
        let (store, meta) = (self.inner.store.clone(), self.meta.clone());
        self.storing = Some(tokio::spawn(store_piece(store, meta, piece, data)));
        Ok(())
    }

    /// Waits for the piece that is being written.
    async fn settle(&mut self) -> Result<(), ApiError> {
        match self.storing.take() {
            Some(storing) => {
                let joined = storing.await;
                self.settled(joined).await
            }
            None => Ok(()),
        }
    }

    /// Announces the piece that was written. If it cannot be kept, it and what has come behind it has
    /// to come again.
    async fn settled(
        &mut self,
        joined: Result<Result<Stored, ApiError>, JoinError>,
    ) -> Result<(), ApiError> {
        let failed = |_| ApiError::Internal("a piece could not be hashed and written".into());
        let stored = joined.map_err(failed).and_then(|stored| stored);
        let Stored { meta, memory } = stored.inspect_err(|_| self.begun.clear())?;
        self.spare = memory.unwrap_or_default();
        self.meta = meta.clone();
        let piece = self.stored;
        self.stored += 1;
        let _ = self.inner.notes.send(Note::Ingested { meta, piece }).await;
        self.say();
        Ok(())
    }

    /// Waits until the blob is durable.
    pub(super) async fn sealed(mut self) -> Result<(), ApiError> {
        let settled = |progress: &Progress| progress.sealed || progress.failed.is_some();
        match self.progress.wait_for(settled).await {
            Ok(progress) => match &progress.failed {
                Some(error) => Err(ApiError::Unavailable(error.to_string())),
                None => {
                    let meta = self.meta.clone();
                    self.said.send_modify(|said| said.meta = Some(meta));
                    Ok(())
                }
            },
            Err(_) => Err(ApiError::Unavailable("the origin stops".into())),
        }
    }
}

/// Proves and keeps a piece.
async fn store_piece(
    store: Arc<dyn DynUploadStore>,
    before: MetaInfo,
    piece: u32,
    data: Bytes,
) -> Result<Stored, ApiError> {
    let (known, bytes) = (before.clone(), data.clone());
    let proof = tokio::task::spawn_blocking(move || proved(known, piece, &bytes)).await;
    let failed = |_| ApiError::Internal("a piece could not be hashed".into());
    let meta = proof.map_err(failed)??;
    let digest = meta.digest();
    if meta != before {
        store.open(meta.clone()).await.map_err(store_error)?;
    }
    let written = store.write(digest, piece, data.clone()).await;
    written.map_err(store_error)?;
    // A store may still hold on to the bytes; then others are taken for the next piece.
    let memory = data.try_into_mut().ok().map(|mut memory| {
        memory.clear();
        memory
    });
    Ok(Stored { meta, memory })
}

/// The metainfo with the proof of `piece`: one state more, or the same when it proves it already.
fn proved(meta: MetaInfo, piece: u32, bytes: &[u8]) -> Result<MetaInfo, ApiError> {
    if piece >= meta.provable() {
        let state = meta.state_before(piece).advance(bytes);
        return meta
            .continued([state])
            .map_err(|error| ApiError::Internal(error.to_string()));
    }
    match meta.verify(piece, bytes) {
        Ok(()) => Ok(meta),
        Err(_) => Err(ApiError::Damaged(format!(
            "the bytes that came do not have the digest {}",
            meta.digest()
        ))),
    }
}

/// A store's refusal, as an answer.
pub(super) fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::UploadUnknown(_) => ApiError::NotFound,
        StoreError::UploadOffset { len, .. } => ApiError::RangeInvalid { len },
        StoreError::DigestMismatch { .. } => ApiError::BadRequest(error.to_string()),
        StoreError::Full => ApiError::Full(error.to_string()),
        other => ApiError::Internal(other.to_string()),
    }
}
