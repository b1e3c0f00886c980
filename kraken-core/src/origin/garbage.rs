//! Blobs that nobody refers to go, while others are pushed: see [`kraken_proto::garbage`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_net::http::ApiError;
use kraken_net::origin::{GarbageAsked, GarbagePage, GarbageStep, MOST};
use kraken_proto::Digest;
use kraken_proto::garbage::Garbage;
use kraken_storage::{Backend as _, BackendError};
use tokio::sync::Notify;

use super::Inner;
use super::ingest::store_error;
use crate::clock::Clock;

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
                Ok(garbage.condemn(now, (token, grace), quiet))
            }
            GarbageStep::Remove => {
                let doomed = self.condemned.lock().doomed(now, token, digests);
                for digest in &doomed {
                    self.store.remove(*digest).await.map_err(store_error)?;
                    // Whoever pushes it again has tasks of its own, which are due at once.
                    self.forget_tasks(*digest).await?;
                    // Nobody brings it back.
                    self.let_go.note(*digest);
                    self.leave(*digest).await;
                }
                Ok(doomed)
            }
            GarbageStep::RemoveStored { namespace } => {
                let doomed = self.condemned.lock().doomed(now, token, digests);
                for digest in &doomed {
                    let removed = self.backend.delete(&namespace, *digest).await;
                    removed.map_err(|error| ApiError::Unavailable(error.to_string()))?;
                }
                Ok(doomed)
            }
            GarbageStep::Release => {
                self.condemned.lock().release(token);
                self.condemned.freed.notify_waiters();
                Ok(digests)
            }
        }
    }

    /// Those of some blobs that are not on their way in. What is on its way to the backend or another
    /// owner may go: comes it there all the same, it is garbage the next time.
    fn idle(&self, mut digests: Vec<Digest>) -> Vec<Digest> {
        let (fetching, commits) = (self.fetching(), self.condemned.commits());
        digests.retain(|it| !fetching.contains_key(it) && !commits.contains_key(it));
        digests
    }

    /// A page of what is here, or in a storage.
    pub(super) async fn garbage_page(&self, asked: GarbagePage) -> Result<Vec<Digest>, ApiError> {
        let Some(namespace) = asked.namespace else {
            let all = self.store.list().await.map_err(store_error)?;
            let behind = asked
                .after
                .map_or(0, |after| all.partition_point(|it| *it <= after));
            return Ok(all.into_iter().skip(behind).take(MOST).collect());
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
