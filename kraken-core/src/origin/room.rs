//! Room for what comes in: what has its place in the backend, or with other origins that bring it
//! there, and was not used for the longest time goes.

use std::collections::HashSet;
use std::collections::hash_map::Entry;

use kraken_proto::Digest;
use kraken_storage::StoreError;
use tokio::sync::{oneshot, watch};

use super::Inner;
use super::coming::{Coming, Said};
use crate::agent::driver::Note;

impl Inner {
    /// Does what needs `bytes` in the store, after blobs have gone if there is no room for it.
    ///
    /// # Errors
    /// Of `attempt`: [`StoreError::Full`] when nothing more may go.
    pub(super) async fn with_room<T, F>(
        &self,
        bytes: u64,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        match attempt().await {
            Err(StoreError::Full) => {}
            done => return done,
        }
        // One at a time: two who need room would each remove it all.
        let _turn = self.room.lock().await;
        let mut spared = HashSet::new();
        loop {
            match attempt().await {
                Err(StoreError::Full) => {}
                done => return done,
            }
            let victims = self.store.victims(bytes, &spared).await?;
            // Looked at behind the victims: a blob's task is in the queue before the blob is in the
            // store, so that none of them can be missed.
            let needed = self.unfinished_blobs().await?;
            for victim in victims {
                if needed.contains(&victim) || !self.evict(victim).await? {
                    spared.insert(victim);
                }
            }
            // The next round does not meet them again.
            spared.extend(needed);
        }
    }

    /// Removes a blob that does not come in at this moment; false when it does.
    async fn evict(&self, digest: Digest) -> Result<bool, StoreError> {
        let Some(_leaving) = Leaving::begin(self, digest) else {
            return Ok(false);
        };
        if !self.leave_unread(digest).await {
            return Ok(false);
        }
        self.store.remove(digest).await?;
        self.metrics.evicted();
        tracing::debug!(%digest, "evicted");
        // A peer may have asked for it in between, and found it in the store.
        self.leave_unread(digest).await;
        Ok(true)
    }

    async fn leave_unread(&self, digest: Digest) -> bool {
        let (reply, answer) = oneshot::channel();
        let note = Note::LeaveUnread { digest, reply };
        self.notes.send(note).await.is_ok() && answer.await.unwrap_or(false)
    }
}

/// A blob that is being removed: while this lives nobody takes it in. Whoever wants to is told to ask
/// again.
struct Leaving<'a> {
    inner: &'a Inner,
    digest: Digest,
    _said: watch::Sender<Said>,
}

impl<'a> Leaving<'a> {
    /// `None` when the blob comes in at this moment.
    fn begin(inner: &'a Inner, digest: Digest) -> Option<Self> {
        let mut fetching = inner.fetching();
        let Entry::Vacant(entry) = fetching.entry(digest) else {
            return None;
        };
        let (said, coming) = Coming::begin();
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
