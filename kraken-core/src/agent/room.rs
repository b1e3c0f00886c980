//! Room for a new blob: what nobody reads and was not used for the longest time goes.

use std::collections::HashSet;

use kraken_proto::{Bitfield, Digest, MetaInfo};
use kraken_storage::StoreError;
use tokio::sync::oneshot;

use super::Agent;
use super::driver::Note;
use crate::error::OpenError;

impl Agent {
    /// Opens a blob in the store, after others have gone if there is no room for it.
    pub(super) async fn open_in_store(&self, meta: &MetaInfo) -> Result<Bitfield, OpenError> {
        let store = &self.inner.store;
        match store.open(meta.clone()).await {
            Err(StoreError::Full) => {}
            opened => return Ok(opened?),
        }
        // One at a time: two who need room would each remove it all.
        let _turn = self.inner.room.lock().await;
        let mut spared = HashSet::from([meta.digest()]);
        loop {
            match store.open(meta.clone()).await {
                Err(StoreError::Full) => {}
                opened => return Ok(opened?),
            }
            for victim in store.victims(meta.length(), &spared).await? {
                if !self.evict(victim).await? {
                    spared.insert(victim);
                }
            }
        }
    }

    /// Removes a blob that nobody reads; false when somebody does.
    async fn evict(&self, digest: Digest) -> Result<bool, OpenError> {
        let _leaves = self.inner.leaving.write().await;
        if !self.leave_unread(digest).await? {
            return Ok(false);
        }
        self.inner.store.remove(digest).await?;
        self.inner.metrics.evicted();
        tracing::debug!(%digest, "evicted");
        // A peer may have asked for it in between, and found it in the store.
        self.leave_unread(digest).await?;
        Ok(true)
    }

    async fn leave_unread(&self, digest: Digest) -> Result<bool, OpenError> {
        let (reply, answer) = oneshot::channel();
        let note = Note::LeaveUnread { digest, reply };
        let sent = self.inner.notes.send(note).await;
        sent.map_err(|_| OpenError::Stopped)?;
        answer.await.map_err(|_| OpenError::Stopped)
    }
}
