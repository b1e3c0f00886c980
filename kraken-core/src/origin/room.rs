//! Room for what comes in: what has its place in the backend, or with other origins that bring it
//! there, goes in the store's order. Where no backend keeps anything, nothing goes.

use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kraken_net::http::ApiError;
use kraken_proto::Digest;
use kraken_storage::{Backend as _, Goal, Need, StoreError};
use tokio::sync::{oneshot, watch};

use super::coming::{Coming, Said};
use super::ingest::store_error;
use super::{Inner, Origin};
use crate::agent::driver::Note;
use crate::dynamic::DynStore;
use crate::sweep::{self, Keeper, Swept};

/// How long uploads begin elsewhere after one found no room here: its bytes would be sent in vain.
const REFUSED: Duration = Duration::from_secs(5);

impl Origin {
    /// Removes blobs until `goal` is reached. What is not in the backend yet, what another owner
    /// lacks, and what comes in stay.
    ///
    /// # Errors
    /// The store or the queue cannot be read.
    pub async fn sweep(&self, goal: Goal) -> Result<Swept, StoreError> {
        sweep::sweep(&*self.inner, goal).await
    }

    /// What [`Origin::sweep`] would remove.
    ///
    /// # Errors
    /// The store or the queue cannot be read.
    pub async fn rehearse_sweep(&self, goal: Goal) -> Result<Swept, StoreError> {
        sweep::rehearse(&*self.inner, goal).await
    }
}

impl Inner {
    /// Does what needs room in the store, after blobs have gone if there is none.
    ///
    /// # Errors
    /// Of `attempt`: [`StoreError::Full`] when nothing more may go.
    pub(super) async fn with_room<T, F>(
        &self,
        need: Need<'_>,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        sweep::with_room(self, need, None, attempt).await
    }

    /// Something that came was refused for want of room.
    pub(super) fn refused_for_room(&self) {
        *self.refused() = Some(Instant::now());
    }

    /// Whether an upload may begin here: a commit can be acknowledged, and nothing was refused a moment ago.
    pub(super) fn check_uploads(&self) -> Result<(), ApiError> {
        self.members.check_quorum()?;
        let refused = *self.refused();
        match refused.is_some_and(|at| at.elapsed() < REFUSED) {
            true => Err(store_error(StoreError::Full)),
            false => Ok(()),
        }
    }

    fn refused(&self) -> MutexGuard<'_, Option<Instant>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn leave_unread(&self, digest: Digest) -> bool {
        let (reply, answer) = oneshot::channel();
        let note = Note::LeaveUnread { digest, reply };
        self.notes.send(note).await.is_ok() && answer.await.unwrap_or(false)
    }
}

impl Keeper for Inner {
    fn store(&self) -> &dyn DynStore {
        &*self.store
    }

    async fn needed(&self, blobs: &[Digest]) -> Result<HashSet<Digest>, StoreError> {
        if !self.backend.keeps() {
            // The origins' disks are the storage. What other owners hold instead goes by `let_strays_go` alone.
            return Ok(blobs.iter().copied().collect());
        }
        self.unfinished(blobs.to_vec()).await
    }

    /// Removes a blob that does not come in at this moment.
    async fn evict(&self, digest: Digest) -> Result<bool, StoreError> {
        let Some(_leaving) = Leaving::begin(self, digest) else {
            return Ok(false);
        };
        // Looked at again, now that a commit waits until it has gone: see `Inner::stays`.
        let is_pinned = self.store.kept(digest).is_some_and(|kept| kept.is_pinned);
        if is_pinned || !self.unfinished(vec![digest]).await?.is_empty() {
            return Ok(false);
        }
        if !self.leave_unread(digest).await {
            return Ok(false);
        }
        self.store.remove(digest).await?;
        self.metrics.evicted();
        self.let_go.note(digest);
        tracing::debug!(%digest, "evicted");
        // A peer may have asked for it in between, and found it in the store.
        self.leave_unread(digest).await;
        Ok(true)
    }

    fn turn(&self) -> &tokio::sync::Mutex<()> {
        &self.room
    }
}

/// A blob that is being removed: while this lives nobody takes it in. Whoever wants to is told to ask
/// again.
pub(super) struct Leaving<'a> {
    inner: &'a Inner,
    digest: Digest,
    _said: watch::Sender<Said>,
}

impl<'a> Leaving<'a> {
    /// `None` when the blob comes in at this moment.
    pub(super) fn begin(inner: &'a Inner, digest: Digest) -> Option<Self> {
        let mut fetching = inner.fetching();
        let Entry::Vacant(entry) = fetching.entry(digest) else {
            return None;
        };
        let (said, coming) = Coming::goes();
        entry.insert(coming);
        Some(Self {
            inner,
            digest,
            _said: said,
        })
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.inner.fetching().remove(&self.digest);
    }
}
