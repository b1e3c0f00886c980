//! Blobs that nobody refers to go, while others are pushed: see [`kraken_proto::garbage`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_net::http::ApiError;
use kraken_net::origin::{GarbageAsked, GarbagePage, GarbageStep, MOST};
use kraken_proto::Digest;
use kraken_proto::garbage::Garbage;
use kraken_storage::{Backend as _, BackendError};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Inner;
use super::ingest::store_error;
use super::room::Leaving;
use crate::clock::Clock;

/// How long a storage may take to remove one blob: well within the time for which it is condemned.
const DELETE: Duration = Duration::from_secs(20);

/// What this origin was asked about, and what is about to go.
pub(super) struct Condemned {
    clock: Clock,
    garbage: Mutex<Garbage>,
    /// How many commits of each blob are under way.
    commits: Mutex<BTreeMap<Digest, usize>>,
    freed: Notify,
}

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

impl Default for Condemned {
    fn default() -> Self {
        let clock = Clock::start();
        Self {
            garbage: Mutex::new(Garbage::new(clock.now())),
            clock,
            commits: Mutex::default(),
            freed: Notify::new(),
        }
    }
}

impl Condemned {
    fn lock(&self) -> MutexGuard<'_, Garbage> {
        self.garbage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commits(&self) -> MutexGuard<'_, BTreeMap<Digest, usize>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody asks about a blob: false when it counts as not there, as it is about to go.
    pub(super) fn ask(&self, digest: Digest) -> bool {
        self.lock().ask(self.clock.now(), digest)
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
            let until = self.lock().free_at(digest);
            let until = until.map(|at| self.clock.instant(at));
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
        let now = self.condemned.clock.now();
        match step {
            GarbageStep::Condemn { grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                let mut garbage = self.condemned.lock();
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
                self.condemned.lock().release(token);
                self.condemned.freed.notify_waiters();
                Ok(digests)
            }
        }
    }

    /// Whether a blob is condemned under this name, and for long enough to be removed now.
    fn is_doomed(&self, token: u64, digest: Digest) -> bool {
        let now = self.condemned.clock.now();
        let doomed = self.condemned.lock().doomed(now, token, vec![digest]);
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
