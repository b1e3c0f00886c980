//! A blob's bytes, in order, while the swarm runs.

use std::fs::File;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use kraken_proto::{Digest, MetaInfo, ReaderId};
use kraken_storage::StoreError;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::driver::{Note, Progress};
use crate::dynamic::DynStore;
use crate::error::ReadError;

/// A blob that is here or on its way. Reads verified bytes in order: as an
/// [`AsyncRead`](tokio::io::AsyncRead) of the whole blob, or as a stream of any range. Needs a tokio
/// runtime; dropping it loses nothing, see [`Agent::open_in`](crate::Agent::open_in).
///
/// How far it is can be looked at while it comes:
///
/// ```no_run
/// # async fn example(blob: kraken_core::BlobReader) -> Result<(), kraken_core::ReadError> {
/// let mut seconds = tokio::time::interval(std::time::Duration::from_secs(1));
/// let mut whole = std::pin::pin!(blob.complete());
/// loop {
///     tokio::select! {
///         done = &mut whole => break done?,
///         _ = seconds.tick() => {
///             let (here, all) = blob.pieces();
///             println!("{here} of {all} pieces, {} bytes in all", blob.length());
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct BlobReader {
    shared: Shared,
    /// The whole blob, once it is read from. In a mutex only so that a reader can be shared.
    whole: Mutex<Option<BoxStream<'static, Result<Bytes, ReadError>>>>,
    rest: Bytes,
}

#[derive(Clone)]
struct Shared {
    meta: MetaInfo,
    store: Arc<dyn DynStore>,
    progress: watch::Receiver<Progress>,
    notes: mpsc::Sender<Note>,
    patience: Duration,
    /// It was said that nothing comes: where each piece takes long, that is no news.
    is_said: bool,
}

/// How long no piece comes before the log says so.
const QUIET: Duration = Duration::from_secs(15);

/// The most bytes in one chunk of a stream.
const CHUNK: u64 = 256 << 10;

static NEXT_READER: AtomicU64 = AtomicU64::new(0);

impl BlobReader {
    pub(super) fn new(
        meta: MetaInfo,
        store: Arc<dyn DynStore>,
        progress: watch::Receiver<Progress>,
        notes: mpsc::Sender<Note>,
        patience: Duration,
    ) -> Self {
        let shared = Shared {
            meta,
            store,
            progress,
            notes,
            patience,
            is_said: false,
        };
        Self {
            shared,
            whole: Mutex::new(None),
            rest: Bytes::new(),
        }
    }

    /// The blob's name.
    pub fn digest(&self) -> Digest {
        self.shared.meta.digest()
    }

    /// The blob's length in bytes.
    pub fn length(&self) -> u64 {
        self.shared.meta.length()
    }

    /// The pieces that are here and the pieces that there are.
    pub fn pieces(&self) -> (u32, u32) {
        let progress = self.shared.progress.borrow();
        (progress.have.count(), progress.have.len())
    }

    /// The bytes `range`, cut off at the blob's end, in chunks of at most 256 KiB. Chunks come as
    /// soon as their piece is verified; the pieces that the range needs next are asked for first.
    pub fn stream(
        &self,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + 'static {
        let end = range.end.min(self.length());
        let id = ReaderId(NEXT_READER.fetch_add(1, Ordering::Relaxed));
        let digest = self.digest();
        let cursor = Cursor {
            want: Want {
                digest,
                id,
                notes: self.shared.notes.clone(),
                piece: None,
            },
            shared: self.shared.clone(),
            range: range.start.min(end)..end,
            whole: false,
        };
        futures::stream::try_unfold(cursor, |mut cursor| async move {
            Ok(cursor.next().await?.map(|chunk| (chunk, cursor)))
        })
    }

    /// Whether what is here may be read: false once the blob was removed, evicted or found damaged.
    pub fn is_usable(&self) -> bool {
        self.shared.progress.borrow().failed.is_none()
    }

    /// The file that the blob is in, when it is here whole and the store keeps it in one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn file(&self) -> Result<Option<Arc<File>>, ReadError> {
        if !self.shared.progress.borrow().sealed {
            return Ok(None);
        }
        let file = self.shared.store.file(self.digest()).await;
        file.map_err(|error| self.shared.reason(error))
    }

    /// Waits until every piece is here and durable: in vain, when only parts of it are fetched.
    ///
    /// # Errors
    /// [`ReadError`]; the pieces that came are kept.
    pub async fn complete(&self) -> Result<(), ReadError> {
        let mut shared = self.shared.clone();
        loop {
            if shared.settled(|progress| progress.sealed)? {
                return Ok(());
            }
            shared.changed().await?;
        }
    }
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader")
            .field("meta", &self.shared.meta)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.rest.is_empty() {
            let begun = self
                .whole
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let mut whole = begun.unwrap_or_else(|| self.stream(0..u64::MAX).boxed());
            let polled = whole.poll_next_unpin(cx);
            *self.whole.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(whole);
            match std::task::ready!(polled) {
                Some(Ok(chunk)) => self.rest = chunk,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let take = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl Shared {
    /// Whether the blob has come as far as `enough` asks; an error when it never will.
    fn settled(&self, enough: impl Fn(&Progress) -> bool) -> Result<bool, ReadError> {
        let progress = self.progress.borrow();
        match &progress.failed {
            _ if enough(&progress) => Ok(true),
            Some(error) => Err(error.clone()),
            None => Ok(false),
        }
    }

    /// Why the store could not be read: because the blob was given up, if it was.
    fn reason(&self, error: StoreError) -> ReadError {
        let failed = self.progress.borrow().failed.clone();
        failed.unwrap_or_else(|| error.into())
    }

    async fn changed(&mut self) -> Result<(), ReadError> {
        let end = Instant::now() + self.patience;
        let quiet = self.patience.min(QUIET);
        let changed = match timeout(quiet, self.progress.changed()).await {
            Ok(changed) => Ok(changed),
            Err(_) => {
                self.say_that_nothing_comes();
                timeout_at(end, self.progress.changed()).await
            }
        };
        match changed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) => Err(ReadError::Stalled {
                digest: self.meta.digest(),
                seconds: self.patience.as_secs(),
            }),
        }
    }

    fn say_that_nothing_comes(&mut self) {
        if std::mem::replace(&mut self.is_said, true) {
            return;
        }
        let (digest, pieces) = (self.meta.digest(), self.meta.piece_count());
        let have = self.progress.borrow().have.count();
        tracing::warn!(
            %digest,
            have,
            pieces,
            seconds = QUIET.as_secs(),
            "somebody waits for a blob of which no piece comes: can its origins and other agents be reached from here?"
        );
    }
}

/// Where a stream is.
struct Cursor {
    shared: Shared,
    range: Range<u64>,
    want: Want,
    /// The blob was seen whole: there is nothing more to wait for, nor to tell the driver.
    whole: bool,
}

impl Cursor {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let Range { start, end } = self.range;
        if start >= end {
            return Ok(None);
        }
        let here = self.arrived().await?;
        // Chunks end at multiples of their size, so that all but the first begin at a page.
        let stop = here.min(end).min((start / CHUNK + 1) * CHUNK);
        let len = u32::try_from(stop - start).expect("at most CHUNK");
        let digest = self.shared.meta.digest();
        let read = self.shared.store.read(digest, start, len).await;
        let chunk = read.map_err(|error| self.shared.reason(error))?;
        if chunk.is_empty() {
            let what = "it gives no bytes for a piece that it has".to_string();
            return Err(StoreError::Damaged { digest, what }.into());
        }
        self.range.start += chunk.len() as u64;
        Ok(Some(chunk))
    }

    /// Waits for the piece that the range begins in, and says where the bytes end that are here.
    async fn arrived(&mut self) -> Result<u64, ReadError> {
        self.whole = self.whole || self.shared.progress.borrow().sealed;
        if self.whole {
            return Ok(self.range.end);
        }
        let pieces = self.shared.meta.pieces_of(self.range.clone());
        let piece = pieces.start;
        self.want.moved(pieces, &self.range).await;
        let is_proved = |progress: &Progress| progress.is_proved(piece);
        while !self.shared.settled(is_proved)? {
            self.shared.changed().await?;
        }
        Ok(self.shared.meta.piece_range(piece).end)
    }
}

/// Tells the driver what a stream waits for, and that it no longer does.
struct Want {
    digest: Digest,
    id: ReaderId,
    notes: mpsc::Sender<Note>,
    piece: Option<u32>,
}

impl Want {
    /// The stream waits for the first of these pieces, for the bytes `range`.
    async fn moved(&mut self, pieces: Range<u32>, range: &Range<u64>) {
        let before = self.piece.replace(pieces.start);
        if before == Some(pieces.start) {
            return;
        }
        let (digest, reader) = (self.digest, self.id);
        let note = match before {
            Some(_) => Note::Want {
                digest,
                reader,
                pieces,
            },
            None => Note::Read {
                digest,
                reader,
                bytes: range.clone(),
            },
        };
        // A driver that is gone shows in the progress.
        let _ = self.notes.send(note).await;
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        if self.piece.is_none() {
            return;
        }
        let (digest, reader, pieces) = (self.digest, self.id, 0..0);
        let note = Note::Want {
            digest,
            reader,
            pieces,
        };
        // Dropping cannot wait: when the inbox is full, a task of the runtime does.
        if let Err(mpsc::error::TrySendError::Full(note)) = self.notes.try_send(note)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let notes = self.notes.clone();
            runtime.spawn(async move { drop(notes.send(note).await) });
        }
    }
}
