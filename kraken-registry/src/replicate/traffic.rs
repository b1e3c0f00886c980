//! What goes to one remote: how fast, whether at all, and how much it was.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kraken_proto::Timestamp;
use kraken_proto::limits::bucket::Bucket;
use kraken_proto::tags::hours::Allowed;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::SendError;

/// Blobs that one build-index sends to a remote at once.
const BLOBS: usize = 8;

/// The bytes that go to one remote.
pub(super) struct Traffic {
    pace: Mutex<Pace>,
    began: Instant,
    /// Nothing may go, not even the rest of a blob; until it is known what may.
    is_held: AtomicBool,
    /// Nothing goes any more, ever.
    is_closed: AtomicBool,
    turns: Semaphore,
    pub(super) sent_blobs: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
}

/// Lets bytes go at a rate, a second's worth at once; all without one.
#[derive(Default)]
struct Pace {
    rate: Option<NonZeroU64>,
    bucket: Option<Bucket>,
}

impl Traffic {
    /// Nothing may go until [`Traffic::allow`] says what.
    pub(super) fn new() -> Self {
        Self {
            pace: Mutex::default(),
            began: Instant::now(),
            is_held: AtomicBool::new(true),
            is_closed: AtomicBool::new(false),
            turns: Semaphore::new(BLOBS),
            sent_blobs: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    /// From now on so much may go. Whether it was nothing before, and is something now.
    pub(super) fn allow(&self, allowed: Allowed) -> bool {
        if let Allowed::Rate(rate) = allowed {
            let mut pace = self.pace();
            if pace.rate != rate {
                let bucket = rate.map(|rate| Bucket::new(rate, rate.get()));
                *pace = Pace { rate, bucket };
            }
        }
        let is_held = allowed == Allowed::Nothing;
        let was_held = self.is_held.swap(is_held, Ordering::Relaxed);
        was_held && !is_held
    }

    /// The blobs that went, and their bytes.
    pub(super) fn sent(&self) -> (u64, u64) {
        let blobs = self.sent_blobs.load(Ordering::Relaxed);
        (blobs, self.sent_bytes.load(Ordering::Relaxed))
    }

    /// Nothing goes any more, whatever is allowed.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Whether something may go.
    pub(super) fn check(&self) -> Result<(), SendError> {
        match self.is_held.load(Ordering::Relaxed) || self.is_closed.load(Ordering::Relaxed) {
            true => Err(SendError::Held),
            false => Ok(()),
        }
    }

    /// Waits until one more blob may be on its way.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, SendError> {
        let closed = |_| SendError::Failed("the build-index stops".into());
        let turn = self.turns.acquire().await.map_err(closed)?;
        self.check().map(|()| turn)
    }

    /// Waits until so many more bytes may go, and counts them.
    pub(super) async fn pass(&self, bytes: u64) -> Result<(), SendError> {
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let now = Timestamp::from_nanos(nanos);
        let may = self
            .pace()
            .bucket
            .as_mut()
            .and_then(|it| it.take(now, bytes));
        if let Some(may) = may {
            tokio::time::sleep(may.since(now)).await;
        }
        self.check()?;
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
