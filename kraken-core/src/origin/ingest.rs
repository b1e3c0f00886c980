//! Blobs that come in from the backend or another origin, piece by piece.
//!
//! However many ask at once, a blob is taken in once, and to its end also when nobody waits any more.
//! Each piece is served as soon as it is written: to peers, to other origins and to whoever reads.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kraken_net::http::{ApiError, ByteStream};
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use kraken_proto::{Bitfield, Digest, MetaInfo, Namespace};
use kraken_storage::{BlobStatus, StoreError};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;

use super::Inner;
use super::coming::{Coming, Said};
use crate::agent::driver::{Note, Progress};

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
    pub(super) fn take_in(self: &Arc<Self>, namespace: &Namespace, digest: Digest) -> Coming {
        let mut fetching = self.fetching();
        let coming = fetching.entry(digest).or_insert_with(|| {
            let (said, coming) = Coming::begin();
            let (inner, namespace) = (self.clone(), namespace.clone());
            self.tasks.spawn(async move {
                let end = inner.ingest(&namespace, digest, &said).await;
                inner.ended(digest, end, &said).await;
            });
            coming
        });
        coming.clone()
    }

    async fn ended(&self, digest: Digest, end: Result<(), ApiError>, said: &watch::Sender<Said>) {
        if end.is_err() {
            self.leave(digest).await;
        }
        let damaged = matches!(end, Err(ApiError::Damaged(_)));
        // Somebody may have pushed it meanwhile: a sealed one stays.
        if damaged && let Err(error) = self.store.discard(digest).await {
            tracing::error!(%digest, %error, "a damaged blob stays in the store");
        }
        if let Err(error) = &end {
            tracing::warn!(%digest, %error, "a blob did not come in");
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
            if ingest.as_ref().map(Ingest::rest) != before {
                backoff.reset();
            }
            let wait = backoff.delay(&mut rng);
            if !error.is_retryable() || backoff.failures() >= ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(%digest, %error, "a blob stopped coming in, trying again");
            sleep(wait).await;
        }
        ingest.expect("it has ended").sealed().await
    }
}

/// What is still to come of a blob, in bytes.
fn rest_of(meta: &MetaInfo, have: &Bitfield) -> std::ops::Range<u64> {
    let next = have.missing().next().unwrap_or(have.len());
    meta.piece_range(next).start..meta.length()
}

/// One blob on its way in.
struct Ingest<'a> {
    inner: &'a Inner,
    said: &'a watch::Sender<Said>,
    progress: watch::Receiver<Progress>,
    meta: MetaInfo,
    /// The piece that comes next, and what has come of it.
    piece: u32,
    begun: Vec<u8>,
}

impl<'a> Ingest<'a> {
    /// Makes room for the blob, or finds what came of it before, and tells the swarm.
    async fn begin(
        inner: &'a Inner,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        said: &'a watch::Sender<Said>,
    ) -> Result<Self, ApiError> {
        let open = MetaInfo::open(digest, length);
        let open = open.map_err(|error| ApiError::Damaged(error.to_string()))?;
        let have = inner.store.open(open.clone()).await.map_err(store_error)?;
        let meta = match inner.store.status(digest).await.map_err(store_error)? {
            // The store may know more than its length.
            BlobStatus::Partial { meta, .. } => meta,
            _ => open,
        };
        let piece = have.missing().next().unwrap_or(have.len());
        if have.is_full() && meta.is_whole() {
            // Nothing will come that could tell the driver to do it.
            inner.store.seal(digest).await.map_err(store_error)?;
        }
        // A swarm of it can only be one that outlived its files.
        inner.leave(digest).await;
        let (reply, answer) = oneshot::channel();
        let note = Note::Open {
            meta: meta.clone(),
            namespace: namespace.clone(),
            have,
            ingest: true,
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
            piece,
            begun: Vec::new(),
        };
        ingest.say();
        Ok(ingest)
    }

    /// The bytes that have not come.
    fn rest(&self) -> std::ops::Range<u64> {
        let start = self.meta.piece_range(self.piece).start + self.begun.len() as u64;
        start..self.meta.length()
    }

    /// Tells how far it is. A whole metainfo says that the blob is right, which shows with the last
    /// piece.
    fn say(&self) {
        self.said.send_modify(|said| {
            said.meta = self.meta.unfinished();
            said.pieces = self.piece;
        });
    }

    /// Takes what comes from the byte on that is missing.
    async fn run(&mut self, mut body: ByteStream) -> Result<(), ApiError> {
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(|error| ApiError::Unavailable(error.to_string()))?;
            while !chunk.is_empty() {
                let size = self.meta.piece_size(self.piece) as usize;
                if size == 0 {
                    let length = self.meta.length();
                    let what = format!("more than the {length} bytes came that were announced");
                    return Err(ApiError::Damaged(what));
                }
                self.begun.reserve_exact(size - self.begun.len());
                let part = chunk.split_to(chunk.len().min(size - self.begun.len()));
                self.begun.extend_from_slice(&part);
                if self.begun.len() == size {
                    self.finish_piece().await?;
                }
            }
        }
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(());
        }
        let what = format!("it ended at byte {} of {}", rest.start, rest.end);
        Err(ApiError::Unavailable(what))
    }

    /// Proves, keeps and announces the piece that has come.
    async fn finish_piece(&mut self) -> Result<(), ApiError> {
        let (data, piece) = (Bytes::from(std::mem::take(&mut self.begun)), self.piece);
        let (meta, bytes) = (self.meta.clone(), data.clone());
        let proved = tokio::task::spawn_blocking(move || proved(meta, piece, &bytes)).await;
        let failed = || ApiError::Internal("a piece could not be hashed".into());
        let meta = proved.map_err(|_| failed())??;
        let (store, digest) = (&self.inner.store, meta.digest());
        if meta != self.meta {
            store.open(meta.clone()).await.map_err(store_error)?;
        }
        store
            .write(digest, piece, data)
            .await
            .map_err(store_error)?;
        self.meta = meta.clone();
        self.piece += 1;
        let _ = self.inner.notes.send(Note::Ingested { meta, piece }).await;
        self.say();
        Ok(())
    }

    /// Waits until the blob is durable.
    async fn sealed(mut self) -> Result<(), ApiError> {
        let settled = |progress: &Progress| progress.sealed || progress.failed.is_some();
        match self.progress.wait_for(settled).await {
            Ok(progress) => match &progress.failed {
                Some(reason) => Err(ApiError::Unavailable(reason.clone())),
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
            "the bytes in the storage do not have the digest {}",
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
        StoreError::Full => ApiError::Unavailable(error.to_string()),
        other => ApiError::Internal(other.to_string()),
    }
}
