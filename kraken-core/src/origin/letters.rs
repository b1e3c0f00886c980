//! The tasks of an origin as a person sees them, and what may be done with those that are given up.

use std::time::Duration;

use kraken_storage::queue::{DurableQueue, QueueError, Task};

use super::Origin;
use crate::clock::unix_ms;

/// How long a task is tried unless it is said.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

impl Origin {
    /// Up to `max` tasks that wait or are under way, the first due first.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub async fn waiting_tasks(&self, max: usize) -> Result<Vec<Task>, QueueError> {
        self.inner
            .on_queue(move |queue| queue.page(None, max))
            .await
    }

    /// Up to `max` dead letters by their ids, from the one after `after` on: tasks that were in vain
    /// for too long. Their blobs stay.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub async fn dead_tasks(
        &self,
        after: Option<u64>,
        max: usize,
    ) -> Result<Vec<Task>, QueueError> {
        self.inner
            .on_queue(move |queue| queue.dead(after, max))
            .await
    }

    /// How many tasks wait or are under way, and how many are dead letters.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub async fn task_counts(&self) -> Result<(u64, u64), QueueError> {
        self.inner
            .on_queue(|queue| Ok((queue.len()?, queue.dead_len()?)))
            .await
    }

    /// For how long the oldest of the tasks that wait or are under way has been due; `None` when there
    /// is none.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub async fn oldest_task(&self) -> Result<Option<Duration>, QueueError> {
        let born = self.inner.on_queue(DurableQueue::first_born).await?;
        Ok(born.map(|born| Duration::from_millis(unix_ms().saturating_sub(born))))
    }

    /// Tries a dead letter again, from now on, and says whether there was one.
    ///
    /// # Errors
    /// The queue cannot be written.
    pub async fn revive_task(&self, id: u64) -> Result<bool, QueueError> {
        let revive =
            move |queue: &DurableQueue| Ok((queue.revive(id, unix_ms())?, queue.dead_len()?));
        let (revived, dead) = self.inner.on_queue(revive).await?;
        self.inner.counts.dead(dead);
        self.inner.queued.notify_one();
        Ok(revived)
    }

    /// Gives a dead letter up for good, and says whether there was one. Its blob may then be evicted
    /// without ever having been in the backend.
    ///
    /// # Errors
    /// The queue cannot be written.
    pub async fn drop_task(&self, id: u64) -> Result<bool, QueueError> {
        let give_up = move |queue: &DurableQueue| Ok((queue.drop_dead(id)?, queue.dead_len()?));
        let (dropped, dead) = self.inner.on_queue(give_up).await?;
        self.inner.counts.dead(dead);
        Ok(dropped)
    }
}
