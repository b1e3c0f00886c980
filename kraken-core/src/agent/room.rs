//! Room for a new blob: what nobody reads goes, in the store's order.

use std::collections::HashSet;
use std::future::ready;

use kraken_proto::{Bitfield, Digest, MetaInfo};
use kraken_storage::{Goal, Need, StoreError};
use tokio::sync::oneshot;

use super::Agent;
use super::driver::Note;
use crate::dynamic::DynStore;
use crate::error::OpenError;
use crate::sweep::{self, Keeper, Swept};

impl Agent {
    /// Removes blobs until `goal` is reached; what somebody reads stays. Peers that are served go on
    /// elsewhere.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn sweep(&self, goal: Goal) -> Result<Swept, StoreError> {
        sweep::sweep(self, goal).await
    }

    /// What [`Agent::sweep`] would remove, what is being read among it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn rehearse_sweep(&self, goal: Goal) -> Result<Swept, StoreError> {
        sweep::rehearse(self, goal).await
    }

    /// Opens a blob in the store, after others have gone if there is no room for it.
    pub(super) async fn open_in_store(&self, meta: &MetaInfo) -> Result<Bitfield, OpenError> {
        let open = || self.inner.store.open(meta.clone());
        let (need, stays) = (Need::blob(meta.length()), Some(meta.digest()));
        sweep::with_room(self, need, stays, open).await
    }

    async fn leave_unread(&self, digest: Digest) -> bool {
        let (reply, answer) = oneshot::channel();
        let note = Note::LeaveUnread { digest, reply };
        // An agent that stops removes nothing.
        if self.inner.notes.send(note).await.is_err() {
            return false;
        }
        answer.await.unwrap_or(false)
    }
}

impl Keeper for Agent {
    fn store(&self) -> &dyn DynStore {
        &*self.inner.store
    }

    fn needed(
        &self,
        _: &[Digest],
    ) -> impl Future<Output = Result<HashSet<Digest>, StoreError>> + Send {
        ready(Ok(HashSet::new()))
    }

    async fn evict(&self, digest: Digest) -> Result<bool, StoreError> {
        let _leaves = self.inner.leaving.write().await;
        // Since the list was made.
        if self
            .inner
            .store
            .kept(digest)
            .is_some_and(|kept| kept.is_pinned)
        {
            return Ok(false);
        }
        if !self.leave_unread(digest).await {
            return Ok(false);
        }
        self.inner.store.remove(digest).await?;
        self.inner.metrics.evicted();
        tracing::debug!(%digest, "evicted");
        // A peer may have asked for it in between, and found it in the store.
        self.leave_unread(digest).await;
        Ok(true)
    }

    fn turn(&self) -> &tokio::sync::Mutex<()> {
        &self.inner.room
    }
}
