//! Uploads of which digest and length are known before their bytes come: the blob is there for others
//! while it comes, as one from the backend is.
//!
//! The bytes go straight into the pieces of the blob, which are proved, kept and announced one by one.
//! The last bytes are held back until the commit: only it may make the blob whole, when the tasks
//! that the blob needs are durable. Such an upload's id says what it is of, so that it goes on after a
//! restart, at the piece that was not whole. If it stands still, whoever waits for the blob is told;
//! what has come is kept.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kraken_net::http::{ApiError, ByteStream};
use kraken_net::trace_span;
use kraken_proto::{Digest, MetaInfo, Namespace};
use kraken_storage::{Backend as _, BlobStatus};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc, watch};
use tokio::time::timeout;
use tracing::Instrument as _;

use super::Inner;
use super::coming::{Coming, Said};
use super::ingest::{Ingest, rest_of, store_error};

/// How long those who read along wait for an upload's next bytes.
const IDLE: Duration = Duration::from_secs(60);
/// Portions of an upload, of up to 1 MiB each, between the network and the pieces.
const AHEAD: usize = 4;

/// What such an upload is of, as its id says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct KnownId {
    pub(super) digest: Digest,
    pub(super) length: u64,
    /// Tells two attempts apart.
    attempt: u64,
}

impl KnownId {
    fn new(digest: Digest, length: u64) -> Self {
        let attempt = rand::random();
        Self {
            digest,
            length,
            attempt,
        }
    }
}

impl std::fmt::Display for KnownId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            digest,
            length,
            attempt,
        } = self;
        write!(f, "{}-{length}-{attempt:016x}", digest.hex())
    }
}

impl FromStr for KnownId {
    type Err = ();

    /// Ids of other uploads are other words.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split('-');
        let (Some(digest), Some(length), Some(attempt), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(());
        };
        let id = Self {
            digest: Digest::from_hex(digest).map_err(drop)?,
            length: length.parse().map_err(drop)?,
            attempt: u64::from_str_radix(attempt, 16).map_err(drop)?,
        };
        // One spelling each.
        (id.to_string() == text).then_some(id).ok_or(())
    }
}

/// The uploads whose bytes come.
#[derive(Default)]
pub(super) struct KnownUploads(Mutex<HashMap<KnownId, Arc<AsyncMutex<Feed>>>>);

/// One of them.
struct Feed {
    /// What has been taken.
    offset: u64,
    /// The last of it, which is held back.
    tail: Bytes,
    /// Where all before that goes; none once it is committed.
    pieces: Option<mpsc::Sender<Bytes>>,
    coming: Coming,
    /// Nobody will go on with it: what has come is to go.
    given_up: Arc<AtomicBool>,
}

impl KnownUploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<KnownId, Arc<AsyncMutex<Feed>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: KnownId) {
        self.lock().remove(&id);
    }
}

impl Inner {
    /// Begins an upload of a blob; `None` when the blob is here, with another origin or in the backend, or
    /// on its way in, or that cannot be found out: then it can only be taken in as any other bytes.
    /// A push of wrong bytes must not take a good blob's place.
    pub(super) async fn known_start(
        self: &Arc<Self>,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
    ) -> Result<Option<KnownId>, ApiError> {
        if length == 0 || MetaInfo::open(digest, length).is_err() {
            return Ok(None);
        }
        if self.sealed(digest).await?.is_some() {
            return Ok(None);
        }
        let stored = self.backend.stat(namespace, digest).await;
        if !matches!(stored, Ok(None)) || self.find_at_peers(namespace, digest).await.0.is_some() {
            return Ok(None);
        }
        let id = KnownId::new(digest, length);
        Ok(self.known_begin(id, namespace, None).map(|_| id))
    }

    /// How much of it is here.
    pub(super) async fn known_len(&self, id: KnownId) -> Result<u64, ApiError> {
        let feed = self.known.lock().get(&id).cloned();
        if let Some(feed) = feed {
            return Ok(feed.lock().await.offset);
        }
        Ok(
            match self.store.status(id.digest).await.map_err(store_error)? {
                BlobStatus::Sealed { .. } => id.length,
                BlobStatus::Partial { meta, have } if meta.length() == id.length => {
                    rest_of(&meta, &have).start
                }
                _ => return Err(ApiError::NotFound),
            },
        )
    }

    /// Adds bytes and gives the new length.
    pub(super) async fn known_append(
        self: &Arc<Self>,
        id: KnownId,
        offset: u64,
        bytes: Bytes,
    ) -> Result<u64, ApiError> {
        let mut feed = self.feed(id).await?;
        if offset != feed.offset {
            return Err(ApiError::RangeInvalid { len: feed.offset });
        }
        let after = offset.saturating_add(bytes.len() as u64);
        if after > id.length {
            return Err(ApiError::BadRequest(format!(
                "the upload was announced as {} bytes, and {after} came",
                id.length
            )));
        }
        if bytes.is_empty() {
            return Ok(offset);
        }
        if !feed.tail.is_empty() {
            // Whoever gives up here has taken nothing.
            let pieces = feed.pieces.as_ref().ok_or(ApiError::NotFound)?;
            match pieces.clone().reserve_owned().await {
                Ok(room) => drop(room.send(std::mem::take(&mut feed.tail))),
                Err(_) => return Err(self.known_failed(id, &feed).await),
            }
        }
        feed.tail = bytes;
        feed.offset = after;
        Ok(after)
    }

    /// Lets the last bytes go, and waits until the blob is durable here. The tasks that it needs are
    /// durable already.
    pub(super) async fn known_finish(
        self: &Arc<Self>,
        id: KnownId,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        if digest != id.digest {
            return Err(ApiError::BadRequest(format!(
                "the upload was announced as {}, not as {digest}",
                id.digest
            )));
        }
        if let Some(meta) = self.sealed(digest).await? {
            self.known.forget(id);
            return Ok(meta);
        }
        let mut feed = self.feed(id).await?;
        if feed.offset < id.length {
            // It may have stood still for so long that only whole pieces were kept: go on there.
            return Err(ApiError::RangeInvalid { len: feed.offset });
        }
        let (tail, pieces) = (std::mem::take(&mut feed.tail), feed.pieces.take());
        if let Some(pieces) = pieces
            && !tail.is_empty()
        {
            // Whether they arrive shows below.
            let _ = pieces.send(tail).await;
        }
        let whole = feed.coming.clone().whole().await;
        drop(feed);
        self.known.forget(id);
        whole.map_err(refused)
    }

    /// Gives an upload up: what has come of the blob goes.
    pub(super) async fn known_abort(&self, id: KnownId) -> Result<(), ApiError> {
        let feed = self.known.lock().remove(&id);
        let Some(feed) = feed else { return Ok(()) };
        let coming = {
            let mut feed = feed.lock().await;
            feed.given_up.store(true, Ordering::SeqCst);
            feed.pieces = None;
            feed.coming.clone()
        };
        // Its end is an error, as the rest does not come.
        let _ = coming.whole().await;
        Ok(())
    }

    /// The upload, for one call at a time; after a restart it begins where its pieces end.
    async fn feed(self: &Arc<Self>, id: KnownId) -> Result<OwnedMutexGuard<Feed>, ApiError> {
        let known = self.known.lock().get(&id).cloned();
        if let Some(feed) = known {
            return Ok(feed.lock_owned().await);
        }
        let from = self.known_len(id).await?;
        let elsewhere = || {
            let what = "the blob comes in from elsewhere: begin a new upload";
            ApiError::Conflict(what.into())
        };
        let namespace = Namespace::default();
        let feed = self.known_begin(id, &namespace, Some(from));
        Ok(feed.ok_or_else(elsewhere)?.lock_owned().await)
    }

    /// Lets the blob come in from an upload: from its first byte, or behind what is there of it.
    fn known_begin(
        self: &Arc<Self>,
        id: KnownId,
        namespace: &Namespace,
        from: Option<u64>,
    ) -> Option<Arc<AsyncMutex<Feed>>> {
        let mut fetching = self.fetching();
        let Entry::Vacant(entry) = fetching.entry(id.digest) else {
            return None;
        };
        let (said, coming) = Coming::begin();
        let (pieces, came) = mpsc::channel(AHEAD);
        let given_up = Arc::new(AtomicBool::new(false));
        let feed = Arc::new(AsyncMutex::new(Feed {
            offset: from.unwrap_or(0),
            tail: Bytes::new(),
            pieces: Some(pieces),
            coming: entry.insert(coming).clone(),
            given_up: given_up.clone(),
        }));
        self.known.lock().insert(id, feed.clone());
        let (inner, namespace) = (self.clone(), namespace.clone());
        let span =
            trace_span!("take in", kraken.digest = %id.digest, kraken.namespace = %namespace);
        self.tasks.spawn(async move {
            let body = portions(came);
            let ingest = inner.known_ingest(&namespace, id, (from, body), &said);
            let end = ingest.instrument(span).await;
            // An upload that stood still goes on from what is kept.
            inner.known.forget(id);
            // Before anybody can begin to take the blob in anew.
            if end.is_err()
                && given_up.load(Ordering::SeqCst)
                && let Err(error) = inner.store.discard(id.digest).await
            {
                tracing::error!(digest = %id.digest, %error, "an upload that was given up stays in the store");
            }
            inner.ended(id.digest, end, &said).await;
        });
        Some(feed)
    }

    async fn known_ingest(
        &self,
        namespace: &Namespace,
        id: KnownId,
        (from, body): (Option<u64>, ByteStream),
        said: &watch::Sender<Said>,
    ) -> Result<(), ApiError> {
        if from.is_none() {
            // Of another attempt, or of a fetch: whether these bytes go on there nobody knows.
            self.store.discard(id.digest).await.map_err(store_error)?;
        }
        let mut ingest = Ingest::begin(self, namespace, id.digest, id.length, said).await?;
        if ingest.rest().start != from.unwrap_or(0) {
            let what = "what was kept of the upload is gone";
            return Err(ApiError::Unavailable(what.into()));
        }
        ingest.run(body).await?;
        ingest.sealed().await
    }

    /// Why no more of an upload is taken.
    async fn known_failed(&self, id: KnownId, feed: &Feed) -> ApiError {
        self.known.forget(id);
        match feed.coming.clone().whole().await {
            Ok(_) => ApiError::Conflict("the blob is here already".into()),
            Err(error) => refused(error),
        }
    }
}

/// Bytes that turned out wrong were the client's.
fn refused(error: ApiError) -> ApiError {
    match error {
        ApiError::Damaged(what) => ApiError::BadRequest(what),
        other => other,
    }
}

/// What comes, with an end when nothing does for too long.
fn portions(came: mpsc::Receiver<Bytes>) -> ByteStream {
    futures::stream::unfold(Some(came), |came| async {
        let mut came = came?;
        match timeout(IDLE, came.recv()).await {
            Ok(bytes) => bytes.map(|bytes| (Ok(bytes), Some(came))),
            Err(_) => {
                let still = io::Error::new(io::ErrorKind::TimedOut, "the upload stands still");
                Some((Err(still), None))
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_what_they_are_of_and_fit_into_a_path() {
        let id = KnownId::new(Digest::of(b"blob"), u64::MAX);
        let text = id.to_string();
        assert!(text.len() <= 128, "{text}");
        assert_eq!(text.parse(), Ok(id));
        let plain = "019ab6c4-5d3e-7c11-9d3b-6f2f4f0c9a11";
        for other in [plain, "", "a-b-c", &text.to_uppercase(), &text[1..]] {
            assert_eq!(other.parse::<KnownId>(), Err(()), "{other}");
        }
        let zeros = text.replace("-184", "-0184");
        assert_eq!(zeros.parse::<KnownId>(), Err(()));
    }
}
