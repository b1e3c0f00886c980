//! Blobs that nobody refers to go, while others are pushed: see [`kraken_proto::garbage`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_net::http::ApiError;
use kraken_net::origin::{GarbageAsked, GarbagePage, GarbageStep, MOST};
use kraken_proto::garbage::Garbage;
use kraken_proto::{Digest, Timestamp};
use kraken_storage::{Backend as _, BackendError};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Inner;
use super::asked::AskedFile;
use super::ingest::store_error;
use super::room::Leaving;
use crate::clock::Clock;

/// How long a storage may take to remove one blob: well within the time for which it is condemned.
const DELETE: Duration = Duration::from_secs(20);

/// What this origin was asked about, and what is about to go.
pub(super) struct Condemned {
    clock: Clock,
    memory: Mutex<Memory>,
    /// How many commits of each blob are under way.
    commits: Mutex<BTreeMap<Digest, usize>>,
    freed: Notify,
}

/// What was asked, and where that is kept over a restart.
struct Memory {
    garbage: Garbage,
    file: Option<AskedFile>,
}

/// Where the clock starts: what happened in an earlier life of this origin was before that, and counts for
/// no longer.
const BEFORE: Duration = Garbage::MAX_GRACE;

/// A commit that is under way.
pub(super) struct Committing {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Drop for Committing {
    fn drop(&mut self) {
        let mut commits = self.inner.condemned.commits();
        if let Entry::Occupied(mut count) = commits.entry(self.digest) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Condemned {
    /// Keeps what is asked in a file, if there is one, and knows what stands there.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let clock = Clock::start();
        let now = clock.now() + BEFORE;
        let mut garbage = Garbage::new(now);
        let mut file = path.and_then(AskedFile::new);
        if let Some(file) = &mut file {
            if let Some(known) = file.load() {
                let noted = known.asked.into_iter();
                let noted = noted.map(|(digest, ago)| (digest, now - ago));
                garbage = Garbage::resume(now, now - known.complete_for, noted);
            }
            file.write_anew(now, &garbage);
        }
        Self {
            clock,
            memory: Mutex::new(Memory { garbage, file }),
            commits: Mutex::default(),
            freed: Notify::new(),
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now() + BEFORE
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commits(&self) -> MutexGuard<'_, BTreeMap<Digest, usize>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody asks about a blob: false when it counts as not there, as it is about to go.
    pub(super) fn ask(&self, digest: Digest) -> bool {
        let now = self.now();
        let Memory { garbage, file } = &mut *self.lock();
        let since = garbage.since();
        let is_free = garbage.ask(now, digest);
        if let Some(file) = file.as_mut().filter(|_| is_free) {
            if garbage.since() != since {
                file.write_anew(now, garbage);
            } else if garbage.is_news(now, digest) {
                // Before the answer goes out; 40 bytes for the kernel to keep, once a minute.
                file.add(now, garbage, digest);
            }
        }
        is_free
    }

    /// The same for whoever reads it.
    ///
    /// # Errors
    /// [`ApiError::NotFound`].
    pub(super) fn check(&self, digest: Digest) -> Result<(), ApiError> {
        self.ask(digest).then_some(()).ok_or(ApiError::NotFound)
    }

    /// The same for whoever brings the blob, and waits until an earlier one has gone.
    pub(super) async fn wait(&self, digest: Digest) {
        loop {
            let freed = self.freed.notified();
            if self.ask(digest) {
                return;
            }
            let until = self.lock().garbage.free_at(digest);
            let until = until.map(|at| self.clock.instant(at - BEFORE));
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(until.unwrap_or_else(tokio::time::Instant::now)) => {}
            }
        }
    }
}

impl Inner {
    /// A blob is being committed, once an earlier one of its name has gone: until this is dropped it is no
    /// garbage.
    pub(super) async fn committing(self: &Arc<Self>, digest: Digest) -> Committing {
        *self.condemned.commits().entry(digest).or_default() += 1;
        let committing = Committing {
            inner: self.clone(),
            digest,
        };
        self.condemned.wait(digest).await;
        // It is held here from now on, whatever it was before.
        self.let_go.forget(digest);
        committing
    }

    /// One step of a collector's.
    pub(super) async fn garbage(&self, asked: GarbageAsked) -> Result<Vec<Digest>, ApiError> {
        let GarbageAsked {
            token,
            step,
            digests,
        } = asked;
        let now = self.condemned.now();
        match step {
            GarbageStep::Condemn { grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                let garbage = &mut self.condemned.lock().garbage;
                // Whoever commits counts itself before it waits.
                let quiet = self.idle(digests);
                let condemned = garbage.condemn(now, (token, grace), quiet);
                condemned.map_err(|young| ApiError::Conflict(young.to_string()))
            }
            GarbageStep::Remove => {
                let mut removed = Vec::new();
                for digest in digests {
                    if self.is_doomed(token, digest) && self.remove_garbage(digest).await? {
                        removed.push(digest);
                    }
                }
                Ok(removed)
            }
            GarbageStep::RemoveStored { namespace } => {
                let mut removed = Vec::new();
                for digest in digests {
                    if !self.is_doomed(token, digest) {
                        continue;
                    }
                    let deleting = timeout(DELETE, self.backend.delete(&namespace, digest)).await;
                    let late = |_| ApiError::Unavailable("the storage takes too long".into());
                    let deleted = deleting.map_err(late)?;
                    deleted.map_err(|error| ApiError::Unavailable(error.to_string()))?;
                    removed.push(digest);
                }
                Ok(removed)
            }
            GarbageStep::Release => {
                self.condemned.lock().garbage.release(token);
                self.condemned.freed.notify_waiters();
                Ok(digests)
            }
        }
    }

    /// Whether a blob is condemned under this name, and for long enough to be removed now.
    fn is_doomed(&self, token: u64, digest: Digest) -> bool {
        let now = self.condemned.now();
        let memory = self.condemned.lock();
        let doomed = memory.garbage.doomed(now, token, vec![digest]);
        !doomed.is_empty()
    }

    /// Removes a blob that does not come in at this moment, and what was to be done with it: whoever
    /// pushes it again waits until it has gone, and queues what is to be done then.
    async fn remove_garbage(&self, digest: Digest) -> Result<bool, ApiError> {
        let Some(_leaving) = Leaving::begin(self, digest) else {
            return Ok(false);
        };
        self.store.remove(digest).await.map_err(store_error)?;
        self.forget_tasks(digest).await?;
        self.let_go.forget(digest);
        self.leave(digest).await;
        Ok(true)
    }

    /// Those of some blobs that are not on their way in, nor pinned. What is on its way to the backend or another
    /// owner may go: comes it there all the same, it is garbage the next time.
    fn idle(&self, mut digests: Vec<Digest>) -> Vec<Digest> {
        let (fetching, commits) = (self.fetching(), self.condemned.commits());
        digests.retain(|it| !fetching.contains_key(it) && !commits.contains_key(it));
        let is_pinned = |it: &Digest| self.store.kept(*it).is_some_and(|kept| kept.is_pinned);
        digests.retain(|it| !is_pinned(it));
        digests
    }

    /// A page of what is here, or in a storage.
    pub(super) async fn garbage_page(&self, asked: GarbagePage) -> Result<Vec<Digest>, ApiError> {
        let Some(namespace) = asked.namespace else {
            let held = self.held().await?;
            let from = asked.after.map_or(Bound::Unbounded, Bound::Excluded);
            let page = held.range((from, Bound::Unbounded)).take(MOST);
            return Ok(page.copied().collect());
        };
        match self.backend.list(&namespace, asked.after, MOST).await {
            Ok(page) => Ok(page),
            Err(BackendError::Unlisted) => Err(ApiError::Conflict(
                "the storage cannot tell what it holds".into(),
            )),
            Err(error) => Err(ApiError::Unavailable(error.to_string())),
        }
    }
}
